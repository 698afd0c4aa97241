//! What a task did between two readings. Pure: the times are those of the readings.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reading::{CpuCount, DiskCount, MemUse, Reading, StallCount, Stalls};
use crate::{
    grant::{Class, Grant},
    offer::ledger::TaskKey,
};

/// What one task used over a while, and what it had at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSample {
    /// Which task.
    pub task: TaskKey,
    /// How firmly its resources are its own.
    pub class: Class,
    /// What it may use.
    pub bounds: Bounds,
    /// Use and waiting.
    pub used: Used,
}

/// What a task may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// CPU: its cap, or what it was granted. Beyond that it has no claim to what is idle; `None` is everything.
    pub cpu_milli: Option<u64>,
    /// Memory; `None` is everything.
    pub mem_bytes: Option<u64>,
    /// On cores of its own, what it leaves is no use to others.
    pub exclusive: bool,
}

impl From<&Grant> for Bounds {
    fn from(grant: &Grant) -> Self {
        Self {
            cpu_milli: Some(grant.cpu.cap_milli.unwrap_or(grant.cpu_milli)),
            mem_bytes: Some(grant.mem.max_bytes),
            exclusive: grant.cpu.exclusive,
        }
    }
}

/// Use and waiting, averaged over the time since the reading before.
///
/// # Odd readings
/// A counter that went backwards counts as one that stood still. What the kernel does not tell is `None`, and never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// How long that was.
    pub over: Duration,
    /// CPU; never more than the machine has.
    pub cpu_milli: u64,
    /// Part of the time in which its cap kept it from running, in thousandths; on several CPUs at once it may be more
    /// than 1000.
    pub throttled_permille: u64,
    /// At the end of that time.
    pub mem: Option<MemUse>,
    /// Part of the time in which processes stood still.
    pub stalled: Stalls<Stalled>,
    /// Disk traffic.
    pub disk: Option<DiskRate>,
}

/// Part of the time, in thousandths: 0 to 1000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalled {
    /// In which at least one process stood still.
    pub some_permille: u64,
    /// In which all that had anything to do did.
    pub full_permille: u64,
}

/// Disk traffic of one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskRate {
    /// Read.
    pub read_bytes_per_sec: u64,
    /// Written.
    pub written_bytes_per_sec: u64,
    /// Reads.
    pub read_ops_per_sec: u64,
    /// Writes.
    pub write_ops_per_sec: u64,
}

/// What was used between two readings of the same cgroup on a machine of so many CPUs.
///
/// `None` where no time has passed between them, or less than none: there is nothing to average over.
pub fn used(before: &Reading, after: &Reading, cpus: u64) -> Option<Used> {
    let over = after.at.checked_duration_since(before.at)?;
    let usec = u64::try_from(over.as_micros()).unwrap_or(u64::MAX);
    let per_mille = |before: u64, after: u64| per_mille(after.saturating_sub(before), usec);
    if usec == 0 {
        return None;
    }
    let cpu = |of: fn(&CpuCount) -> u64| per_mille(of(&before.cpu), of(&after.cpu));
    Some(Used {
        over,
        // A thousandth of a CPU is a thousandth of the time.
        cpu_milli: cpu(|cpu| cpu.used_usec).min(cpus.saturating_mul(1000)),
        throttled_permille: cpu(|cpu| cpu.throttled_usec),
        mem: after.mem,
        stalled: stalled(before.stalls, after.stalls, over),
        disk: before.disk.zip(after.disk).map(|(before, after)| disk_rate(before, after, usec)),
    })
}

/// The part of a while in which something stood still, each resource for itself.
pub fn stalled(before: Stalls<StallCount>, after: Stalls<StallCount>, over: Duration) -> Stalls<Stalled> {
    let usec = u64::try_from(over.as_micros()).unwrap_or(u64::MAX);
    let part = |before: Option<StallCount>, after: Option<StallCount>| {
        let (before, after) = before.zip(after)?;
        // The kernel adds up a little later than it says, so the sum of a short while may be above all of it.
        let part = |before: u64, after: u64| per_mille(after.saturating_sub(before), usec).min(1000);
        Some(Stalled {
            some_permille: part(before.some_usec, after.some_usec),
            full_permille: part(before.full_usec, after.full_usec),
        })
    };
    Stalls {
        cpu: part(before.cpu, after.cpu),
        mem: part(before.mem, after.mem),
        io: part(before.io, after.io),
    }
}

