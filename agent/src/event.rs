//! What the kernel refused or ended, as a bounded log that can be followed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_proto::v1::{Event, EventKind, Protocol};
use tokio::sync::broadcast;

use crate::{metrics::Metrics, offer::ledger::TaskKey};

/// Distinct events that are remembered: each is one kind at one task, protocol and port, with its count.
const MAX_EVENTS: usize = 10_000;
/// Updates that a slow follower may be behind before it loses some.
const FOLLOW_BUFFER: usize = 1024;

/// What makes two occurrences the same event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventKey {
    /// Whose.
    pub task: TaskKey,
    /// Of which of its runs: a framework may use an id again.
    pub cgroup_id: u64,
    /// What happened.
    pub kind: EventKind,
    /// For refused ports.
    pub protocol: Protocol,
    /// 4 or 6, for refused ports.
    pub ip_version: u32,
    /// For refused ports.
    pub port: u32,
    /// For refused devices and full volumes: which; otherwise empty.
    pub object: String,
}

impl EventKey {
    /// Of what a run of a task did, without a port or an object.
    pub fn of_run(task: &TaskKey, cgroup_id: u64, kind: EventKind) -> Self {
        Self {
            task: task.clone(),
            cgroup_id,
            kind,
            protocol: Protocol::Unspecified,
            ip_version: 0,
            port: 0,
            object: String::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Log {
    events: HashMap<EventKey, (u64, Event)>,
    /// By age, for throwing out the oldest.
    order: BTreeMap<u64, EventKey>,
    next: u64,
    tasks: HashMap<u64, TaskKey>,
}

/// The log; shared by everybody who sees something happen.
#[derive(Debug)]
pub struct EventLog {
    agent_id: String,
    metrics: Arc<Metrics>,
    log: Mutex<Log>,
    follow: broadcast::Sender<Event>,
}

impl EventLog {
    /// An empty log of this agent; every occurrence is counted in `metrics` too.
    pub fn new(agent_id: String, metrics: Arc<Metrics>) -> Self {
        Self {
            agent_id,
            metrics,
            log: Mutex::new(Log::default()),
            follow: broadcast::channel(FOLLOW_BUFFER).0,
        }
    }

    /// From now on events of this cgroup are this task's.
    pub fn bind(&self, cgroup_id: u64, task: TaskKey) {
        self.lock().tasks.insert(cgroup_id, task);
    }

    /// The task's cgroup is gone.
    pub fn unbind(&self, cgroup_id: u64) {
        self.lock().tasks.remove(&cgroup_id);
    }

    /// The task that a cgroup is of.
    pub fn task_of(&self, cgroup_id: u64) -> Option<TaskKey> {
        self.lock().tasks.get(&cgroup_id).cloned()
    }

    /// Says how often something has happened so far. A count that is not new changes nothing.
    pub fn record(&self, key: EventKey, count: u64, message: String, unix_ms: u64) {
        let mut log = self.lock();
        let (first_unix_ms, known) =
            log.events.get(&key).map_or((unix_ms, 0), |(_, e)| (e.first_unix_ms, e.count));
        if count <= known {
            return;
        }
        let event = Event {
            kind: key.kind.into(),
            framework_id: key.task.0.clone(),
            task_id: key.task.1.clone(),
            count,
            first_unix_ms,
            last_unix_ms: unix_ms,
            protocol: key.protocol.into(),
            ip_version: key.ip_version,
            port: key.port,
            message,
            agent_id: self.agent_id.clone(),
        };
        let number = log.next;
        log.next += 1;
        if let Some((before, _)) = log.events.insert(key.clone(), (number, event.clone())) {
            log.order.remove(&before);
        }
        log.order.insert(number, key);
        if log.events.len() > MAX_EVENTS
            && let Some((_, oldest)) = log.order.pop_first()
        {
            log.events.remove(&oldest);
        }
        drop(log);
        self.metrics.event(&event, count - known);
        // Nobody following is fine.
        drop(self.follow.send(event));
    }

    /// Everything that is remembered, the latest change last, and what happens from now on.
    pub fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let log = self.lock();
        let past = log.order.values().filter_map(|k| log.events.get(k)).map(|(_, e)| e.clone());
        (past.collect(), self.follow.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // Every change of the log is complete before anything in it could panic.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(task: &str, port: u32) -> EventKey {
        EventKey {
            task: ("f".into(), task.into()),
            cgroup_id: 1,
            kind: EventKind::PortDenied,
            protocol: Protocol::Tcp,
            ip_version: 4,
            port,
            object: String::new(),
        }
    }

    #[test]
    fn repetitions_are_one_event_with_a_count() {
        let log = EventLog::new("agent".into(), Arc::new(Metrics::new().unwrap()));
        let (_, mut follow) = log.watch();
        log.record(denied("a", 80), 1, String::new(), 10);
        log.record(denied("b", 80), 1, String::new(), 15);
        log.record(denied("a", 80), 4, String::new(), 20);
        log.record(denied("a", 80), 4, String::new(), 30);
        let (past, _) = log.watch();
        let seen: Vec<_> =
            past.iter().map(|e| (e.task_id.as_str(), e.count, e.first_unix_ms, e.last_unix_ms)).collect();
        assert_eq!(seen, [("b", 1, 15, 15), ("a", 4, 10, 20)]);
        assert_eq!([1, 1, 4], [(); 3].map(|()| follow.try_recv().unwrap().count));
        assert!(follow.try_recv().is_err());
    }

    #[test]
    fn a_second_run_of_an_id_has_events_of_its_own() {
        let log = EventLog::new("agent".into(), Arc::new(Metrics::new().unwrap()));
        log.record(denied("a", 80), 3, String::new(), 1);
        log.record(EventKey { cgroup_id: 2, ..denied("a", 80) }, 1, String::new(), 2);
        assert_eq!(log.watch().0.iter().map(|e| e.count).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn a_flood_of_ports_throws_out_the_oldest() {
        let log = EventLog::new("agent".into(), Arc::new(Metrics::new().unwrap()));
        for port in 0..u32::try_from(MAX_EVENTS).unwrap() + 10 {
            log.record(denied("a", port), 1, String::new(), 1);
        }
        let (past, _) = log.watch();
        assert_eq!((past.len(), past[0].port), (MAX_EVENTS, 10));
    }
}
