//! Who passed on an agent, and for how long it is not asked again.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use bulkhead_proto::v1::ResourceClass;

use super::{
    bundle::{MEM, MIN_OFFER_CPU_MILLI, MIN_OFFER_MEM_BYTES},
    pot::Pot,
};
use crate::ids::UnixMs;

/// One framework's word about one class of one agent.
#[derive(Clone, Debug)]
struct Refusal {
    until: UnixMs,
    /// What was idle there, free or offered, when it refused.
    idle: Pot,
    /// Was the framework put on the list again since it is over?
    is_over: bool,
}

/// What a framework may be told about an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It has not passed on it in this round.
    Fresh,
    /// It has, and may be asked again once nobody else takes the agent.
    Again,
    /// It has, and is not to be asked yet.
    Refused,
}

/// All words about one agent: one at most for each framework and class.
///
/// A refusal that is over is kept until the round is: until no framework that has not yet passed on the agent takes
/// it. So a framework that refuses for a moment only, again and again, does not keep an agent from those behind it.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals {
    of: HashMap<(u32, bool), Refusal, BuildHasherDefault<Mix>>,
}

impl Refusals {
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    pub(super) fn refuse(&mut self, framework: u32, class: ResourceClass, idle: Pot, until: UnixMs) {
        self.of.insert(key(framework, class), Refusal { until, idle, is_over: false });
    }

    /// What this framework said about so much of the agent. A refusal holds until it is over, and until noticeably
    /// more is there than was idle: a task's end is news, the flutter of a measured reserve is not.
    pub(super) fn seen(&self, framework: u32, class: ResourceClass, pot: &Pot, now: UnixMs) -> Seen {
        match self.of.get(&key(framework, class)) {
            None => Seen::Fresh,
            Some(refusal) if now < refusal.until && !refusal.is_outdated(class, pot) => Seen::Refused,
            Some(_) => Seen::Again,
        }
    }

    /// When everything that this framework refuses is over; `None` where it refuses nothing now.
    pub(super) fn until(&self, framework: u32, now: UnixMs) -> Option<UnixMs> {
        let of = [false, true].into_iter().filter_map(|class| self.of.get(&(framework, class)));
        of.map(|refusal| refusal.until).filter(|&until| now < until).max()
    }

    /// Starts a new round: who is not refusing any more is as fresh as anybody.
    pub(super) fn end_round(&mut self, class: ResourceClass, now: UnixMs) {
        let class = class == ResourceClass::Revocable;
        self.of.retain(|&(_, of), refusal| of != class || now < refusal.until);
    }

    /// The frameworks whose refusals are over, each once.
    pub(super) fn take_over(&mut self, now: UnixMs) -> Vec<u32> {
        let over = self.of.iter_mut().filter(|(_, refusal)| refusal.until <= now && !refusal.is_over);
        let take = |((framework, _), refusal): (&(u32, bool), &mut Refusal)| {
            refusal.is_over = true;
            *framework
        };
        over.map(take).collect()
    }

    pub(super) fn forget(&mut self, framework: u32) {
        self.of.remove(&(framework, false));
        self.of.remove(&(framework, true));
    }

    /// Everybody who said something, some of them twice.
    pub(super) fn frameworks(&self) -> impl Iterator<Item = u32> {
        self.of.keys().map(|&(framework, _)| framework)
    }
}

impl Refusal {
    fn is_outdated(&self, class: ResourceClass, pot: &Pot) -> bool {
        let more = pot.amounts.minus(&self.idle.amounts);
        more.cpu(class) >= MIN_OFFER_CPU_MILLI
            || more.0[MEM] >= MIN_OFFER_MEM_BYTES
            || !(std::sync::Arc::ptr_eq(&pot.ports, &self.idle.ports)
                || self.idle.ports.is_superset(&pot.ports))
    }
}

fn key(framework: u32, class: ResourceClass) -> (u32, bool) {
    (framework, class == ResourceClass::Revocable)
}

/// Spreads small numbers over the table. They are the allocator's own: nobody can choose them to collide.
#[derive(Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}
