//! When a report is worth sending. Pure: `now` is an argument.

use std::time::{Duration, Instant};

use bulkhead_proto::v1::{Enforced, NodePressure, ResourceReport};

use crate::measure::tasks::{Stalled, Stalls};

/// A change of CPU below a tenth of a CPU is noise of the measurement.
const CPU_STEP_MILLI: u64 = 100;
/// A change of memory below this is noise of the page cache.
const MEM_STEP_BYTES: u64 = 64 << 20;
/// And of the disk below this, somebody's log.
const DISK_STEP_BYTES: u64 = 64 << 20;

/// And of the link below this, somebody's update.
const NET_STEP_BITS_PER_SEC: u64 = 10_000_000;

/// A tenth of the time more or less that processes stand still is another node to be on; less may be one program's start.
const PRESSURE_STEP_PERMILLE: u64 = 100;
/// Waits for a CPU are known to a factor of two, so less than this factor may be none.
const RUNQUEUE_FACTOR: u64 = 4;
/// Below this nobody notices that he waits for a CPU.
const RUNQUEUE_NOTICED_USEC: u64 = 1000;

/// How busy a node is, whatever of it is granted to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// Part of the last while in which processes stood still.
    pub pressure: Stalls<Stalled>,
    /// What 99 of 100 waits of guaranteed tasks for a CPU took at most.
    pub runqueue_p99_usec: Option<u64>,
}

impl Strain {
    /// The report with it.
    pub fn tell(&self, mut report: ResourceReport) -> ResourceReport {
        let Stalls { cpu, mem, io } = self.pressure;
        let told = [cpu, mem, io].iter().any(Option::is_some);
        let [cpu, mem, io] = [cpu, mem, io].map(Option::unwrap_or_default);
        report.pressure = told.then_some(NodePressure {
            cpu_some_permille: cpu.some_permille,
            mem_some_permille: mem.some_permille,
            mem_full_permille: mem.full_permille,
            io_some_permille: io.some_permille,
            io_full_permille: io.full_permille,
        });
        report.runqueue_p99_usec = self.runqueue_p99_usec;
        report
    }
}

/// Numbers the reports of a session and holds back those that say nothing new.
#[derive(Debug)]
pub struct Reporter {
    enforced: Enforced,
    at_least_every: Duration,
    last: Option<(ResourceReport, Instant)>,
    sequence: u64,
}

impl Reporter {
    /// `at_least_every` bounds how old the master's picture can be.
    pub fn new(enforced: Enforced, at_least_every: Duration) -> Self {
        Self { enforced, at_least_every, last: None, sequence: 0 }
    }

    /// What this node's kernel enforces.
    pub fn enforced(&self) -> &Enforced {
        &self.enforced
    }

    /// The report completed, if it differs enough from the last one or that is long ago.
    pub fn due(&mut self, report: ResourceReport, now: Instant) -> Option<ResourceReport> {
        let due = self.last.as_ref().is_none_or(|(last, at)| {
            differs(last, &report) || now.saturating_duration_since(*at) >= self.at_least_every
        });
        due.then(|| self.stamp(report, now))
    }

    /// The report completed, unconditionally: for a registration.
    pub fn stamp(&mut self, mut report: ResourceReport, now: Instant) -> ResourceReport {
        self.sequence += 1;
        report.sequence = self.sequence;
        report.enforced = Some(self.enforced);
        self.last = Some((report.clone(), now));
        report
    }
}

