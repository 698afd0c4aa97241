//! Who holds what: one [`Book`] an agent, and what each framework holds over all of them.
//!
//! # Properties
//! In every book, at every moment, kind by kind:
//! - **Conservation**: `granted + offered + reserve + free == capacity`.
//! - **Exclusive**: no port and no amount is in two holdings at once.
//! - **Facts before wishes**: a grant is a running task. Where an agent reports a larger reserve than fits beside its
//!   grants, the reserve counts only as far as there is room; where it reports a smaller capacity than its grants,
//!   the capacity counts as the grants. Offers are wishes: [`Book::overdrawn`] names those that must be taken back.
//!
//! Memory and ports are one pool for both classes. CPU is two pools: `capacity.cpu_milli` for guaranteed holdings and
//! `revocable_cpu_milli` for revocable ones. Amounts are milli-CPU and bytes. Everything here is called by the core alone.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::v1::{ResourceClass, ResourceReport, Resources};

use crate::{
    allocator::{Bundle, REVOCABLE_CPU, Totals},
    ids::{AgentId, FrameworkId, OfferId, TaskKey},
};

/// One holding: part of an agent, promised to one framework.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Who holds it.
    pub framework: FrameworkId,
    /// Which CPU pool it comes out of.
    pub class: ResourceClass,
    /// How much.
    pub resources: Resources,
}

/// Sums over holdings, with the CPU of revocable ones kept apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    /// CPU of guaranteed holdings; memory and ports of all.
    pub pool: Resources,
    /// CPU of revocable holdings.
    pub revocable_cpu_milli: u64,
}

impl Slice {
    fn of(held: &Held) -> Self {
        match held.class {
            ResourceClass::Revocable => Self {
                pool: Resources { cpu_milli: 0, ..held.resources.clone() },
                revocable_cpu_milli: held.resources.cpu_milli,
            },
            _ => Self { pool: held.resources.clone(), revocable_cpu_milli: 0 },
        }
    }

    /// What a holding of this class can be taken from.
    pub fn of_class(&self, class: ResourceClass) -> Resources {
        match class {
            ResourceClass::Revocable => {
                Resources { cpu_milli: self.revocable_cpu_milli, ..self.pool.clone() }
            }
            _ => self.pool.clone(),
        }
    }

    /// The amounts of every kind.
    pub fn amounts(&self) -> Bundle {
        let mut amounts = Bundle::of(ResourceClass::Guaranteed, &self.pool);
        amounts.0[REVOCABLE_CPU] = self.revocable_cpu_milli;
        amounts
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            pool: self.pool.plus(&other.pool),
            revocable_cpu_milli: self.revocable_cpu_milli.saturating_add(other.revocable_cpu_milli),
        }
    }

    fn minus(&self, other: &Self) -> Self {
        Self {
            pool: self.pool.saturating_sub(&other.pool),
            revocable_cpu_milli: self.revocable_cpu_milli.saturating_sub(other.revocable_cpu_milli),
        }
    }
}

/// The parts of an agent, which add up to its capacity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// Everything the agent has.
    pub capacity: Slice,
    /// Kept for what is not a task.
    pub reserve: Resources,
    /// Held by tasks.
    pub granted: Slice,
    /// Held by offers that wait for an answer.
    pub offered: Slice,
    /// What may be offered.
    pub free: Slice,
}

/// What is held on one agent.
#[derive(Clone, Debug, Default)]
pub struct Book {
    capacity: Resources,
    reserve: Resources,
    revocable_cpu_milli: u64,
    grants: BTreeMap<TaskKey, Held>,
    offers: BTreeMap<OfferId, Held>,
    granted: Slice,
    offered: Slice,
}

impl Book {
    /// The parts, as they are now.
    pub fn parts(&self) -> Parts {
        let committed = self.granted.plus(&self.offered);
        let capacity = Slice {
            pool: self.capacity.at_least(&committed.pool),
            revocable_cpu_milli: self.revocable_cpu_milli.max(committed.revocable_cpu_milli),
        };
        let uncommitted = capacity.minus(&committed);
        let reserve = self.reserve.at_most(&uncommitted.pool);
        let free = Slice {
            pool: uncommitted.pool.saturating_sub(&reserve),
            revocable_cpu_milli: uncommitted.revocable_cpu_milli,
        };
        Parts { capacity, reserve, granted: self.granted.clone(), offered: self.offered.clone(), free }
    }

    /// Offers that no longer fit beside the grants and the reserve, the newest first, as few as it takes.
    ///
    /// `newest_first` lists the agent's offers. One is left alone where giving it back would not free
    /// anything of the kinds that are short.
    pub fn overdrawn<'a>(&self, newest_first: impl Iterator<Item = &'a OfferId>) -> Vec<OfferId> {
        let room = Slice {
            pool: self.capacity.saturating_sub(&self.granted.pool).saturating_sub(&self.reserve),
            revocable_cpu_milli: self.revocable_cpu_milli.saturating_sub(self.granted.revocable_cpu_milli),
        };
        let mut short = self.offered.minus(&room);
        let mut taken_back = Vec::new();
        for id in newest_first {
            let Some(held) = self.offers.get(id) else { continue };
            let slice = Slice::of(held);
            let helps = !slice.pool.at_most(&short.pool).is_empty()
                || slice.revocable_cpu_milli.min(short.revocable_cpu_milli) > 0;
            if helps {
                short = short.minus(&slice);
                taken_back.push(id.clone());
            }
        }
        taken_back
    }

    /// The tasks that hold something here.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskKey> {
        self.grants.keys()
    }

    /// What offers hold, all classes added up.
    pub fn offered_total(&self) -> Resources {
        let cpu_milli = self.offered.pool.cpu_milli.saturating_add(self.offered.revocable_cpu_milli);
        Resources { cpu_milli, ..self.offered.pool.clone() }
    }

    /// Adds the holdings up again, one by one: what `parts` must agree with.
    #[cfg(test)]
    pub(crate) fn recount(&self) -> (Slice, Slice) {
        let sum = |held: &mut dyn Iterator<Item = &Held>| {
            held.fold(Slice::default(), |sum, one| sum.plus(&Slice::of(one)))
        };
        (sum(&mut self.grants.values()), sum(&mut self.offers.values()))
    }

    /// Every holding, grants before offers.
    #[cfg(test)]
    pub(crate) fn holdings(&self) -> impl Iterator<Item = &Held> {
        self.grants.values().chain(self.offers.values())
    }
}

