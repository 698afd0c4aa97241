//! A running task gets another grant.
//!
//! While its agent carries that out, the books hold the larger of both grants, kind by kind: whichever way it ends,
//! nothing is promised twice. One resize of a task is under way at a time, and each gets exactly one answer: the
//! agent's, or that the task or the agent's stream ended meanwhile.

use bulkhead_proto::v1::{
    Grant, Resize, ResizeTask, ResizeTaskRequest, Resized, ResourceClass, Resources, TaskResized,
    master_message, scheduler_event,
};

use super::{Core, Effect, ResizeError, Severity, accept::shortage};
use crate::{
    ids::{AgentId, FrameworkId, RequestId, TaskKey},
    ledger::Held,
    tasks::check_grant,
};

/// A resize that waits for its agent.
#[derive(Clone, Debug)]
pub struct Resizing {
    /// Told to the agent, and echoed by it.
    number: u64,
    asker: Asker,
    wanted: Grant,
}

#[cfg(test)]
impl Resizing {
    /// What its agent must echo.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// What was asked for.
    pub(crate) fn wanted(&self) -> &Grant {
        &self.wanted
    }
}

/// Who waits for the answer.
#[derive(Clone, Copy, Debug)]
enum Asker {
    /// The task's framework, which paid for the growth with offers.
    Framework,
    Operator(RequestId),
}

/// A resize that can be asked of the agent.
struct Planned {
    agent: AgentId,
    class: ResourceClass,
    before: Resources,
    after: Resources,
}

impl Planned {
    fn growth(&self) -> Resources {
        self.after.saturating_sub(&self.before)
    }
}

impl Core {
    /// A framework resizes its own task.
    pub(super) fn resize_for_framework(&mut self, framework: &FrameworkId, call: &ResizeTask) {
        let key = TaskKey::new(framework, &call.task_id);
        let (offers, gone) = self.take_offers(framework, &call.offer_ids);
        let planned = self.plan_resize(&key, call.grant.as_ref()).and_then(|planned| {
            if !gone.is_empty() {
                return Err(format!(
                    "offers {} are not this framework's any more: wait for others",
                    gone.join(", ")
                ));
            }
            let fits = |o: &&crate::offers::Offer| o.agent == planned.agent && o.class == planned.class;
            let paid = offers.iter().filter(fits).fold(Resources::default(), |sum, o| sum.plus(&o.resources));
            let growth = planned.growth();
            if paid.contains(&growth) { Ok(planned) } else { Err(shortage(&growth, &paid)) }
        });
        match (planned, call.grant.clone()) {
            (Ok(planned), Some(wanted)) => self.ask_agent(key, planned, Asker::Framework, wanted),
            (Err(refusal), _) => self.tell_resized(&key, refusal),
            (Ok(_), None) => {}
        }
    }

    /// An operator resizes any task.
    pub(super) fn resize_for_operator(&mut self, request: RequestId, call: &ResizeTaskRequest) {
        let planned =
            self.find_live(&call.task_id, &call.framework_id).map_err(ResizeError::Task).and_then(|key| {
                let planned = self.plan_resize(&key, call.grant.as_ref()).map_err(ResizeError::Refused)?;
                let parts = self.ledger.book(&planned.agent).map(|b| b.parts()).unwrap_or_default();
                let (free, growth) =
                    (parts.free.plus(&parts.offered).of_class(planned.class), planned.growth());
                if free.contains(&growth) {
                    Ok((key, planned))
                } else {
                    Err(ResizeError::Refused(shortage(&growth, &free)))
                }
            });
        match (planned, call.grant.clone()) {
            (Ok((key, planned)), Some(wanted)) => {
                let agent = planned.agent.clone();
                self.log(Severity::Info, format!("task {key} is resized by an operator"));
                self.ask_agent(key, planned, Asker::Operator(request), wanted);
                self.fit_offers(&agent, "an operator gave it to a running task");
            }
            (Err(error), _) => self.effects.push(Effect::ResizeAnswer { request, result: Err(error) }),
            (Ok(_), None) => {}
        }
    }

