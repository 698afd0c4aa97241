//! Owns the node's books: the only one that changes ledger and tasks. Everybody else sends messages.
//!
//! Work that waits (launching, watching, the journal) runs in tasks of its own and comes back as a message,
//! so the keeper never blocks and needs no lock.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::v1::{self, AgentMessage, TaskStatus, agent_message};
use bulkhead_stage::{Board, Stager};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use crate::{
    estimate::RevocableCap,
    event::{EventKey, EventLog},
    grant::Grant,
    isolate::{TaskPlace, revocable::Revocable},
    journal::Journal,
    launch::{LaunchError, Launcher, Running, plan::Defaults},
    measure::locality::Names,
    metrics::Metrics,
    offer::{Ledger, Observation, Reporter, Seen, ledger::TaskKey, report::Strain},
    task::{End, KillRequest, Table},
    unix_time_ms,
};

mod imaging;
mod launching;
mod locality;
mod recovery;
mod reporting;
mod resizing;
mod staging;

pub use recovery::RecoverError;

/// Messages that may wait for the keeper; senders wait beyond it.
const INBOX: usize = 1024;
/// Kill requests that may wait for a task's supervisor; more would say nothing new.
const KILLS: usize = 4;

/// What the keeper is told.
pub enum Message {
    /// The link opens a session and needs what to register with.
    Register(oneshot::Sender<v1::Register>),
    /// The master took the registration; messages for it go here.
    Connected(mpsc::Sender<AgentMessage>),
    /// The master wants a task to run.
    Launch(v1::Launch),
    /// The master wants a task to end.
    Kill(v1::Kill),
    /// The master wants a task to hold another grant.
    Resize(v1::Resize),
    /// A resize came to its end.
    Resized(Box<resizing::Done>),
    /// A framework has a status.
    Acknowledge(v1::Acknowledge),
    /// The sampler measured the node.
    Observed(Observation),
    /// A revocable task has to end for the guaranteed ones, for this reason.
    Revoke(TaskKey, String),
    /// A launch came to its end.
    Launched(TaskKey, Result<Running, LaunchError>),
    /// A task came to its end; no process of it is left.
    Ended(TaskKey, End),
    /// The last status of a task is on the disk, and its limits and its cgroup are gone.
    Cleared(TaskKey, TaskStatus),
    /// The journal took or refused a record that was only written to see.
    JournalTried(bool),
    /// The master does not have the report that it was told still holds.
    SendReport,
    /// The master says what a framework names.
    WatchDataSets(v1::WatchDataSets),
    /// What it costs to reach data sets, where that is news.
    DataAccess(Vec<v1::DataAccess>),
    /// The local API asks for the node's state.
    Info(oneshot::Sender<v1::GetInfoResponse>),
    /// The local API asks where the numbers of the report come from.
    Explain(oneshot::Sender<v1::ExplainResponse>),
    /// The local API asks for the tasks.
    List(oneshot::Sender<Vec<Listed>>),
    /// The local API asks where a task's output is.
    Locate(TaskKey, oneshot::Sender<Option<Located>>),
}

/// A task for the local API.
pub struct Listed {
    /// As lists show it.
    pub task: v1::Task,
    /// Its directory.
    pub sandbox: PathBuf,
    /// Where it can be measured, while it runs.
    pub cgroup: Option<TaskPlace>,
    /// How far its artifacts are, while they are staged; else empty.
    pub staging: String,
}

/// Where a task's output is.
pub struct Located {
    /// Its directory.
    pub sandbox: PathBuf,
    /// Turns true when the task has ended and its output is complete.
    pub ended: watch::Receiver<bool>,
}

/// A live task's handles.
struct Live {
    accepted: Instant,
    cgroup: Option<TaskPlace>,
    supervisor: Option<mpsc::Sender<KillRequest>>,
    /// A kill that came before there was a process.
    kill_early: watch::Sender<Option<KillRequest>>,
    /// How far its artifacts are, while they are staged.
    staging: Option<Arc<Board>>,
    /// How far its image is, while it is fetched.
    imaging: Option<watch::Receiver<bulkhead_image::Progress>>,
    /// Keeps the layers of its root directory until its last process has ended.
    image: Option<bulkhead_image::Lease>,
    ended: watch::Sender<bool>,
    /// What it holds, for its supervisor.
    grants: Option<watch::Sender<Arc<Grant>>>,
    /// Held while the limits are changed: they are not taken away meanwhile.
    changing: Arc<Mutex<()>>,
    resizing: bool,
}

impl Live {
    /// A task without a process so far.
    fn new() -> Self {
        let accepted = Instant::now();
        Self {
            accepted,
            cgroup: None,
            supervisor: None,
            kill_early: watch::channel(None).0,
            staging: None,
            imaging: None,
            image: None,
            ended: watch::channel(false).0,
            grants: None,
            changing: Arc::default(),
            resizing: false,
        }
    }