/// Every book, and the sums that fairness needs.
#[derive(Debug, Default)]
pub struct Ledger {
    books: BTreeMap<AgentId, Book>,
    held: BTreeMap<FrameworkId, Totals>,
    changed: Changed,
}

/// Whose books changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Agents that something else is held on, or that have something else.
    pub agents: BTreeSet<AgentId>,
    /// Frameworks that hold something else.
    pub frameworks: BTreeSet<FrameworkId>,
}

impl Ledger {
    /// What is held on this agent; `None` for one that never reported.
    pub fn book(&self, agent: &AgentId) -> Option<&Book> {
        self.books.get(agent)
    }

    /// Every agent's book.
    pub fn books(&self) -> impl Iterator<Item = (&AgentId, &Book)> {
        self.books.iter()
    }

    /// What this framework holds everywhere: grants and offers.
    pub fn held_by(&self, framework: &FrameworkId) -> Totals {
        self.held.get(framework).copied().unwrap_or_default()
    }

    /// Whose books changed since this was last asked.
    pub fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// Takes over what the agent measured; false where nothing is different. Offers may be overdrawn afterwards.
    pub fn report(&mut self, agent: &AgentId, report: &ResourceReport) -> bool {
        let book = self.books.entry(agent.clone()).or_default();
        let capacity = report.capacity.clone().unwrap_or_default();
        let reserve = report.reserve.clone().unwrap_or_default();
        let same = book.capacity == capacity
            && book.reserve == reserve
            && book.revocable_cpu_milli == report.revocable_cpu_milli;
        book.capacity = capacity;
        book.reserve = reserve;
        book.revocable_cpu_milli = report.revocable_cpu_milli;
        if !same {
            self.changed.agents.insert(agent.clone());
        }
        !same
    }

    /// Writes down a task's grant. A port that the agent's book already has with somebody stays with that holder:
    /// only an agent that contradicts itself can ask for that.
    pub fn grant(&mut self, agent: &AgentId, task: TaskKey, mut held: Held) {
        self.release_grant(agent, &task);
        let book = self.books.entry(agent.clone()).or_default();
        let taken = book.granted.plus(&book.offered).pool;
        held.resources.ports =
            held.resources.saturating_sub(&Resources { ports: taken.ports, ..Resources::default() }).ports;
        book.granted = book.granted.plus(&Slice::of(&held));
        let counted = held.clone();
        book.grants.insert(task, held);
        self.remember(agent, &counted);
    }

    /// Gives a task's grant back; nothing happens where it holds none.
    pub fn release_grant(&mut self, agent: &AgentId, task: &TaskKey) {
        let Some(book) = self.books.get_mut(agent) else { return };
        let Some(held) = book.grants.remove(task) else { return };
        book.granted = book.granted.minus(&Slice::of(&held));
        self.forget(agent, &held);
    }

    /// Writes down an offer of what is free.
    pub fn offer(&mut self, agent: &AgentId, offer: OfferId, held: Held) {
        let Some(book) = self.books.get_mut(agent) else { return };
        book.offered = book.offered.plus(&Slice::of(&held));
        let counted = held.clone();
        book.offers.insert(offer, held);
        self.remember(agent, &counted);
    }

    /// Gives an offer back; nothing happens where it is not there.
    pub fn release_offer(&mut self, agent: &AgentId, offer: &OfferId) {
        let Some(book) = self.books.get_mut(agent) else { return };
        let Some(held) = book.offers.remove(offer) else { return };
        book.offered = book.offered.minus(&Slice::of(&held));
        self.forget(agent, &held);
    }

    /// Closes an agent's book with everything in it.
    pub fn remove(&mut self, agent: &AgentId) {
        let Some(book) = self.books.remove(agent) else { return };
        self.changed.agents.insert(agent.clone());
        for held in book.grants.values().chain(book.offers.values()) {
            self.forget(agent, held);
        }
    }

    fn remember(&mut self, agent: &AgentId, held: &Held) {
        self.note_change(agent, held);
        self.held.entry(held.framework.clone()).or_default().add(&Bundle::of(held.class, &held.resources));
    }

    fn note_change(&mut self, agent: &AgentId, held: &Held) {
        self.changed.agents.insert(agent.clone());
        self.changed.frameworks.insert(held.framework.clone());
    }

    fn forget(&mut self, agent: &AgentId, held: &Held) {
        self.note_change(agent, held);
        let Some(totals) = self.held.get_mut(&held.framework) else { return };
        totals.remove(&Bundle::of(held.class, &held.resources));
        if totals.is_empty() {
            self.held.remove(&held.framework);
        }
    }
}

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
