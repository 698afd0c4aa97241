//! The master's mind: one deterministic state machine.
//!
//! [`Core::step`] takes what happened and when, and returns what has to be done about it. It has no clock, no I/O, no
//! threads and no randomness: the same events at the same moments give the same effects, which is how it is tested.
//! `api::driver` owns the only instance in a running master, feeds it in one task and carries its effects out.
//!
//! ```text
//!  AgentRegister, AgentSaid ──> agents ──┐                      ┌──> ToAgent
//!  Subscribe, Call ──> frameworks ───────┼──> ledger, tasks ────┼──> ToScheduler
//!  StopTask, ResizeTask ──> statuses, ───┤          │           └──> Close, Answer, Log
//!  SetRole                  resizing,    │          │
//!                           roles        │          │
//!  Tick ──> timers ──────────────────────┘      offering (allocator), at the end of every step
//! ```

mod accept;
mod agents;
mod effect;
mod event;
mod explaining;
mod frameworks;
mod listing;
mod locality;
mod numbers;
mod offering;
mod resizing;
mod roles;
mod statuses;

use std::collections::BTreeSet;

use bulkhead_proto::v1::{Rescind, master_message, scheduler_event};

pub use effect::{Closing, Effect, ResizeError, Severity, StopError};
pub use event::Event;
pub use explaining::{EXAMPLES, ExplainError};
pub use listing::{Amounts, Counters, Gauges, PAGE_BYTES, PageTokenError};
pub use offering::Stopwatch;
pub use resizing::Resizing;
pub use roles::SetRoleError;

use self::{numbers::Numbers, offering::NoStopwatch};
use crate::{
    allocator::Allocator,
    framework::{Frameworks, Phase},
    ids::{AgentId, FrameworkId, OfferId, SessionId, UnixMs},
    inventory::Inventory,
    ledger::Ledger,
    offers::Offers,
    tasks::Tasks,
    timers::{Timer, Timers},
};

/// The core's share of the configuration; all times in milliseconds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often agents have to say something, and frameworks hear something.
    pub heartbeat_interval_ms: u64,
    /// How long after its last word an agent's tasks are declared lost.
    pub agent_timeout_ms: u64,
    /// How long an offer waits for an answer.
    pub offer_timeout_ms: u64,
    /// How long a decline holds that names no time.
    pub refuse_ms: u64,
    /// How long the tasks of a framework that this master has never seen wait for it.
    pub failover_timeout_ms: u64,
    /// How many ended tasks are remembered.
    pub history: usize,
    /// How many ended tasks a framework may leave unacknowledged before its launches are rejected.
    pub unacknowledged: usize,
}

/// An agent whose stream is silent for this many heartbeat intervals is taken for away.
pub const SILENT_INTERVALS: u64 = 3;

/// See the [module's documentation](self).
pub struct Core {
    settings: Settings,
    run_id: String,
    now: UnixMs,
    inventory: Inventory,
    frameworks: Frameworks,
    ledger: Ledger,
    offers: Offers,
    tasks: Tasks,
    timers: Timers,
    allocator: Allocator,
    numbers: Numbers,
    stopwatch: Box<dyn Stopwatch>,
    /// Agents that came or went; the ledger knows which others changed.
    came_or_went: BTreeSet<AgentId>,
    next_heartbeat: Option<UnixMs>,
    frameworks_made: u64,
    offers_made: u64,
    resizes_made: u64,
    counters: Counters,
    effects: Vec<Effect>,
}

impl Core {
    /// A master that knows nobody yet. `run_id` distinguishes the ids it makes from those of every other
    /// run of every other master; it is made of the characters that ids may have.
    pub fn new(settings: Settings, run_id: &str, allocator: Allocator) -> Self {
        Self {
            tasks: Tasks::new(settings.history),
            // Without an interval, time would stand still at the first heartbeat.
            settings: Settings { heartbeat_interval_ms: settings.heartbeat_interval_ms.max(1), ..settings },
            run_id: run_id.to_owned(),
            now: UnixMs::default(),
            inventory: Inventory::default(),
            frameworks: Frameworks::default(),
            ledger: Ledger::default(),
            offers: Offers::default(),
            timers: Timers::default(),
            allocator,
            numbers: Numbers::default(),
            stopwatch: Box::new(NoStopwatch),
            came_or_went: BTreeSet::new(),
            next_heartbeat: None,
            frameworks_made: 0,
            offers_made: 0,
            resizes_made: 0,
            counters: Counters::default(),
            effects: Vec::new(),
        }
    }