    /// How far its image and its files are, for people; empty where it waits for neither.
    fn staging_words(&self) -> String {
        let progress = self.imaging.as_ref().map(|imaging| *imaging.borrow());
        match (progress, &self.staging) {
            (Some(progress), None) => imaging::words(progress),
            (Some(progress), Some(_))
                if progress.total_layers == 0 || progress.done_layers < progress.total_layers =>
            {
                imaging::words(progress)
            }
            (_, Some(board)) => board.to_string(),
            (None, None) => String::new(),
        }
    }
}

/// What the keeper works with.
pub struct Parts {
    /// Who this agent is.
    pub agent: v1::AgentInfo,
    /// What the node has.
    pub ledger: Ledger,
    /// Who predicts the peaks of guaranteed tasks.
    pub predictor: &'static str,
    /// When to report.
    pub reporter: Reporter,
    /// How tasks are started.
    pub launcher: Launcher,
    /// The revocable tasks together.
    pub revocable: Arc<Revocable>,
    /// Where their root directories come from.
    pub images: bulkhead_image::Store,
    /// How their files come to them.
    pub stager: Stager,
    /// What outlives a crash.
    pub journal: Journal,
    /// What the kernel refused.
    pub events: Arc<EventLog>,
    /// What frameworks name is looked at by them.
    pub data_sets: Names,
    /// What Prometheus is told.
    pub metrics: Arc<Metrics>,
    /// What tasks leave out.
    pub defaults: Defaults,
    /// Tasks that are over and still listed.
    pub history: usize,
    /// How long sandboxes are kept.
    pub keep: crate::launch::sandbox::Keep,
    /// Where they are.
    pub work_dir: PathBuf,
}

/// The handle: cheap to clone.
pub type Sender = mpsc::Sender<Message>;

/// The state. [`Keeper::run`] is its loop.
pub struct Keeper {
    parts: Parts,
    table: Table,
    live: BTreeMap<TaskKey, Live>,
    outbox: Option<mpsc::Sender<AgentMessage>>,
    inbox: mpsc::Receiver<Message>,
    myself: Sender,
    swept: Instant,
    journal_works: bool,
    revocable_cap: RevocableCap,
    /// The version of the books that the master was last told of, or found not worth telling.
    reported: Option<u64>,
    /// Answers that wait for room on the way to the master, by data set.
    data_access: BTreeMap<String, v1::DataAccess>,
    /// How busy the node was when it was measured last.
    strain: Strain,
    /// And what was measured, when.
    seen: Option<(Seen, Instant)>,
}

/// How often the clock is looked at: repetitions and reports are late by this at most.
const TICK: Duration = Duration::from_secs(1);

/// How often old sandboxes are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

impl Keeper {
    /// A keeper and its handle. Call [`Keeper::recover`] before [`Keeper::run`].
    pub fn new(parts: Parts) -> (Self, Sender) {
        let (myself, inbox) = mpsc::channel(INBOX);
        let table = Table::new(parts.agent.agent_id.clone(), parts.history);
        let sender = myself.clone();
        let live = BTreeMap::new();
        (
            Self {
                parts,
                table,
                live,
                outbox: None,
                inbox,
                myself,
                swept: Instant::now(),
                journal_works: true,
                revocable_cap: RevocableCap::default(),
                reported: None,
                data_access: BTreeMap::new(),
                strain: Strain::default(),
                seen: None,
            },
            sender,
        )
    }

