//! What a decision rests on.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::{
    measure::tasks::{DiskCount, StallCount, Stalled, Stalls, sample::stalled},
    offer::ledger::TaskKey,
};

/// The kernel begins to take memory back long below this; a tenth lets it do so in time.
const PLENTY_PERMILLE: u64 = 100;

/// What happened in the last while, and what there is. It can be written down, to be decided about again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evidence {
    /// How long a while this is about.
    pub over_usec: u64,
    /// How long the guaranteed tasks waited; `None` where the kernel does not tell.
    pub waited: Stalls<Stalled>,
    /// For this much of the time a guaranteed task stood still at the cap of its own grant, which nobody else is to blame for.
    pub throttled_permille: u64,
    /// What 99 of 100 waits of guaranteed tasks for a CPU took at most, over the last ten seconds; `None` where that is not
    /// counted, or there were too few.
    pub runqueue_p99_usec: Option<u64>,
    /// Memory that could be given to somebody at once, of all that the machine has; `None` where the kernel does not tell.
    pub available_permille: Option<u64>,
    /// CPU that the revocable tasks used.
    pub cpu_milli: u64,
    /// Memory that they have.
    pub mem_bytes: u64,
    /// Their part of what all tasks moved from and to disks, in bytes or in operations, whichever is larger; `None` where the
    /// kernel does not count that.
    pub disk_permille: Option<u64>,
    /// They themselves, the oldest first.
    pub tasks: Vec<Candidate>,
}

/// A task that may be ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Of guaranteed tasks, of those on shared cores and those on their own apart.
    pub(super) stalls: [Stalls<StallCount>; 2],
    /// Of revocable tasks.
    pub(super) cpu_usec: u64,
    /// `None` without the io controller.
    pub(super) disk: Option<Moved>,
}

/// What was moved from and to disks, by whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) guaranteed: DiskCount,
    pub(super) revocable: DiskCount,
}

impl Evidence {
    /// What two readings say. A counter that went backwards says nothing, as does a clock that stands still.
    pub(super) fn between(before: &Counted, after: &Counted) -> Self {
        let over = after.at.saturating_duration_since(before.at);
        let usec = u64::try_from(over.as_micros()).unwrap_or(u64::MAX);
        if usec == 0 {
            return Self::default();
        }
        let used = after.cpu_usec.saturating_sub(before.cpu_usec);
        let cpu_milli = used.saturating_mul(1000).checked_div(usec).unwrap_or(0);
        let ([shared_before, own_before], [shared, own]) = (before.stalls, after.stalls);
        let waited = longer(stalled(shared_before, shared, over), stalled(own_before, own, over));
        let disk_permille = before.disk.zip(after.disk).map(|(before, after)| disk_part(before, after));
        Self { over_usec: usec, waited, cpu_milli, disk_permille, ..Self::default() }
    }

    /// How much of the time some guaranteed task waited for what others may have.
    ///
    /// Guaranteed tasks wait for each other, too. So of the time in which they waited for a CPU only that counts in which none of them
    /// ran there: the kernel's `full`, which it adds up for each CPU apart. It counts a task that is at its own limits among those
    /// that wait. So time at a CPU cap is taken off, and memory is waited for only where the machine is short of it: with plenty,
    /// whoever waits does so at its own limit.
    pub(super) fn waited_permille(&self, resource: Resource) -> u64 {
        let some = |stalled: Option<Stalled>| stalled.map_or(0, |stalled| stalled.some_permille);
        match resource {
            Resource::Cpu => {
                let full = self.waited.cpu.map_or(0, |stalled| stalled.full_permille);
                full.saturating_sub(self.throttled_permille)
            }
            Resource::Memory if self.available_permille.is_some_and(|part| part >= PLENTY_PERMILLE) => 0,
            Resource::Memory => some(self.waited.mem),
            Resource::Io => some(self.waited.io),
        }
    }

    /// For how much of the time the revocable tasks can have been what a guaranteed one waited for.
    ///
    /// Nobody waits longer for a CPU because of them than they ran, all CPUs together. Of a disk they have their part at most.
    pub(super) fn blamed_permille(&self, resource: Resource) -> u64 {
        let waited = self.waited_permille(resource);
        match resource {
            Resource::Cpu => waited.min(self.cpu_milli),
            Resource::Memory if self.mem_bytes == 0 => 0,
            Resource::Memory => waited,
            Resource::Io => self.disk_permille.map_or(waited, |part| waited.min(part)),
        }
    }
}

/// Resource by resource, the one that waited for more of the time.
fn longer(a: Stalls<Stalled>, b: Stalls<Stalled>) -> Stalls<Stalled> {
    let longer = |a: Option<Stalled>, b: Option<Stalled>| {
        [a, b].into_iter().flatten().max_by_key(|stalled| stalled.some_permille)
    };
    Stalls { cpu: longer(a.cpu, b.cpu), mem: longer(a.mem, b.mem), io: longer(a.io, b.io) }
}

/// The part that revocable tasks have in what was moved, in thousandths.
fn disk_part(before: Moved, after: Moved) -> u64 {
    let part = |of: fn(&DiskCount) -> u64| {
        let guaranteed = of(&after.guaranteed).saturating_sub(of(&before.guaranteed));
        let revocable = of(&after.revocable).saturating_sub(of(&before.revocable));
        revocable.saturating_mul(1000).checked_div(guaranteed.saturating_add(revocable)).unwrap_or(0)
    };
    let bytes = part(|count| count.read_bytes.saturating_add(count.written_bytes));
    bytes.max(part(|count| count.read_ops.saturating_add(count.write_ops)))
}

