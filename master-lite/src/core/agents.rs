//! Agents come, report, fall silent, and come back.

use bulkhead_proto::{
    ids::check_id,
    v1::{
        Acknowledge, Grant, Kill, Register, Registered, ResourceReport, SendReport, Task, TaskReason,
        TaskState, TaskStatus, Unchanged, agent_message, master_message,
    },
};

use super::{Closing, Core, SILENT_INTERVALS, Severity};
use crate::{
    ids::{AgentId, SessionId, TaskKey, UnixMs},
    inventory::{check_register, check_report},
    ledger::Held,
    tasks::{KillOrder, Record, is_terminal},
    timers::Timer,
};

impl Core {
    pub(super) fn agent_registers(&mut self, session: SessionId, register: Register) {
        if self.in_use(session) {
            return;
        }
        let agent = match check_register(&register) {
            Ok(agent) => agent,
            Err(problem) => {
                self.log(Severity::Warn, format!("an agent was refused: {problem}"));
                return self.close(session, Closing::Invalid(problem));
            }
        };
        self.replace_session(&agent);
        self.inventory.connect(&agent, session, &register, self.now);
        let registered = Registered { heartbeat_interval_ms: self.settings.heartbeat_interval_ms };
        self.tell_agent(&agent, master_message::Message::Registered(registered));
        self.rebuild(&agent, &register);
        self.watch_all_data_sets(&agent);
        self.watch_for_silence(&agent, session, self.now);
        self.came_or_went.insert(agent.clone());
        let info = register.agent.unwrap_or_default();
        let text =
            format!("agent {agent} ({}) registered with {} tasks", info.hostname, register.tasks.len());
        self.log(Severity::Info, text);
    }

    /// An agent that registers twice has lost its older stream, or runs twice: the newer one counts.
    fn replace_session(&mut self, agent: &AgentId) {
        if let Some(old) = self.inventory.session_of(agent) {
            self.agent_leaves(agent, "it registered again");
            let why = format!(
                "agent {agent} registered on a newer stream; is a second agent running with a copied work directory?"
            );
            self.close(old, Closing::Replaced(why));
        }
    }

    /// Makes the books agree with what the agent lists: it knows what it runs.
    fn rebuild(&mut self, agent: &AgentId, register: &Register) {
        let before: Vec<_> = self.tasks_on(agent);
        self.ledger.remove(agent);
        self.tasks.forget_all_disowned(agent);
        if let Some(report) = &register.report {
            self.ledger.report(agent, report);
        }
        for task in &register.tasks {
            self.take_over(agent, task);
        }
        for key in before {
            let held = self.ledger.book(agent).is_some_and(|b| b.tasks().any(|t| *t == key));
            if !held && self.tasks.get(&key).is_some_and(|r| !r.ended()) {
                let message = format!(
                    "agent {agent} came back without this task: the launch never reached it, or its records are gone"
                );
                self.lose(&key, TaskReason::AgentLost, message);
            }
        }
    }

    /// The live tasks that the ledger has on an agent, without those that are only waiting to be killed there.
    fn tasks_on(&self, agent: &AgentId) -> Vec<TaskKey> {
        let granted = self.ledger.book(agent).into_iter().flat_map(|b| b.tasks());
        granted.filter(|key| self.tasks.get(key).is_some_and(|r| r.agent == *agent)).cloned().collect()
    }

    /// One task out of an agent's list.
    fn take_over(&mut self, agent: &AgentId, task: &Task) {
        let spec = task.spec.clone().unwrap_or_default();
        if let Err(problem) = check_id(&spec.task_id).and_then(|()| check_id(&task.framework_id)) {
            let text = format!(
                "agent {agent} lists task {:?} of {:?}, whose id {problem}",
                spec.task_id, task.framework_id
            );
            return self.log(Severity::Warn, text);
        }
        let key = TaskKey::new(&task.framework_id.as_str().into(), &spec.task_id);
        let mut status = task.status.clone().unwrap_or_default();
        if status.sequence == 0 || status.state() == TaskState::Unspecified {
            // The agent has said nothing about it yet.
            status = TaskStatus { state: TaskState::Staging.into(), ..TaskStatus::default() };
        }
        status.task_id.clone_from(&spec.task_id);
        status.framework_id.clone_from(&task.framework_id);
        status.agent_id = agent.into();
        let known_here = self.tasks.get(&key).map(|r| r.agent == *agent);
        let told_ended = self.tasks.ended_run(&key).is_some();
        match known_here {
            Some(true) => {
                self.hold_if_live(agent, &key, task, &status);
                self.resume_resize(&key, spec.grant);
                self.task_status(agent, status);
                self.repeat_kill(&key);
            }
            Some(false) => self.disown(agent, key, task, &status, TaskReason::AgentRestarted),
            None if told_ended => self.disown(agent, key, task, &status, TaskReason::AgentLost),
            None => self.adopt(agent, key, task, status),
        }
    }

