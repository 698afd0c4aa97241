//! After a restart of the agent: every task that the journal remembers is found again or reported.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use bulkhead_proto::v1::{TaskReason, TaskState};
use nix::{errno::Errno, unistd::Pid};

use super::{Keeper, Live, Message};
use crate::{
    grant::Grant,
    isolate::{TaskPlace, tree::Branch},
    journal::replay::{Remembered, Replayed},
    kernel::{
        cgroupfs::{Cgroup, CgroupError},
        pidfd::{self, Watched},
    },
    launch::volume::Volume,
    measure::node::boot_id,
    offer::ledger::TaskKey,
    task::{
        End,
        recover::{Found, Recovery, decide},
    },
    unix_time_ms,
};

/// A restarted agent cannot tell what became of its tasks. It must not go on: it would take live ones for dead.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The cgroup tree cannot be read.
    #[error("look for the tasks of the agent before this one")]
    Cgroup(#[from] CgroupError),
    /// A process cannot be looked at.
    #[error("look whether process {pid} of task {task} is alive")]
    Process {
        /// The process.
        pid: i32,
        /// Whose.
        task: String,
        /// Why not.
        source: io::Error,
    },
}

impl Keeper {
    /// Takes back every remembered task, and ends what nobody remembers. Must run within a tokio runtime.
    ///
    /// # Errors
    /// [`RecoverError`]; tasks that were not looked at yet run on.
    pub fn recover(&mut self, replayed: Replayed) -> Result<(), RecoverError> {
        let boot = boot_id();
        for (key, task) in replayed.tasks {
            self.recover_task(key, task, &boot)?;
        }
        let known: Vec<_> = self.live.values().filter_map(|l| l.cgroup.clone()).collect();
        for cgroup in self.parts.launcher.tree().tasks()? {
            if !known.iter().any(|k| k.cgroup == cgroup) {
                self.end_stranger(cgroup);
            }
        }
        // An agent that is restarted often would else never come to it.
        self.sweep_sandboxes();
        Ok(())
    }

    fn recover_task(&mut self, key: TaskKey, task: Remembered, boot: &str) -> Result<(), RecoverError> {
        let same_boot = task.started.as_ref().is_none_or(|s| s.boot_id == boot);
        let process = match task.started.as_ref().filter(|_| same_boot && task.ended.is_none()) {
            Some(started) => find_process(started.pid, started.start_ticks)
                .map_err(|source| RecoverError::Process { pid: started.pid, task: key.1.clone(), source })?,
            None => None,
        };
        let decision = decide(&task, Found { same_boot, alive: process.is_some() });
        tracing::info!(task = key.1, framework = key.0, ?decision, "recover a task");

        let spec = task.accepted.spec.clone().unwrap_or_default();
        let sandbox: PathBuf = task.started.as_ref().map(|s| s.sandbox.clone().into()).unwrap_or_default();
        let first = task.accepted.first_sequence;
        // STAGING was the first status and RUNNING the second.
        let (state, sequence) = match &task.started {
            Some(_) => (TaskState::Running, first + 1),
            None => (TaskState::Staging, first),
        };
        let grant = Grant::check(spec.grant.as_ref(), &self.parts.defaults.grant);
        let volumes = spec.volumes.iter().filter_map(|v| Volume::check(v, &self.parts.defaults.rules).ok());
        let volumes: Vec<Volume> = volumes.collect();
        self.table.restore(key.clone(), spec, sandbox.clone(), task.accepted.unix_time_ms, state, sequence);
        self.table.acknowledge(&key, task.acknowledged);
        if let (Recovery::Report, Some(status)) = (decision, task.ended) {
            self.table.restore_end(&key, status);
            return Ok(());
        }
        self.live.insert(key.clone(), Live::new());
        let Ok(grant) = grant else {
            // It was refused, and the agent went away before it could say so.
            self.give_up(key, None, same_boot);
            return Ok(());
        };
        let cgroup = self.parts.launcher.tree().task(Branch::of(&grant), &key.0, &key.1);
        let id = match &task.started {
            Some(started) => started.cgroup_id,
            None => cgroup.id().unwrap_or_default(),
        };
        let cgroup = TaskPlace {
            task: key.clone(),
            role: task.accepted.role.clone(),
            cgroup,
            id,
            sandbox: sandbox.clone(),
        };
        // Whatever still runs in it holds these until it is gone.
        self.parts.ledger.adopt(key.clone(), &grant);
        match task.started.filter(|_| decision != Recovery::GiveUp) {
            Some(started) => {
                self.adopt_image(&key, &started.image);
                self.parts.launcher.isolators().recover(&cgroup, &grant);
                self.parts.launcher.adopt_volumes(&cgroup, &volumes);
                let ran = Duration::from_millis(unix_time_ms().saturating_sub(started.unix_time_ms));
                let since = Instant::now().checked_sub(ran).unwrap_or_else(Instant::now);
                self.supervise(key, process, cgroup, since);
            }
            None => self.give_up(key, Some(cgroup), same_boot),
        }
        Ok(())
    }

