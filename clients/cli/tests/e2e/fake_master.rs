//! A master whose lists are set by the test and whose scheduler sessions the test conducts.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bulkhead_proto::v1::{
    Accept, AgentEntry, AgentInfo, ExplainFrameworkRequest, ExplainFrameworkResponse, FrameworkEntry,
    FrameworkInfo, ListAgentsRequest, ListAgentsResponse, ListFrameworksRequest, ListFrameworksResponse,
    ListOffersRequest, ListOffersResponse, ListRolesRequest, ListRolesResponse, ListTasksRequest,
    ListTasksResponse, Offer, Offers, PortRange, ResizeTaskRequest, ResizeTaskResponse, ResourceClass,
    Resources, RoleEntry, RoleSettings, SchedulerCall, SchedulerEvent, SetRoleRequest, SetRoleResponse,
    StopTaskRequest, StopTaskResponse, Subscribed, Task, TaskReason, TaskState, TaskStatus,
    operator_server::{Operator, OperatorServer},
    scheduler_call::Call,
    scheduler_event::Event,
    scheduler_server::{Scheduler, SchedulerServer},
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(120);

/// What the operator calls answer, and what they were asked.
#[derive(Default)]
pub(crate) struct Lists {
    pub(crate) agents: Vec<AgentEntry>,
    pub(crate) frameworks: Vec<FrameworkEntry>,
    pub(crate) tasks: Vec<Task>,
    /// How many tasks a page has; 0 is all of them.
    pub(crate) page_tasks: usize,
    pub(crate) offers: Vec<Offer>,
    pub(crate) stops: Vec<StopTaskRequest>,
    pub(crate) roles: Vec<RoleEntry>,
    pub(crate) role_changes: Vec<SetRoleRequest>,
    /// What is answered to every question about a framework; unknown where there is nothing.
    pub(crate) explanation: Option<ExplainFrameworkResponse>,
    pub(crate) explained: Vec<ExplainFrameworkRequest>,
}

pub(crate) struct FakeMaster {
    pub(crate) address: String,
    lists: Arc<Mutex<Lists>>,
    sessions: mpsc::Receiver<Session>,
}

impl FakeMaster {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let lists = Arc::new(Mutex::new(Lists::default()));
        let (started, sessions) = mpsc::channel(8);
        let serve = Server::builder()
            .add_service(OperatorServer::new(OperatorCalls(lists.clone())))
            .add_service(SchedulerServer::new(SchedulerSessions(started)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serve);
        Self { address, lists, sessions }
    }

    pub(crate) fn lists(&self) -> std::sync::MutexGuard<'_, Lists> {
        self.lists.lock().unwrap()
    }

    /// Lists an agent whose API is at this address.
    pub(crate) fn add_agent(&self, id: &str, api_address: &str) {
        let agent = AgentInfo {
            agent_id: id.to_owned(),
            hostname: format!("host-{id}"),
            api_address: api_address.to_owned(),
            ..AgentInfo::default()
        };
        self.lists().agents.push(AgentEntry { agent: Some(agent), connected: true, ..AgentEntry::default() });
    }

    /// The next session that a framework opens.
    pub(crate) async fn session(&mut self) -> Session {
        timeout(HANG, self.sessions.recv()).await.expect("a session").unwrap()
    }
}

/// One stream of a framework.
pub(crate) struct Session {
    pub(crate) framework: FrameworkInfo,
    calls: Streaming<SchedulerCall>,
    events: mpsc::Sender<Result<SchedulerEvent, Status>>,
}

impl Session {
    pub(crate) async fn send(&self, event: Event) {
        self.events.send(Ok(SchedulerEvent { event: Some(event) })).await.unwrap();
    }

    pub(crate) async fn subscribed(&self, framework_id: &str) {
        let framework_id = framework_id.to_owned();
        self.send(Event::Subscribed(Subscribed { framework_id, heartbeat_interval_ms: 60_000 })).await;
    }

    pub(crate) async fn offer(&self, offers: Vec<Offer>) {
        self.send(Event::Offers(Offers { offers })).await;
    }

    pub(crate) async fn status(&self, status: TaskStatus) {
        self.send(Event::Update(status)).await;
    }

    /// Breaks the stream.
    pub(crate) async fn fail(self, status: Status) {
        self.events.send(Err(status)).await.unwrap();
    }

    /// The next call; nothing when the framework has ended its side.
    pub(crate) async fn call(&mut self) -> Option<Call> {
        let message = timeout(HANG, self.calls.message()).await.expect("a call");
        message.unwrap_or(None).and_then(|m| m.call)
    }

    pub(crate) async fn accept(&mut self) -> Accept {
        match self.call().await {
            Some(Call::Accept(accept)) => accept,
            other => panic!("not an accept: {other:?}"),
        }
    }

    /// The next call must acknowledge this sequence.
    pub(crate) async fn acknowledged(&mut self, sequence: u64) {
        match self.call().await {
            Some(Call::Acknowledge(ack)) => assert_eq!(ack.sequence, sequence),
            other => panic!("not an acknowledgement of {sequence}: {other:?}"),
        }
    }

