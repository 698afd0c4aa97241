//! Statuses of tasks on their way from agents to frameworks, acknowledgements on their way back, and kills.

use bulkhead_proto::v1::{
    AcknowledgeStatus, KillTask, Reconcile, StopTaskRequest, Task, TaskReason, TaskSpec, TaskState,
    TaskStatus, scheduler_event,
};

use super::{Core, Effect, Severity, StopError};
use crate::{
    framework::Phase,
    ids::{AgentId, FrameworkId, RequestId, TaskKey},
    tasks::{KillOrder, is_terminal},
};

impl Core {
    /// An agent's word about a task.
    pub(super) fn task_status(&mut self, agent: &AgentId, mut status: TaskStatus) {
        let key = TaskKey::new(&status.framework_id.as_str().into(), &status.task_id);
        if status.state() == TaskState::Unspecified || status.sequence == 0 {
            if self.tasks.get(&key).is_none_or(|r| r.agent != *agent) || status.sequence != 0 {
                let text = format!(
                    "agent {agent} sent a status of task {key} without a state or a sequence; ignored"
                );
                self.log(Severity::Warn, text);
            }
            return;
        }
        status.agent_id = agent.into();
        if self.tasks.is_disowned(agent, &key) {
            self.disowned_status(agent, &key, &status);
        } else if self.tasks.get(&key).is_some_and(|r| r.agent == *agent) {
            self.record_status(agent, &key, status);
        } else {
            // Its end was told already, or its framework is long gone: the agent need not repeat it.
            self.acknowledge_to(agent, &key, status.sequence);
        }
    }

    fn disowned_status(&mut self, agent: &AgentId, key: &TaskKey, status: &TaskStatus) {
        self.acknowledge_to(agent, key, status.sequence);
        if is_terminal(status.state()) {
            self.tasks.forget_disowned(agent, key);
            self.ledger.release_grant(agent, key);
        }
    }

    fn record_status(&mut self, agent: &AgentId, key: &TaskKey, status: TaskStatus) {
        let Some(record) = self.tasks.get_mut(key) else { return };
        let is_new = status.sequence > record.status.sequence;
        let is_newest = (status.sequence, status.state()) == (record.status.sequence, record.status.state());
        // A task ends once, and the same status always has the same number: anything else is an agent that
        // contradicts itself, or repeats the end of an older task of this id.
        let contradicts = if is_new { record.ended() } else { is_terminal(status.state()) && !is_newest };
        if contradicts || (is_new && record.previous.as_ref() == Some(&status)) {
            return self.acknowledge_to(agent, key, status.sequence);
        }
        if is_new {
            record.status = status.clone();
        }
        let acked = record.acked;
        if is_new && is_terminal(status.state()) {
            self.task_ended(agent, key, status.state());
        }
        match self.phase(&key.framework) {
            _ if status.sequence <= acked => self.acknowledge_to(agent, key, status.sequence),
            Some(Phase::Connected(_)) => {
                self.tell_framework(&key.framework, scheduler_event::Event::Update(status))
            }
            // The agent repeats it, and the framework hears it first thing when it is back.
            Some(Phase::Away { .. }) => {}
            Some(Phase::Detached | Phase::Leaving) | None => self.acknowledged(key, status.sequence),
        }
    }

    /// What the task held is free from this moment on.
    fn task_ended(&mut self, agent: &AgentId, key: &TaskKey, state: TaskState) {
        self.counters.ended(state);
        self.end_resize(key);
        self.ledger.release_grant(agent, key);
    }

    pub(super) fn acknowledge(&mut self, framework: &FrameworkId, call: &AcknowledgeStatus) {
        if call.sequence > 0 {
            self.acknowledged(&TaskKey::new(framework, &call.task_id), call.sequence);
        }
    }

    /// Somebody answers for having this status: the agent may stop repeating it. Nobody can have a status that has
    /// not come yet, and an agent that is told so would never send it.
    pub(super) fn acknowledged(&mut self, key: &TaskKey, sequence: u64) {
        let Some(record) = self.tasks.get_mut(key) else {
            let Some(task) = self.tasks.ended_run(key) else { return };
            let newest = task.status.as_ref().map_or(0, |s| s.sequence);
            let agent = AgentId::from(task.agent_id.as_str());
            return self.acknowledge_to(&agent, key, sequence.min(newest));
        };
        let sequence = sequence.min(record.status.sequence);
        record.acked = record.acked.max(sequence);
        let agent = record.agent.clone();
        let is_over = record.ended() && sequence == record.status.sequence;
        self.acknowledge_to(&agent, key, sequence);
        if is_over {
            self.tasks.retire(key);
            self.complete(&key.framework);
        }
    }

    /// Ends a live task by the master's own word.
    pub(super) fn lose(&mut self, key: &TaskKey, reason: TaskReason, message: String) {
        let now = self.now;
        let Some(record) = self.tasks.get_mut(key).filter(|r| !r.ended()) else { return };
        record.status = TaskStatus {
            state: TaskState::Lost.into(),
            reason: reason.into(),
            message,
            sequence: 0,
            unix_time_ms: now.0,
            task_id: key.task.as_str().to_owned(),
            framework_id: (&key.framework).into(),
            agent_id: (&record.agent).into(),
            ..TaskStatus::default()
        };
        let (agent, status) = (record.agent.clone(), record.status.clone());
        self.task_ended(&agent, key, TaskState::Lost);
        self.tell_framework(&key.framework, scheduler_event::Event::Update(status));
        self.tasks.retire(key);
        self.complete(&key.framework);
    }

