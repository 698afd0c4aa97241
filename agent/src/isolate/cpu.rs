//! CPU time: a share under contention (`cpu.weight`), unless the grant may burst a cap (`cpu.max`), and what may be
//! saved up under it (`cpu.max.burst`).
//!
//! # Weights
//! Tasks are weighed against each other only, so their weights use all of the kernel's range: a grant of the whole
//! machine weighs 10000, and the others in proportion. On 2 CPUs a step is a fifth of a thousandth of a CPU, on 1000
//! CPUs it is a tenth of a CPU; grants below one step (10000 of them would fill the machine) all weigh 1.
//!
//! Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst` and `Documentation/scheduler/sched-bwc.rst`.

use bulkhead_proto::v1;

use super::{IsolateError, Isolator, TaskPlace};
use crate::{
    grant::{CpuGrant, Grant, MIN_QUOTA_USEC},
    kernel::cgroupfs::{Cgroup, CgroupError},
};

/// The kernel's bounds for `cpu.weight`.
const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;
/// The kernel's default weight; in the cgroups above the tasks it stands for one CPU.
const WEIGHT_OF_A_CPU: u64 = 100;

/// Needs the cpu controller; for bursts `cpu.max.burst` (Linux 5.14).
#[derive(Clone, Debug)]
pub struct Cpu {
    /// CPUs of this machine.
    cpus: u64,
    /// Why this kernel cannot keep tasks apart on the threads of a core.
    no_core_scheduling: Option<String>,
}

impl Cpu {
    /// For a machine of so many CPUs. `core_scheduling` is what the probe found.
    pub fn new(cpus: u64, core_scheduling: Result<(), String>) -> Self {
        Self { cpus, no_core_scheduling: core_scheduling.err() }
    }

    fn refuse(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        if let Some(why) = self.no_core_scheduling.as_ref().filter(|_| grant.cpu.core_scheduling) {
            let why = format!("core scheduling is not to be had on this node: {why}");
            return Err(IsolateError::Refused(why));
        }
        if grant.cpu.burst_usec > 0 && !task.cgroup.has("cpu.max.burst") {
            let why = "this kernel has no cpu.max.burst (Linux 5.14): ask for no burst_usec";
            return Err(IsolateError::Refused(why.to_owned()));
        }
        Ok(())
    }

    fn set(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.refuse(task, grant)?;
        task.cgroup.write("cpu.weight", &weight(grant.cpu_milli, self.cpus).to_string())?;
        Ok(set_bandwidth(&task.cgroup, &Bandwidth::of(&grant.cpu))?)
    }
}

