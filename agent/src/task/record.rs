//! Every task of this agent and what its framework has not yet acknowledged. Pure: `now` is an argument.
//!
//! # Properties
//! - Statuses of a task are numbered 1, 2, 3, ... and sent in that order.
//! - A status is sent again, with growing pauses, until it is acknowledged or a later one is.
//! - After the last status nothing is added.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::{Duration, Instant},
};

use bulkhead_proto::v1::{self, TaskReason, TaskState, TaskStatus};

use super::outcome::End;
use crate::offer::ledger::TaskKey;

/// The first repetition of an unacknowledged status; each further one waits twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(10);
/// The longest wait between two repetitions.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// A status on its way.
#[derive(Clone, Debug)]
struct Pending {
    status: TaskStatus,
    send_at: Option<Instant>,
    pause: Duration,
}

/// One task.
#[derive(Clone, Debug)]
pub struct Record {
    /// As it was asked for.
    pub spec: v1::TaskSpec,
    /// Its directory; empty before it has one.
    pub sandbox: PathBuf,
    /// When it was accepted.
    pub started_unix_ms: u64,
    newest: TaskStatus,
    pending: VecDeque<Pending>,
}

impl Record {
    /// The state it is in.
    pub fn state(&self) -> TaskState {
        self.newest.state()
    }

    /// Is it over?
    pub fn ended(&self) -> bool {
        matches!(self.state(), TaskState::Finished | TaskState::Failed | TaskState::Killed)
    }

    /// As lists show it.
    pub fn to_task(&self, key: &TaskKey) -> v1::Task {
        v1::Task {
            spec: Some(self.spec.clone()),
            framework_id: key.0.clone(),
            agent_id: self.newest.agent_id.clone(),
            status: Some(self.newest.clone()),
            started_unix_ms: self.started_unix_ms,
        }
    }
}

/// All tasks: live ones, ended ones that are not acknowledged, and the most recent of the rest.
#[derive(Debug)]
pub struct Table {
    agent_id: String,
    records: BTreeMap<TaskKey, Record>,
    /// Ended and acknowledged, oldest first.
    history: VecDeque<(TaskKey, Record)>,
    history_max: usize,
}

impl Table {
    /// Of this agent, remembering `history_max` tasks that are over.
    pub fn new(agent_id: String, history_max: usize) -> Self {
        Self { agent_id, records: BTreeMap::new(), history: VecDeque::new(), history_max }
    }

    /// Takes a task in; its first status is STAGING. False, and nothing changes, where a live task has the id.
    ///
    /// An ended task of the same id makes room: who asks for the id again knows of its end. The numbers
    /// of the new task's statuses go on from there, so that an old acknowledgement fits none of them.
    pub fn accept(&mut self, key: TaskKey, spec: v1::TaskSpec, unix_ms: u64) -> bool {
        let earlier = match self.get(&key) {
            Some(record) if !record.ended() => return false,
            Some(record) => record.newest.sequence,
            None => 0,
        };
        self.insert(key.clone(), spec, PathBuf::new(), unix_ms, earlier);
        self.add(&key, TaskState::Staging, |_| {}, unix_ms);
        true
    }

    /// Puts a task back that the journal remembers, its statuses up to `sequence` sent earlier.
    pub fn restore(
        &mut self,
        key: TaskKey,
        spec: v1::TaskSpec,
        sandbox: PathBuf,
        unix_ms: u64,
        state: TaskState,
        sequence: u64,
    ) {
        self.insert(key.clone(), spec, sandbox, unix_ms, sequence.saturating_sub(1));
        self.add(&key, state, |_| {}, unix_ms);
    }

    /// Puts the last status of a restored task back, exactly as it was recorded.
    pub fn restore_end(&mut self, key: &TaskKey, status: TaskStatus) {
        if let Some(record) = self.records.get_mut(key) {
            record.newest = status.clone();
            record.pending.clear();
            record.pending.push_back(Pending { status, send_at: None, pause: FIRST_RETRY });
        }
    }

    /// The task holds another grant.
    pub fn resized(&mut self, key: &TaskKey, grant: v1::Grant) {
        if let Some(record) = self.records.get_mut(key) {
            record.spec.grant = Some(grant);
        }
    }

