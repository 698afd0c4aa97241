//! The keeper's part of a launch: check, book, start in the background, and hand over to a supervisor.

use std::sync::Arc;

use bulkhead_proto::v1::{self, TaskReason};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::{KILLS, Keeper, Live, Message, Sender};
use crate::{
    event::{EventKey, EventLog},
    journal::{Accepted, Fact, Journal},
    kernel::bpf::ExitRecords,
    launch::{LaunchError, Launcher, Plan, PlanError, Running},
    offer::ledger::TaskKey,
    task::{
        End, KillRequest,
        supervise::{Supervised, supervise},
    },
    unix_time_ms,
};

impl Keeper {
    pub(super) fn launch(&mut self, launch: v1::Launch) {
        let Some(spec) = launch.task else { return };
        let key = (launch.framework_id, spec.task_id.clone());
        if !self.table.accept(key.clone(), spec.clone(), unix_time_ms()) {
            // A status would be taken for one of the live task.
            tracing::warn!(
                task = key.1,
                framework = key.0,
                "launch of a task that is already running: ignored"
            );
            return;
        }
        self.live.insert(key.clone(), Live::new());
        let first_sequence =
            self.table.get(&key).map_or(1, |r| r.to_task(&key).status.map_or(1, |s| s.sequence));
        let accepted = Accepted { spec: Some(spec.clone()), unix_time_ms: unix_time_ms(), first_sequence };
        match self.admit(&key, &spec) {
            Ok(plan) => {
                let work = launch_task(
                    self.parts.launcher.clone(),
                    self.parts.journal.clone(),
                    key.clone(),
                    plan,
                    accepted,
                );
                let (myself, exits) = (self.myself.clone(), self.parts.exits.clone());
                tokio::spawn(async move {
                    let result = work.await;
                    watch_exit(exits.as_deref(), &result);
                    drop(myself.send(Message::Launched(key, result)).await);
                });
            }
            Err(end) => {
                let (journal, myself) = (self.parts.journal.clone(), self.myself.clone());
                tokio::spawn(async move {
                    if let Err(error) = journal.record(&key.0, &key.1, Fact::Accepted(accepted)).await {
                        tracing::error!(error = crate::error_chain(&error), "journal a refused task");
                    }
                    drop(myself.send(Message::Ended(key, *end)).await);
                });
            }
        }
    }

    /// Checks a task and books its grant.
    fn admit(&mut self, key: &TaskKey, spec: &v1::TaskSpec) -> Result<Plan, Box<End>> {
        let refuse = |reason, message| Box::new(End::failed(reason, message));
        let plan = Plan::make(&key.0, spec, &self.parts.defaults).map_err(|error| {
            let reason = match error {
                PlanError::Grant(_) => TaskReason::InvalidGrant,
                _ => TaskReason::InvalidTask,
            };
            refuse(reason, error.to_string())
        })?;
        self.parts.ledger.admit(key.clone(), plan.grant.clone()).map_err(|refusal| {
            refuse(TaskReason::InvalidGrant, format!("the grant does not fit this node: {refusal}"))
        })?;
        Ok(plan)
    }

    pub(super) fn launched(&mut self, key: TaskKey, running: Running) {
        let Some(live) = self.live.get(&key) else { return };
        self.parts.metrics.launched(live.accepted.elapsed());
        self.table.running(&key, running.sandbox.dir().to_owned(), unix_time_ms());
        self.supervise(key, Some(running.process), running.cgroup);
    }