/// The last counters, so that each look is about a while that is long enough to mean something.
#[derive(Debug)]
pub(super) struct Recent {
    over: Duration,
    counted: VecDeque<Counted>,
}

impl Recent {
    /// Looks are about the last while, as far as it was counted.
    pub(super) fn new(over: Duration) -> Self {
        Self { over, counted: VecDeque::new() }
    }

    /// What was before does not count any more: nobody looked, or something has changed since.
    pub(super) fn begin(&mut self, counted: Counted) {
        self.counted.clear();
        self.counted.push_back(counted);
    }

    /// What has happened up to now.
    pub(super) fn look(&mut self, counted: Counted) -> Evidence {
        let old = |one: &Counted| counted.at.saturating_duration_since(one.at) >= self.over;
        // The first is kept for as long as the second is not old enough to take its place.
        while self.counted.get(1).is_some_and(old) {
            self.counted.pop_front();
        }
        let before = self.counted.front().copied().unwrap_or(counted);
        self.counted.push_back(counted);
        Evidence::between(&before, &counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_between_two_looks() {
        let start = Instant::now();
        let at = |ms, full_usec, cpu_usec| Counted {
            cpu_usec,
            ..counted(start + Duration::from_millis(ms), full_usec)
        };
        let seen = Evidence::between(&at(0, 1000, 5000), &at(100, 31_000, 155_000));
        assert_eq!((seen.waited_permille(Resource::Cpu), seen.cpu_milli), (300, 1500));
        assert_eq!(seen.waited_permille(Resource::Memory), 0, "not told");
        let reset = Evidence::between(&at(0, 31_000, 155_000), &at(100, 0, 0));
        assert_eq!((reset.waited_permille(Resource::Cpu), reset.cpu_milli), (0, 0));
        let still = Evidence::between(&at(5, 0, 0), &at(5, 900, 900));
        assert_eq!((still.waited_permille(Resource::Cpu), still.cpu_milli), (0, 0));
    }

    /// Waiting for others.
    fn counted(at: Instant, full_usec: u64) -> Counted {
        let cpu = Some(StallCount { some_usec: 2 * full_usec, full_usec });
        let stalls = [Stalls { cpu, ..Stalls::default() }, Stalls::default()];
        Counted { at, stalls, cpu_usec: 0, disk: None }
    }

    #[test]
    fn a_look_is_about_the_last_while() {
        let (mut recent, start) = (Recent::new(Duration::from_millis(100)), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut waited = |ms, usec| recent.look(counted(at(ms), usec)).waited_permille(Resource::Cpu);
        assert_eq!(waited(0, 7), 0, "nothing to compare with");
        assert_eq!(waited(25, 5_007), 200);
        assert_eq!(waited(100, 5_007), 50);
        assert_eq!(waited(125, 5_007), 0, "that was before");
        assert_eq!(waited(1125, 105_007), 100, "nobody has looked for a second");
        recent.begin(counted(at(1130), 105_507));
        assert_eq!(recent.look(counted(at(1150), 107_507)).waited_permille(Resource::Cpu), 100);
    }

    #[test]
    fn a_crowd_of_guaranteed_tasks_waits_for_nobody_else() {
        let cpu = Some(Stalled { some_permille: 900, full_permille: 20 });
        let seen = Evidence { waited: Stalls { cpu, ..Stalls::default() }, ..Evidence::default() };
        assert_eq!(seen.waited_permille(Resource::Cpu), 20);
    }

    #[test]
    fn nobody_is_blamed_for_what_it_cannot_have_done() {
        let stalled = Some(Stalled { some_permille: 400, full_permille: 400 });
        let seen = Evidence {
            waited: Stalls { cpu: stalled, mem: stalled, io: stalled },
            cpu_milli: 120,
            mem_bytes: 1,
            disk_permille: Some(30),
            ..Evidence::default()
        };
        assert_eq!(Resource::ALL.map(|resource| seen.blamed_permille(resource)), [120, 400, 30]);
        let other = Evidence { cpu_milli: 1900, mem_bytes: 0, disk_permille: None, ..seen };
        assert_eq!(Resource::ALL.map(|resource| other.blamed_permille(resource)), [400, 0, 400]);
    }

    #[test]
    fn a_part_of_the_disk_is_of_bytes_or_of_operations() {
        let at = |[read_bytes, written_bytes, read_ops, write_ops]: [u64; 4]| DiskCount {
            read_bytes,
            written_bytes,
            read_ops,
            write_ops,
        };
        let moved = |guaranteed, revocable| Moved { guaranteed: at(guaranteed), revocable: at(revocable) };
        let before = moved([0; 4], [100; 4]);
        assert_eq!(disk_part(before, moved([700, 0, 1, 0], [200, 300, 100, 100])), 300);
        assert_eq!(disk_part(before, moved([700, 0, 1, 0], [200, 300, 100, 109])), 900);
        assert_eq!(disk_part(before, before), 0, "nobody moved anything");
        assert_eq!(disk_part(before, moved([1, 0, 0, 0], [0; 4])), 0, "counters that began anew");
    }

    #[test]
    fn who_waits_at_its_own_limit_is_not_kept_waiting() {
        let stalled = Some(Stalled { some_permille: 400, full_permille: 400 });
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
