//! Grants become kernel state here: one file a resource, each behind [`Isolator`].

use bulkhead_proto::v1;

use crate::{
    grant::Grant,
    kernel::cgroupfs::{Cgroup, CgroupError},
    offer::ledger::TaskKey,
};

pub mod cpu;
pub mod memory;
pub mod pids;
pub mod ports;
pub mod tree;

/// The cgroup of one task.
#[derive(Clone, Debug)]
pub struct TaskCgroup {
    /// Whose it is.
    pub task: TaskKey,
    /// Its directory.
    pub cgroup: Cgroup,
    /// Its id: the key of the task's rules in BPF maps.
    pub id: u64,
}

/// A limit could not be set, or not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// A file of the task's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A controller of cgroups-rs; its own text names the file.
    #[error("{part}: {}", cgroup.display())]
    Controller {
        /// Which isolator.
        part: &'static str,
        /// The task's cgroup.
        cgroup: std::path::PathBuf,
        /// The failure.
        source: cgroups_rs::fs::error::Error,
    },
    /// The task's rules in the kernel.
    #[error(transparent)]
    Bpf(#[from] crate::kernel::bpf::BpfError),
}

/// One part of a grant, held by the kernel.
///
/// For one task the calls come in this order: `prepare` once, before the first process exists;
/// `measure` any number of times, also after the last process has ended; `cleanup` once, after the last
/// process has ended, also where `prepare` failed. A restarted agent calls `recover` instead of
/// `prepare` for tasks that still run: what was set is in the kernel. Calls for different tasks may overlap.
pub trait Isolator: Send + Sync {
    /// Which part of a grant this is, for messages.
    fn part(&self) -> &'static str;

    /// Sets the limit. When it returns, whatever is started in the cgroup is held.
    ///
    /// # Errors
    /// The launch then fails with it; `cleanup` follows.
    fn prepare(&self, task: &TaskCgroup, grant: &Grant) -> Result<(), IsolateError>;

    /// Makes sure of the limit for a task that was already running when this agent started.
    ///
    /// # Errors
    /// Logged; the task runs on.
    fn recover(&self, _task: &TaskCgroup, _grant: &Grant) -> Result<(), IsolateError> {
        Ok(())
    }

    /// Adds what the kernel counted for the task; what cannot be read stays as it is.
    fn measure(&self, task: &TaskCgroup, usage: &mut v1::TaskUsage);

    /// Takes away what `prepare` left outside the task's cgroup directory. Harmless where there is nothing.
    ///
    /// # Errors
    /// Logged; the task's end is reported all the same.
    fn cleanup(&self, task: &TaskCgroup) -> Result<(), IsolateError>;
}

/// All isolators of this node, in the order they prepare.
pub struct Isolators {
    parts: Vec<Box<dyn Isolator>>,
}

impl Isolators {
    /// These parts, in this order.
    pub fn new(parts: Vec<Box<dyn Isolator>>) -> Self {
        Self { parts }
    }

    /// Sets every limit of the grant.
    ///
    /// # Errors
    /// The first part that failed, by name. The caller cleans up.
    pub fn prepare(&self, task: &TaskCgroup, grant: &Grant) -> Result<(), (&'static str, Box<IsolateError>)> {
        self.parts
            .iter()
            .try_for_each(|part| part.prepare(task, grant).map_err(|e| (part.part(), Box::new(e))))
    }

    /// Makes sure of every limit of a task that outlived the agent before this one.
    pub fn recover(&self, task: &TaskCgroup, grant: &Grant) {
        for part in &self.parts {
            if let Err(error) = part.recover(task, grant) {
                tracing::error!(part = part.part(), error = crate::error_chain(&error), "recover a limit");
            }
        }
    }

    /// What the kernel counted for the task so far.
    pub fn measure(&self, task: &TaskCgroup) -> v1::TaskUsage {
        let mut usage = v1::TaskUsage::default();
        for part in &self.parts {
            part.measure(task, &mut usage);
        }
        usage
    }

    /// Undoes everything, last part first; one failure does not keep the others.
    pub fn cleanup(&self, task: &TaskCgroup) -> Vec<(&'static str, IsolateError)> {
        let undone = self.parts.iter().rev().map(|part| (part.part(), part.cleanup(task)));
        undone.filter_map(|(part, result)| Some((part, result.err()?))).collect()
    }
}