    /// Starts watching a task that has a cgroup.
    pub(super) fn supervise(
        &mut self,
        key: TaskKey,
        process: Option<crate::kernel::pidfd::Watched>,
        cgroup: crate::isolate::TaskCgroup,
    ) {
        let (Some(live), Some(record)) = (self.live.get_mut(&key), self.table.get(&key)) else { return };
        let Ok(grant) = crate::grant::Grant::check(record.spec.grant.as_ref(), self.parts.defaults.pids_max)
        else {
            return;
        };
        let (supervisor, kills) = mpsc::channel::<KillRequest>(KILLS);
        if let Some(request) = live.kill_early {
            // A new channel has room.
            let _sent = supervisor.try_send(request);
        }
        live.supervisor = Some(supervisor);
        live.cgroup = Some(cgroup.clone());
        self.parts.events.bind(cgroup.id, key.clone());
        let task = Supervised {
            process,
            cgroup,
            grant,
            since: live.accepted,
            isolators: Arc::clone(self.parts.launcher.isolators()),
            exits: self.parts.exits.clone(),
        };
        let watch = Watch {
            launcher: self.parts.launcher.clone(),
            exits: self.parts.exits.clone(),
            events: Arc::clone(&self.parts.events),
            keeper: self.myself.clone(),
        };
        tokio::spawn(watch.until_cleared(key, task, kills));
    }
}

/// What outlasts a task to clear up after it.
struct Watch {
    launcher: Launcher,
    exits: Option<Arc<ExitRecords>>,
    events: Arc<EventLog>,
    keeper: Sender,
}

impl Watch {
    /// Waits for the end of the task, takes its limits away, and tells the keeper.
    async fn until_cleared(self, key: TaskKey, task: Supervised, kills: mpsc::Receiver<KillRequest>) {
        let cgroup = task.cgroup.clone();
        let end = supervise(task, kills).await;
        record_limits(&self.events, &key, &end);
        let (launcher, exits) = (self.launcher, self.exits);
        let cleared = tokio::task::spawn_blocking(move || {
            launcher.clear(&cgroup);
            if let Some(Err(error)) = exits.map(|e| e.forget(cgroup.id)) {
                tracing::warn!(error = crate::error_chain(&error), "forget an exit record");
            }
        });
        if let Err(error) = cleared.await {
            tracing::error!(error = crate::error_chain(&error), task = key.1, "clear up after a task");
        }
        drop(self.keeper.send(Message::Ended(key, end)).await);
    }
}

/// Limits that the task ran into become events; refused ports came through the ring buffer already.
fn record_limits(events: &EventLog, key: &TaskKey, end: &End) {
    use bulkhead_proto::v1::{EventKind, Protocol};
    let record = |kind, count, message: &str| {
        let key =
            EventKey { task: key.clone(), kind, protocol: Protocol::Unspecified, ip_version: 0, port: 0 };
        events.record(key, count, message.to_owned(), unix_time_ms());
    };
    if end.usage.oom_kills > 0 {
        record(EventKind::OutOfMemory, end.usage.oom_kills, "killed at the memory limit");
    }
    if end.usage.pids_refused > 0 {
        record(EventKind::PidsLimit, end.usage.pids_refused, "fork refused at pids.max");
    }
}

/// Limits and the journal at the same time, then the program.
async fn launch_task(
    launcher: Launcher,
    journal: Journal,
    key: TaskKey,
    plan: Plan,
    accepted: Accepted,
) -> Result<Running, LaunchError> {
    let prepare = blocking({
        let launcher = launcher.clone();
        move || launcher.prepare(plan)
    });
    let promise = journal.record(&key.0, &key.1, Fact::Accepted(accepted));
    let (prepared, promised) = tokio::join!(prepare, promise);
    let prepared = prepared?;
    if let Err(error) = promised {
        blocking(move || prepared.undo()).await;
        return Err(LaunchError::Journal(error));
    }
    let running = blocking(move || prepared.start()).await?;
    if let Err(error) = journal.record(&key.0, &key.1, Fact::Started(running.started.clone())).await {
        // It runs; only a crash of the agent would lose sight of it.
        tracing::error!(error = crate::error_chain(&error), task = key.1, "journal the start of a task");
    }
    Ok(running)
}

/// Notes the main process where the kernel keeps exit records.
fn watch_exit(exits: Option<&ExitRecords>, result: &Result<Running, LaunchError>) {
    if let (Some(exits), Ok(running)) = (exits, result)
        && let Err(error) = exits.watch(running.cgroup.id, Pid::from_raw(running.started.pid))
    {
        tracing::warn!(error = crate::error_chain(&error), "watch for the exit of a task");
    }
}

/// Runs what blocks on a thread of its own. A panic there goes on here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