    /// A task that this master has never heard of: it was launched by an earlier one.
    fn adopt(&mut self, agent: &AgentId, key: TaskKey, task: &Task, status: TaskStatus) {
        self.expect_framework(&key.framework);
        self.hold_if_live(agent, &key, task, &status);
        let before = TaskStatus { state: TaskState::Staging.into(), sequence: 0, ..status.clone() };
        let record = Record {
            spec: task.spec.clone().unwrap_or_default(),
            agent: agent.clone(),
            status: before,
            acked: 0,
            kill: None,
            resizing: None,
            started: UnixMs(task.started_unix_ms),
            previous: None,
        };
        self.tasks.insert(key.clone(), record);
        self.task_status(agent, status);
        self.kill_if_leaving(&key);
    }

    /// A task whose end was told already must end; until it has, it keeps what it holds.
    fn disown(
        &mut self,
        agent: &AgentId,
        key: TaskKey,
        task: &Task,
        status: &TaskStatus,
        reason: TaskReason,
    ) {
        self.acknowledge_to(agent, &key, status.sequence);
        if is_terminal(status.state()) {
            return;
        }
        self.hold_if_live(agent, &key, task, status);
        self.log(
            Severity::Warn,
            format!("agent {agent} still runs task {key}, which was given up: it is killed"),
        );
        self.send_kill(agent, &key, KillOrder { reason, grace_ms: 0 });
        self.tasks.disown(agent, key);
    }

    fn hold_if_live(&mut self, agent: &AgentId, key: &TaskKey, task: &Task, status: &TaskStatus) {
        if is_terminal(status.state()) || self.tasks.get(key).is_some_and(|r| r.agent == *agent && r.ended())
        {
            return;
        }
        let Grant { resources, class, .. } =
            task.spec.as_ref().and_then(|s| s.grant.clone()).unwrap_or_default();
        let held = Held {
            framework: key.framework.clone(),
            class: class.try_into().unwrap_or_default(),
            resources: resources.unwrap_or_default(),
        };
        self.ledger.grant(agent, key.clone(), held);
    }

    pub(super) fn agent_said(&mut self, session: SessionId, message: agent_message::Message) {
        let Some(agent) = self.inventory.agent_of(session).cloned() else { return };
        self.inventory.heard(&agent, self.now);
        match message {
            agent_message::Message::Heartbeat(_) => {}
            agent_message::Message::Resized(answer) => self.agent_resized(&agent, answer),
            agent_message::Message::DataAccess(report) => {
                self.agent_measured_access(&agent, report.data_access);
            }
            agent_message::Message::Report(report) => self.agent_reports(&agent, &report),
            agent_message::Message::Unchanged(unchanged) => self.agent_unchanged(&agent, unchanged),
            agent_message::Message::Status(status) => self.task_status(&agent, status),
            agent_message::Message::Register(_) => {
                self.agent_leaves(&agent, "it registered twice on one stream");
                let why = "Register opens a stream and is sent once; open a new stream to register again"
                    .to_owned();
                self.close(session, Closing::Invalid(why));
            }
        }
    }

    fn agent_reports(&mut self, agent: &AgentId, report: &ResourceReport) {
        if let Err(problem) = check_report(report) {
            return self.log(Severity::Warn, format!("agent {agent}: a report was ignored: {problem}"));
        }
        if self.inventory.report(agent, report, self.now) {
            self.take_in(agent, report);
        }
    }

