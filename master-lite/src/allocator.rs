//! Who is offered what is free: hierarchical, weighted dominant resource fairness with quotas, kept up to date as things
//! change.
//!
//! # Units
//! Amounts are in the units of [`kind_name`]: thousandths of a CPU, bytes, bytes or operations or bits a second, a number
//! of ports. Shares are parts of the cluster, 0 to 1. Times are [`UnixMs`], and given by the caller. Agents and frameworks are
//! small numbers that [`Allocator::add_agent`] and [`Allocator::add_framework`] give out, and that are used again after a
//! removal.
//!
//! # Algorithm
//! A *dominant share* is the largest part of the cluster that somebody holds of any kind, offers included; kinds can be
//! left out (scarce ones, of which few have much). Roles form a tree; the children of a node are in the order of a
//! [`Policy`], by default dominant share over weight, the smallest first. An agent goes to whoever comes first from the
//! top down, and takes it:
//!
//! 1. **Pending.** Only agents are dealt out of which more is free than before, or that somebody may want now who did not
//!    before: a framework that came, whose refusal is over, whose quota was raised or is less used.
//! 2. **Order.** A role with a guarantee that is not met comes first, then the policy's order, then whoever was served
//!    longest ago. Who refused this agent comes behind all who have not seen it in this *round*; the round ends when
//!    none of those takes it.
//! 3. **Part.** The taker gets as much of the agent as brings it to its *entitlement*, the part of the cluster that
//!    is its own if all that contend now take theirs: weight over the siblings' weights, multiplied down the tree. At least it
//!    gets its minimum and [`MIN_PART_CPU_MILLI`]. Then the order is asked again. Who has its entitlement and still comes first
//!    gets all that is left: the others take nothing, or have more already.
//!
//! An agent of at most half the entitlement goes whole: with many more agents than frameworks, dividing would only make
//! fragments. So a single agent is divided among those who want it, and a large cluster is dealt out agent by agent.
//!
//! A *limit* bounds what a role and all below it hold. A *guarantee* is kept free: what all guarantees lack together is not
//! given to anybody but those who lack it. Memory and the like are one pool for both classes of CPU; where an agent has takers
//! for both, they are divided in proportion to CPU.
//!
//! # Properties
//! Each is a test of that name, in `allocator/tests`; another deals the same as a reference without kept orders.
//! - **Conservation**: what is given of an agent was free there, and is free no more.
//! - **Sharing incentive**: of `n` frameworks with equal weights that take all they are offered, each gets a dominant
//!   share of at least one part in `n`, less one agent; with weights likewise.
//! - **Strategy-proofness**: on agents that are alike, a framework gets no more for saying that it needs more at least than
//!   it does, beyond one agent. (DRF promises it of resources that can be divided at will.)
//! - **Envy-freeness**: no framework holds more than another of its role by more than one agent.
//! - **Pareto efficiency**: nothing is left that somebody would take.
//! - **No starvation**: with `n` frameworks that decline, each is offered every agent before any of them is offered it again.
//! - **Quota never exceeded**, and **guarantee met when feasible**.
//!
//! # Cost
//! An update or an offer costs the depth of the role times the logarithm of the number of siblings, and a look at each
//! framework that passes. Nothing is done for what has not changed. Shares are measured against the capacity of a moment
//! ago, to 1 %: when it has changed by more, all orders are made anew. Memory: a few hundred bytes for each agent, for each
//! framework, and for each framework that passed on an agent in that agent's present round.

mod bundle;
mod dealing;
mod explain;
mod policy;
mod pot;
mod refusals;
mod roles;
mod scale;
mod tree;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use bulkhead_proto::v1::{ResourceClass, Resources};

pub use bundle::{
    Bundle, CPU, KINDS, MEM, MIN_OFFER_CPU_MILLI, MIN_OFFER_MEM_BYTES, NoSuchKind, PORTS, REVOCABLE_CPU,
    Totals, kind_called, kind_name, kind_named,
};
pub use dealing::MIN_PART_CPU_MILLI;
pub use explain::{Explanation, Obstacle, Place, RoleStanding};
pub use policy::{Drf, Policy, Priority, Rank, Standing};
pub use pot::Pot;
pub use roles::{
    BadQuota, BadRole, BadWeight, MAX_ROLE_DEPTH, RoleSettings, Weight, check_role, check_roles,
};

