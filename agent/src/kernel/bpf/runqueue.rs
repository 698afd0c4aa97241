//! How long threads of tasks waited for a CPU.

use std::{
    ops::Deref,
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::programs::{BtfTracePoint, links::FdLink};
use bulkhead_abi::{RunqueueCounters, names};

use super::{BpfError, counts::TaskCounts};

/// Counts that the kernel keeps of each task's waits: see `ebpf/observe/runqueue.bpf.c`. They are read as those of any other
/// kind are.
///
/// To be called at each switch of threads costs every program of the machine, so the program that counts is attached
/// only while a [`Look`] lives.
pub struct RunqueueCounts {
    counters: TaskCounts<RunqueueCounters>,
    program: Mutex<BtfTracePoint>,
}

/// Waits are counted until it is dropped. The kernel ends it with the process that has it, too.
#[derive(Debug)]
#[must_use = "nothing is counted once it is dropped"]
pub struct Look {
    _link: FdLink,
}

impl RunqueueCounts {
    /// Opens what is pinned in [`Loaded::runqueue`](super::Loaded::runqueue).
    ///
    /// # Errors
    /// Map or program are not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        let name = names::RUNQUEUE_PROGRAM;
        let program = BtfTracePoint::from_pin(dir.join(name));
        let program = program.map_err(|source| BpfError::Program { op: "open", name, source })?;
        Ok(Self { counters: TaskCounts::open(dir)?, program: Mutex::new(program) })
    }

    /// Has the waits of a task counted: those of threads that are made from now on. What was counted of it stays.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer.
    pub fn watch(&self, cgroup_id: u64, revocable: bool) -> Result<(), BpfError> {
        let zero = RunqueueCounters { revocable: revocable.into(), ..RunqueueCounters::default() };
        self.counters.watch_from(cgroup_id, zero)
    }

    /// Counts waits of all tasks from now on. Two looks at one time count everything twice.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn look(&self) -> Result<Look, BpfError> {
        let name = names::RUNQUEUE_PROGRAM;
        // Nothing is left half done by a panic: a link that is not taken out goes with the program.
        let mut program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        let link = program.attach().and_then(|id| program.take_link(id));
        let link = link.map_err(|source| BpfError::Program { op: "attach", name, source })?;
        Ok(Look { _link: link.into() })
    }
}

impl Deref for RunqueueCounts {
    type Target = TaskCounts<RunqueueCounters>;

    fn deref(&self) -> &Self::Target {
        &self.counters
    }
}