impl Isolator for Cpu {
    fn part(&self) -> &'static str {
        "cpu"
    }

    fn features(&self) -> &'static [&'static str] {
        &["cgroup_cpu"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.set(task, grant)
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        let part = |grant: &Grant| (grant.cpu_milli, grant.cpu);
        if part(before) == part(after) {
            return Ok(());
        }
        if before.cpu.core_scheduling != after.cpu.core_scheduling {
            let why = "core scheduling is decided when a task starts: restart the task to change it";
            return Err(IsolateError::Refused(why.to_owned()));
        }
        self.set(task, after).inspect_err(|_| {
            // The first error says more.
            let _ = self.set(task, before);
        })
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // An agent on another number of CPUs, or of another version, may have weighed differently.
        self.set(task, grant)
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

/// A task's weight among tasks: its part of the machine, of 10000.
fn weight(cpu_milli: u64, cpus: u64) -> u64 {
    let machine_milli = cpus.max(1).saturating_mul(1000);
    let part = cpu_milli.saturating_mul(*WEIGHTS.end()).saturating_add(machine_milli / 2) / machine_milli;
    part.clamp(*WEIGHTS.start(), *WEIGHTS.end())
}

/// The weight of a cgroup that holds tasks, against the other cgroups of the host: 100, the kernel's default, stands
/// for one CPU. Beyond 100 CPUs the kernel's range ends.
pub(super) fn weight_of_cpus(cpus: u64) -> u64 {
    cpus.saturating_mul(WEIGHT_OF_A_CPU).clamp(*WEIGHTS.start(), *WEIGHTS.end())
}

/// What a cgroup may run in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bandwidth {
    /// Over all CPUs; `None` is no cap.
    pub(super) quota_usec: Option<u64>,
    pub(super) period_usec: u64,
    /// Saved up while idle; never above the quota.
    pub(super) burst_usec: u64,
}

impl Bandwidth {
    fn of(grant: &CpuGrant) -> Self {
        // Cores of its own are a cap already, and a finer one than a quota.
        let cap_milli = grant.cap_milli.filter(|_| !grant.exclusive);
        let quota_usec = cap_milli.map(|cap| quota_usec(cap, grant.period_usec));
        Self { quota_usec, period_usec: grant.period_usec, burst_usec: grant.burst_usec }
    }
}

/// The part of a period that may be run, over all CPUs; at least what the kernel takes.
pub fn quota_usec(cap_milli: u64, period_usec: u64) -> u64 {
    (cap_milli.saturating_mul(period_usec) / 1000).max(MIN_QUOTA_USEC)
}

/// Sets cap and burst in the order that the kernel takes: it refuses a burst above the quota at any moment, so a burst
/// that shrinks goes first and one that grows goes last.
pub(super) fn set_bandwidth(cgroup: &Cgroup, to: &Bandwidth) -> Result<(), CgroupError> {
    let burst_now = if cgroup.has("cpu.max.burst") { cgroup.read_number("cpu.max.burst")? } else { None };
    for (file, value) in bandwidth_writes(burst_now, to) {
        cgroup.write(file, &value)?;
    }
    Ok(())
}

/// What is written, in order. `burst_now` is `None` where the kernel knows no burst.
fn bandwidth_writes(burst_now: Option<u64>, to: &Bandwidth) -> Vec<(&'static str, String)> {
    let quota = to.quota_usec.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
    let max = ("cpu.max", format!("{quota} {}", to.period_usec));
    let burst = ("cpu.max.burst", to.burst_usec.to_string());
    match burst_now {
        None => vec![max],
        Some(now) if now == to.burst_usec => vec![max],
        Some(now) if now > to.burst_usec => vec![burst, max],
        Some(_) => vec![max, burst],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::grant::{Class, PERIOD_USEC, plain};

    #[test]
    fn a_grant_weighs_its_part_of_the_machine() {
        assert_eq!([10, 15, 1000, 2000].map(|milli| weight(milli, 2)), [50, 75, 5000, 10_000]);
        assert_eq!([100, 1000, 300_000, 1_000_000].map(|m| weight(m, 1000)), [1, 10, 3000, 10_000]);
        assert_eq!([1, 9, u64::MAX].map(|milli| weight(milli, 4096)), [1, 1, 10_000]);
        assert_eq!(weight(500, 0), 5000, "a machine that does not say what it has");
        assert_eq!([0, 1, 64, 100, 5000].map(weight_of_cpus), [1, 100, 6400, 10_000, 10_000]);
    }

    #[test]
    fn half_a_cpu_is_half_a_period() {
        assert_eq!([10, 500, 2500].map(|milli| quota_usec(milli, PERIOD_USEC)), [1000, 50_000, 250_000]);
    }

    #[test]
    fn without_core_scheduling_in_the_kernel_it_is_refused() {
        let place = TaskPlace {
            task: Default::default(),
            role: Default::default(),
            cgroup: Cgroup::at("/nowhere"),
            id: 1,
            sandbox: Default::default(),
        };
        let cpu = Cpu::new(2, Err("no CONFIG_SCHED_CORE".into()));
        let mut grant = plain(Class::Guaranteed, 500, 1 << 20);
        grant.cpu.core_scheduling = true;
        let refused = cpu.prepare(&place, &grant).unwrap_err();
        assert!(refused.to_string().contains("CONFIG_SCHED_CORE"), "{refused}");
        let without = plain(Class::Guaranteed, 500, 1 << 20);
        assert!(matches!(cpu.update(&place, &without, &grant), Err(IsolateError::Refused(_))));
        assert!(cpu.update(&place, &without, &without).is_ok());
    }

    /// What a kernel holds: quota and burst.
    type Held = (Option<u64>, u64);

    /// As `tg_set_cfs_bandwidth` checks it.
    fn accepts(quota: Option<u64>, burst: u64) -> bool {
        quota.is_none_or(|quota| quota >= MIN_QUOTA_USEC && burst <= quota)
    }

    fn bandwidths() -> impl Strategy<Value = Bandwidth> {
        let quota = prop::option::of(MIN_QUOTA_USEC..500_000);
        (quota, any::<u64>()).prop_map(|(quota_usec, burst)| {
            let burst_usec = quota_usec.map_or(0, |quota| burst % (quota + 1));
            Bandwidth { quota_usec, period_usec: PERIOD_USEC, burst_usec }
        })
    }

    proptest! {
        #[test]
        fn no_step_between_two_bandwidths_is_refused(steps in prop::collection::vec(bandwidths(), 1..6)) {
            let (mut quota, mut burst): Held = (None, 0);
            for to in steps {
                for (file, value) in bandwidth_writes(Some(burst), &to) {
                    match file {
                        "cpu.max" => quota = value.split_once(' ').unwrap().0.parse().ok(),
                        _ => burst = value.parse().unwrap(),
                    }
                    prop_assert!(accepts(quota, burst), "{quota:?} {burst}");
                }
                prop_assert_eq!((quota, burst), (to.quota_usec, to.burst_usec));
            }
        }

        #[test]
        fn weights_keep_the_ratio_of_grants(
            cpus in 1..2000u64,
            small in 1..1_000_000u64,
            times in 1..50u64,
        ) {
            let small = small % (cpus * 1000) + 1;
            let large = (small * times).min(cpus * 1000);
            // Rounding moves each weight by half a step at most.
            let (a, b) = (weight(small, cpus) as f64, weight(large, cpus) as f64);
            prop_assume!(a >= 20.0);
            let (is, should) = (b / a, large as f64 / small as f64);
            prop_assert!((is / should - 1.0).abs() < 0.06, "{is} {should}");
        }
    }
}