    fn plan_resize(&self, key: &TaskKey, wanted: Option<&Grant>) -> Result<Planned, String> {
        let record = self.tasks.get(key).filter(|r| !r.ended());
        let record = record.ok_or_else(|| format!("no live task has the id {:?}", key.task.as_str()))?;
        let (class, after) = check_grant(wanted)?;
        let grant = record.spec.grant.as_ref().ok_or("the task holds no grant")?;
        if grant.class() != class {
            return Err("a running task keeps its class: launch another one for the other class".to_owned());
        }
        if record.resizing.is_some() {
            return Err("another resize of this task is under way: wait for its answer".to_owned());
        }
        if self.inventory.session_of(&record.agent).is_none() {
            return Err(format!("agent {} is not connected now: try again later", record.agent));
        }
        let before = grant.resources.clone().unwrap_or_default();
        Ok(Planned { agent: record.agent.clone(), class, before, after })
    }

    fn ask_agent(&mut self, key: TaskKey, planned: Planned, asker: Asker, wanted: Grant) {
        let Planned { agent, class, before, after } = planned;
        self.resizes_made += 1;
        let number = self.resizes_made;
        let held = Held { framework: key.framework.clone(), class, resources: before.at_least(&after) };
        self.ledger.grant(&agent, key.clone(), held);
        if let Some(record) = self.tasks.get_mut(&key) {
            record.resizing = Some(Resizing { number, asker, wanted: wanted.clone() });
        }
        let (framework_id, task_id) = ((&key.framework).into(), key.task.as_str().to_owned());
        let resize = Resize { framework_id, task_id, grant: Some(wanted), request: number };
        self.tell_agent(&agent, master_message::Message::Resize(resize));
    }

    /// The agent's answer.
    pub(super) fn agent_resized(&mut self, agent: &AgentId, answer: Resized) {
        let key = TaskKey::new(&answer.framework_id.as_str().into(), &answer.task_id);
        let is_awaited = self.tasks.get(&key).is_some_and(|record| {
            record.agent == *agent && record.resizing.as_ref().is_some_and(|r| r.number == answer.request)
        });
        if is_awaited {
            self.settle_resize(&key, answer.grant, answer.refusal);
        }
    }

    /// The agent is back with the task: what it holds there is how the resize ended.
    pub(super) fn resume_resize(&mut self, key: &TaskKey, holds: Option<Grant>) {
        let Some(record) = self.tasks.get_mut(key) else { return };
        let Some(resizing) = &record.resizing else {
            // A resize whose answer an earlier master did not live to hear.
            if holds.is_some() {
                record.spec.grant = holds;
            }
            return;
        };
        let done = holds.as_ref() == Some(&resizing.wanted);
        let refusal = if done { "" } else { "the agent was away before it was done: ask again" };
        self.settle_resize(key, holds, refusal.to_owned());
    }

    /// The task is over, and with it every wish about it.
    pub(super) fn end_resize(&mut self, key: &TaskKey) {
        self.answer_resize(key, "the task has ended".to_owned());
    }

    fn settle_resize(&mut self, key: &TaskKey, holds: Option<Grant>, refusal: String) {
        let Some(record) = self.tasks.get_mut(key).filter(|r| !r.ended()) else { return };
        if holds.is_some() {
            record.spec.grant = holds;
        }
        let grant = record.spec.grant.clone().unwrap_or_default();
        let (agent, class) = (record.agent.clone(), grant.class());
        let held =
            Held { framework: key.framework.clone(), class, resources: grant.resources.unwrap_or_default() };
        self.ledger.grant(&agent, key.clone(), held);
        self.counters.tasks_resized += u64::from(refusal.is_empty());
        self.answer_resize(key, refusal);
    }

    fn answer_resize(&mut self, key: &TaskKey, refusal: String) {
        let Some(record) = self.tasks.get_mut(key) else { return };
        let Some(resizing) = record.resizing.take() else { return };
        match resizing.asker {
            Asker::Framework => self.tell_resized(key, refusal),
            Asker::Operator(request) => {
                let grant = record.spec.grant.clone().unwrap_or_default();
                let result = if refusal.is_empty() { Ok(grant) } else { Err(ResizeError::Refused(refusal)) };
                self.effects.push(Effect::ResizeAnswer { request, result });
            }
        }
    }

    fn tell_resized(&mut self, key: &TaskKey, refusal: String) {
        let grant = self.tasks.get(key).and_then(|record| record.spec.grant.clone());
        let resized = TaskResized { task_id: key.task.as_str().to_owned(), grant, refusal };
        self.tell_framework(&key.framework, scheduler_event::Event::Resized(resized));
    }
}