    /// Handles messages until the process ends.
    pub async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                _ = ticks.tick() => self.tick(),
            }
            self.flush(Instant::now());
        }
    }

    /// What is due by the clock alone.
    fn tick(&mut self) {
        self.reported = None;
        if self.swept.elapsed() > SWEEP_EVERY {
            self.swept = Instant::now();
            self.sweep_sandboxes();
        }
        if !self.journal_works {
            let (journal, myself) = (self.parts.journal.clone(), self.myself.clone());
            tokio::spawn(async move {
                let works = journal.test().await.is_ok();
                drop(myself.send(Message::JournalTried(works)).await);
            });
        }
    }

    /// Without a journal no launch could be kept, so nothing is offered until it works again.
    fn journal_tried(&mut self, works: bool) {
        if works != self.journal_works {
            tracing::warn!(works, "the journal; while it does not work this node offers nothing");
        }
        self.journal_works = works;
        self.parts.metrics.journal_works(works);
        self.parts.ledger.close(!works);
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Register(reply) => self.register(reply),
            Message::Connected(outbox) => self.outbox = Some(outbox),
            Message::Launch(launch) => self.launch(launch),
            Message::Kill(kill) => self.kill(&kill),
            Message::Resize(resize) => self.resize(resize),
            Message::Resized(done) => self.resized(*done),
            Message::Acknowledge(ack) => self.acknowledge(&ack),
            Message::Observed(observation) => self.observe(observation),
            Message::SendReport => self.send_report(),
            Message::WatchDataSets(watch) => self.watch_data_sets(watch),
            Message::DataAccess(news) => self.note_data_access(news),
            Message::Revoke(key, why) => self.revoke(&key, why),
            Message::Launched(key, Ok(running)) => self.launched(key, running),
            Message::Launched(key, Err(error)) => self.launch_failed(&key, &error),
            Message::Ended(key, end) => self.ended(&key, &end),
            Message::Cleared(key, status) => self.cleared(&key, status),
            Message::JournalTried(works) => self.journal_tried(works),
            // Whoever asked may have gone away meanwhile.
            Message::Info(reply) => drop(reply.send(self.info())),
            Message::Explain(reply) => drop(reply.send(self.explain())),
            Message::List(reply) => drop(reply.send(self.list())),
            Message::Locate(key, reply) => drop(reply.send(self.locate(&key))),
        }
    }

    fn kill(&mut self, kill: &v1::Kill) {
        let key = (kill.framework_id.clone(), kill.task_id.clone());
        self.end(&key, kill.reason(), kill.grace_ms);
    }

    fn revoke(&mut self, key: &TaskKey, why: String) {
        let Some(place) = self.live.get(key).and_then(|live| live.cgroup.as_ref()) else { return };
        let event = EventKey::of_run(key, place.id, v1::EventKind::Revoked);
        self.parts.events.record(event, 1, why, unix_time_ms());
        self.end(key, v1::TaskReason::Revoked, 0);
    }

    /// A grace of 0 is the task's own, or the agent's default.
    fn end(&mut self, key: &TaskKey, reason: v1::TaskReason, grace_ms: u64) {
        let Some(live) = self.live.get_mut(key) else {
            tracing::debug!(task = key.1, "asked to kill a task that has ended");
            return;
        };
        let own = self.table.get(key).map_or(0, |r| r.spec.kill_grace_ms);
        let grace_ms = [grace_ms, own].into_iter().find(|ms| *ms > 0);
        let grace = grace_ms.map_or(self.parts.defaults.kill_grace, Duration::from_millis);
        let request = KillRequest { reason, grace };
        match &live.supervisor {
            // A full queue means that it is being killed already.
            Some(supervisor) => drop(supervisor.try_send(request)),
            None => live.kill_early.send_modify(|early| *early = early.or(Some(request))),
        }
    }

    fn acknowledge(&mut self, ack: &v1::Acknowledge) {
        let key = (ack.framework_id.clone(), ack.task_id.clone());
        let over = self.table.acknowledge(&key, ack.sequence);
        if over {
            let (journal, sequence) = (self.parts.journal.clone(), ack.sequence);
            // Losing this one to a crash costs a repetition, so nobody waits for it.
            tokio::spawn(async move {
                let fact = crate::journal::Fact::Acknowledged(sequence);
                if let Err(error) = journal.record(&key.0, &key.1, fact).await {
                    tracing::error!(error = crate::error_chain(&error), "journal an acknowledgement");
                }
            });
        }
    }

    /// No process of the task is left. Its end is made durable first, while the kernel still has its own
    /// record of it; then limits and cgroup go; only then are its resources free again.
    fn ended(&mut self, key: &TaskKey, end: &End) {
        let Some(live) = self.live.get(key) else { return };
        live.ended.send_replace(true);
        let Some(status) = self.table.last_status(key, end, unix_time_ms()) else { return };
        let (journal, launcher, myself) =
            (self.parts.journal.clone(), self.parts.launcher.clone(), self.myself.clone());
        let (key, cgroup, changing) = (key.clone(), live.cgroup.clone(), Arc::clone(&live.changing));
        tokio::spawn(async move {
            let fact = crate::journal::Fact::Ended(status.clone());
            if let Err(error) = journal.record(&key.0, &key.1, fact).await {
                // Better told and perhaps forgotten than never told.
                let error = crate::error_chain(&error);
                tracing::error!(error, task = key.1, "journal the end of a task");
            }
            if let Some(cgroup) = cgroup {
                let _unchanged = changing.lock().await;
                crate::launch::blocking(move || launcher.clear(&cgroup)).await;
            }
            drop(myself.send(Message::Cleared(key, status)).await);
        });
    }

    fn cleared(&mut self, key: &TaskKey, status: TaskStatus) {
        self.live.remove(key);
        self.parts.ledger.release(key);
        self.parts.metrics.task_ended(status.state(), status.reason());
        self.table.ended(key, status);
    }

    /// Sends what is due and has room; the rest stays due.
    fn flush(&mut self, now: Instant) {
        let Some(outbox) = self.outbox.clone() else { return };
        let version = Some(self.parts.ledger.version());
        if self.reported != version && outbox.capacity() > 0 {
            self.reported = version;
            let report = self.report();
            self.parts.metrics.resources(&report);
            if let Some(news) = self.parts.reporter.due(report, now) {
                self.parts.metrics.reported(&news);
                self.send(&outbox, news.into());
            }
        }
        self.flush_data_access(&outbox);
        for status in self.table.due(now, outbox.capacity()) {
            self.send(&outbox, agent_message::Message::Status(status));
        }
    }

    /// There was room a moment ago, and nobody but the heartbeat takes any; a closed session asks for
    /// everything again when it is opened.
    fn send(&mut self, outbox: &mpsc::Sender<AgentMessage>, message: agent_message::Message) {
        if let Err(mpsc::error::TrySendError::Closed(_)) =
            outbox.try_send(AgentMessage { message: Some(message) })
        {
            self.outbox = None;
        }
    }
}
