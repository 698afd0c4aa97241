//! A master on a free port, and the two kinds of peers it has.

use std::{net::SocketAddr, time::Duration};

use bulkhead_master::{Config, Running, serve};
use bulkhead_proto::v1::{
    AgentInfo, AgentMessage, FrameworkInfo, Grant, Launch, MasterMessage, Offer, Register, ResourceClass,
    ResourceReport, Resources, SchedulerCall, SchedulerEvent, Subscribe, Task, TaskReason, TaskSpec,
    TaskState, TaskStatus, agent_link_client::AgentLinkClient, agent_message, master_message,
    scheduler_call::Call, scheduler_client::SchedulerClient, scheduler_event::Event,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// A message that does not come within this time does not come at all.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come within {PATIENCE:?}"))
}

/// A master that runs in this process.
pub(crate) struct Master {
    pub(crate) address: SocketAddr,
    running: Running,
    shutdown: oneshot::Sender<()>,
}

impl Master {
    /// Starts one on a free port, whatever the configuration says about that.
    pub(crate) async fn start(config: Config) -> Self {
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), ..config };
        let (shutdown, stopped) = oneshot::channel::<()>();
        let running = serve(&config, async { drop(stopped.await) }).await.unwrap();
        Self { address: running.address, running, shutdown }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Shuts it down and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.send(()).unwrap();
        soon("the end of the master", self.running.finished()).await.unwrap();
    }
}

/// An agent's end of its stream.
pub(crate) struct AgentEnd {
    messages: mpsc::Sender<AgentMessage>,
    answers: Streaming<MasterMessage>,
}

impl AgentEnd {
    /// Opens a stream and sends Register.
    pub(crate) async fn open(master: &Master, id: &str, capacity: Resources) -> Self {
        Self::open_with(master, id, capacity, Vec::new()).await
    }

    async fn open_with(master: &Master, id: &str, capacity: Resources, tasks: Vec<Task>) -> Self {
        let (messages, outgoing) = mpsc::channel(1024);
        let agent = Some(AgentInfo { agent_id: id.into(), ..AgentInfo::default() });
        let report =
            Some(ResourceReport { capacity: Some(capacity), sequence: 1, ..ResourceReport::default() });
        let register = agent_message::Message::Register(Register { agent, report, tasks });
        messages.send(AgentMessage { message: Some(register) }).await.unwrap();
        let mut client = AgentLinkClient::connect(master.url()).await.unwrap();
        let answers = client.session(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Self { messages, answers }
    }

    /// Opens a stream and waits until the agent is registered.
    pub(crate) async fn register(master: &Master, id: &str, capacity: Resources) -> Self {
        Self::register_with(master, id, capacity, Vec::new()).await
    }

    /// The same, with tasks that run already.
    pub(crate) async fn register_with(
        master: &Master,
        id: &str,
        capacity: Resources,
        tasks: Vec<Task>,
    ) -> Self {
        let mut agent = Self::open_with(master, id, capacity, tasks).await;
        agent.wait_for(|m| matches!(m, master_message::Message::Registered(_)).then_some(())).await;
        agent
    }

    pub(crate) async fn say(&self, message: agent_message::Message) {
        self.messages.send(AgentMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message that is picked; others are passed over.
    async fn wait_for<T>(&mut self, pick: impl Fn(master_message::Message) -> Option<T>) -> T {
        soon("a message for the agent", async {
            loop {
                let message = self.answers.message().await.unwrap().expect("the stream ended");
                if let Some(picked) = message.message.and_then(&pick) {
                    return picked;
                }
            }
        })
        .await
    }

    pub(crate) async fn launch(&mut self) -> Launch {
        self.wait_for(|m| match m {
            master_message::Message::Launch(launch) => Some(launch),
            _ => None,
        })
        .await
    }

    /// Task and sequence of the next acknowledgement.
    pub(crate) async fn acknowledged(&mut self) -> (String, u64) {
        self.wait_for(|m| match m {
            master_message::Message::Acknowledge(ack) => Some((ack.task_id, ack.sequence)),
            _ => None,
        })
        .await
    }

    /// Task and reason of the next kill.
    pub(crate) async fn killed(&mut self) -> (String, TaskReason) {
        self.wait_for(|m| match m {
            master_message::Message::Kill(kill) => Some((kill.task_id.clone(), kill.reason())),
            _ => None,
        })
        .await
    }

    /// How the stream ends.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        soon("the end of the agent's stream", async {
            while self.answers.message().await?.is_some() {}
            Ok(())
        })
        .await
    }
}