use self::{
    refusals::Refusals,
    scale::Scale,
    tree::{Tree, at},
};
use crate::ids::UnixMs;

/// What a framework wants to be offered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wants {
    guaranteed: Option<Pot>,
    revocable: Option<Pot>,
}

impl Wants {
    /// Offers of these classes, each with this at least. The CPU of the minimum is of whichever class is offered.
    pub fn new(classes: &[ResourceClass], minimum: &Resources) -> Self {
        let ports = std::sync::Arc::new(minimum.port_set().unwrap_or_default());
        let of =
            |class| classes.contains(&class).then(|| Pot::new(Bundle::of(class, minimum), ports.clone()));
        Self { guaranteed: of(ResourceClass::Guaranteed), revocable: of(ResourceClass::Revocable) }
    }

    fn minimum(&self, class: ResourceClass) -> Option<&Pot> {
        match class {
            ResourceClass::Revocable => self.revocable.as_ref(),
            _ => self.guaranteed.as_ref(),
        }
    }
}

/// One offer to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// To whom.
    pub framework: u32,
    /// Where.
    pub agent: u32,
    /// How firmly.
    pub class: ResourceClass,
    /// How much.
    pub pot: Pot,
}

struct Agent {
    capacity: Bundle,
    free: Pot,
    refusals: Refusals,
}

#[derive(Default)]
struct Framework {
    wants: Wants,
    connected: bool,
    /// Agents that it passed on.
    passed: BTreeSet<u32>,
}

/// Whom an agent may be offered to.
#[derive(Debug)]
enum Who {
    All,
    These(BTreeSet<u32>),
}

/// Looking at every idle agent for more frameworks than this one by one costs more than dealing them all out.
const WAKE_ONE_BY_ONE: usize = 4;

/// See the [module's documentation](self).
///
/// The caller says what is so, not what has changed: the same word twice changes nothing. What [`Self::allocate`] gives
/// is counted as held, and as not free, from then on.
pub struct Allocator {
    tree: Tree,
    agents: Vec<Option<Agent>>,
    vacant: Vec<u32>,
    frameworks: Vec<Option<Framework>>,
    capacity: Totals,
    free: Totals,
    /// Agents with enough for an offer.
    idle: BTreeSet<u32>,
    pending: BTreeMap<u32, Who>,
    /// Frameworks that every idle agent is to be looked at for.
    waking: BTreeSet<u32>,
    /// Did a guarantee or a limit keep something from somebody?
    kept_back: Cell<bool>,
    /// What guarantees left after the last allocation.
    unpromised: Bundle,
}

impl Allocator {
    /// An empty cluster. Kinds of `excluded` count for nobody's share.
    pub fn new(policy: Box<dyn Policy>, excluded: &[usize]) -> Self {
        Self {
            tree: Tree::new(policy, Scale::excluding(excluded)),
            agents: Vec::new(),
            vacant: Vec::new(),
            frameworks: Vec::new(),
            capacity: Totals::default(),
            free: Totals::default(),
            idle: BTreeSet::new(),
            pending: BTreeMap::new(),
            waking: BTreeSet::new(),
            kept_back: Cell::new(false),
            unpromised: Bundle::default(),
        }
    }

    /// Takes over what an operator says of a role; [`check_roles`] says what can be kept. Holds from the next allocation on.
    pub fn set_role(&mut self, role: &str, settings: RoleSettings) {
        self.tree.set_role(role, settings);
        self.wake_all();
    }

    /// Forgets what an operator said of a role.
    pub fn clear_role(&mut self, role: &str) {
        self.tree.clear_role(role);
        self.wake_all();
    }

    /// An agent with nothing yet.
    pub fn add_agent(&mut self) -> u32 {
        let agent =
            Agent { capacity: Bundle::default(), free: Pot::default(), refusals: Refusals::default() };
        if let Some(vacant) = self.vacant.pop() {
            self.agents[at(vacant)] = Some(agent);
            return vacant;
        }
        self.agents.push(Some(agent));
        u32::try_from(self.agents.len() - 1).unwrap_or(u32::MAX)
    }