    /// Measures the allocator with this from now on.
    pub fn set_stopwatch(&mut self, stopwatch: Box<dyn Stopwatch>) {
        self.stopwatch = stopwatch;
    }

    /// Takes in one event and says what to do, in order. Time does not go back: an earlier `now` counts as the latest.
    pub fn step(&mut self, event: Event, now: UnixMs) -> Vec<Effect> {
        self.now = self.now.max(now);
        match event {
            Event::AgentRegister { session, register } => self.agent_registers(session, register),
            Event::AgentSaid { session, message } => self.agent_said(session, message),
            Event::Subscribe { session, framework } => self.subscribe(session, framework),
            Event::Call { session, call } => self.call(session, call),
            Event::SessionEnded { session } => self.session_ended(session),
            Event::StopTask { request, stop } => self.stop_task(request, &stop),
            Event::ResizeTask { request, resize } => self.resize_for_operator(request, &resize),
            Event::SetRole { request, set } => self.set_role(request, &set),
            Event::Tick => {}
        }
        for timer in self.timers.take_due(self.now) {
            self.fire(timer);
        }
        self.make_offers();
        std::mem::take(&mut self.effects)
    }

    /// When [`Event::Tick`] is next needed; `None` while nothing waits for time to pass.
    pub fn next_deadline(&self) -> Option<UnixMs> {
        self.timers.next()
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::AgentSilent(agent, session) => self.agent_may_be_silent(&agent, session),
            Timer::AgentAway(agent) => self.agent_may_be_lost(&agent),
            Timer::OfferOpen(offer) => self.offer_may_expire(&offer),
            Timer::FrameworkAway(framework) => self.framework_may_be_gone(&framework),
            Timer::RefusalOver(agent) => {
                if let Some(number) = self.numbers.agents.get(&agent) {
                    self.allocator.refusals_may_be_over(number, self.now);
                }
            }
            Timer::Heartbeat => self.heartbeat(),
        }
    }

    fn session_ended(&mut self, session: SessionId) {
        if let Some(agent) = self.inventory.agent_of(session).cloned() {
            self.agent_leaves(&agent, "its stream ended");
        } else if let Some(framework) = self.frameworks.of_session(session).cloned() {
            self.framework_leaves(&framework);
        }
    }

    fn tell_agent(&mut self, agent: &AgentId, message: master_message::Message) {
        let session = self.inventory.session_of(agent);
        self.effects.extend(session.map(|session| Effect::ToAgent { session, message }));
    }

    fn tell_framework(&mut self, framework: &FrameworkId, event: scheduler_event::Event) {
        let session = self.frameworks.get(framework).and_then(|f| f.session());
        self.effects.extend(session.map(|session| Effect::ToScheduler { session, event }));
    }

    fn close(&mut self, session: SessionId, closing: Closing) {
        self.effects.push(Effect::Close { session, closing });
    }

    fn log(&mut self, severity: Severity, text: String) {
        self.effects.push(Effect::Log { severity, text });
    }

    /// Takes offers back: their resources are free again, and their frameworks are told.
    fn rescind(&mut self, offers: Vec<OfferId>, why: &str) {
        for id in offers {
            let Some(offer) = self.release_offer(&id) else { continue };
            self.counters.offers_rescinded += 1;
            let rescind = Rescind { offer_ids: vec![(&id).into()], why: why.to_owned() };
            self.tell_framework(&offer.framework, scheduler_event::Event::Rescind(rescind));
        }
    }

    /// Takes an offer off the books, however it ended.
    fn release_offer(&mut self, id: &OfferId) -> Option<crate::offers::Offer> {
        let offer = self.offers.remove(id.as_str())?;
        self.ledger.release_offer(&offer.agent, &offer.id);
        Some(offer)
    }

    fn phase(&self, framework: &FrameworkId) -> Option<Phase> {
        self.frameworks.get(framework).map(|f| f.phase)
    }

    /// Every stream belongs to one agent or one framework, from its first message on.
    fn in_use(&self, session: SessionId) -> bool {
        self.inventory.agent_of(session).is_some() || self.frameworks.of_session(session).is_some()
    }
}

#[cfg(test)]
#[path = "core/tests/mod.rs"]
mod tests;