/// A framework's end of its stream.
pub(crate) struct SchedulerEnd {
    calls: mpsc::Sender<SchedulerCall>,
    events: Streaming<SchedulerEvent>,
}

impl SchedulerEnd {
    /// Opens a stream and waits until the framework is subscribed.
    pub(crate) async fn subscribe(master: &Master, id: &str) -> Self {
        let (calls, outgoing) = mpsc::channel(1024);
        let framework = FrameworkInfo {
            framework_id: id.into(),
            failover_timeout_ms: 60_000,
            ..FrameworkInfo::default()
        };
        let subscribe = Call::Subscribe(Subscribe { framework: Some(framework) });
        calls.send(SchedulerCall { call: Some(subscribe) }).await.unwrap();
        let mut client = SchedulerClient::connect(master.url()).await.unwrap();
        let events = client.session(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let mut framework = Self { calls, events };
        framework.wait_for(|e| matches!(e, Event::Subscribed(_)).then_some(())).await;
        framework
    }

    pub(crate) async fn call(&self, call: Call) {
        self.calls.send(SchedulerCall { call: Some(call) }).await.unwrap();
    }

    /// The next event that is picked; others are passed over.
    pub(crate) async fn wait_for<T>(&mut self, pick: impl Fn(Event) -> Option<T>) -> T {
        soon("an event for the framework", async {
            loop {
                let event = self.events.message().await.unwrap().expect("the stream ended");
                if let Some(picked) = event.event.and_then(&pick) {
                    return picked;
                }
            }
        })
        .await
    }

    pub(crate) async fn offer(&mut self) -> Offer {
        self.wait_for(|event| match event {
            Event::Offers(offers) => offers.offers.into_iter().next(),
            _ => None,
        })
        .await
    }

    pub(crate) async fn update(&mut self) -> TaskStatus {
        self.wait_for(|event| match event {
            Event::Update(status) => Some(status),
            _ => None,
        })
        .await
    }

    /// How the stream ends.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        soon("the end of the framework's stream", async {
            while self.events.message().await?.is_some() {}
            Ok(())
        })
        .await
    }
}

/// The whole answer to a plain HTTP/1.1 request, head included.
pub(crate) async fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an HTTP answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

pub(crate) fn resources(cpu_milli: u64, mem_bytes: u64) -> Resources {
    Resources { cpu_milli, mem_bytes, ports: Vec::new(), ..Resources::default() }
}

pub(crate) fn task(id: &str, cpu_milli: u64, mem_bytes: u64) -> TaskSpec {
    let class = ResourceClass::Guaranteed.into();
    let grant = Grant { resources: Some(resources(cpu_milli, mem_bytes)), class, ..Grant::default() };
    TaskSpec { task_id: id.into(), argv: vec!["/bin/true".into()], grant: Some(grant), ..TaskSpec::default() }
}

pub(crate) fn status(framework: &str, task: &str, state: TaskState, sequence: u64) -> TaskStatus {
    TaskStatus {
        task_id: task.into(),
        framework_id: framework.into(),
        state: state.into(),
        sequence,
        ..TaskStatus::default()
    }
}

/// A task as an agent lists it.
pub(crate) fn listed(framework: &str, spec: TaskSpec, state: TaskState, sequence: u64) -> Task {
    let status = status(framework, &spec.task_id, state, sequence);
    Task { spec: Some(spec), framework_id: framework.into(), status: Some(status), ..Task::default() }
}
