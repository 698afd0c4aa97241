//! What a decision rests on.

use std::time::Instant;

use super::Resource;
use crate::{
    measure::tasks::{StallCount, Stalled, Stalls, sample::stalled},
    offer::ledger::TaskKey,
};

/// The kernel begins to take memory back long below this; a tenth lets it do so in time.
const PLENTY_PERMILLE: u64 = 100;

/// What happened between two looks, and what there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// How long the guaranteed tasks waited; `None` where the kernel does not tell.
    pub waited: Stalls<Stalled>,
    /// For this much of the time a guaranteed task stood still at the cap of its own grant, which nobody else is to blame for.
    pub throttled_permille: u64,
    /// Memory that could be given to somebody at once, of all that the machine has; `None` where the kernel does not tell.
    pub available_permille: Option<u64>,
    /// CPU that the revocable tasks used.
    pub cpu_milli: u64,
    /// Memory that they have.
    pub mem_bytes: u64,
    /// They themselves, the oldest first.
    pub tasks: Vec<Candidate>,
}

/// A task that may be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub task: TaskKey,
    /// What ending it gives back.
    pub mem_bytes: u64,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) at: Instant,
    pub(super) stalls: Stalls<StallCount>,
    pub(super) cpu_usec: u64,
}

impl Evidence {
    /// What two readings say. A counter that went backwards says nothing, as does a clock that stands still.
    pub(super) fn between(before: &Counted, after: &Counted) -> Self {
        let over = after.at.saturating_duration_since(before.at);
        let usec = u64::try_from(over.as_micros()).unwrap_or(u64::MAX);
        let used = after.cpu_usec.saturating_sub(before.cpu_usec);
        let cpu_milli = used.saturating_mul(1000).checked_div(usec).unwrap_or(0);
        let waited = if usec == 0 { Stalls::default() } else { stalled(before.stalls, after.stalls, over) };
        Self { waited, cpu_milli, ..Self::default() }
    }

    /// How much of the time some guaranteed task waited for what others may have.
    ///
    /// The kernel counts a task that is at its own limits among those that wait. So time at a CPU cap is taken off, and memory is
    /// waited for only where the machine is short of it: with plenty, whoever waits does so at its own limit.
    pub(super) fn waited_permille(&self, resource: Resource) -> u64 {
        let some = |stalled: Option<Stalled>| stalled.map_or(0, |stalled| stalled.some_permille);
        match resource {
            Resource::Cpu => some(self.waited.cpu).saturating_sub(self.throttled_permille),
            Resource::Memory if self.available_permille.is_some_and(|part| part >= PLENTY_PERMILLE) => 0,
            Resource::Memory => some(self.waited.mem),
            Resource::Io => some(self.waited.io),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_happened_between_two_looks() {
        let start = Instant::now();
        let at = |ms, some_usec, cpu_usec| Counted {
            at: start + Duration::from_millis(ms),
            stalls: Stalls { cpu: Some(StallCount { some_usec, full_usec: 0 }), ..Stalls::default() },
            cpu_usec,
        };
        let seen = Evidence::between(&at(0, 1000, 5000), &at(100, 31_000, 155_000));
        assert_eq!((seen.waited_permille(Resource::Cpu), seen.cpu_milli), (300, 1500));
        assert_eq!(seen.waited_permille(Resource::Memory), 0, "not told");
        let reset = Evidence::between(&at(0, 31_000, 155_000), &at(100, 0, 0));
        assert_eq!((reset.waited_permille(Resource::Cpu), reset.cpu_milli), (0, 0));
        let still = Evidence::between(&at(5, 0, 0), &at(5, 900, 900));
        assert_eq!((still.waited_permille(Resource::Cpu), still.cpu_milli), (0, 0));
    }

    #[test]
    fn who_waits_at_its_own_limit_is_not_kept_waiting() {
        let stalled = Some(Stalled { some_permille: 400, full_permille: 0 });
        let seen = Evidence {
            waited: Stalls { cpu: stalled, mem: stalled, io: stalled },
            throttled_permille: 350,
            available_permille: Some(500),
            ..Evidence::default()
        };
        assert_eq!(Resource::ALL.map(|resource| seen.waited_permille(resource)), [50, 0, 400]);
        let short = Evidence { available_permille: Some(20), throttled_permille: 1900, ..seen };
        assert_eq!(Resource::ALL.map(|resource| short.waited_permille(resource)), [0, 400, 400]);
    }
}
