//! What programs count of each task, in pinned maps that go on being counted into while no agent runs.

use std::{collections::BTreeMap, path::Path};

use aya::Pod;
use bulkhead_abi::{BlockIoCounters, ConnectionCounters, RunqueueCounters, names};

use super::{BpfError, per_cpu::CpuTable};

/// Counters of one task, which each CPU has for itself.
pub trait Counters: Pod + Default {
    /// The name of their map.
    const MAP: &'static str;

    /// Both together.
    #[must_use]
    fn plus(self, other: &Self) -> Self;
}

/// What is counted of tasks, keyed by the ids of their cgroups.
pub struct TaskCounts<C: Counters> {
    counters: CpuTable<C>,
}

/// TCP connections: see `ebpf/observe/connections.bpf.c`. In [`Loaded::connections`](super::Loaded::connections).
pub type ConnectionCounts = TaskCounts<ConnectionCounters>;
/// Requests for disks: see `ebpf/observe/block_io.bpf.c`. In [`Loaded::block_io`](super::Loaded::block_io).
pub type BlockIoCounts = TaskCounts<BlockIoCounters>;

impl<C: Counters> TaskCounts<C> {
    /// Opens the map in this directory.
    ///
    /// # Errors
    /// The map is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self { counters: CpuTable::open(dir, C::MAP)? })
    }

    /// Has a task counted. What was counted of it stays.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer.
    pub fn watch(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.watch_from(cgroup_id, C::default())
    }

    /// The same, where each CPU does not begin with zeros.
    pub(super) fn watch_from(&self, cgroup_id: u64, first: C) -> Result<(), BpfError> {
        self.counters.make(cgroup_id, first)
    }

    /// What was counted so far; `None` for a task that is not watched.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn of(&self, cgroup_id: u64) -> Result<Option<C>, BpfError> {
        Ok(self.counters.get(cgroup_id)?.map(|of_cpus| sum(&of_cpus)))
    }

    /// The same for all tasks, by few system calls whatever their number.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn all(&self) -> Result<BTreeMap<u64, C>, BpfError> {
        let mut all = BTreeMap::new();
        self.counters.each(|id, of_cpus| {
            all.insert(id, sum(of_cpus));
        })?;
        Ok(all)
    }

    /// Drops the counts of a task. Harmless where there are none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn forget(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.counters.delete(cgroup_id)
    }
}

fn sum<C: Counters>(of_cpus: &[C]) -> C {
    of_cpus.iter().fold(C::default(), C::plus)
}

/// Which counters are in which map.
macro_rules! counters {
    ($($counters:ty: $map:expr),* $(,)?) => { $(
        impl Counters for $counters {
            const MAP: &'static str = $map;

            fn plus(self, other: &Self) -> Self {
                <$counters>::plus(self, other)
            }
        }
    )* };
}

counters! {
    ConnectionCounters: names::CONNECTIONS,
    BlockIoCounters: names::BLOCK_IO,
    RunqueueCounters: names::RUNQUEUE,
}
