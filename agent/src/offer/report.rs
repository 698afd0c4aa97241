//! When a report is worth sending. Pure: `now` is an argument.

use std::time::{Duration, Instant};

use bulkhead_proto::v1::{Enforced, ResourceReport};

/// A change of CPU below a tenth of a CPU is noise of the measurement.
const CPU_STEP_MILLI: u64 = 100;
/// A change of memory below this is noise of the page cache.
const MEM_STEP_BYTES: u64 = 64 << 20;
/// And of the disk below this, somebody's log.
const DISK_STEP_BYTES: u64 = 64 << 20;

/// And of the link below this, somebody's update.
const NET_STEP_BITS_PER_SEC: u64 = 10_000_000;

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
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_proto::v1::Resources;

    fn report(allocated: u64, reserve: u64) -> ResourceReport {
        let cpu = |cpu_milli| Some(Resources { cpu_milli, ..Default::default() });
        ResourceReport { allocated: cpu(allocated), reserve: cpu(reserve), ..Default::default() }
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
