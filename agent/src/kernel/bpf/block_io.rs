//! How long requests of tasks for disks took, in the pinned map.

use std::{collections::BTreeMap, path::Path};

use bulkhead_abi::{BlockIoCounters, names};

use super::{BpfError, per_cpu::CpuTable};

/// Counts that the kernel keeps of each task's requests, keyed by the id of the task's cgroup: see
/// `ebpf/observe/block_io.bpf.c`. They go on while no agent runs.
pub struct BlockIoCounts {
    counters: CpuTable<BlockIoCounters>,
}

impl BlockIoCounts {
    /// Opens the map in [`Loaded::block_io`](super::Loaded::block_io).
    ///
    /// # Errors
    /// The map is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self { counters: CpuTable::open(dir, names::BLOCK_IO)? })
    }

    /// Has the requests of a task counted. What was counted of it stays.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer.
    pub fn watch(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.counters.make(cgroup_id)
    }

    /// What was counted so far; `None` for a task that is not watched.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn of(&self, cgroup_id: u64) -> Result<Option<BlockIoCounters>, BpfError> {
        Ok(self.counters.get(cgroup_id)?.map(|of_cpus| sum(&of_cpus)))
    }

    /// The same for all tasks, by few system calls whatever their number.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn all(&self) -> Result<BTreeMap<u64, BlockIoCounters>, BpfError> {
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

fn sum(of_cpus: &[BlockIoCounters]) -> BlockIoCounters {
    of_cpus.iter().fold(BlockIoCounters::default(), BlockIoCounters::plus)
}
