//! What `run` does next: a state machine from what happened to what to do about it.
//!
//! No clock, no network: `run.rs` brings the inputs and carries out the effects.
//!
//! ```text
//! Waiting --offer fits: Accept--> Launched --last status--> Draining --output read--> Leave
//!    ^                                |
//!    +------- offer was gone ---------+
//! ```

use std::time::Duration;

use bulkhead_proto::v1::{
    Accept, AcknowledgeStatus, AgentInfo, Decline, Detach, KillTask, Offer, Reconcile, Resources, TaskReason,
    TaskState, TaskStatus, Teardown, scheduler_call::Call,
};

use super::{
    need::Need,
    outcome::{Limits, outcome, refusals, usage_words},
    report::Report,
};
use crate::{
    error::{OUTPUT_CLOSED, RUN_FAILED},
    quantity::span,
    task_ref::is_terminal,
};

/// Exit code after Ctrl-C, as shells show a SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;
/// How long an offer that is too small is not to come again: time for something to end.
const REFUSE_SMALL_MS: u64 = 5_000;
/// How long no further offer is wanted once the task is placed.
const REFUSE_ALL_MS: u64 = 3_600_000;
/// A master that has just started does not know the tasks of agents that have not yet come back to it.
/// So its "unknown task" is believed only after this many questions, one a [`DOUBT_PAUSE`].
const DOUBTS: u32 = 15;
const DOUBT_PAUSE: Duration = Duration::from_secs(1);

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Input {
    Subscribed {
        framework_id: String,
    },
    Offers(Vec<Offer>),
    Status(TaskStatus),
    /// The master could not carry out a call.
    CallError(String),
    /// Nothing fitting came in time; the words say what did.
    NoOfferInTime(String),
    /// Time to ask for the task's status again.
    AskAgain,
    Interrupted,
    /// Our own output cannot be written: its reader has left, or the words say what else.
    OutputFailed(Option<String>),
    /// The task's output is written, or cannot be read any further.
    OutputDone(Result<(), String>),
    /// The master did not come back in time.
    GaveUp(String),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    Call(Call),
    /// Start to write the task's output.
    FollowOutput(AgentInfo),
    /// The task has ended: write what is left of its output, then report it.
    EndOutput,
    AskAgain(Duration),
    Note(String),
    Detail(String),
    Report(Report),
    Leave(u8),
}

#[derive(Debug)]
enum Stage {
    Waiting,
    Launched(Launched),
    /// With the last status.
    Draining(TaskStatus),
}

#[derive(Debug)]
struct Launched {
    agent: AgentInfo,
    following: bool,
    doubts: u32,
}

/// The run of one task.
#[derive(Debug)]
pub(crate) struct Plan {
    need: Need,
    detach: bool,
    stage: Stage,
    framework_id: String,
    stopping: bool,
    /// The exit code that our own output's failure brings.
    output_failed: Option<u8>,
}

impl Plan {
    pub(crate) fn new(need: Need, detach: bool) -> Self {
        Self {
            need,
            detach,
            stage: Stage::Waiting,
            framework_id: String::new(),
            stopping: false,
            output_failed: None,
        }
    }

    /// Is the task still without an offer?
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    /// Where the task is, before it runs.
    pub(crate) fn starting_on(&self) -> Option<&AgentInfo> {
        match &self.stage {
            Stage::Launched(launched) if !launched.following => Some(&launched.agent),
            _ => None,
        }
    }

    /// The id that the master gave us.
    pub(crate) fn framework_id(&self) -> &str {
        &self.framework_id
    }

