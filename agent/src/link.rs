//! The stream to the master: dials, registers, carries messages both ways, and dials again when it breaks.

use std::time::Duration;

use bulkhead_proto::v1::{
    self, AgentMessage, MasterMessage, agent_link_client::AgentLinkClient, agent_message, master_message,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use crate::keeper::{Message, Sender};

/// Messages that may wait for a master that is slow to read, before the session is given up.
const OUTBOX: usize = 4096;
/// The first pause before dialling again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A master that comes back is found within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between dialling and the answer to the registration.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A dead connection is noticed within about twice this.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The address is not one.
    #[error("the master's address {address:?} is not HOST:PORT")]
    Address {
        /// As configured.
        address: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// Nobody listens there, or cannot be reached.
    #[error("no master answers")]
    Connect(#[source] tonic::transport::Error),
    /// The master refused, or the stream broke.
    #[error("the master ended the session")]
    Status(#[from] Box<tonic::Status>),
    /// The master closed the stream without a word.
    #[error("the master closed the stream")]
    Closed,
    /// The master did not answer the registration.
    #[error("the master did not answer within {ANSWER_WITHIN:?}")]
    Silent,
    /// The first message was not `registered`.
    #[error("the master did not answer the registration first")]
    Unexpected,
    /// This agent is shutting down.
    #[error("the agent is stopping")]
    Stopping,
}

impl LinkError {
    /// What a master answered that is there and does not want this agent. `None` for all the ways in which
    /// there is no master: they take turns while one is starting, and are one piece of news.
    fn refusal(&self) -> Option<tonic::Code> {
        use tonic::Code::{Cancelled, Unavailable, Unknown};
        match self {
            Self::Status(status) if !matches!(status.code(), Cancelled | Unavailable | Unknown) => {
                Some(status.code())
            }
            _ => None,
        }
    }
}

/// Keeps a session with the master for as long as the agent lives.
///
/// An unreachable master is told once, and once more when it is found; one that refuses this agent is news.
///
/// # Errors
/// Only an address that can never work, and the agent's own end.
pub async fn run(master: &str, keeper: Sender) -> Result<(), LinkError> {
    let endpoint = Endpoint::from_shared(format!("http://{master}"))
        .map_err(|source| LinkError::Address { address: master.into(), source })?
        .tcp_nodelay(true)
        .connect_timeout(ANSWER_WITHIN)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let mut pause = FIRST_PAUSE;
    let mut told = None;
    loop {
        let dialled = Instant::now();
        match session(&endpoint, master, &keeper).await {
            Err(LinkError::Stopping) => return Err(LinkError::Stopping),
            Err(error) => {
                // A session that lasted was a success: its end is news, and the next try comes at once.
                if dialled.elapsed() > ANSWER_WITHIN {
                    (pause, told) = (FIRST_PAUSE, None);
                }
                if told != Some(error.refusal()) {
                    told = Some(error.refusal());
                    let error = crate::error_chain(&error);
                    tracing::warn!(master, error, "no session with the master; trying on");
                }
            }
            Ok(never) => match never {},
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Nothing: a session ends only with an error.
enum Never {}

async fn session(endpoint: &Endpoint, master: &str, keeper: &Sender) -> Result<Never, LinkError> {
    let channel = endpoint.connect().await.map_err(LinkError::Connect)?;
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let (mut from_master, answer) = timeout(ANSWER_WITHIN, register(channel, &outbox, messages, keeper))
        .await
        .map_err(|_| LinkError::Silent)??;
    tracing::info!(master, "registered");
    // The keeper has the only strong end: when it lets go, the session is over.
    let weak = outbox.downgrade();
    keeper.send(Message::Connected(outbox)).await.map_err(|_| LinkError::Stopping)?;

    let every = Duration::from_millis(answer.heartbeat_interval_ms.max(100));
    let mut heartbeat = interval(every);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = from_master.message() => {
                let message = message.map_err(Box::new)?.ok_or(LinkError::Closed)?;
                deliver(message, keeper).await?;
            }
            _ = heartbeat.tick() => {
                let beat = agent_message::Message::Heartbeat(v1::Heartbeat {});
                // A full outbox carries enough signs of life.
                let outbox = weak.upgrade().ok_or(LinkError::Closed)?;
                if let Err(mpsc::error::TrySendError::Closed(_)) = outbox.try_send(wrap(beat)) {
                    return Err(LinkError::Closed);
                }
            }
        }
    }
}

/// Opens the stream with the registration as its first message, and takes the answer.
async fn register(
    channel: Channel,
    outbox: &mpsc::Sender<AgentMessage>,
    messages: mpsc::Receiver<AgentMessage>,
    keeper: &Sender,
) -> Result<(Streaming<MasterMessage>, v1::Registered), LinkError> {
    let (reply, registration) = oneshot::channel();
    keeper.send(Message::Register(reply)).await.map_err(|_| LinkError::Stopping)?;
    let register = registration.await.map_err(|_| LinkError::Stopping)?;
    outbox.send(wrap(agent_message::Message::Register(register))).await.map_err(|_| LinkError::Closed)?;
    let mut client = AgentLinkClient::new(channel);
    let mut stream = client.session(ReceiverStream::new(messages)).await.map_err(Box::new)?.into_inner();
    match stream.message().await.map_err(Box::new)?.and_then(|m| m.message) {
        Some(master_message::Message::Registered(answer)) => Ok((stream, answer)),
        Some(_) => Err(LinkError::Unexpected),
        None => Err(LinkError::Closed),
    }
}

async fn deliver(message: MasterMessage, keeper: &Sender) -> Result<(), LinkError> {
    let message = match message.message {
        Some(master_message::Message::Launch(launch)) => Message::Launch(launch),
        Some(master_message::Message::Kill(kill)) => Message::Kill(kill),
        Some(master_message::Message::Acknowledge(ack)) => Message::Acknowledge(ack),
        Some(master_message::Message::WatchDataSets(watch)) => Message::WatchDataSets(watch),
        Some(master_message::Message::SendReport(_)) => Message::SendReport,
        Some(master_message::Message::Resize(resize)) => Message::Resize(resize),
        // A newer master may know more than this agent.
        Some(master_message::Message::Registered(_)) | None => return Ok(()),
    };
    keeper.send(message).await.map_err(|_| LinkError::Stopping)
}

fn wrap(message: agent_message::Message) -> AgentMessage {
    AgentMessage { message: Some(message) }
}