/// Allocations matter to the byte, measurements only beyond their noise.
fn differs(a: &ResourceReport, b: &ResourceReport) -> bool {
    let reserve = |r: &ResourceReport| r.reserve.clone().unwrap_or_default();
    let (ra, rb) = (reserve(a), reserve(b));
    a.allocated != b.allocated
        || a.capacity != b.capacity
        || a.revocable_allocated_cpu_milli != b.revocable_allocated_cpu_milli
        || ra.ports != rb.ports
        || ra.cpu_milli.abs_diff(rb.cpu_milli) >= CPU_STEP_MILLI
        || ra.mem_bytes.abs_diff(rb.mem_bytes) >= MEM_STEP_BYTES
        || ra.disk_bytes.abs_diff(rb.disk_bytes) >= DISK_STEP_BYTES
        || ra.net_egress_bits_per_sec.abs_diff(rb.net_egress_bits_per_sec) >= NET_STEP_BITS_PER_SEC
        || ra.net_ingress_bits_per_sec.abs_diff(rb.net_ingress_bits_per_sec) >= NET_STEP_BITS_PER_SEC
        || a.revocable_cpu_milli.abs_diff(b.revocable_cpu_milli) >= CPU_STEP_MILLI
        || pressure_differs(a.pressure.unwrap_or_default(), b.pressure.unwrap_or_default())
        || runqueue_differs(a.runqueue_p99_usec, b.runqueue_p99_usec)
}

fn pressure_differs(a: NodePressure, b: NodePressure) -> bool {
    let parts = |p: NodePressure| {
        [
            p.cpu_some_permille,
            p.mem_some_permille,
            p.mem_full_permille,
            p.io_some_permille,
            p.io_full_permille,
        ]
    };
    parts(a).iter().zip(parts(b)).any(|(a, b)| a.abs_diff(b) >= PRESSURE_STEP_PERMILLE)
}

/// That there is nothing to say of it any more is no news.
fn runqueue_differs(a: Option<u64>, b: Option<u64>) -> bool {
    let noticed = |usec: Option<u64>| usec.unwrap_or(0).max(RUNQUEUE_NOTICED_USEC);
    let (less, more) = (noticed(a).min(noticed(b)), noticed(a).max(noticed(b)));
    more >= less.saturating_mul(RUNQUEUE_FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_proto::v1::Resources;

    fn report(allocated: u64, reserve: u64) -> ResourceReport {
        let cpu = |cpu_milli| Some(Resources { cpu_milli, ..Default::default() });
        ResourceReport { allocated: cpu(allocated), reserve: cpu(reserve), ..Default::default() }
    }

    fn strained(io_permille: u64, runqueue_p99_usec: Option<u64>) -> ResourceReport {
        let io = Some(Stalled { some_permille: io_permille, full_permille: 0 });
        Strain { pressure: Stalls { io, ..Stalls::default() }, runqueue_p99_usec }.tell(report(0, 0))
    }

    #[test]
    fn a_busier_node_is_news_and_a_twitch_is_none() {
        let calm = strained(20, None);
        for (other, is_news) in [
            (strained(119, None), false),
            (strained(120, None), true),
            (strained(20, Some(4096)), true),
            (strained(20, Some(2048)), false),
            (strained(20, Some(1)), false),
        ] {
            assert_eq!(differs(&calm, &other), is_news, "{other:?}");
            assert_eq!(differs(&other, &calm), is_news, "{other:?}");
        }
        assert!(!differs(&strained(20, Some(8192)), &strained(20, Some(16_384))));
        assert!(differs(&strained(20, Some(8192)), &strained(20, Some(u64::MAX))));
        assert_eq!(Strain::default().tell(report(0, 0)).pressure, None, "not told by the kernel");
        assert_eq!(calm.pressure.unwrap().io_some_permille, 20);
    }

    #[test]
    fn noise_is_held_back_until_it_is_time() {
        let mut reporter = Reporter::new(Enforced::default(), Duration::from_secs(5));
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(reporter.due(report(0, 500), at(0)).unwrap().sequence, 1);
        assert_eq!(reporter.due(report(0, 599), at(1)), None);
        assert_eq!(reporter.due(report(0, 600), at(2)).unwrap().sequence, 2);
        assert_eq!(reporter.due(report(1, 600), at(2)).unwrap().sequence, 3);
        assert_eq!(reporter.due(report(1, 600), at(6)), None);
        assert_eq!(reporter.due(report(1, 600), at(7)).unwrap().sequence, 4);
    }
}
