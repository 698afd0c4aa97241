//! CPU: a share under contention (`cpu.weight`) and, unless the grant may burst, a cap (`cpu.max`).

use bulkhead_proto::v1;
use cgroups_rs::fs::cpu::CpuController;

use super::{IsolateError, Isolator, TaskPlace};
use crate::grant::Grant;

/// The kernel's bounds for `cpu.weight`.
const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;

/// Needs the cpu controller.
#[derive(Debug)]
pub struct Cpu;

impl Isolator for Cpu {
    fn part(&self) -> &'static str {
        "cpu"
    }

    fn features(&self) -> &'static [&'static str] {
        &["cgroup_cpu"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let path = task.cgroup.path();
        let failed = |source| IsolateError::Controller { part: "cpu", cgroup: path.to_owned(), source };
        let controller = CpuController::new(path.to_owned(), path.to_owned(), true);
        controller.set_shares(weight(grant.cpu_milli)).map_err(failed)?;
        let quota = grant.cpu.cap_milli.map_or(-1, |cap| quota_usec(cap, grant.cpu.period_usec));
        controller.set_cfs_quota_and_period(Some(quota), Some(grant.cpu.period_usec)).map_err(failed)
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        let part = |grant: &Grant| (grant.cpu_milli, grant.cpu);
        if part(before) == part(after) { Ok(()) } else { self.prepare(task, after) }
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let stat = |key| task.cgroup.read_key("cpu.stat", key).ok().flatten();
        usage.cpu_throttled_usec = stat("throttled_usec").unwrap_or(usage.cpu_throttled_usec);
    }

    fn cleanup(&self, _task: &TaskPlace) -> Result<(), IsolateError> {
        Ok(())
    }
}

/// CPU time without the controller: every cgroup has it.
pub fn used_usec(task: &TaskPlace) -> Option<u64> {
    task.cgroup.read_key("cpu.stat", "usage_usec").ok().flatten()
}

/// 100, the kernel's default, stands for one CPU.
pub(crate) fn weight(cpu_milli: u64) -> u64 {
    (cpu_milli / 10).clamp(*WEIGHTS.start(), *WEIGHTS.end())
}

/// The part of a period that the task may run, over all CPUs; at least the millisecond that the kernel asks for.
fn quota_usec(cap_milli: u64, period_usec: u64) -> i64 {
    let quota = cap_milli.saturating_mul(period_usec) / 1000;
    i64::try_from(quota.max(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::PERIOD_USEC;

    #[test]
    fn weights_stay_within_what_the_kernel_takes() {
        assert_eq!([0, 9, 500, 1000, 64_000, 1_000_000].map(weight), [1, 1, 50, 100, 6400, 10_000]);
    }

    #[test]
    fn half_a_cpu_is_half_a_period() {
        assert_eq!([10, 500, 2500].map(|milli| quota_usec(milli, PERIOD_USEC)), [1000, 50_000, 250_000]);
    }
}