    /// The program was executed.
    pub fn running(&mut self, key: &TaskKey, sandbox: PathBuf, unix_ms: u64) {
        if let Some(record) = self.records.get_mut(key) {
            record.sandbox = sandbox;
        }
        self.add(key, TaskState::Running, |_| {}, unix_ms);
    }

    /// Composes the last status, without adding it: it is made durable first.
    pub fn last_status(&self, key: &TaskKey, end: &End, unix_ms: u64) -> Option<TaskStatus> {
        let record = self.records.get(key).filter(|r| !r.ended())?;
        Some(TaskStatus {
            state: end.state.into(),
            reason: end.reason.into(),
            message: end.message.clone(),
            exit_code: end.exit_code,
            signal: end.signal,
            usage: Some(end.usage.clone()),
            sequence: record.newest.sequence + 1,
            unix_time_ms: unix_ms,
            ..record.newest.clone()
        })
    }

    /// Adds the last status.
    pub fn ended(&mut self, key: &TaskKey, status: TaskStatus) {
        let Some(record) = self.records.get_mut(key).filter(|r| !r.ended()) else { return };
        record.newest = status.clone();
        record.pending.push_back(Pending { status, send_at: None, pause: FIRST_RETRY });
    }

    /// The framework has every status up to `sequence`. True when the task is over and done with.
    pub fn acknowledge(&mut self, key: &TaskKey, sequence: u64) -> bool {
        let Some(record) = self.records.get_mut(key) else { return false };
        record.pending.retain(|p| p.status.sequence > sequence);
        if !record.ended() || !record.pending.is_empty() {
            return false;
        }
        if let Some(record) = self.records.remove(key) {
            self.history.push_back((key.clone(), record));
        }
        while self.history.len() > self.history_max {
            self.history.pop_front();
        }
        true
    }

    /// The statuses that are to be sent now, in order, at most `room` of them; counts them as sent.
    pub fn due(&mut self, now: Instant, room: usize) -> Vec<TaskStatus> {
        let mut due = Vec::new();
        for pending in self.records.values_mut().flat_map(|r| &mut r.pending) {
            if due.len() == room {
                break;
            }
            if pending.send_at.is_some_and(|at| at > now) {
                continue;
            }
            pending.send_at = Some(now + pending.pause);
            pending.pause = (pending.pause * 2).min(LONGEST_RETRY);
            due.push(pending.status.clone());
        }
        due
    }

    /// A new session with the master: what is not acknowledged is due at once.
    pub fn new_session(&mut self) {
        for pending in self.records.values_mut().flat_map(|r| &mut r.pending) {
            pending.send_at = None;
            pending.pause = FIRST_RETRY;
        }
    }

    /// The task, live or remembered; the newest of several with the id.
    pub fn get(&self, key: &TaskKey) -> Option<&Record> {
        let past = || self.history.iter().rev().find(|(k, _)| k == key).map(|(_, record)| record);
        self.records.get(key).or_else(past)
    }

    /// What a registration lists: everything that is not over and acknowledged.
    pub fn current(&self) -> impl Iterator<Item = (&TaskKey, &Record)> {
        self.records.iter()
    }

    /// Everything that is known.
    pub fn all(&self) -> impl Iterator<Item = (&TaskKey, &Record)> {
        self.history.iter().map(|(k, r)| (k, r)).chain(self.records.iter())
    }

    fn insert(&mut self, key: TaskKey, spec: v1::TaskSpec, sandbox: PathBuf, unix_ms: u64, sequence: u64) {
        let newest = TaskStatus {
            task_id: key.1.clone(),
            framework_id: key.0.clone(),
            agent_id: self.agent_id.clone(),
            sequence,
            ..TaskStatus::default()
        };
        let record = Record { spec, sandbox, started_unix_ms: unix_ms, newest, pending: VecDeque::new() };
        self.records.insert(key, record);
    }

    fn add(&mut self, key: &TaskKey, state: TaskState, more: impl FnOnce(&mut TaskStatus), unix_ms: u64) {
        let Some(record) = self.records.get_mut(key).filter(|r| !r.ended()) else { return };
        let mut status = TaskStatus {
            state: state.into(),
            reason: TaskReason::Unspecified.into(),
            sequence: record.newest.sequence + 1,
            unix_time_ms: unix_ms,
            ..record.newest.clone()
        };
        more(&mut status);
        record.newest = status.clone();
        record.pending.push_back(Pending { status, send_at: None, pause: FIRST_RETRY });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::new("agent".into(), 2)
    }

