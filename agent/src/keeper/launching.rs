//! The keeper's part of a launch: check, book, start in the background, and hand over to a supervisor.

use std::{sync::Arc, time::Instant};

use bulkhead_image::{Reference, ReferenceError};
use bulkhead_proto::v1::{self, TaskReason};
use bulkhead_stage::Planned;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use super::{KILLS, Keeper, Live, Message, imaging::Imaging, staging::Staging};
use crate::{
    event::{EventKey, EventLog},
    grant::Grant,
    isolate::TaskPlace,
    journal::{Accepted, Fact, Journal},
    kernel::pidfd::Watched,
    launch::{LaunchError, Launcher, Plan, Prepared, Running, blocking},
    offer::ledger::TaskKey,
    task::{
        End, KillRequest,
        supervise::{Supervised, supervise},
    },
    unix_time_ms,
};

/// A task that may be launched: its plan, its image and its files.
type Admitted = (Plan, Option<Reference>, Vec<Planned>);

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
        let role = launch.role;
        let accepted = Accepted {
            spec: Some(spec.clone()),
            unix_time_ms: unix_time_ms(),
            first_sequence,
            role: role.clone(),
        };
        match self.admit(&key, &spec) {
            Ok((plan, image, artifacts)) => {
                let plan = Plan { role, ..plan };
                let imaging = self.imaging(&key, image);
                let staging = self.staging(&key, artifacts);
                let work = launch_task(
                    self.parts.launcher.clone(),
                    self.parts.journal.clone(),
                    key.clone(),
                    plan,
                    accepted,
                    imaging,
                    staging,
                );
                let myself = self.myself.clone();
                tokio::spawn(async move { drop(myself.send(Message::Launched(key, work.await)).await) });
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
    fn admit(&mut self, key: &TaskKey, spec: &v1::TaskSpec) -> Result<Admitted, Box<End>> {
        let refuse = |reason, message| Box::new(End::failed(reason, message));
        let plan = Plan::make(&key.0, spec, &self.parts.defaults)
            .map_err(|error| refuse(error.reason(), error.to_string()))?;
        let image = plan.image.as_deref().map(str::parse).transpose();
        let image =
            image.map_err(|error: ReferenceError| refuse(TaskReason::ImageFailed, error.to_string()))?;
        let artifacts = bulkhead_stage::check_all(&spec.artifacts)
            .map_err(|error| refuse(TaskReason::ArtifactFailed, error.to_string()))?;
        self.parts.ledger.admit(key.clone(), &plan.grant).map_err(|refusal| {
            refuse(TaskReason::InvalidGrant, format!("the grant does not fit this node: {refusal}"))
        })?;
        Ok((plan, image, artifacts))
    }

    /// What will fill the task's sandbox; a kill ends it.
    fn staging(&mut self, key: &TaskKey, artifacts: Vec<Planned>) -> Staging {
        let board = Arc::new(bulkhead_stage::Board::new(artifacts.len()));
        let killed = match self.live.get_mut(key) {
            Some(live) => {
                live.staging = (!artifacts.is_empty()).then(|| Arc::clone(&board));
                live.kill_early.subscribe()
            }
            None => watch::channel(None).1,
        };
        Staging { stager: self.parts.stager.clone(), artifacts, board, killed }
    }

    pub(super) fn launched(&mut self, key: TaskKey, running: Running) {
        let Some(live) = self.live.get_mut(&key) else { return };
        live.staging = None;
        live.imaging = None;
        live.image = running.image;
        self.parts.metrics.launched(live.accepted.elapsed());
        self.table.running(&key, running.sandbox.dir().to_owned(), unix_time_ms());
        self.supervise(key, Some(running.process), running.cgroup, Instant::now());
    }

    /// Starts watching a task that has a cgroup; `since` is when its program was started.
    pub(super) fn supervise(
        &mut self,
        key: TaskKey,
        process: Option<Watched>,
        cgroup: TaskPlace,
        since: Instant,
    ) {
        let (Some(live), Some(record)) = (self.live.get_mut(&key), self.table.get(&key)) else { return };
        let Ok(grant) = Grant::check(record.spec.grant.as_ref(), &self.parts.defaults.grant) else { return };
        let (sender, grants) = watch::channel(Arc::new(grant));
        live.grants = Some(sender);
        let (supervisor, kills) = mpsc::channel::<KillRequest>(KILLS);
        if let Some(request) = *live.kill_early.borrow() {
            // A new channel has room.
            let _sent = supervisor.try_send(request);
        }
        live.supervisor = Some(supervisor);
        live.cgroup = Some(cgroup.clone());
        let task = Supervised {
            process,
            cgroup,
            grants,
            since,
            isolators: Arc::clone(self.parts.launcher.isolators()),
            exits: self.parts.launcher.exits().cloned(),
        };
        let (events, myself) = (Arc::clone(&self.parts.events), self.myself.clone());
        tokio::spawn(async move {
            let cgroup_id = task.cgroup.id;
            let end = supervise(task, kills).await;
            record_limits(&events, &key, cgroup_id, &end);
            drop(myself.send(Message::Ended(key, end)).await);
        });
    }
}

/// Limits that the task ran into become events, where their isolators have not told already.
fn record_limits(events: &EventLog, task: &TaskKey, cgroup_id: u64, end: &End) {
    if end.usage.pids_refused > 0 {
        let key = EventKey::of_run(task, cgroup_id, v1::EventKind::PidsLimit);
        events.record(key, end.usage.pids_refused, "fork refused at pids.max".to_owned(), unix_time_ms());
    }
}

/// How far a launch comes without waiting for the network.
enum Reached {
    Prepared(Prepared),
    Running(Running),
}

/// Limits and the journal at the same time, then the task's files, then the program. Where there is nothing to fetch
/// all of it is on one thread, which waits for the journal where that is slower.
async fn launch_task(
    launcher: Launcher,
    journal: Journal,
    key: TaskKey,
    plan: Plan,
    accepted: Accepted,
    imaging: Imaging,
    staging: Staging,
) -> Result<Running, LaunchError> {
    let promise = tokio::spawn({
        let (journal, key) = (journal.clone(), key.clone());
        async move { journal.record(&key.0, &key.1, Fact::Accepted(accepted)).await }
    });
    let (image, lease) = match imaging.fetch().await {
        Ok(root) => root.unzip(),
        Err(error) => {
            // Its end is not told before its beginning is kept.
            drop(promise.await);
            return Err(error);
        }
    };
    let (runtime, nothing_to_stage) = (Handle::current(), staging.artifacts.is_empty());
    let reached = blocking(move || {
        let prepared = launcher.prepare(plan, image);
        // Nothing runs that no journal keeps.
        match runtime.block_on(promise) {
            Ok(kept) => kept.map_err(LaunchError::Journal)?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
        let prepared = prepared?;
        if nothing_to_stage {
            prepared.start().map(Reached::Running)
        } else {
            Ok(Reached::Prepared(prepared))
        }
    })
    .await?;
    let mut running = match reached {
        Reached::Running(running) => running,
        Reached::Prepared(prepared) => match staging.run(&prepared).await {
            Ok(()) => blocking(move || prepared.start()).await?,
            Err(error) => {
                blocking(move || drop(prepared)).await;
                return Err(LaunchError::Stage(error));
            }
        },
    };
    running.started.image = lease.as_ref().map_or_else(String::new, |lease| lease.image().to_string());
    running.image = lease;
    // RUNNING has a number that the end of the task must not have again, so the start is kept before it is told.
    if let Err(error) = journal.record(&key.0, &key.1, Fact::Started(running.started.clone())).await {
        // It runs; only a crash of the agent would lose sight of it.
        tracing::error!(error = crate::error_chain(&error), task = key.1, "journal the start of a task");
    }
    Ok(running)
}
