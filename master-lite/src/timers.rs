//! When the core has to be woken.

use std::collections::BTreeSet;

use crate::ids::{AgentId, FrameworkId, OfferId, SessionId, UnixMs};

/// What a timer is for. A timer that fires is a question, not an order: whoever handles it looks whether the
/// moment has really come, so that nothing needs to be cancelled and a heartbeat costs no timer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Has this session's agent said anything lately?
    AgentSilent(AgentId, SessionId),
    /// Is this agent still away?
    AgentAway(AgentId),
    /// Is this offer still unanswered?
    OfferOpen(OfferId),
    /// Is this framework still away?
    FrameworkAway(FrameworkId),
    /// May this agent be offered to somebody who had refused it?
    RefusalOver(AgentId),
    /// Heartbeats to all frameworks.
    Heartbeat,
}

/// All timers, the earliest first.
#[derive(Debug, Default)]
pub struct Timers {
    due: BTreeSet<(UnixMs, Timer)>,
}

impl Timers {
    /// Asks to be woken at `at`.
    pub fn set(&mut self, at: UnixMs, timer: Timer) {
        self.due.insert((at, timer));
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<UnixMs> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes out all that are due at `now`.
    pub fn take_due(&mut self, now: UnixMs) -> Vec<Timer> {
        let mut due = Vec::new();
        while self.next().is_some_and(|at| at <= now) {
            due.extend(self.due.pop_first().map(|(_, timer)| timer));
        }
        due
    }
}
