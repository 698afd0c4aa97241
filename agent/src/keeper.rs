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
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    event::EventLog,
    isolate::TaskCgroup,
    journal::Journal,
    kernel::bpf::ExitRecords,
    launch::{LaunchError, Launcher, Running, plan::Defaults},
    metrics::Metrics,
    offer::{Ledger, Reporter, ledger::TaskKey},
    task::{End, KillRequest, Table},
    unix_time_ms,
};

mod launching;
mod recovery;
mod reporting;

pub use reporting::Observation;

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
    /// A framework has a status.
    Acknowledge(v1::Acknowledge),
    /// The sampler measured the node.
    Observed(Observation),
    /// A launch came to its end.
    Launched(TaskKey, Result<Running, LaunchError>),
    /// A task came to its end.
    Ended(TaskKey, End),
    /// The last status of a task is on the disk.
    Durable(TaskKey, TaskStatus),
    /// The local API asks for the node's state.
    Info(oneshot::Sender<v1::GetInfoResponse>),
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
    pub cgroup: Option<TaskCgroup>,
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
    cgroup: Option<TaskCgroup>,
    supervisor: Option<mpsc::Sender<KillRequest>>,
    /// A kill that came before there was a process.
    kill_early: Option<KillRequest>,
    ended: watch::Sender<bool>,
}

impl Live {
    /// A task without a process so far.
    fn new() -> Self {
        let accepted = Instant::now();
        Self { accepted, cgroup: None, supervisor: None, kill_early: None, ended: watch::channel(false).0 }
    }
}

/// What the keeper works with.
pub struct Parts {
    /// Who this agent is.
    pub agent: v1::AgentInfo,
    /// What the node has.
    pub ledger: Ledger,
    /// When to report.
    pub reporter: Reporter,
    /// How tasks are started.
    pub launcher: Launcher,
    /// What outlives a crash.
    pub journal: Journal,
    /// Where the kernel notes ends that nobody waits for.
    pub exits: Option<Arc<ExitRecords>>,
    /// What the kernel refused.
    pub events: Arc<EventLog>,
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
}

/// How often old sandboxes are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

impl Keeper {
    /// A keeper and its handle. Call [`Keeper::recover`] before [`Keeper::run`].
    pub fn new(parts: Parts) -> (Self, Sender) {
        let (myself, inbox) = mpsc::channel(INBOX);
        let table = Table::new(parts.agent.agent_id.clone(), parts.history);
        let sender = myself.clone();
        let live = BTreeMap::new();
        (Self { parts, table, live, outbox: None, inbox, myself, swept: Instant::now() }, sender)
    }

    /// Handles messages until the process ends.
    pub async fn run(mut self) {
        while let Some(message) = self.inbox.recv().await {
            self.handle(message);
            self.flush(Instant::now());
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Register(reply) => self.register(reply),
            Message::Connected(outbox) => self.outbox = Some(outbox),
            Message::Launch(launch) => self.launch(launch),
            Message::Kill(kill) => self.kill(&kill),
            Message::Acknowledge(ack) => self.acknowledge(&ack),
            Message::Observed(observation) => self.observe(&observation),
            Message::Launched(key, Ok(running)) => self.launched(key, running),
            Message::Launched(key, Err(error)) => {
                tracing::info!(task = key.1, error = error.explain(), "launch failed");
                self.ended(key, &End::failed(error.reason(), error.explain()));
            }
            Message::Ended(key, end) => self.ended(key, &end),
            Message::Durable(key, status) => self.durable(&key, status),
            // Whoever asked may have gone away meanwhile.
            Message::Info(reply) => drop(reply.send(self.info())),
            Message::List(reply) => drop(reply.send(self.list())),
            Message::Locate(key, reply) => drop(reply.send(self.locate(&key))),
        }
    }

    fn kill(&mut self, kill: &v1::Kill) {
        let key = (kill.framework_id.clone(), kill.task_id.clone());
        let Some(live) = self.live.get_mut(&key) else {
            tracing::debug!(task = key.1, "asked to kill a task that has ended");
            return;
        };
        let own = self.table.get(&key).map_or(0, |r| r.spec.kill_grace_ms);
        let grace_ms = [kill.grace_ms, own].into_iter().find(|ms| *ms > 0);
        let grace = grace_ms.map_or(self.parts.defaults.kill_grace, Duration::from_millis);
        let request = KillRequest { reason: kill.reason(), grace };
        match &live.supervisor {
            // A full queue means that it is being killed already.
            Some(supervisor) => drop(supervisor.try_send(request)),
            None => live.kill_early = Some(live.kill_early.unwrap_or(request)),
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

    /// Everything of the task is gone from the kernel: books it out, and makes its end durable.
    fn ended(&mut self, key: TaskKey, end: &End) {
        let Some(live) = self.live.remove(&key) else { return };
        self.parts.ledger.release(&key);
        live.ended.send_replace(true);
        if let Some(cgroup) = &live.cgroup {
            self.parts.events.unbind(cgroup.id);
        }
        let Some(status) = self.table.last_status(&key, end, unix_time_ms()) else { return };
        let (journal, myself) = (self.parts.journal.clone(), self.myself.clone());
        tokio::spawn(async move {
            let fact = crate::journal::Fact::Ended(status.clone());
            if let Err(error) = journal.record(&key.0, &key.1, fact).await {
                // Better told and perhaps forgotten than never told.
                tracing::error!(
                    error = crate::error_chain(&error),
                    task = key.1,
                    "journal the end of a task"
                );
            }
            drop(myself.send(Message::Durable(key, status)).await);
        });
    }

    fn durable(&mut self, key: &TaskKey, status: TaskStatus) {
        self.parts.metrics.task_ended(status.state(), status.reason());
        self.table.ended(key, status);
    }

    /// Sends what is due. A master that does not keep up loses the session, and gets all of it with the next.
    fn flush(&mut self, now: Instant) {
        let Some(outbox) = self.outbox.clone() else { return };
        let mut messages = Vec::new();
        if let Some(report) = self.parts.reporter.due(self.parts.ledger.report(), now) {
            self.parts.metrics.resources(&report);
            messages.push(agent_message::Message::Report(report));
        }
        messages.extend(self.table.due(now).into_iter().map(agent_message::Message::Status));
        for message in messages {
            if outbox.try_send(AgentMessage { message: Some(message) }).is_err() {
                self.outbox = None;
                return;
            }
        }
    }
}
