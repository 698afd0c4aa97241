//! The stream to the master, kept open: what breaks is opened again under the same framework id.
//!
//! A task of its own owns the connection; the two channels of [`Session`] are all that others see.

use std::time::Duration;

use bulkhead_proto::v1::{
    FrameworkInfo, Offer, SchedulerCall, SchedulerEvent, Subscribe, Subscribed, TaskStatus,
    scheduler_call::Call, scheduler_event,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    connect::{Address, master_channel, refused_by_master, scheduler, status_text},
    error::CliError,
};

/// How long the task outlives a broken stream, and therefore how long a new one is tried for.
pub(crate) const FAILOVER: Duration = Duration::from_secs(30);
/// Between attempts to reach the master again: short at first, for a restart takes a moment.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// A stream is dead after this many heartbeat intervals without a word.
const MISSED_HEARTBEATS: u32 = 3;
/// How long the last calls may take to reach the master when we leave.
const FAREWELL: Duration = Duration::from_secs(2);
/// More than `run` ever has under way.
const QUEUE: usize = 64;

/// What the master says, and what happens to the stream.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    Subscribed {
        framework_id: String,
    },
    Offers(Vec<Offer>),
    Status(TaskStatus),
    CallError(String),
    /// The stream broke; another is being tried.
    Broken(String),
    /// No other stream came about, or the master refuses one. The last event.
    GaveUp(String),
}

/// A framework's session.
#[derive(Debug)]
pub(crate) struct Session {
    calls: mpsc::Sender<Call>,
    events: mpsc::Receiver<SessionEvent>,
    owner: tokio::task::JoinHandle<()>,
}

impl Session {
    /// Subscribes.
    ///
    /// # Errors
    /// No master, or one that refuses the subscription. Later trouble comes as events.
    pub(crate) async fn open(address: Address, framework: FrameworkInfo) -> Result<Self, CliError> {
        let channel = master_channel(&address).await?;
        let stream =
            Stream::open(channel, framework.clone()).await.map_err(refused_by_master("Subscribe"))?;
        let (calls, call_queue) = mpsc::channel(QUEUE);
        let (event_queue, events) = mpsc::channel(QUEUE);
        let owner = Owner { address, framework, calls: call_queue, events: event_queue };
        Ok(Self { calls, events, owner: tokio::spawn(owner.run(stream)) })
    }

    /// The next event. Cancel safe.
    pub(crate) async fn next(&mut self) -> SessionEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => SessionEvent::GaveUp("the session with the master is over".to_owned()),
        }
    }

    /// Sends a call; while the stream is broken, calls are dropped.
    pub(crate) async fn send(&self, call: Call) {
        // Only an owner that gave up has closed the queue, and it said so in its last event.
        let _ = self.calls.send(call).await;
    }

    /// Sends what is left and waits a moment until the master has it.
    pub(crate) async fn close(mut self) {
        drop(self.calls);
        // Room for what the master still says, so that its side of the stream can end.
        let drained = async { while self.events.recv().await.is_some() {} };
        let _ = timeout(FAREWELL, drained).await;
        self.owner.abort();
    }
}

struct Owner {
    address: Address,
    framework: FrameworkInfo,
    calls: mpsc::Receiver<Call>,
    events: mpsc::Sender<SessionEvent>,
}

/// How one stream ended.
enum End {
    /// We are leaving.
    Ours,
    Broken(String),
    /// Another attempt would meet the same answer.
    Refused(String),
}

impl Owner {
    async fn run(mut self, mut stream: Stream) {
        loop {
            match self.serve(stream).await {
                End::Ours => return,
                End::Refused(why) => return self.tell(SessionEvent::GaveUp(why)).await,
                End::Broken(why) => {
                    self.tell(SessionEvent::Broken(why)).await;
                    match self.reopen().await {
                        Ok(again) => stream = again,
                        Err(why) => return self.tell(SessionEvent::GaveUp(why)).await,
                    }
                }
            }
        }
    }

    async fn tell(&self, event: SessionEvent) {
        // A receiver that is gone has stopped listening on purpose.
        let _ = self.events.send(event).await;
    }

