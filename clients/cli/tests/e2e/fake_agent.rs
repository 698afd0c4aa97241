//! An agent's API over one task's output and a list of events, both set by the test.

use std::{collections::VecDeque, pin::Pin};

use bulkhead_proto::v1::{
    Event, ExplainRequest, ExplainResponse, GetInfoRequest, GetInfoResponse, ListLocalTasksRequest,
    ListLocalTasksResponse, LogChunk, LogStream, Provenance, ReadLogRequest, WatchEventsRequest,
    agent_server::{Agent, AgentServer},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, transport::Server};

/// Small enough that a few hundred kilobytes are many messages.
const CHUNK_BYTES: usize = 4096;

/// What the agent has to tell.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// The task has ended: followers get what is left, and their end.
    pub(crate) ended: bool,
    /// The task has no sandbox here.
    pub(crate) unknown: bool,
    /// What happens to the next log streams, in order, after so many chunks.
    pub(crate) cuts: VecDeque<Cut>,
    pub(crate) events: Vec<Event>,
    /// None is an agent that does not know the call.
    pub(crate) provenance: Option<Provenance>,
    /// What was asked.
    pub(crate) reads: Vec<ReadLogRequest>,
}

/// The early end of a log stream.
#[derive(Clone, Copy)]
pub(crate) enum Cut {
    /// With an error, after so many chunks.
    Break(usize),
    /// As if it were the end, after so many chunks.
    End(usize),
}

pub(crate) struct FakeAgent {
    pub(crate) address: String,
    state: watch::Sender<State>,
}

impl FakeAgent {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (state, _) = watch::channel(State::default());
        let serve = Server::builder()
            .add_service(AgentServer::new(AgentCalls(state.clone())))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serve);
        Self { address, state }
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Waits until so many log streams were asked for.
    pub(crate) async fn asked(&self, reads: usize) {
        self.state.subscribe().wait_for(|s| s.reads.len() >= reads).await.unwrap();
    }

    pub(crate) fn reads(&self) -> Vec<ReadLogRequest> {
        self.state.borrow().reads.clone()
    }
}

struct AgentCalls(watch::Sender<State>);

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for AgentCalls {
    type ReadLogStream = Outgoing<LogChunk>;
    type WatchEventsStream = Outgoing<Event>;

    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        Err(Status::unimplemented("not asked by the shell"))
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        match self.0.borrow().provenance.clone() {
            Some(provenance) => {
                Ok(Response::new(ExplainResponse { agent: None, provenance: Some(provenance) }))
            }
            None => Err(Status::unimplemented("an older agent")),
        }
    }

    async fn list_local_tasks(
        &self,
        _: Request<ListLocalTasksRequest>,
    ) -> Result<Response<ListLocalTasksResponse>, Status> {
        Err(Status::unimplemented("not asked by the shell"))
    }

    async fn read_log(
        &self,
        request: Request<ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        let request = request.into_inner();
        let mut cut = None;
        self.0.send_modify(|state| {
            state.reads.push(request.clone());
            cut = state.cuts.pop_front();
        });
        if self.0.borrow().unknown {
            return Err(Status::not_found(format!("task {} has no sandbox here", request.task_id)));
        }
        let (chunks, outgoing) = mpsc::channel(4);
        tokio::spawn(send_log(self.0.subscribe(), request, cut, chunks));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let (events, outgoing) = mpsc::channel(4);
        tokio::spawn(send_events(self.0.subscribe(), request.into_inner(), events));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

async fn send_log(
    mut state: watch::Receiver<State>,
    request: ReadLogRequest,
    cut: Option<Cut>,
    chunks: mpsc::Sender<Result<LogChunk, Status>>,
) {
    let mut cursors = Cursors::new(&request, &state.borrow());
    let mut sent = 0;
    loop {
        match cut {
            Some(Cut::Break(after)) if sent >= after => {
                let _ = chunks.send(Err(Status::unavailable("cut by the test"))).await;
                return;
            }
            Some(Cut::End(after)) if sent >= after => return,
            _ => {}
        }
        let (next, ended) = {
            let state = state.borrow_and_update();
            (cursors.next(&state), state.ended)
        };
        match next {
            Some(chunk) => {
                sent += 1;
                if chunks.send(Ok(chunk)).await.is_err() {
                    return;
                }
            }
            None if ended || !request.follow => return,
            None => {
                if state.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Where a log stream stands in each output.
struct Cursors {
    wanted: LogStream,
    stdout: usize,
    stderr: usize,
}

impl Cursors {
    fn new(request: &ReadLogRequest, state: &State) -> Self {
        let start = |offset: u64, len: usize| {
            let tail = usize::try_from(request.tail_bytes).unwrap();
            let offset = usize::try_from(offset).unwrap();
            if tail > 0 { offset.max(len.saturating_sub(tail)) } else { offset }
        };
        Self {
            wanted: request.stream(),
            stdout: start(request.stdout_offset, state.stdout.len()),
            stderr: start(request.stderr_offset, state.stderr.len()),
        }
    }

    fn next(&mut self, state: &State) -> Option<LogChunk> {
        let both = self.wanted == LogStream::Unspecified;
        let take = |stream: LogStream, cursor: &mut usize, bytes: &[u8]| {
            let rest = bytes.get(*cursor..).filter(|r| !r.is_empty() && (both || self.wanted == stream))?;
            let data = rest[..rest.len().min(CHUNK_BYTES)].to_vec();
            let offset = *cursor as u64;
            *cursor += data.len();
            Some(LogChunk { stream: stream.into(), offset, data })
        };
        take(LogStream::Stdout, &mut self.stdout, &state.stdout)
            .or_else(|| take(LogStream::Stderr, &mut self.stderr, &state.stderr))
    }
}

async fn send_events(
    mut state: watch::Receiver<State>,
    request: WatchEventsRequest,
    events: mpsc::Sender<Result<Event, Status>>,
) {
    let mut sent = 0;
    loop {
        let new: Vec<Event> = state.borrow_and_update().events[sent..].to_vec();
        sent += new.len();
        for event in new.into_iter().filter(|e| request.task_id.is_empty() || e.task_id == request.task_id) {
            if events.send(Ok(event)).await.is_err() {
                return;
            }
        }
        if !request.follow || state.changed().await.is_err() {
            return;
        }
    }
}
