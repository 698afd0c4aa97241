//! Tasks: the live ones, those whose end is not acknowledged, and a bounded memory of the ended ones.
//!
//! # Properties
//! - A record's state becomes terminal at most once; nothing changes it afterwards.
//! - Every record is in exactly one of: current (live, or ended and not acknowledged) and history.

mod validate;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use bulkhead_proto::v1::{Task, TaskReason, TaskSpec, TaskState, TaskStatus};

pub use validate::{Refusal, check_grant, check_spec};

use crate::core::Resizing;
use crate::ids::{AgentId, FrameworkId, TaskKey, UnixMs};

/// Nothing happens to a task after this state.
pub fn is_terminal(state: TaskState) -> bool {
    !matches!(state, TaskState::Unspecified | TaskState::Staging | TaskState::Running)
}

/// A kill that was asked for; repeated when the agent comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KillOrder {
    /// Who asked.
    pub reason: TaskReason,
    /// Time between SIGTERM and SIGKILL; 0 takes what the task was launched with.
    pub grace_ms: u64,
}

/// One task that the master answers for.
#[derive(Clone, Debug)]
pub struct Record {
    /// What runs.
    pub spec: TaskSpec,
    /// Where.
    pub agent: AgentId,
    /// The newest status.
    pub status: TaskStatus,
    /// The highest sequence that was acknowledged; 0 for none.
    pub acked: u64,
    /// Set once a kill was asked for.
    pub kill: Option<KillOrder>,
    /// Set while its agent carries a resize out.
    pub resizing: Option<Resizing>,
    /// When it was launched, or as the agent said.
    pub started: UnixMs,
    /// The last status of an earlier task of this id on this agent: the agent may repeat it once more.
    pub previous: Option<TaskStatus>,
}

impl Record {
    /// Has it ended?
    pub fn ended(&self) -> bool {
        is_terminal(self.status.state())
    }

    /// As lists show it.
    pub fn as_task(&self, key: &TaskKey) -> Task {
        Task {
            spec: Some(self.spec.clone()),
            framework_id: (&key.framework).into(),
            agent_id: (&self.agent).into(),
            status: Some(self.status.clone()),
            started_unix_ms: self.started.0,
        }
    }
}

/// All of them.
#[derive(Debug)]
pub struct Tasks {
    current: BTreeMap<TaskKey, Record>,
    /// Tasks that an agent still runs although their end was already told; see [`Tasks::disown`].
    disowned: BTreeSet<(AgentId, TaskKey)>,
    history: BTreeMap<u64, Task>,
    newest_ended: BTreeMap<TaskKey, u64>,
    /// As `newest_ended`, of tasks that reached an agent.
    newest_run: BTreeMap<TaskKey, u64>,
    ended_count: u64,
    history_size: usize,
}

impl Tasks {
    /// Remembers at most this many ended tasks.
    pub fn new(history_size: usize) -> Self {
        Self {
            current: BTreeMap::new(),
            disowned: BTreeSet::new(),
            history: BTreeMap::new(),
            newest_ended: BTreeMap::new(),
            newest_run: BTreeMap::new(),
            ended_count: 0,
            history_size,
        }
    }

    /// The current record of a task.
    pub fn get(&self, key: &TaskKey) -> Option<&Record> {
        self.current.get(key)
    }

    /// The current record of a task, to change it.
    pub fn get_mut(&mut self, key: &TaskKey) -> Option<&mut Record> {
        self.current.get_mut(key)
    }

    /// Adds a task that was launched or that an agent runs.
    pub fn insert(&mut self, key: TaskKey, record: Record) {
        self.current.insert(key, record);
    }

    /// All current records.
    pub fn iter(&self) -> impl Iterator<Item = (&TaskKey, &Record)> {
        self.current.iter()
    }

    /// The current records after a key, in their order; `None` is all of them.
    pub fn after(&self, key: Option<&TaskKey>) -> impl Iterator<Item = (&TaskKey, &Record)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.current.range((from, Bound::Unbounded))
    }

    /// A framework's current records.
    pub fn of_framework<'a>(
        &'a self,
        framework: &'a FrameworkId,
    ) -> impl Iterator<Item = (&'a TaskKey, &'a Record)> {
        let first = TaskKey::new(framework, "");
        self.current.range(first..).take_while(move |(key, _)| key.framework == *framework)
    }

    /// Has the framework this many tasks that have ended and are not acknowledged?
    pub fn leaves_unacknowledged(&self, framework: &FrameworkId, count: usize) -> bool {
        // Nearly always there are not even so many tasks.
        let enough = |tasks: usize| tasks >= count;
        enough(self.current.len())
            && enough(self.of_framework(framework).filter(|(_, record)| record.ended()).take(count).count())
    }

    /// The newest ended task of this key that is still remembered.
    pub fn ended(&self, key: &TaskKey) -> Option<&Task> {
        self.history.get(self.newest_ended.get(key)?)
    }

    /// The newest ended task of this key that reached an agent and is still remembered. A launch that was
    /// refused says nothing about what an agent runs.
    pub fn ended_run(&self, key: &TaskKey) -> Option<&Task> {
        self.history.get(self.newest_run.get(key)?)
    }

    /// Ended tasks, the oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Task> {
        self.history.values()
    }

    /// Ended tasks with higher numbers than this, and their numbers. They count up from 1.
    pub fn history_after(&self, number: u64) -> impl Iterator<Item = (u64, &Task)> {
        let from = (Bound::Excluded(number), Bound::Unbounded);
        self.history.range(from).map(|(number, task)| (*number, task))
    }

    /// Moves a task whose end needs no more telling into history.
    pub fn retire(&mut self, key: &TaskKey) {
        if let Some(record) = self.current.remove(key) {
            let task = record.as_task(key);
            self.remember(key, task);
        }
    }

    /// Puts an ended task into history, and drops the oldest where there are too many.
    pub fn remember(&mut self, key: &TaskKey, task: Task) {
        self.ended_count = self.ended_count.saturating_add(1);
        if !task.agent_id.is_empty() {
            self.newest_run.insert(key.clone(), self.ended_count);
        }
        self.history.insert(self.ended_count, task);
        self.newest_ended.insert(key.clone(), self.ended_count);
        while self.history.len() > self.history_size {
            let Some((number, task)) = self.history.pop_first() else { break };
            let key =
                TaskKey::new(&task.framework_id.as_str().into(), &task.spec.unwrap_or_default().task_id);
            for index in [&mut self.newest_ended, &mut self.newest_run] {
                if index.get(&key) == Some(&number) {
                    index.remove(&key);
                }
            }
        }
    }

    /// Notes that the agent runs a task whose end was already told (it came back after its tasks were
    /// declared lost, or another agent has the same task). It is killed, and its statuses go to nobody.
    pub fn disown(&mut self, agent: &AgentId, key: TaskKey) {
        self.disowned.insert((agent.clone(), key));
    }

    /// Is this a task that the agent has to get rid of?
    pub fn is_disowned(&self, agent: &AgentId, key: &TaskKey) -> bool {
        self.disowned.contains(&(agent.clone(), key.clone()))
    }

    /// The agent got rid of it.
    pub fn forget_disowned(&mut self, agent: &AgentId, key: &TaskKey) {
        self.disowned.remove(&(agent.clone(), key.clone()));
    }

    /// Forgets all of an agent's: it lists them again, or is gone.
    pub fn forget_all_disowned(&mut self, agent: &AgentId) {
        self.disowned.retain(|(of, _)| of != agent);
    }
}