    /// Carries calls and events until the stream ends.
    async fn serve(&mut self, mut stream: Stream) -> End {
        let mut silence: Option<Duration> = None;
        let mut last_word = Instant::now();
        loop {
            let deadline = last_word + silence.unwrap_or(FAILOVER);
            tokio::select! {
                call = self.calls.recv() => match call {
                    Some(call) => stream.send(call).await,
                    None => {
                        stream.finish(&self.events).await;
                        return End::Ours;
                    }
                },
                message = stream.inbound.message() => {
                    last_word = Instant::now();
                    match message {
                        Ok(Some(event)) => {
                            if let Some(event) = self.translate(event, &mut silence) {
                                self.tell(event).await;
                            }
                        }
                        Ok(None) => return End::Broken("the master ended the stream".to_owned()),
                        Err(status) => return end_of(&status),
                    }
                }
                () = sleep_until(deadline) => return End::Broken("the master is silent".to_owned()),
            }
        }
    }

    fn translate(&mut self, event: SchedulerEvent, silence: &mut Option<Duration>) -> Option<SessionEvent> {
        use scheduler_event::Event;
        Some(match event.event? {
            Event::Subscribed(Subscribed { framework_id, heartbeat_interval_ms }) => {
                if heartbeat_interval_ms > 0 {
                    *silence = Some(Duration::from_millis(heartbeat_interval_ms) * MISSED_HEARTBEATS);
                }
                self.framework.framework_id.clone_from(&framework_id);
                SessionEvent::Subscribed { framework_id }
            }
            Event::Offers(offers) => SessionEvent::Offers(offers.offers),
            Event::Update(status) => SessionEvent::Status(status),
            Event::Error(error) => SessionEvent::CallError(error.message),
            // An accepted offer that is rescinded answers with a rejected task; others are never held.
            Event::Rescind(_) | Event::Heartbeat(_) | Event::Resized(_) | Event::DataAccess(_) => {
                return None;
            }
        })
    }

    async fn reopen(&mut self) -> Result<Stream, String> {
        let give_up_at = Instant::now() + FAILOVER;
        let mut pause = FIRST_RETRY;
        loop {
            sleep(pause).await;
            // Meant for the old stream; what still matters is said again after the subscription.
            while self.calls.try_recv().is_ok() {}
            let failure = match self.address.open().await {
                Ok(channel) => match Stream::open(channel, self.framework.clone()).await {
                    Ok(stream) => return Ok(stream),
                    Err(status) => match end_of(&status) {
                        End::Refused(why) => return Err(why),
                        End::Ours | End::Broken(_) => status_text(&status),
                    },
                },
                Err(cause) => cause,
            };
            if Instant::now() >= give_up_at || self.calls.is_closed() {
                let tried = FAILOVER.as_secs();
                return Err(format!("no master answered at {} for {tried} s ({failure})", self.address));
            }
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }
}

fn end_of(status: &Status) -> End {
    match status.code() {
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::AlreadyExists => End::Refused(format!("the master refuses us: {}", status_text(status))),
        _ => End::Broken(status_text(status)),
    }
}

/// One open stream.
struct Stream {
    outbound: mpsc::Sender<SchedulerCall>,
    inbound: Streaming<SchedulerEvent>,
}

impl Stream {
    async fn open(channel: Channel, framework: FrameworkInfo) -> Result<Self, Status> {
        let (outbound, queue) = mpsc::channel(QUEUE);
        let stream_calls = ReceiverStream::new(queue);
        let subscribe = Call::Subscribe(Subscribe { framework: Some(framework) });
        // The queue is empty and its other end lives in `stream_calls`.
        let _ = outbound.send(SchedulerCall { call: Some(subscribe) }).await;
        let inbound = scheduler(channel).session(stream_calls).await?.into_inner();
        Ok(Self { outbound, inbound })
    }

    async fn send(&self, call: Call) {
        // A stream that is gone shows itself at the next read.
        let _ = self.outbound.send(SchedulerCall { call: Some(call) }).await;
    }

    /// Ends our side and reads until the master has ended its own: then it has seen every call.
    async fn finish(self, events: &mpsc::Sender<SessionEvent>) {
        let Self { outbound, mut inbound } = self;
        drop(outbound);
        while !events.is_closed() {
            match inbound.message().await {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}
