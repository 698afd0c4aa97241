//! What the connections of tasks did, in the pinned map.

use std::{collections::BTreeMap, path::Path};

use bulkhead_abi::{ConnectionCounters, names};

use super::{BpfError, per_cpu::CpuTable};

/// Counts that the kernel keeps of each task's TCP connections, keyed by the id of the task's cgroup: see
/// `ebpf/observe/connections.bpf.c`. They go on while no agent runs.
pub struct ConnectionCounts {
    connections: CpuTable<ConnectionCounters>,
}

impl ConnectionCounts {
    /// Opens the map in [`Loaded::connections`](super::Loaded::connections).
    ///
    /// # Errors
    /// The map is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self { connections: CpuTable::open(dir, names::CONNECTIONS)? })
    }

    /// Has the connections of a task counted. What was counted of it stays.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer.
    pub fn watch(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.connections.make(cgroup_id)
    }

    /// What was counted so far; `None` for a task that is not watched.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn of(&self, cgroup_id: u64) -> Result<Option<ConnectionCounters>, BpfError> {
        Ok(self.connections.get(cgroup_id)?.map(|values| sum(&values)))
    }

    /// The same for all tasks, by few system calls whatever their number.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn all(&self) -> Result<BTreeMap<u64, ConnectionCounters>, BpfError> {
        let mut all = BTreeMap::new();
        self.connections.each(|id, of_cpus| {
            all.insert(id, sum(of_cpus));
        })?;
        Ok(all)
    }

    /// Drops the counts of a task. Harmless where there are none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn forget(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.connections.delete(cgroup_id)
    }
}

fn sum(of_cpus: &[ConnectionCounters]) -> ConnectionCounters {
    of_cpus.iter().fold(ConnectionCounters::default(), |sum, one| sum.plus(one))
}
