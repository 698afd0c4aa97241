//! Starts a whole master in this process.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinError, JoinHandle},
};
use tonic::transport::{Server, server::TcpIncoming};
use uuid::Uuid;

use crate::{
    allocator::Policy,
    api::{self, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, driver},
    config::{Config, NoSuchPolicy},
    core::Core,
    metrics::{MetricError, Metrics},
};

/// How long connections have to end by themselves at shutdown, once every stream on them was ended.
const DRAIN: Duration = Duration::from_secs(2);

/// Why a master cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody else has the port.
    #[error("address {address} is in use: another master? choose a different one with --listen")]
    AddressInUse {
        /// Where it should have listened.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; choose an address of this machine with --listen")]
    Listen {
        /// Where it should have listened.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The address cannot be told.
    #[error("cannot write the address to {}; choose a writable --address-file", path.display())]
    AddressFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The configuration names a policy that is not there.
    #[error(transparent)]
    Policy(#[from] NoSuchPolicy),
    /// The metrics are defined wrongly.
    #[error("cannot define the metrics")]
    Metrics(#[from] MetricError),
    /// The server ended by itself.
    #[error("the server failed")]
    Server(#[from] tonic::transport::Error),
    /// The server's task was aborted or panicked.
    #[error("the server's task ended early")]
    Task(#[from] JoinError),
}

/// A master that runs.
#[derive(Debug)]
pub struct Running {
    /// Where it listens; the real port where port 0 was asked for.
    pub address: SocketAddr,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    /// Waits until the master has shut down.
    ///
    /// # Errors
    /// [`ServeError`] where it ended for another reason.
    pub async fn finished(self) -> Result<(), ServeError> {
        self.task.await?
    }
}

/// Starts a master; it listens when this returns, and runs until `shutdown` resolves.
///
/// Must be called within a tokio runtime. Any number of masters may run in one process.
///
/// # Errors
/// [`ServeError`] where it cannot listen, or cannot write the address file.
pub async fn serve(
    config: &Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Running, ServeError> {
    serve_with(config, Vec::new(), shutdown).await
}

/// As [`serve`], with policies besides the built-in ones for the configuration to choose from.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    config: &Config,
    policies: Vec<Box<dyn Policy>>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Running, ServeError> {
    let allocator = config.allocator.build(policies)?;
    let metrics = Metrics::new()?;
    let listener = listen(config.listen).await?;
    let address =
        listener.local_addr().map_err(|source| ServeError::Listen { address: config.listen, source })?;
    let run_id = Uuid::new_v4().simple().to_string();
    let mut core = Core::new(config.settings(), &run_id[..8], allocator);
    core.set_stopwatch(metrics.stopwatch());
    let driver = driver::start(core, metrics.clone(), config.session_queue);
    let (draining, drain) = oneshot::channel();
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(api::routes(&driver, metrics))
        // Nagle's algorithm would hold small messages back until the peer has acknowledged the last one.
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            // Resolves, too, when the sender is dropped.
            drop(drain.await);
        });
    let task = tokio::spawn(run(server, driver, shutdown, draining));
    if let Some(path) = &config.address_file {
        write_address(path, address)
            .map_err(|source| ServeError::AddressFile { path: path.clone(), source })?;
    }
    tracing::info!("listening on {address}");
    Ok(Running { address, task })
}

async fn run(
    server: impl Future<Output = Result<(), tonic::transport::Error>>,
    driver: driver::Handle,
    shutdown: impl Future<Output = ()>,
    draining: oneshot::Sender<()>,
) -> Result<(), ServeError> {
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        () = shutdown => {}
    }
    tracing::info!("shutting down; tasks run on and agents come back to the next master");
    driver.shut_down().await;
    drop(draining);
    // A peer that does not close its connection must not keep the master alive.
    match tokio::time::timeout(DRAIN, server).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Ok(()),
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::AddressInUse { address },
        _ => ServeError::Listen { address, source },
    })
}

/// Whoever waits for the file finds it complete: it appears under its name only once it is written.
fn write_address(path: &std::path::Path, address: SocketAddr) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    std::fs::write(&unfinished, format!("{address}\n"))?;
    std::fs::rename(&unfinished, path)
}