    /// Ends what there is of the task, then reports it.
    fn give_up(&mut self, key: TaskKey, cgroup: Option<TaskPlace>, same_boot: bool) {
        let message = if same_boot {
            "the agent was restarted while it launched the task"
        } else {
            "the host was restarted while the task was running"
        };
        let end = End::failed(TaskReason::AgentRestarted, message.to_owned());
        if let Some(live) = self.live.get_mut(&key) {
            live.cgroup.clone_from(&cgroup);
        }
        let myself = self.myself.clone();
        tokio::spawn(async move {
            if let Some(cgroup) = cgroup.filter(|c| c.cgroup.exists()) {
                end_all(&cgroup.cgroup).await;
            }
            drop(myself.send(Message::Ended(key, end)).await);
        });
    }

    /// Processes in a cgroup of ours that no journal knows hold resources that would be offered again.
    fn end_stranger(&self, cgroup: Cgroup) {
        let launcher = self.parts.launcher.clone();
        let Ok(id) = cgroup.id() else { return };
        tokio::spawn(async move {
            tracing::warn!(cgroup = %cgroup.path().display(), "end a task that the journal does not know");
            end_all(&cgroup).await;
            crate::launch::blocking(move || {
                let (task, role) = (TaskKey::default(), String::new());
                launcher.clear(&TaskPlace { task, role, cgroup, id, sandbox: PathBuf::new() });
            })
            .await;
        });
    }
}

async fn end_all(cgroup: &Cgroup) {
    let ended = match cgroup.kill() {
        Ok(()) => cgroup.wait_empty().await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::error!(error = crate::error_chain(&error), "end what an earlier agent left");
    }
}

/// The process, if it is still the one that was started then. Not being able to look is an error, and no death.
fn find_process(pid: i32, start_ticks: u64) -> io::Result<Option<Watched>> {
    let pidfd = match pidfd::open(Pid::from_raw(pid)) {
        Ok(pidfd) => pidfd,
        Err(e) if e.raw_os_error() == Some(Errno::ESRCH as i32) => return Ok(None),
        Err(e) => return Err(e),
    };
    // With the descriptor in hand the id cannot pass to another process any more.
    let stat = match procfs::process::Process::new(pid).and_then(|p| p.stat()) {
        Ok(stat) => stat,
        Err(procfs::ProcError::NotFound(_)) => return Ok(None),
        Err(e) => return Err(io::Error::other(e)),
    };
    let dead = matches!(stat.state, 'Z' | 'X');
    // 0 was written where the start could not be read; the id is then all there is.
    let same = start_ticks == 0 || stat.starttime == start_ticks;
    if dead || !same { Ok(None) } else { Watched::new(pidfd, Pid::from_raw(pid)).map(Some) }
}