    /// Takes what happened; what to do about it, in order.
    pub(crate) fn on(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Subscribed { framework_id } => self.on_subscribed(framework_id),
            Input::Offers(offers) => self.on_offers(&offers),
            Input::Status(status) => self.on_status(status),
            Input::CallError(message) => self.on_call_error(&message),
            Input::NoOfferInTime(seen) if self.is_waiting() => {
                self.leave(RUN_FAILED, vec![Effect::Note(seen)])
            }
            Input::NoOfferInTime(_) => Vec::new(),
            Input::AskAgain => self.reconcile(),
            Input::Interrupted => self.on_interrupted(),
            Input::OutputFailed(why) => self.on_output_failed(why),
            Input::OutputDone(result) => self.on_output_done(result),
            Input::GaveUp(why) => self.on_gave_up(&why),
        }
    }

    fn on_subscribed(&mut self, framework_id: String) -> Vec<Effect> {
        let mut effects = vec![Effect::Detail(format!("subscribed as framework {framework_id}"))];
        self.framework_id = framework_id;
        if matches!(self.stage, Stage::Launched(_)) {
            effects.extend(self.reconcile());
            // The call may have gone down with the old stream.
            if self.stopping {
                effects.push(self.kill());
            }
        }
        effects
    }

    fn on_offers(&mut self, offers: &[Offer]) -> Vec<Effect> {
        let fit = |o: &Offer| self.need.fit(o).ok().map(|granted| (o.clone(), granted));
        let chosen = if self.is_waiting() { offers.iter().find_map(fit) } else { None };
        let Some((offer, granted)) = chosen else {
            let refuse_ms = if self.is_waiting() { REFUSE_SMALL_MS } else { REFUSE_ALL_MS };
            return vec![decline(offers.iter(), refuse_ms)];
        };
        let others: Vec<&Offer> = offers.iter().filter(|o| o.offer_id != offer.offer_id).collect();
        let mut effects = self.launch(offer, granted);
        if !others.is_empty() {
            effects.push(decline(others.into_iter(), REFUSE_ALL_MS));
        }
        effects
    }

    fn launch(&mut self, offer: Offer, granted: Resources) -> Vec<Effect> {
        let agent = offer.agent.unwrap_or_default();
        let task = self.need.spec(granted.clone());
        let words = crate::quantity::resources(&granted);
        let detail = format!("launching {} on {} with {words}", task.task_id, agent.hostname);
        let report = Report::launched(&self.framework_id, &task, &agent);
        self.stage = Stage::Launched(Launched { agent, following: false, doubts: 0 });
        let accept = Accept { offer_ids: vec![offer.offer_id], tasks: vec![task], refuse_ms: REFUSE_ALL_MS };
        vec![Effect::Detail(detail), Effect::Call(Call::Accept(accept)), Effect::Report(report)]
    }

    fn on_status(&mut self, status: TaskStatus) -> Vec<Effect> {
        let ours = status.task_id == self.need.task_id();
        let launched = match &mut self.stage {
            Stage::Launched(launched) if ours => launched,
            // Acknowledged when the output is written, by the number that only the status itself has:
            // the answer to a reconciliation is a copy without one.
            Stage::Draining(last) if ours => {
                last.sequence = last.sequence.max(status.sequence);
                return Vec::new();
            }
            _ => return ack(&status),
        };
        if status.state() == TaskState::Lost
            && status.reason() == TaskReason::UnknownTask
            && launched.doubts < DOUBTS
        {
            launched.doubts += 1;
            return [ack(&status), vec![Effect::AskAgain(DOUBT_PAUSE)]].concat();
        }
        let report = Effect::Report(Report::Status(Box::new(status.clone())));
        if status.state() == TaskState::Rejected && status.reason() == TaskReason::OfferGone {
            return [ack(&status), vec![report], self.wait_again()].concat();
        }
        if is_terminal(status.state()) {
            return [vec![report], self.on_last(status)].concat();
        }
        launched.doubts = 0;
        [ack(&status), vec![report], self.on_alive(&status)].concat()
    }

    /// The offer went away between its arrival and our answer: nothing ran, so the next one will do.
    fn wait_again(&mut self) -> Vec<Effect> {
        self.stage = Stage::Waiting;
        if self.stopping {
            return self.leave(INTERRUPTED, Vec::new());
        }
        let revive = Effect::Call(Call::Revive(bulkhead_proto::v1::Revive {}));
        vec![Effect::Detail("the offer was gone; waiting for the next".to_owned()), revive]
    }

    fn on_alive(&mut self, status: &TaskStatus) -> Vec<Effect> {
        let Stage::Launched(launched) = &mut self.stage else { return Vec::new() };
        let running = status.state() == TaskState::Running;
        if !running || launched.following {
            return Vec::new();
        }
        let detail = format!("running on {}", launched.agent.hostname);
        if self.detach {
            let detach = Effect::Call(Call::Detach(Detach {}));
            return vec![
                Effect::Detail(detail),
                detach,
                Effect::Report(Report::detached(status)),
                Effect::Leave(0),
            ];
        }
        launched.following = true;
        vec![Effect::Detail(detail), Effect::FollowOutput(launched.agent.clone())]
    }

    fn on_last(&mut self, status: TaskStatus) -> Vec<Effect> {
        let never_started = status.state() == TaskState::Rejected;
        let Stage::Launched(Launched { agent, following, .. }) =
            std::mem::replace(&mut self.stage, Stage::Draining(status))
        else {
            return Vec::new();
        };
        if self.detach || never_started || self.output_failed.is_some() {
            return self.on_output_done(Ok(()));
        }
        let follow = (!following).then_some(Effect::FollowOutput(agent));
        follow.into_iter().chain([Effect::EndOutput]).collect()
    }

    fn on_output_done(&mut self, result: Result<(), String>) -> Vec<Effect> {
        let Stage::Draining(status) = &self.stage else { return Vec::new() };
        let status = status.clone();
        let end = outcome(&status, Limits { mem_bytes: self.need.amounts.mem_bytes });
        let code = self.output_failed.unwrap_or(end.code);
        // Whoever asked for the end need not be told of it.
        let expected = self.stopping && status.reason() == TaskReason::KilledByFramework;
        let sentence = end.sentence.clone().filter(|_| !expected);
        let notes = [result.err(), refusals(&status), sentence].into_iter().flatten();
        let mut effects = ack(&status);
        effects.extend(notes.map(Effect::Note));
        effects.extend(status.usage.as_ref().map(|u| Effect::Detail(usage_words(u))));
        effects.push(Effect::Report(Report::ended(&status, code, end.sentence)));
        self.leave(code, effects)
    }

    fn on_call_error(&mut self, message: &str) -> Vec<Effect> {
        let note = Effect::Note(format!("the master could not do as asked: {message}"));
        match &self.stage {
            // If it was the launch that failed, asking shows it.
            Stage::Launched(_) => vec![note, Effect::AskAgain(DOUBT_PAUSE)],
            Stage::Waiting | Stage::Draining(..) => vec![note],
        }
    }

    fn on_interrupted(&mut self) -> Vec<Effect> {
        match &self.stage {
            Stage::Launched(_) if !self.stopping => {
                self.stopping = true;
                let grace = match self.need.grace_ms() {
                    0 => String::new(),
                    ms => format!(" ({} grace)", span(ms)),
                };
                let note = format!("stopping {}{grace}; once more leaves at once", self.need.task_id());
                vec![Effect::Note(note), self.kill()]
            }
            _ => self.leave(INTERRUPTED, Vec::new()),
        }
    }

    /// Nobody can see what the task writes any more: it is stopped, as a SIGPIPE would have done.
    fn on_output_failed(&mut self, why: Option<String>) -> Vec<Effect> {
        self.output_failed = Some(if why.is_some() { RUN_FAILED } else { OUTPUT_CLOSED });
        let note = why.map(Effect::Note);
        match &self.stage {
            Stage::Draining(..) => note.into_iter().chain(self.on_output_done(Ok(()))).collect(),
            Stage::Launched(_) if !self.stopping => {
                self.stopping = true;
                note.into_iter().chain([self.kill()]).collect()
            }
            _ => note.into_iter().collect(),
        }
    }

    fn on_gave_up(&mut self, why: &str) -> Vec<Effect> {
        let rest = match &self.stage {
            Stage::Waiting => "",
            _ => "; the task is stopped when the master or its agent notices that nobody waits for it",
        };
        vec![Effect::Note(format!("{why}{rest}")), Effect::Leave(RUN_FAILED)]
    }

    fn kill(&self) -> Effect {
        let task_id = self.need.task_id().to_owned();
        Effect::Call(Call::Kill(KillTask { task_id, grace_ms: self.need.grace_ms() }))
    }

    fn reconcile(&self) -> Vec<Effect> {
        match &self.stage {
            Stage::Launched(_) => {
                let task_ids = vec![self.need.task_id().to_owned()];
                vec![Effect::Call(Call::Reconcile(Reconcile { task_ids }))]
            }
            _ => Vec::new(),
        }
    }

    fn leave(&self, code: u8, mut effects: Vec<Effect>) -> Vec<Effect> {
        effects.extend([Effect::Call(Call::Teardown(Teardown {})), Effect::Leave(code)]);
        effects
    }
}

fn ack(status: &TaskStatus) -> Vec<Effect> {
    match status.sequence {
        0 => Vec::new(),
        sequence => {
            let task_id = status.task_id.clone();
            vec![Effect::Call(Call::Acknowledge(AcknowledgeStatus { task_id, sequence }))]
        }
    }
}

fn decline<'o>(offers: impl Iterator<Item = &'o Offer>, refuse_ms: u64) -> Effect {
    let offer_ids = offers.map(|o| o.offer_id.clone()).collect();
    Effect::Call(Call::Decline(Decline { offer_ids, refuse_ms }))
}

#[cfg(test)]
mod tests;
