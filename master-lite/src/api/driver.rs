//! The one task that owns the core: feeds it events, wakes it when time is up, carries its effects out.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bulkhead_proto::v1::{
    Grant, MasterMessage, ResizeTaskRequest, RoleSettings, SchedulerEvent, SetRoleRequest, StopTaskRequest,
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::session::Outbox;
use crate::{
    core::{Closing, Core, Effect, Event, ResizeError, SetRoleError, Severity, StopError},
    ids::{RequestId, SessionId, UnixMs},
    metrics::Metrics,
};

/// Events that wait for the core. Small, so that a busy master slows its peers down instead of its answers.
const INBOX: usize = 1024;

type Query = Box<dyn FnOnce(&Core) + Send>;

enum Input {
    Open(SessionId, Peer, Event),
    Event(Event),
    Query(Query),
    Stop(StopTaskRequest, oneshot::Sender<Result<(), StopError>>),
    Resize(ResizeTaskRequest, oneshot::Sender<Result<Grant, ResizeError>>),
    SetRole(SetRoleRequest, oneshot::Sender<Result<RoleSettings, SetRoleError>>),
    ShutDown,
}

/// Where a session's messages go.
pub(super) enum Peer {
    Agent(Outbox<MasterMessage>),
    Scheduler(Outbox<SchedulerEvent>),
}

impl Peer {
    fn close(self, status: Option<Status>) {
        match self {
            Self::Agent(outbox) => outbox.close(status),
            Self::Scheduler(outbox) => outbox.close(status),
        }
    }
}

/// The driver's inbox; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Input>,
    sessions: Arc<AtomicU64>,
    session_queue: usize,
}

impl Handle {
    /// How many unread messages a session may pile up.
    pub(super) fn session_queue(&self) -> usize {
        self.session_queue
    }

    /// Opens a session with its first event.
    pub(super) async fn open(
        &self,
        peer: Peer,
        first: impl FnOnce(SessionId) -> Event,
    ) -> Result<SessionId, Status> {
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        self.send(Input::Open(session, peer, first(session))).await.map(|()| session)
    }

    /// Feeds an event; waits while the core is busy.
    pub(super) async fn feed(&self, event: Event) -> Result<(), Status> {
        self.send(Input::Event(event)).await
    }

    /// Looks at the core between two steps.
    pub(super) async fn query<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        // Whoever asked may have hung up; then nobody misses the answer.
        self.send(Input::Query(Box::new(move |core| drop(reply.send(look(core)))))).await?;
        answer.await.map_err(|_| shutting_down())
    }

    /// Stops a task for an operator.
    pub(super) async fn stop_task(&self, stop: StopTaskRequest) -> Result<Result<(), StopError>, Status> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Stop(stop, reply)).await?;
        answer.await.map_err(|_| shutting_down())
    }

    /// Gives a task another grant for an operator; waits for its agent.
    pub(super) async fn resize_task(
        &self,
        resize: ResizeTaskRequest,
    ) -> Result<Result<Grant, ResizeError>, Status> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Resize(resize, reply)).await?;
        answer.await.map_err(|_| shutting_down())
    }

    /// Changes what is said of a role, for an operator.
    pub(super) async fn set_role(
        &self,
        set: SetRoleRequest,
    ) -> Result<Result<RoleSettings, SetRoleError>, Status> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::SetRole(set, reply)).await?;
        answer.await.map_err(|_| shutting_down())
    }

    /// Ends every session and the driver; later calls are answered with UNAVAILABLE.
    pub async fn shut_down(&self) {
        // An error means that the driver is gone already.
        drop(self.send(Input::ShutDown).await);
    }

    async fn send(&self, input: Input) -> Result<(), Status> {
        self.inbox.send(input).await.map_err(|_| shutting_down())
    }
}

fn shutting_down() -> Status {
    Status::unavailable("the master is shutting down; connect again later")
}

/// Starts the driver's task.
pub fn start(core: Core, metrics: Metrics, session_queue: usize) -> Handle {
    let (inbox, inputs) = mpsc::channel(INBOX);
    let driver = Driver {
        core,
        metrics,
        clock: Clock::new(),
        peers: HashMap::new(),
        stopping: HashMap::new(),
        resizing: HashMap::new(),
        setting: HashMap::new(),
        requests: 0,
    };
    tokio::spawn(driver.run(inputs));
    Handle { inbox, sessions: Arc::default(), session_queue }
}

/// Wall-clock time that never jumps: read once, then carried on by the monotonic clock. A clock that is set
/// while the master runs must not expire every agent.
struct Clock {
    began: Instant,
    began_unix: Duration,
}