    /// The next call must be the last one, a teardown.
    pub(crate) async fn torn_down(mut self) {
        match self.call().await {
            Some(Call::Teardown(_)) => {}
            other => panic!("not a teardown: {other:?}"),
        }
    }
}

/// An offer of the agent at this address.
pub(crate) fn offer(id: &str, api_address: &str, cpu_milli: u64, mem_mib: u64) -> Offer {
    Offer {
        offer_id: id.to_owned(),
        agent: Some(AgentInfo {
            agent_id: "a-1".to_owned(),
            hostname: "host-a-1".to_owned(),
            api_address: api_address.to_owned(),
            ..AgentInfo::default()
        }),
        class: ResourceClass::Guaranteed.into(),
        resources: Some(Resources {
            cpu_milli,
            mem_bytes: mem_mib << 20,
            ports: vec![PortRange { first: 31_000, last: 31_009, ..PortRange::default() }],
            ..Resources::default()
        }),
        ..Offer::default()
    }
}

pub(crate) fn status(task_id: &str, state: TaskState, reason: TaskReason, sequence: u64) -> TaskStatus {
    TaskStatus {
        task_id: task_id.to_owned(),
        agent_id: "a-1".to_owned(),
        state: state.into(),
        reason: reason.into(),
        sequence,
        ..TaskStatus::default()
    }
}

struct SchedulerSessions(mpsc::Sender<Session>);

#[tonic::async_trait]
impl Scheduler for SchedulerSessions {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SchedulerEvent, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SchedulerCall>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut calls = request.into_inner();
        let framework = match calls.message().await?.and_then(|m| m.call) {
            Some(Call::Subscribe(subscribe)) => subscribe.framework.unwrap(),
            other => panic!("not a subscription: {other:?}"),
        };
        let (events, outgoing) = mpsc::channel(64);
        let session = Session { framework, calls, events };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

struct OperatorCalls(Arc<Mutex<Lists>>);

#[tonic::async_trait]
impl Operator for OperatorCalls {
    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let agents = self.0.lock().unwrap().agents.clone();
        Ok(Response::new(ListAgentsResponse { agents }))
    }

    async fn resize_task(
        &self,
        _: Request<ResizeTaskRequest>,
    ) -> Result<Response<ResizeTaskResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn list_frameworks(
        &self,
        _: Request<ListFrameworksRequest>,
    ) -> Result<Response<ListFrameworksResponse>, Status> {
        let frameworks = self.0.lock().unwrap().frameworks.clone();
        Ok(Response::new(ListFrameworksResponse { frameworks }))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let ListTasksRequest { live_only, page_token, .. } = request.into_inner();
        let lists = self.0.lock().unwrap();
        let is_live = |state| matches!(state, TaskState::Staging | TaskState::Running);
        let asked = |t: &&Task| !live_only || is_live(t.status.as_ref().unwrap().state());
        let first = if page_token.is_empty() { 0 } else { page_token.parse().unwrap() };
        let size = if lists.page_tasks == 0 { usize::MAX } else { lists.page_tasks };
        let mut rest = lists.tasks.iter().filter(asked).skip(first);
        let tasks: Vec<Task> = rest.by_ref().take(size).cloned().collect();
        let next_page_token = rest.next().map(|_| (first + tasks.len()).to_string()).unwrap_or_default();
        Ok(Response::new(ListTasksResponse { tasks, next_page_token }))
    }

    async fn list_offers(
        &self,
        _: Request<ListOffersRequest>,
    ) -> Result<Response<ListOffersResponse>, Status> {
        let offers = self.0.lock().unwrap().offers.clone();
        Ok(Response::new(ListOffersResponse { offers }))
    }

    async fn list_roles(&self, _: Request<ListRolesRequest>) -> Result<Response<ListRolesResponse>, Status> {
        let roles = self.0.lock().unwrap().roles.clone();
        Ok(Response::new(ListRolesResponse { roles }))
    }

    async fn set_role(&self, request: Request<SetRoleRequest>) -> Result<Response<SetRoleResponse>, Status> {
        let request = request.into_inner();
        let settings = RoleSettings {
            weight: request.weight.unwrap_or(1.0),
            limit: request.limit.clone().unwrap_or_default().kinds,
            ..RoleSettings::default()
        };
        self.0.lock().unwrap().role_changes.push(request);
        Ok(Response::new(SetRoleResponse { settings: Some(settings) }))
    }

    async fn explain_framework(
        &self,
        request: Request<ExplainFrameworkRequest>,
    ) -> Result<Response<ExplainFrameworkResponse>, Status> {
        let mut lists = self.0.lock().unwrap();
        lists.explained.push(request.into_inner());
        lists.explanation.clone().map(Response::new).ok_or_else(|| Status::not_found("no such framework"))
    }

    async fn stop_task(
        &self,
        request: Request<StopTaskRequest>,
    ) -> Result<Response<StopTaskResponse>, Status> {
        self.0.lock().unwrap().stops.push(request.into_inner());
        Ok(Response::new(StopTaskResponse {}))
    }
}
