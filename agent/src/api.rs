//! What the agent answers by itself: gRPC, /metrics and /healthz on one TCP port, and the same gRPC on a
//! unix socket in the work directory.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{Router, http::StatusCode, routing::get, serve::ListenerExt as _};
use bulkhead_proto::v1::{
    self, ExplainRequest, ExplainResponse, GetInfoRequest, GetInfoResponse, ListLocalTasksRequest,
    ListLocalTasksResponse, ReadLogRequest, WatchEventsRequest, agent_server,
};
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::{broadcast, oneshot},
};
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    event::EventLog,
    isolate::{Isolators, cpu},
    keeper::{Listed, Message, Sender},
    launch::blocking,
    metrics::Metrics,
};

mod log;

/// The unix socket's name in the work directory.
pub const SOCKET: &str = "agent.sock";

/// An address or a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The TCP address is taken or not this host's.
    #[error("listen on {address}: is another agent running here? choose another address with --listen")]
    Tcp {
        /// As configured.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket file.
    #[error("listen on {}", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Serving ended.
    #[error("serve the agent's API")]
    Serve(#[source] io::Error),
}

/// What the service answers from.
#[derive(Clone)]
pub struct AgentApi {
    /// The books.
    pub keeper: Sender,
    /// What the kernel refused.
    pub events: Arc<EventLog>,
    /// For measuring tasks.
    pub isolators: Arc<Isolators>,
    /// What Prometheus is told.
    pub metrics: Arc<Metrics>,
}

/// Binds the TCP address; its own step, so that the port is known before the agent registers.
///
/// # Errors
/// [`ApiError::Tcp`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ApiError> {
    TcpListener::bind(address).await.map_err(|source| ApiError::Tcp { address, source })
}

/// Serves on both until one fails.
///
/// # Errors
/// [`ApiError`].
pub async fn serve(api: AgentApi, tcp: TcpListener, socket: PathBuf) -> Result<(), ApiError> {
    let unix_error = |source| ApiError::Unix { path: socket.clone(), source };
    match std::fs::remove_file(&socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unix_error(e)),
        _ => {}
    }
    let unix = UnixListener::bind(&socket).map_err(unix_error)?;
    let metrics = Arc::clone(&api.metrics);
    let grpc = Routes::new(agent_server::AgentServer::new(api)).prepare().into_axum_router();
    let health = Arc::clone(&metrics);
    let healthz = move || async move {
        if health.healthy() {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the journal cannot be written: see the agent's log\n")
        }
    };
    let http = Router::new().route("/healthz", get(healthz)).route(
        "/metrics",
        get(move || async move {
            metrics.render().map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        }),
    );
    let served = tokio::try_join!(
        IntoFuture::into_future(axum::serve(tcp.tap_io(without_delay), grpc.clone().merge(http))),
        IntoFuture::into_future(axum::serve(unix, grpc)),
    );
    served.map(|_| ()).map_err(ApiError::Serve)
}

/// A short answer must not wait for the acknowledgement of the one before it.
fn without_delay(stream: &mut TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "set TCP_NODELAY");
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl AgentApi {
    /// Asks the keeper.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Status::unavailable("the agent is stopping");
        self.keeper.send(question(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    fn measured(&self, listed: Listed) -> v1::LocalTask {
        let last = listed.task.status.as_ref().and_then(|s| s.usage.clone());
        let usage = listed.cgroup.map_or(last, |cgroup| {
            let mut usage = self.isolators.measure(&cgroup);
            usage.cpu_usec = cpu::used_usec(&cgroup).unwrap_or(0);
            Some(usage)
        });
        let sandbox = listed.sandbox.display().to_string();
        v1::LocalTask { task: Some(listed.task), usage, sandbox, staging: listed.staging }
    }
}

#[tonic::async_trait]
impl agent_server::Agent for AgentApi {
    type ReadLogStream = Streamed<v1::LogChunk>;
    type WatchEventsStream = Streamed<v1::Event>;

    async fn get_info(&self, _: Request<GetInfoRequest>) -> Answer<GetInfoResponse> {
        Ok(Response::new(self.ask(Message::Info).await?))
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Answer<ExplainResponse> {
        Ok(Response::new(self.ask(Message::Explain).await?))
    }

    async fn list_local_tasks(&self, _: Request<ListLocalTasksRequest>) -> Answer<ListLocalTasksResponse> {
        let tasks = self.ask(Message::List).await?;
        let api = self.clone();
        // A few files for each task.
        let tasks = blocking(move || tasks.into_iter().map(|listed| api.measured(listed)).collect()).await;
        Ok(Response::new(ListLocalTasksResponse { tasks }))
    }

    async fn read_log(&self, request: Request<ReadLogRequest>) -> Answer<Self::ReadLogStream> {
        let request = request.into_inner();
        let key = (request.framework_id.clone(), request.task_id.clone());
        let located = self.ask(|reply| Message::Locate(key, reply)).await?.ok_or_else(|| {
            Status::not_found(format!(
                "this agent has no task {} of framework {}",
                request.task_id, request.framework_id
            ))
        })?;
        Ok(Response::new(Box::pin(log::read(located, &request)?)))
    }

    async fn watch_events(&self, request: Request<WatchEventsRequest>) -> Answer<Self::WatchEventsStream> {
        let WatchEventsRequest { task_id, follow } = request.into_inner();
        let (past, live) = self.events.watch();
        let live = stream::unfold(live, |mut live| async move {
            loop {
                match live.recv().await {
                    Ok(event) => return Some((event, live)),
                    // Counts are cumulative, so the next event of the same kind says what was missed.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        let live = if follow { live.left_stream() } else { stream::empty().right_stream() };
        let wanted = move |e: &v1::Event| task_id.is_empty() || e.task_id == task_id;
        let events = stream::iter(past).chain(live).filter(move |e| std::future::ready(wanted(e)));
        Ok(Response::new(Box::pin(events.map(Ok))))
    }
}