impl Clock {
    fn new() -> Self {
        let began_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_unix }
    }

    fn now(&self) -> UnixMs {
        let now = self.began_unix + self.began.elapsed();
        UnixMs(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
    }

    /// Waits for the moment; for ever where there is none.
    async fn wait_until(&self, at: Option<UnixMs>) {
        let Some(at) = at else { return std::future::pending().await };
        // One millisecond more: `now` is rounded down.
        let after = Duration::from_millis(at.0.saturating_add(1)).saturating_sub(self.began_unix);
        match self.began.checked_add(after) {
            Some(instant) => tokio::time::sleep_until(instant.into()).await,
            None => std::future::pending().await,
        }
    }
}

struct Driver {
    core: Core,
    metrics: Metrics,
    clock: Clock,
    peers: HashMap<SessionId, Peer>,
    stopping: HashMap<RequestId, oneshot::Sender<Result<(), StopError>>>,
    resizing: HashMap<RequestId, oneshot::Sender<Result<Grant, ResizeError>>>,
    setting: HashMap<RequestId, oneshot::Sender<Result<RoleSettings, SetRoleError>>>,
    requests: u64,
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        loop {
            let deadline = self.core.next_deadline();
            let input = tokio::select! {
                biased;
                () = self.clock.wait_until(deadline) => Input::Event(Event::Tick),
                input = inputs.recv() => input.unwrap_or(Input::ShutDown),
            };
            match input {
                Input::Open(session, peer, event) => {
                    self.peers.insert(session, peer);
                    self.step(event);
                }
                Input::Event(event) => self.step(event),
                Input::Query(look) => look(&self.core),
                Input::Stop(stop, reply) => {
                    let request = self.next_request();
                    self.stopping.insert(request, reply);
                    self.step(Event::StopTask { request, stop });
                }
                Input::Resize(resize, reply) => {
                    let request = self.next_request();
                    self.resizing.insert(request, reply);
                    self.step(Event::ResizeTask { request, resize });
                }
                Input::SetRole(set, reply) => {
                    let request = self.next_request();
                    self.setting.insert(request, reply);
                    self.step(Event::SetRole { request, set });
                }
                Input::ShutDown => break,
            }
        }
        self.peers.into_values().for_each(|peer| peer.close(Some(shutting_down())));
    }

    fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if let Event::SessionEnded { session } = event {
                self.peers.remove(&session);
            }
            let begun = Instant::now();
            let effects = self.core.step(event, self.clock.now());
            self.metrics.stepped(begun.elapsed());
            for effect in effects {
                events.extend(self.carry_out(effect));
            }
        }
    }

    /// Answers what happened in turn: the end of a session that did not keep up.
    fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::ToAgent { session, message } => match self.peers.get(&session)? {
                Peer::Agent(outbox) if !outbox.push(MasterMessage { message: Some(message) }) => {
                    self.cut(session)
                }
                _ => None,
            },
            Effect::ToScheduler { session, event } => match self.peers.get(&session)? {
                Peer::Scheduler(outbox) if !outbox.push(SchedulerEvent { event: Some(event) }) => {
                    self.cut(session)
                }
                _ => None,
            },
            Effect::Close { session, closing } => {
                self.peers.remove(&session)?.close(closing_status(closing));
                None
            }
            Effect::Answer { request, result } => {
                // The operator may have hung up.
                self.stopping.remove(&request).map(|reply| reply.send(result));
                None
            }
            Effect::ResizeAnswer { request, result } => {
                if let Some(reply) = self.resizing.remove(&request) {
                    drop(reply.send(result));
                }
                None
            }
            Effect::RoleAnswer { request, result } => {
                if let Some(reply) = self.setting.remove(&request) {
                    drop(reply.send(result));
                }
                None
            }
            Effect::Log { severity: Severity::Info, text } => {
                tracing::info!("{text}");
                None
            }
            Effect::Log { severity: Severity::Warn, text } => {
                tracing::warn!("{text}");
                None
            }
        }
    }

    fn cut(&mut self, session: SessionId) -> Option<Event> {
        self.metrics.cut_slow_session();
        tracing::warn!(session = session.0, "a stream is cut: its reader does not keep up");
        let status = Status::resource_exhausted(
            "this stream was cut: too many messages waited to be read; connect again, read faster, and reconcile",
        );
        self.peers.remove(&session)?.close(Some(status));
        Some(Event::SessionEnded { session })
    }
}

fn closing_status(closing: Closing) -> Option<Status> {
    match closing {
        Closing::Done => None,
        Closing::Invalid(why) => Some(Status::invalid_argument(why)),
        Closing::Refused(why) => Some(Status::failed_precondition(why)),
        Closing::Replaced(why) => Some(Status::aborted(why)),
        Closing::Silent(why) => Some(Status::deadline_exceeded(why)),
    }
}