    /// What an agent has, and what of it may be offered now: nothing while it is away.
    pub fn set_agent(&mut self, number: u32, capacity: &Bundle, free: Pot) {
        let Some(agent) = self.agents.get_mut(at(number)).and_then(Option::as_mut) else { return };
        if agent.capacity != *capacity {
            self.capacity.remove(&agent.capacity);
            self.capacity.add(capacity);
            agent.capacity = *capacity;
        }
        if agent.free == free {
            return;
        }
        let grew = !agent.free.contains(&free);
        self.free.remove(&agent.free.amounts);
        self.free.add(&free.amounts);
        agent.free = free;
        self.note_idle(number);
        if grew {
            self.pending.insert(number, Who::All);
        }
    }

    /// Forgets an agent, and what was refused of it.
    pub fn remove_agent(&mut self, number: u32) {
        self.set_agent(number, &Bundle::default(), Pot::default());
        let Some(agent) = self.agents.get_mut(at(number)).and_then(Option::take) else { return };
        for framework in agent.refusals.frameworks() {
            if let Some(Some(framework)) = self.frameworks.get_mut(at(framework)) {
                framework.passed.remove(&number);
            }
        }
        self.pending.remove(&number);
        self.vacant.push(number);
    }

    /// A framework of this role, which [`check_role`] has passed. It is offered nothing before it is connected.
    pub fn add_framework(&mut self, role: &str, wants: Wants) -> u32 {
        let number = self.tree.add_framework(role);
        if self.frameworks.len() <= at(number) {
            self.frameworks.resize_with(at(number) + 1, || None);
        }
        self.frameworks[at(number)] = Some(Framework { wants, ..Framework::default() });
        number
    }

    /// Forgets a framework, and what it held and refused.
    pub fn remove_framework(&mut self, number: u32) {
        if self.frameworks.get(at(number)).is_none_or(Option::is_none) {
            return;
        }
        self.forget_refusals(number);
        self.tree.remove_framework(number);
        self.frameworks[at(number)] = None;
        self.waking.remove(&number);
    }

    /// What it wants from now on.
    pub fn set_wants(&mut self, number: u32, wants: Wants) {
        let Some(Some(framework)) = self.frameworks.get_mut(at(number)) else { return };
        if framework.wants != wants {
            framework.wants = wants;
            self.wait(number);
        }
    }

    /// It waits for offers, or does not.
    pub fn set_connected(&mut self, number: u32, connected: bool) {
        let Some(Some(framework)) = self.frameworks.get_mut(at(number)) else { return };
        if framework.connected != connected {
            framework.connected = connected;
            self.wait(number);
        }
    }

    fn wait(&mut self, number: u32) {
        let Some(Some(framework)) = self.frameworks.get(at(number)) else { return };
        let Framework { wants, connected, .. } = framework;
        let waits = [&wants.guaranteed, &wants.revocable].map(|minimum| *connected && minimum.is_some());
        self.tree.set_waits(number, waits);
        if waits.contains(&true) {
            self.waking.insert(number);
        }
    }

    /// All that it holds, tasks and offers.
    pub fn set_held(&mut self, number: u32, held: &Totals) {
        if self.wants(number).is_some() {
            self.tree.set_held(number, held);
        }
    }

    /// It does not want so much of the agent before then. `idle` is what tasks leave of the agent, offered or not: more
    /// than that is news.
    pub fn refuse(&mut self, framework: u32, agent: u32, class: ResourceClass, idle: Pot, until: UnixMs) {
        let Some(Some(refusing)) = self.frameworks.get_mut(at(framework)) else { return };
        let Some(Some(refused)) = self.agents.get_mut(at(agent)) else { return };
        refused.refusals.refuse(framework, class, idle, until);
        refusing.passed.insert(agent);
    }

    /// It wants everything again that it refused.
    pub fn revive(&mut self, framework: u32) {
        self.forget_refusals(framework);
        if self.wants(framework).is_some() {
            self.waking.insert(framework);
        }
    }

    /// Refusals of this agent may be over: who is behind them may be offered it.
    pub fn refusals_may_be_over(&mut self, agent: u32, now: UnixMs) {
        let Some(Some(of)) = self.agents.get_mut(at(agent)) else { return };
        let over = of.refusals.take_over(now);
        if !over.is_empty() && self.idle.contains(&agent) {
            self.look_for(agent, over);
        }
    }

