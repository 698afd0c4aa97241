//! What operators and metrics see: read-only views of the core.

use std::collections::BTreeMap;

use bulkhead_proto::v1::{
    AgentEntry, FrameworkEntry, ListTasksRequest, ListTasksResponse, Offer, Task, TaskState,
};

use self::page::Place;
use super::{Core, offering::offer_message};
use crate::{
    framework::Phase,
    ids::AgentId,
    inventory::Agent,
    ledger::{Book, Parts, Slice},
};

mod page;

pub use page::{PAGE_BYTES, PageTokenError};

/// What happened since the master started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Offers sent to frameworks.
    pub offers_sent: u64,
    /// Offers that an accept took.
    pub offers_accepted: u64,
    /// Offers that a decline gave back.
    pub offers_declined: u64,
    /// Offers that the master took back.
    pub offers_rescinded: u64,
    /// Tasks sent to agents.
    pub tasks_launched: u64,
    /// Running tasks that were given another grant.
    pub tasks_resized: u64,
    /// Tasks that reached their last state, by that state.
    pub tasks_ended: BTreeMap<TaskState, u64>,
}

impl Counters {
    pub(super) fn ended(&mut self, state: TaskState) {
        *self.tasks_ended.entry(state).or_default() += 1;
    }
}

/// Amounts of each resource kind, over all agents.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amounts {
    /// Guaranteed CPU.
    pub cpu_milli: u64,
    /// CPU lent to revocable tasks.
    pub revocable_cpu_milli: u64,
    /// Memory.
    pub mem_bytes: u64,
    /// Number of ports.
    pub ports: u64,
}

impl Amounts {
    fn add(&mut self, slice: &Slice) {
        self.cpu_milli = self.cpu_milli.saturating_add(slice.pool.cpu_milli);
        self.revocable_cpu_milli = self.revocable_cpu_milli.saturating_add(slice.revocable_cpu_milli);
        self.mem_bytes = self.mem_bytes.saturating_add(slice.pool.mem_bytes);
        let ports = slice.pool.port_set().unwrap_or_default().len() as u64;
        self.ports = self.ports.saturating_add(ports);
    }
}

/// How things stand now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Agents with a stream.
    pub agents_connected: u64,
    /// Agents without one, whose tasks are not lost yet.
    pub agents_away: u64,
    /// Frameworks with a stream.
    pub frameworks_connected: u64,
    /// Frameworks without one that still have tasks or time.
    pub frameworks_away: u64,
    /// Tasks that have not ended, by state.
    pub tasks: BTreeMap<TaskState, u64>,
    /// Offers that wait for an answer.
    pub offers: u64,
    /// What all agents have.
    pub capacity: Amounts,
    /// What is kept for everything that is not a task.
    pub reserve: Amounts,
    /// What tasks hold.
    pub allocated: Amounts,
    /// What offers hold.
    pub offered: Amounts,
}

impl Core {
    /// What happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How things stand. Goes through every agent and task: for a scrape, not for every step.
    pub fn gauges(&self) -> Gauges {
        let mut gauges = Gauges { offers: self.offers.len() as u64, ..Gauges::default() };
        for (_, agent) in self.inventory.iter() {
            let count =
                if agent.session.is_some() { &mut gauges.agents_connected } else { &mut gauges.agents_away };
            *count += 1;
        }
        for (_, framework) in self.frameworks.iter() {
            let connected = framework.session().is_some();
            let count =
                if connected { &mut gauges.frameworks_connected } else { &mut gauges.frameworks_away };
            *count += 1;
        }
        for (_, record) in self.tasks.iter().filter(|(_, r)| !r.ended()) {
            *gauges.tasks.entry(record.status.state()).or_default() += 1;
        }
        for (_, book) in self.ledger.books() {
            let parts = book.parts();
            gauges.capacity.add(&parts.capacity);
            gauges.reserve.add(&Slice { pool: parts.reserve, revocable_cpu_milli: 0 });
            gauges.allocated.add(&parts.granted);
            gauges.offered.add(&parts.offered);
        }
        gauges
    }

    /// The parts of an agent, as the ledger has them.
    pub fn parts(&self, agent: &AgentId) -> Option<Parts> {
        self.ledger.book(agent).map(Book::parts)
    }

    /// Agents, by id.
    pub fn list_agents(&self) -> Vec<AgentEntry> {
        let entry = |(id, agent): (&AgentId, &Agent)| {
            let book = self.ledger.book(id);
            AgentEntry {
                agent: Some(agent.info.clone()),
                report: Some(agent.report.clone()),
                connected: agent.session.is_some(),
                registered_unix_ms: agent.registered.0,
                task_count: book.map_or(0, |b| b.tasks().count() as u64),
                offered: book.map(Book::offered_total),
                confirmed_unix_ms: agent.confirmed.0,
            }
        };
        self.inventory.iter().map(entry).collect()
    }

    /// Frameworks, by id.
    pub fn list_frameworks(&self) -> Vec<FrameworkEntry> {
        self.frameworks
            .iter()
            .map(|(id, framework)| FrameworkEntry {
                framework_id: id.into(),
                name: framework.info.name.clone(),
                role: framework.info.role.clone(),
                connected: framework.session().is_some(),
                detached: framework.phase == Phase::Detached,
                task_count: self.tasks.of_framework(id).filter(|(_, r)| !r.ended()).count() as u64,
                offer_count: self.offers.of_framework(id).count() as u64,
                registered_unix_ms: framework.registered.0,
            })
            .collect()
    }

    /// A page of current tasks by framework and id, then of ended ones, the oldest first.
    ///
    /// # Errors
    /// For a token that was not given by a page before.
    pub fn list_tasks(&self, request: &ListTasksRequest) -> Result<ListTasksResponse, PageTokenError> {
        let place = Place::parse(&request.page_token)?;
        let (after, number) = match &place {
            None => (Some(None), 0),
            Some(Place::Current(key)) => (Some(Some(key)), 0),
            Some(Place::History(number)) => (None, *number),
        };
        let current = after.map(|key| self.tasks.after(key)).into_iter().flatten();
        let current = current
            .filter(|(_, record)| !(request.live_only && record.ended()))
            .map(|(key, record)| (Place::Current(key.clone()), record.as_task(key)));
        let ended = self.tasks.history_after(number).filter(|_| !request.live_only);
        let ended = ended.map(|(number, task)| (Place::History(number), task.clone()));
        let asked = |task: &Task| {
            let spec = task.spec.as_ref();
            request.task.is_empty()
                || spec.is_some_and(|s| s.task_id == request.task || s.name == request.task)
        };
        Ok(page::fill(current.chain(ended).filter(|(_, task)| asked(task))))
    }

    /// Outstanding offers, by id.
    pub fn list_offers(&self) -> Vec<Offer> {
        self.offers
            .iter()
            .map(|offer| {
                let agent = self.inventory.get(&offer.agent);
                let access = self.data_access(&offer.framework, &offer.agent);
                offer_message(offer, agent, access)
            })
            .collect()
    }
}
