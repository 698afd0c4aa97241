//! CPU and memory of the whole node, split into tasks and everything else ("strangers").

use std::{sync::OnceLock, time::Instant};

use procfs::{Current as _, CurrentSI as _, KernelStats, Meminfo, ProcError};

use crate::{
    isolate::tree::{Branch, Tree},
    kernel::cgroupfs::Cgroup,
};

/// The kernel's files could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {file}")]
pub struct MeasureError {
    /// Which file.
    pub file: &'static str,
    /// Why.
    #[source]
    pub source: ProcError,
}

/// What the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCapacity {
    /// Online CPUs.
    pub cpus: u64,
    /// Physical memory that the kernel manages.
    pub mem_bytes: u64,
}

impl NodeCapacity {
    /// Reads it.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn read() -> Result<Self, MeasureError> {
        let stat = kernel_stats()?;
        Ok(Self { cpus: stat.cpu_time.len() as u64, mem_bytes: meminfo()?.mem_total })
    }
}

/// What is in use, averaged over the time since the sample before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeUse {
    /// CPU of everything that is not a task.
    pub strangers_cpu_milli: u64,
    /// Memory that is neither available to new programs nor a task's.
    pub strangers_mem_bytes: u64,
    /// CPU of guaranteed tasks, those with cores of their own left out: nobody else could use what these leave.
    pub guaranteed_cpu_milli: u64,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    at: Instant,
    busy_usec: u64,
    guaranteed_usec: u64,
    /// Of all other tasks: revocable, or on cores of their own.
    others_usec: u64,
}

/// Turns the kernel's counters into [`NodeUse`].
#[derive(Debug)]
pub struct NodeSampler {
    tree: Tree,
    before: Counters,
}

impl NodeSampler {
    /// Takes the first reading.
    ///
    /// # Errors
    /// When /proc/stat cannot be read.
    pub fn start(tree: Tree, now: Instant) -> Result<Self, MeasureError> {
        let before = counters(&tree, now)?;
        Ok(Self { tree, before })
    }

    /// What was in use since the call before.
    ///
    /// # Errors
    /// When /proc/stat or /proc/meminfo cannot be read.
    pub fn sample(&mut self, now: Instant) -> Result<NodeUse, MeasureError> {
        let after = counters(&self.tree, now)?;
        let before = std::mem::replace(&mut self.before, after);
        let (strangers_cpu_milli, guaranteed_cpu_milli) = cpu_use(&before, &after);
        let mem = meminfo()?;
        // Without MemAvailable (Linux 3.14) only free memory is certain to be available.
        let available = mem.mem_available.unwrap_or(mem.mem_free);
        let tasks: u64 = Branch::ALL.map(|branch| firm_memory(&self.tree.branch(branch))).iter().sum();
        let strangers_mem_bytes = mem.mem_total.saturating_sub(available).saturating_sub(tasks);
        Ok(NodeUse { strangers_cpu_milli, strangers_mem_bytes, guaranteed_cpu_milli })
    }
}

/// Strangers' and guaranteed tasks' CPU between two readings; 0 where a counter went backwards.
fn cpu_use(before: &Counters, after: &Counters) -> (u64, u64) {
    let wall_usec =
        u64::try_from(after.at.saturating_duration_since(before.at).as_micros()).unwrap_or(u64::MAX);
    let milli = |usec: u64| usec.saturating_mul(1000).checked_div(wall_usec).unwrap_or(0);
    let guaranteed = after.guaranteed_usec.saturating_sub(before.guaranteed_usec);
    let others = after.others_usec.saturating_sub(before.others_usec);
    let busy = after.busy_usec.saturating_sub(before.busy_usec);
    (milli(busy.saturating_sub(guaranteed).saturating_sub(others)), milli(guaranteed))
}

fn counters(tree: &Tree, at: Instant) -> Result<Counters, MeasureError> {
    let total = kernel_stats()?.total;
    let busy_ticks = [
        total.user,
        total.nice,
        total.system,
        total.irq.unwrap_or(0),
        total.softirq.unwrap_or(0),
        // Time that a hypervisor took is not ours to offer.
        total.steal.unwrap_or(0),
    ];
    let usec_per_tick = 1_000_000 / procfs::ticks_per_second().max(1);
    let used = |branch| tree.branch(branch).read_key("cpu.stat", "usage_usec").ok().flatten().unwrap_or(0);
    Ok(Counters {
        at,
        busy_usec: busy_ticks.iter().sum::<u64>().saturating_mul(usec_per_tick),
        guaranteed_usec: used(Branch::Guaranteed),
        others_usec: used(Branch::Revocable) + used(Branch::Exclusive),
    })
}

/// Memory of a cgroup that the kernel could not give to somebody else at once: all but clean file pages.
/// Zero without the memory controller; tasks then count as strangers, which errs on the safe side.
fn firm_memory(cgroup: &Cgroup) -> u64 {
    let Ok(Some(current)) = cgroup.read_number("memory.current") else { return 0 };
    let stat = |key| cgroup.read_key("memory.stat", key).ok().flatten().unwrap_or(0);
    let file = stat("active_file") + stat("inactive_file") + stat("slab_reclaimable");
    current.saturating_sub(file)
}

/// Differs from that of any other boot of this host; empty where the kernel does not say.
pub fn boot_id() -> String {
    static BOOT: OnceLock<String> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    BOOT.get_or_init(|| read().trim().to_owned()).clone()
}

fn kernel_stats() -> Result<KernelStats, MeasureError> {
    KernelStats::current().map_err(|source| MeasureError { file: "/proc/stat", source })
}

fn meminfo() -> Result<Meminfo, MeasureError> {
    Meminfo::current().map_err(|source| MeasureError { file: "/proc/meminfo", source })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(start: Instant, ms: u64, busy_usec: u64, guaranteed_usec: u64, others_usec: u64) -> Counters {
        Counters { at: start + Duration::from_millis(ms), busy_usec, guaranteed_usec, others_usec }
    }

    #[test]
    fn what_tasks_used_is_not_the_strangers() {
        let start = Instant::now();
        let before = at(start, 0, 1_000_000, 100_000, 0);
        let after = at(start, 1000, 3_000_000, 600_000, 250_000);
        assert_eq!(cpu_use(&before, &after), (1250, 500));
    }

    #[test]
    fn odd_counters_give_zero_and_not_nonsense() {
        let start = Instant::now();
        let before = at(start, 1000, 3_000_000, 600_000, 0);
        assert_eq!(cpu_use(&before, &at(start, 2000, 0, 0, 0)), (0, 0));
        assert_eq!(cpu_use(&before, &at(start, 1000, 9_000_000, 900_000, 0)), (0, 0));
        // Tick counters are coarser than cgroup counters.
        assert_eq!(cpu_use(&before, &at(start, 2000, 3_000_000, 700_000, 0)), (0, 100));
    }

    #[test]
    fn this_machine_has_something() {
        let capacity = NodeCapacity::read().unwrap();
        assert!(capacity.cpus >= 1 && capacity.mem_bytes > 1 << 20);
    }
}