fn disk_rate(before: DiskCount, after: DiskCount, usec: u64) -> DiskRate {
    let per_sec = |of: fn(&DiskCount) -> u64| {
        let more = u128::from(of(&after).saturating_sub(of(&before)));
        u64::try_from(more * 1_000_000 / u128::from(usec.max(1))).unwrap_or(u64::MAX)
    };
    DiskRate {
        read_bytes_per_sec: per_sec(|disk| disk.read_bytes),
        written_bytes_per_sec: per_sec(|disk| disk.written_bytes),
        read_ops_per_sec: per_sec(|disk| disk.read_ops),
        write_ops_per_sec: per_sec(|disk| disk.write_ops),
    }
}

fn per_mille(part_usec: u64, of_usec: u64) -> u64 {
    u64::try_from(u128::from(part_usec) * 1000 / u128::from(of_usec.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn reading(at: Instant, used_usec: u64, throttled_usec: u64) -> Reading {
        let cpu = CpuCount { used_usec, throttled_usec, ..CpuCount::default() };
        Reading { at, cpu, mem: None, stalls: Stalls::default(), disk: None }
    }

    fn stalls(some_usec: u64, full_usec: u64) -> Stalls<StallCount> {
        Stalls { io: Some(StallCount { some_usec, full_usec }), ..Stalls::default() }
    }

    #[test]
    fn everything_is_an_average_over_the_time_between() {
        let at = Instant::now();
        let later = at + Duration::from_millis(500);
        let disk = |bytes, ops| Some(DiskCount { read_bytes: bytes, read_ops: ops, ..DiskCount::default() });
        let before = Reading { stalls: stalls(100, 0), disk: disk(1000, 1), ..reading(at, 1000, 0) };
        let mem = Some(MemUse { all_bytes: 7, ..MemUse::default() });
        let after = Reading {
            mem,
            stalls: stalls(250_100, 50_000),
            disk: disk(3000, 11),
            ..reading(later, 751_000, 100_000)
        };
        let used = used(&before, &after, 4).unwrap();
        assert_eq!((used.cpu_milli, used.throttled_permille, used.mem), (1500, 200, mem));
        let io = Some(Stalled { some_permille: 500, full_permille: 100 });
        assert_eq!(used.stalled, Stalls { io, ..Stalls::default() });
        let disk = used.disk.unwrap();
        assert_eq!((disk.read_bytes_per_sec, disk.read_ops_per_sec, disk.write_ops_per_sec), (4000, 20, 0));
    }

    #[test]
    fn counters_that_go_backwards_stood_still() {
        let at = Instant::now();
        let later = at + Duration::from_secs(1);
        let before = Reading { stalls: stalls(100, 100), ..reading(at, 1000, 50) };
        let after = Reading { stalls: stalls(5, 200), ..reading(later, 10, 5) };
        let used = used(&before, &after, 1).unwrap();
        assert_eq!((used.cpu_milli, used.throttled_permille), (0, 0));
        assert_eq!(used.stalled.io, Some(Stalled { some_permille: 0, full_permille: 0 }));
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_gives_no_average() {
        let at = Instant::now();
        let (before, after) = (reading(at, 0, 0), reading(at, 900, 0));
        assert_eq!(used(&before, &after, 1), None);
        let earlier = reading(at - Duration::from_secs(5), 900, 0);
        assert_eq!(used(&before, &earlier, 1), None);
        // A long sleep of the machine is a long time to average over.
        let day = reading(at + Duration::from_secs(86_400), 86_400_000, 0);
        assert_eq!(used(&before, &day, 1).unwrap().cpu_milli, 1);
    }

    #[test]
    fn what_is_told_only_once_is_no_difference() {
        let at = Instant::now();
        let before = Reading { stalls: stalls(0, 0), disk: Some(DiskCount::default()), ..reading(at, 0, 0) };
        let after = reading(at + Duration::from_secs(1), 0, 0);
        let used = used(&before, &after, 1).unwrap();
        assert_eq!((used.stalled, used.disk, used.mem), (Stalls::default(), None, None));
    }

    proptest! {
        #[test]
        fn nothing_is_above_what_there_is(
            counts in prop::array::uniform4(any::<u64>()),
            stall in prop::array::uniform4(any::<u64>()),
            nanos in any::<u64>(),
            cpus in 0..5000u64,
        ) {
            let at = Instant::now();
            let before = Reading { stalls: stalls(stall[0], stall[1]), ..reading(at, counts[0], counts[1]) };
            let later = at + Duration::from_nanos(nanos >> 4);
            let after = Reading { stalls: stalls(stall[2], stall[3]), ..reading(later, counts[2], counts[3]) };
            let Some(used) = used(&before, &after, cpus) else { return Ok(()) };
            prop_assert!(used.cpu_milli <= cpus * 1000);
            let io = used.stalled.io.unwrap();
            prop_assert!(io.some_permille <= 1000 && io.full_permille <= 1000);
        }
    }
}
