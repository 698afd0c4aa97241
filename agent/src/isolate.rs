//! Grants become kernel state here: one file a resource, each behind [`Isolator`].

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_proto::v1;
use futures::future::BoxFuture;
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::{
    grant::Grant,
    kernel::cgroupfs::{Cgroup, CgroupError},
    offer::ledger::TaskKey,
};

pub mod connections;
pub mod cores;
mod counted;
pub mod cpu;
pub mod devices;
pub mod disk_io;
pub mod disk_space;
pub mod memory;
pub mod network;
pub mod observed;
pub mod output;
pub mod pids;
pub mod ports;
pub mod revocable;
pub mod talk;
pub mod tree;

/// Where one task is held.
#[derive(Clone, Debug)]
pub struct TaskPlace {
    /// Whose it is.
    pub task: TaskKey,
    /// The role of its framework; empty for what no agent knows any more.
    pub role: String,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The cgroup's id: the key of the task's rules in BPF maps.
    pub id: u64,
    /// Its directory on the disk; empty for what no agent knows any more.
    pub sandbox: PathBuf,
}

/// The grants of a task as they change.
pub type Grants = watch::Receiver<Arc<Grant>>;

/// A task broke a limit that the kernel reports instead of holding; it is ended at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// For the task's last status.
    pub reason: v1::TaskReason,
    /// What it did, how much, and what to ask for instead.
    pub message: String,
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
        cgroup: PathBuf,
        /// The failure.
        source: cgroups_rs::fs::error::Error,
    },
    /// The task's rules in the kernel.
    #[error(transparent)]
    Bpf(#[from] crate::kernel::bpf::BpfError),
    /// The project of a sandbox, or its quota.
    #[error(transparent)]
    Disk(#[from] disk_space::ProjectError),
    /// The kernel, this node or what the task uses now does not allow it. The limits before are in force.
    #[error("{0}")]
    Refused(String),
}

/// One part of a grant, held by the kernel.
///
/// For one task the calls come in this order: `prepare` once, before the first process exists; `attach` once,
/// when the program was executed; `watch` once, after that; `update` and `measure` any number of times, `measure`
/// also after the last process has ended; `cleanup` once, after the last process has ended, also where `prepare`
/// failed. A restarted agent calls `recover` and `watch` instead of the first three for tasks that still run: what
/// was set is in the kernel. Calls for different tasks may overlap; of those for one
/// task only `measure` and `watch` may overlap with others. All but `watch` may block, and run on threads for that.
pub trait Isolator: Send + Sync {
    /// Which part of a grant this is, for messages.
    fn part(&self) -> &'static str;

    /// The names, as in [`crate::kernel::probe`], of the kernel features that it cannot do without.
    fn features(&self) -> &'static [&'static str];

    /// Sets the limit. When it returns, whatever is started in the cgroup is held.
    ///
    /// # Errors
    /// The launch then fails with it; `cleanup` follows.
    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError>;

    /// Learns of the task's first process, which executes its program already.
    ///
    /// # Errors
    /// The task is then ended, and fails with it.
    fn attach(&self, _task: &TaskPlace, _grant: &Grant, _process: Pid) -> Result<(), IsolateError> {
        Ok(())
    }

    /// Changes the limit of a running task, up or down. Nothing is done where this part does not differ.
    ///
    /// # Errors
    /// The limit before is then in force again; the task runs on.
    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError>;

    /// Waits, without polling, for the task to break what the kernel only reports; `None` where the kernel holds
    /// all of it. The future ends with the task, when it is dropped.
    fn watch<'a>(&'a self, _task: &'a TaskPlace, _grants: Grants) -> Option<BoxFuture<'a, Violation>> {
        None
    }

    /// Makes sure of the limit for a task that was already running when this agent started.
    ///
    /// # Errors
    /// Logged; the task runs on.
    fn recover(&self, _task: &TaskPlace, _grant: &Grant) -> Result<(), IsolateError> {
        Ok(())
    }

    /// Adds what the kernel counted for the task; what cannot be read stays as it is.
    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage);

    /// Why the kernel ended processes of the task, where it did for this part of the grant. Asked once, after the last
    /// process has ended.
    fn explain(&self, _task: &TaskPlace) -> Option<Violation> {
        None
    }

    /// Takes away what `prepare` and `attach` left outside the task's cgroup directory. Harmless where there is
    /// nothing.
    ///
    /// # Errors
    /// Logged; the task's end is reported all the same.
    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError>;

    /// Takes away what stayed with the sandbox of a task that is over, just before the sandbox is removed.
    ///
    /// # Errors
    /// Logged; the sandbox is removed all the same.
    fn discard(&self, _sandbox: &Path) -> Result<(), IsolateError> {
        Ok(())
    }
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

    /// The parts, in the order they prepare.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = &dyn Isolator> {
        self.parts.iter().map(|part| &**part)
    }

    /// One of the parts; `None` past the last.
    pub fn part(&self, index: usize) -> Option<&dyn Isolator> {
        self.parts.get(index).map(|part| &**part)
    }

    /// Tells every part of the task's first process.
    ///
    /// # Errors
    /// The first part that failed, by name. The caller ends the task.
    pub fn attach(
        &self,
        task: &TaskPlace,
        grant: &Grant,
        process: Pid,
    ) -> Result<(), (&'static str, Box<IsolateError>)> {
        self.parts
            .iter()
            .try_for_each(|part| part.attach(task, grant, process).map_err(|e| (part.part(), Box::new(e))))
    }

    /// Gives a running task other limits: all of them, or none.
    ///
    /// # Errors
    /// The first part that failed, by name; the parts before it have gone back.
    pub fn update(
        &self,
        task: &TaskPlace,
        before: &Grant,
        after: &Grant,
    ) -> Result<(), (&'static str, Box<IsolateError>)> {
        for (done, part) in self.parts.iter().enumerate() {
            if let Err(error) = part.update(task, before, after) {
                for earlier in self.parts[..done].iter().rev() {
                    if let Err(error) = earlier.update(task, after, before) {
                        let error = crate::error_chain(&error);
                        tracing::error!(part = earlier.part(), error, "go back to the limit before");
                    }
                }
                return Err((part.part(), Box::new(error)));
            }
        }
        Ok(())
    }

    /// Waits for the task to break a limit that the kernel only reports. Does not end where it breaks none.
    pub async fn watch(&self, task: &TaskPlace, grants: &Grants) -> Violation {
        let watches: Vec<_> = self.parts.iter().filter_map(|p| p.watch(task, grants.clone())).collect();
        if watches.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(watches).await.0
    }

    /// Makes sure of every limit of a task that outlived the agent before this one.
    pub fn recover(&self, task: &TaskPlace, grant: &Grant) {
        for part in &self.parts {
            if let Err(error) = part.recover(task, grant) {
                tracing::error!(part = part.part(), error = crate::error_chain(&error), "recover a limit");
            }
        }
    }

    /// What the kernel counted for the task so far.
    pub fn measure(&self, task: &TaskPlace) -> v1::TaskUsage {
        let mut usage = v1::TaskUsage::default();
        for part in &self.parts {
            part.measure(task, &mut usage);
        }
        usage
    }

    /// Takes away what stayed with a sandbox that is about to be removed.
    pub fn discard(&self, sandbox: &Path) {
        for part in &self.parts {
            if let Err(error) = part.discard(sandbox) {
                let error = crate::error_chain(&error);
                tracing::warn!(part = part.part(), error, "take away what belongs to a sandbox");
            }
        }
    }

    /// Why the kernel ended processes of the task, where it did.
    pub fn explain(&self, task: &TaskPlace) -> Option<Violation> {
        self.parts.iter().find_map(|part| part.explain(task))
    }

    /// Undoes everything, last part first; one failure does not keep the others.
    pub fn cleanup(&self, task: &TaskPlace) -> Vec<(&'static str, IsolateError)> {
        let undone = self.parts.iter().rev().map(|part| (part.part(), part.cleanup(task)));
        undone.filter_map(|(part, result)| Some((part, result.err()?))).collect()
    }
}