    fn key(task: &str) -> TaskKey {
        ("f".into(), task.into())
    }

    fn end_of(table: &mut Table, key: &TaskKey) {
        let end = End::failed(TaskReason::LaunchFailed, "x".into());
        let status = table.last_status(key, &end, 3).unwrap();
        table.ended(key, status);
    }

    fn told(statuses: &[TaskStatus]) -> Vec<(u64, TaskState)> {
        statuses.iter().map(|s| (s.sequence, s.state())).collect()
    }

    #[test]
    fn statuses_are_repeated_until_acknowledged() {
        let mut table = table();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        assert!(table.accept(key("a"), v1::TaskSpec::default(), 1));
        table.running(&key("a"), "/s".into(), 2);
        let both = [(1, TaskState::Staging), (2, TaskState::Running)];
        assert_eq!(told(&table.due(at(0), 99)), both);
        assert_eq!(told(&table.due(at(9), 99)), []);
        assert!(!table.acknowledge(&key("a"), 1));
        assert_eq!(told(&table.due(at(10), 99)), both[1..]);
        assert_eq!(told(&table.due(at(29), 99)), []);
        assert_eq!(told(&table.due(at(30), 99)), both[1..]);
        table.new_session();
        assert_eq!(told(&table.due(at(31), 99)), both[1..]);
        assert!(!table.acknowledge(&key("a"), 2));
        assert_eq!(told(&table.due(at(1000), 99)), []);
    }

    #[test]
    fn an_acknowledged_end_becomes_history() {
        let mut table = table();
        for name in ["a", "b", "c"] {
            table.accept(key(name), v1::TaskSpec::default(), 1);
            end_of(&mut table, &key(name));
            assert!(table.acknowledge(&key(name), 2));
        }
        assert_eq!(table.current().count(), 0);
        assert!(table.get(&key("a")).is_none(), "only two are remembered");
        assert_eq!(table.get(&key("c")).unwrap().state(), TaskState::Failed);
    }

    #[test]
    fn a_live_id_is_taken_and_an_ended_one_is_not() {
        let mut table = table();
        assert!(table.accept(key("a"), v1::TaskSpec::default(), 1));
        assert!(!table.accept(key("a"), v1::TaskSpec::default(), 1));
        end_of(&mut table, &key("a"));
        assert!(table.accept(key("a"), v1::TaskSpec::default(), 1));
        assert_eq!(told(&table.due(Instant::now(), 99)), [(3, TaskState::Staging)]);
        assert!(!table.acknowledge(&key("a"), 2), "an acknowledgement of the first run");
        assert_eq!(table.current().count(), 1);
    }

    #[test]
    fn an_id_that_is_used_again_after_its_acknowledgement_counts_on() {
        let mut table = table();
        table.accept(key("a"), v1::TaskSpec::default(), 1);
        end_of(&mut table, &key("a"));
        assert!(table.acknowledge(&key("a"), 2));
        assert!(table.accept(key("a"), v1::TaskSpec::default(), 1));
        assert!(!table.acknowledge(&key("a"), 2), "a late repetition of the first run's");
        assert_eq!(told(&table.due(Instant::now(), 99)), [(3, TaskState::Staging)]);
    }

    #[test]
    fn what_has_no_room_stays_due() {
        let mut table = table();
        table.accept(key("a"), v1::TaskSpec::default(), 1);
        table.running(&key("a"), "/s".into(), 2);
        assert_eq!(told(&table.due(Instant::now(), 1)), [(1, TaskState::Staging)]);
        assert_eq!(told(&table.due(Instant::now(), 0)), []);
        assert_eq!(told(&table.due(Instant::now(), 9)), [(2, TaskState::Running)]);
    }

    #[test]
    fn nothing_follows_the_last_status() {
        let mut table = table();
        table.accept(key("a"), v1::TaskSpec::default(), 1);
        end_of(&mut table, &key("a"));
        table.running(&key("a"), "/s".into(), 2);
        assert!(table.last_status(&key("a"), &End::failed(TaskReason::Exited, String::new()), 9).is_none());
        assert_eq!(told(&table.due(Instant::now(), 99)), [(1, TaskState::Staging), (2, TaskState::Failed)]);
    }
}