    /// Deals out what is free of the agents that are pending, in the order of their numbers.
    pub fn allocate(&mut self, now: UnixMs) -> Vec<Allocation> {
        if self.tree.scale().is_stale(&self.capacity) {
            self.tree.rescale(&self.capacity);
        }
        self.wake_those_with_more_room();
        self.wake_waking();
        let mut made = Vec::new();
        while let Some((agent, who)) = self.pending.pop_first() {
            self.deal_agent(agent, &who, now, &mut made);
            self.note_idle(agent);
        }
        self.unpromised = self.unpromised_now();
        made
    }

    /// Is there nothing to look at?
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
            && self.waking.is_empty()
            && !self.tree.has_eased()
            && !self.has_more_to_promise()
    }

    /// What may be offered of an agent.
    pub fn free_of(&self, agent: u32) -> Option<&Pot> {
        self.agents.get(at(agent))?.as_ref().map(|agent| &agent.free)
    }

    /// The role that a framework is in.
    pub fn role_of(&self, framework: u32) -> Option<&str> {
        self.wants(framework).map(|_| self.tree.role_of(framework))
    }

    /// What a framework holds.
    pub fn held_by(&self, framework: u32) -> Option<&Totals> {
        self.wants(framework).map(|_| self.tree.held(framework))
    }

    /// The largest part of the cluster that a framework holds of any kind that counts.
    pub fn dominant_share(&self, framework: u32) -> Option<f64> {
        self.held_by(framework).map(|held| self.tree.scale().share(held))
    }

    fn is_connected(&self, framework: u32) -> bool {
        self.frameworks.get(at(framework)).and_then(Option::as_ref).is_some_and(|f| f.connected)
    }

    fn wants(&self, framework: u32) -> Option<&Wants> {
        self.frameworks.get(at(framework))?.as_ref().map(|framework| &framework.wants)
    }

    fn forget_refusals(&mut self, framework: u32) {
        let Some(Some(refusing)) = self.frameworks.get_mut(at(framework)) else { return };
        for agent in std::mem::take(&mut refusing.passed) {
            if let Some(Some(agent)) = self.agents.get_mut(at(agent)) {
                agent.refusals.forget(framework);
            }
        }
    }

    fn note_idle(&mut self, number: u32) {
        let is_idle = self.agents[at(number)].as_ref().is_some_and(|agent| {
            let amounts = &agent.free.amounts;
            amounts.is_worth_offering(ResourceClass::Guaranteed)
                || amounts.is_worth_offering(ResourceClass::Revocable)
        });
        if is_idle {
            self.idle.insert(number);
        } else {
            self.idle.remove(&number);
        }
    }

    fn wake_all(&mut self) {
        self.pending.extend(self.idle.iter().map(|&agent| (agent, Who::All)));
    }

    fn look_for(&mut self, agent: u32, frameworks: impl IntoIterator<Item = u32>) {
        match self.pending.entry(agent).or_insert_with(|| Who::These(BTreeSet::new())) {
            Who::All => {}
            Who::These(these) => these.extend(frameworks),
        }
    }

    fn wake_those_with_more_room(&mut self) {
        self.waking.append(&mut self.tree.take_eased());
        if self.has_more_to_promise() {
            self.kept_back.set(false);
            self.wake_all();
        }
    }

    fn has_more_to_promise(&self) -> bool {
        self.kept_back.get() && !self.unpromised.contains(&self.unpromised_now())
    }

    fn unpromised_now(&self) -> Bundle {
        self.tree.kept_free().map_or(Bundle::UNBOUNDED, |kept| self.free.beyond(kept))
    }

    fn wake_waking(&mut self) {
        let waking = std::mem::take(&mut self.waking);
        if waking.len() > WAKE_ONE_BY_ONE {
            return self.wake_all();
        }
        if !waking.is_empty() {
            let idle: Vec<_> = self.idle.iter().copied().collect();
            idle.into_iter().for_each(|agent| self.look_for(agent, waking.iter().copied()));
        }
    }
}

#[cfg(test)]
#[path = "allocator/tests/mod.rs"]
mod tests;
