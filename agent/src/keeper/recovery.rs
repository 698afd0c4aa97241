//! After a restart of the agent: every task that the journal remembers is found again or reported.

use bulkhead_proto::v1::{TaskReason, TaskState};
use nix::unistd::Pid;

use super::{Keeper, Live, Message};
use crate::{
    grant::Grant,
    isolate::TaskCgroup,
    journal::replay::{Remembered, Replayed},
    kernel::{
        cgroupfs::{Cgroup, CgroupError},
        pidfd::{self, Watched},
    },
    measure::node::boot_id,
    offer::ledger::TaskKey,
    task::{
        End,
        recover::{Found, Recovery, decide},
    },
};

impl Keeper {
    /// Takes back every remembered task, and ends what nobody remembers. Must run within a tokio runtime.
    ///
    /// # Errors
    /// When the cgroup tree cannot be read.
    pub fn recover(&mut self, replayed: Replayed) -> Result<(), CgroupError> {
        let boot = boot_id();
        for (key, task) in replayed.tasks {
            self.recover_task(key, task, &boot);
        }
        let known: Vec<_> = self.live.values().filter_map(|l| l.cgroup.clone()).collect();
        for cgroup in self.parts.launcher.tree().tasks()? {
            if !known.iter().any(|k| k.cgroup == cgroup) {
                self.end_stranger(cgroup);
            }
        }
        Ok(())
    }

    fn recover_task(&mut self, key: TaskKey, task: Remembered, boot: &str) {
        let process = task.started.as_ref().and_then(|s| find_process(s.pid, s.start_ticks));
        let same_boot = task.started.as_ref().is_some_and(|s| s.boot_id == boot);
        let decision = decide(&task, Found { same_boot, alive: process.is_some() });
        tracing::info!(task = key.1, framework = key.0, ?decision, "recover a task");

        let spec = task.accepted.spec.clone().unwrap_or_default();
        let sandbox = task.started.as_ref().map(|s| s.sandbox.clone().into()).unwrap_or_default();
        let first = task.accepted.first_sequence;
        // STAGING was the first status and RUNNING the second.
        let (state, sequence) = match &task.started {
            Some(_) => (TaskState::Running, first + 1),
            None => (TaskState::Staging, first),
        };
        let grant = Grant::check(spec.grant.as_ref(), self.parts.defaults.pids_max);
        self.table.restore(key.clone(), spec, sandbox, task.accepted.unix_time_ms, state, sequence);
        self.table.acknowledge(&key, task.acknowledged);
        if let (Recovery::Report, Some(status)) = (decision, task.ended) {
            self.table.restore_end(&key, status);
            return;
        }
        let (Ok(grant), Some(started)) = (grant, task.started.filter(|_| decision != Recovery::GiveUp))
        else {
            self.give_up(key, decision);
            return;
        };
        let cgroup = self.parts.launcher.tree().task(grant.class, &key.0, &key.1);
        self.live.insert(key.clone(), Live::new());
        let cgroup = TaskCgroup { cgroup, id: started.cgroup_id };
        self.parts.launcher.isolators().recover(&cgroup, &grant);
        self.parts.ledger.adopt(key.clone(), grant);
        self.supervise(key, process, cgroup);
    }

    /// The task's processes, if any, end with the strangers' below.
    fn give_up(&mut self, key: TaskKey, decision: Recovery) {
        debug_assert_ne!(decision, Recovery::Report, "a task that is over needs no end");
        let message = "the agent or the host was restarted before the task was running for good";
        let end = End::failed(TaskReason::AgentRestarted, message.to_owned());
        self.live.insert(key.clone(), Live::new());
        let myself = self.myself.clone();
        tokio::spawn(async move { drop(myself.send(Message::Ended(key, end)).await) });
    }

    /// Processes in a cgroup of ours that no journal knows hold resources that would be offered again.
    fn end_stranger(&self, cgroup: Cgroup) {
        let launcher = self.parts.launcher.clone();
        tokio::spawn(async move {
            tracing::warn!(cgroup = %cgroup.path().display(), "end a task that the journal does not know");
            let result = match cgroup.kill() {
                Ok(()) => cgroup.wait_empty().await,
                Err(error) => Err(error),
            };
            match result.and_then(|()| cgroup.id()) {
                Ok(id) => launcher.clear(&TaskCgroup { cgroup, id }),
                Err(error) => tracing::error!(error = crate::error_chain(&error), "end an unknown task"),
            }
        });
    }
}

/// The process, if it is still the one that was started then.
fn find_process(pid: i32, start_ticks: u64) -> Option<Watched> {
    let pidfd = pidfd::open(Pid::from_raw(pid)).ok()?;
    // With the descriptor in hand the id cannot pass to another process any more.
    let stat = procfs::process::Process::new(pid).and_then(|p| p.stat()).ok()?;
    let dead = matches!(stat.state, 'Z' | 'X');
    (stat.starttime == start_ticks && !dead).then(|| Watched::new(pidfd).ok())?
}