    /// Tells a framework, once, what the master itself knows about a task that no agent has.
    pub(super) fn own_word(
        &mut self,
        framework: &FrameworkId,
        task: &str,
        state: TaskState,
        reason: TaskReason,
        message: String,
    ) -> TaskStatus {
        let status = TaskStatus {
            task_id: task.to_owned(),
            framework_id: framework.into(),
            state: state.into(),
            reason: reason.into(),
            message,
            unix_time_ms: self.now.0,
            ..TaskStatus::default()
        };
        self.tell_framework(framework, scheduler_event::Event::Update(status.clone()));
        status
    }

    pub(super) fn kill_task(&mut self, framework: &FrameworkId, call: &KillTask) {
        let key = TaskKey::new(framework, &call.task_id);
        if self.tasks.get(&key).is_some_and(|r| !r.ended()) {
            let order = KillOrder { reason: TaskReason::KilledByFramework, grace_ms: call.grace_ms };
            self.order_kill(&key, order);
        } else {
            self.tell_newest(&key);
        }
    }

    /// Sends a kill now, and again whenever the agent comes back with the task.
    pub(super) fn order_kill(&mut self, key: &TaskKey, order: KillOrder) {
        let Some(record) = self.tasks.get_mut(key) else { return };
        record.kill = Some(order);
        let agent = record.agent.clone();
        self.send_kill(&agent, key, order);
    }

    pub(super) fn repeat_kill(&mut self, key: &TaskKey) {
        let order = self.tasks.get(key).filter(|r| !r.ended()).and_then(|r| r.kill);
        order.into_iter().for_each(|order| self.order_kill(key, order));
    }

    pub(super) fn reconcile(&mut self, framework: &FrameworkId, call: &Reconcile) {
        let keys: Vec<TaskKey> = if call.task_ids.is_empty() {
            self.tasks.of_framework(framework).map(|(key, _)| key.clone()).collect()
        } else {
            call.task_ids.iter().map(|task| TaskKey::new(framework, task)).collect()
        };
        keys.iter().for_each(|key| self.tell_newest(key));
    }

    /// A copy of a task's newest status, not to be acknowledged.
    fn tell_newest(&mut self, key: &TaskKey) {
        let current = self.tasks.get(key).map(|r| r.status.clone());
        let newest = current.or_else(|| self.tasks.ended(key).and_then(|t| t.status.clone()));
        match newest {
            Some(status) => {
                let copy = TaskStatus { sequence: 0, ..status };
                self.tell_framework(&key.framework, scheduler_event::Event::Update(copy));
            }
            None => {
                let message = format!(
                    "the master knows no task {:?} of this framework: it was never launched, or ended long ago",
                    key.task.as_str()
                );
                self.own_word(
                    &key.framework,
                    key.task.as_str(),
                    TaskState::Lost,
                    TaskReason::UnknownTask,
                    message,
                );
            }
        }
    }

    /// Remembers a launch that the master refused.
    pub(super) fn remember_rejected(&mut self, key: &TaskKey, spec: &TaskSpec, status: TaskStatus) {
        let task = Task {
            spec: Some(spec.clone()),
            framework_id: (&key.framework).into(),
            agent_id: String::new(),
            status: Some(status),
            started_unix_ms: self.now.0,
        };
        self.tasks.remember(key, task);
    }

    pub(super) fn stop_task(&mut self, request: RequestId, stop: &StopTaskRequest) {
        let result = self.find_live(&stop.task_id, &stop.framework_id).map(|key| {
            self.log(Severity::Info, format!("task {key} is stopped by an operator"));
            self.order_kill(
                &key,
                KillOrder { reason: TaskReason::KilledByOperator, grace_ms: stop.grace_ms },
            );
        });
        self.effects.push(Effect::Answer { request, result });
    }

    /// The one live task of this id, and of this framework where one is named.
    pub(super) fn find_live(&self, task_id: &str, framework_id: &str) -> Result<TaskKey, StopError> {
        let named = |key: &TaskKey| {
            key.task.as_str() == task_id
                && (framework_id.is_empty() || key.framework.as_str() == framework_id)
        };
        let task = || task_id.to_owned();
        let live: Vec<_> =
            self.tasks.iter().filter(|(k, r)| named(k) && !r.ended()).map(|(k, _)| k).collect();
        match live.as_slice() {
            [one] => Ok((*one).clone()),
            [] => {
                let ended = self.tasks.iter().any(|(k, _)| named(k))
                    || self.tasks.history().any(|t| t.spec.as_ref().is_some_and(|s| s.task_id == task_id));
                let hint =
                    if ended { "; it has ended already" } else { "; list the live ones with ListTasks" };
                Err(StopError::NotFound { task: task(), hint: hint.to_owned() })
            }
            many => {
                let names: Vec<_> = many.iter().map(|k| k.framework.as_str()).collect();
                Err(StopError::Ambiguous { task: task(), frameworks: names.join(", ") })
            }
        }
    }
}