    /// Nothing is offered anew for it. A report that never came, or was refused, is asked for again.
    fn agent_unchanged(&mut self, agent: &AgentId, unchanged: Unchanged) {
        if !self.inventory.confirm(agent, unchanged.sequence, self.now) {
            self.tell_agent(agent, master_message::Message::SendReport(SendReport {}));
        }
    }

    fn take_in(&mut self, agent: &AgentId, report: &ResourceReport) {
        if self.ledger.report(agent, report) {
            self.fit_offers(agent, "the agent has less to offer now");
        }
    }

    /// Takes back the offers that a smaller capacity, a larger reserve or a larger grant leaves no room for.
    pub(super) fn fit_offers(&mut self, agent: &AgentId, why: &str) {
        let Some(book) = self.ledger.book(agent) else { return };
        let overdrawn = book.overdrawn(self.offers.of_agent(agent));
        self.rescind(overdrawn, why);
    }

    /// The stream is gone; the tasks are believed to run on until the agent timeout is over.
    pub(super) fn agent_leaves(&mut self, agent: &AgentId, why: &str) {
        if self.inventory.disconnect(agent).is_none() {
            return;
        }
        self.came_or_went.insert(agent.clone());
        let offers = self.offers.of_agent(agent).cloned().collect();
        self.rescind(offers, &format!("agent {agent} is not connected"));
        let heard = self.inventory.get(agent).map_or(self.now, |a| a.heard);
        self.timers.set(heard.after_ms(self.settings.agent_timeout_ms), Timer::AgentAway(agent.clone()));
        self.log(Severity::Warn, format!("agent {agent} is away: {why}"));
    }

    fn watch_for_silence(&mut self, agent: &AgentId, session: SessionId, heard: UnixMs) {
        let patience = self.settings.heartbeat_interval_ms.saturating_mul(SILENT_INTERVALS);
        self.timers.set(heard.after_ms(patience), Timer::AgentSilent(agent.clone(), session));
    }

    pub(super) fn agent_may_be_silent(&mut self, agent: &AgentId, session: SessionId) {
        let Some(known) = self.inventory.get(agent).filter(|a| a.session == Some(session)) else { return };
        let heard = known.heard;
        let patience = self.settings.heartbeat_interval_ms.saturating_mul(SILENT_INTERVALS);
        if heard.after_ms(patience) > self.now {
            return self.watch_for_silence(agent, session, heard);
        }
        self.agent_leaves(agent, "nothing was heard from it for three heartbeat intervals");
        self.close(
            session,
            Closing::Silent(format!(
                "nothing was heard from agent {agent} for {patience} ms; register again"
            )),
        );
    }

    pub(super) fn agent_may_be_lost(&mut self, agent: &AgentId) {
        let Some(known) = self.inventory.get(agent).filter(|a| a.session.is_none()) else { return };
        let lost_at = known.heard.after_ms(self.settings.agent_timeout_ms);
        if lost_at > self.now {
            return self.timers.set(lost_at, Timer::AgentAway(agent.clone()));
        }
        let hostname = known.info.hostname.clone();
        let tasks = self.tasks_on(agent);
        self.log(Severity::Warn, format!("agent {agent} ({hostname}) is lost with {} tasks", tasks.len()));
        for key in tasks {
            let message = format!(
                "agent {agent} ({hostname}) was not heard of for {} ms",
                self.settings.agent_timeout_ms
            );
            self.lose(&key, TaskReason::AgentLost, message);
        }
        self.tasks.forget_all_disowned(agent);
        self.ledger.remove(agent);
        self.inventory.remove(agent);
        self.came_or_went.insert(agent.clone());
    }

    pub(super) fn send_kill(&mut self, agent: &AgentId, key: &TaskKey, order: KillOrder) {
        let kill = Kill {
            framework_id: (&key.framework).into(),
            task_id: key.task.as_str().to_owned(),
            reason: order.reason.into(),
            grace_ms: order.grace_ms,
        };
        self.tell_agent(agent, master_message::Message::Kill(kill));
    }

    pub(super) fn acknowledge_to(&mut self, agent: &AgentId, key: &TaskKey, sequence: u64) {
        if sequence == 0 {
            return;
        }
        let ack = Acknowledge {
            framework_id: (&key.framework).into(),
            task_id: key.task.as_str().to_owned(),
            sequence,
        };
        self.tell_agent(agent, master_message::Message::Acknowledge(ack));
    }
}
