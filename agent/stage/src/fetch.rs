//! HTTP and HTTPS into a file.
//!
//! Nothing is resumed: what failed in the middle starts again, some times, with growing pauses.

use std::{fs::File, io::Write as _, path::Path, path::PathBuf, sync::OnceLock, time::Duration};

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use reqwest::{Certificate, Client, StatusCode, Url, redirect};
use tokio::sync::mpsc;

use crate::{
    digest::{Algorithm, Digest, Hashed},
    error::Problem,
};

/// Where a chain of redirects ends.
const MAX_REDIRECTS: usize = 5;
/// How often a fetch is tried again, and how long the first pause is; each further one is twice as long.
const RETRIES: usize = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Until a server answers a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is silent for this long in the middle is gone.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Pieces on their way to the disk.
const PIECES: usize = 16;

/// Something was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server refused.
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// The server is not there, or something on the way broke.
    #[error("fetch it{}", hint(.0))]
    Http(#[source] reqwest::Error),
    /// More than is allowed.
    #[error(
        "it is longer than {0} bytes: ask for more disk, or have the agent's operator raise artifact_max"
    )]
    TooLarge(u64),
    /// It took longer than is allowed.
    #[error("it was not there after {} s: the server is too slow", .0.as_secs())]
    TooSlow(Duration),
    /// No client could be made.
    #[error("set up HTTPS (is {} a PEM file of certificates?)", path.display())]
    Client {
        /// What it was told to trust.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn hint(error: &reqwest::Error) -> &'static str {
    if error.is_redirect() {
        ": it is redirected too often, or from https to http"
    } else if error.is_timeout() {
        ": the server does not answer in time"
    } else if error.is_connect() {
        ": is the server there, and its certificate known here (ca-certificates, artifact_ca_file)?"
    } else {
        ""
    }
}

/// Fetches. The client is made at its first use: hosts without certificates can stage local files.
#[derive(Debug)]
pub(crate) struct Fetcher {
    client: OnceLock<Client>,
    ca_file: Option<PathBuf>,
    timeout: Duration,
}

/// What one fetch needs to know.
pub(crate) struct Wanted<'a> {
    pub(crate) url: &'a Url,
    pub(crate) max_bytes: u64,
    /// Of the digest to be found.
    pub(crate) algorithm: Algorithm,
}

impl Fetcher {
    /// Trusts the host's certificates, and those in `ca_file`.
    pub(crate) fn new(ca_file: Option<PathBuf>, timeout: Duration) -> Self {
        Self { client: OnceLock::new(), ca_file, timeout }
    }

    fn client(&self) -> Result<&Client, FetchError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = build(self.ca_file.as_deref())?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Writes what is at the url into `file`, from its start. `progress` hears of bytes so far and of all.
    ///
    /// # Errors
    /// Of the last attempt.
    pub(crate) async fn fetch(
        &self,
        wanted: &Wanted<'_>,
        file: &File,
        path: &Path,
        progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
    ) -> Result<Digest, Problem> {
        let client = self.client()?;
        let attempt = || async { once(client, wanted, file, path, progress).await };
        let pauses = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_times(RETRIES);
        let fetched = attempt.retry(pauses.with_jitter()).when(may_pass).notify(|error, pause| {
            tracing::info!(url = wanted.url.host_str(), %error, ?pause, "fetch an artifact again");
        });
        match tokio::time::timeout(self.timeout, fetched).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::TooSlow(self.timeout).into()),
        }
    }
}

/// Would trying again make sense?
fn may_pass(problem: &Problem) -> bool {
    match problem {
        Problem::Fetch(FetchError::Status(status)) => {
            status.is_server_error()
                || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        }
        Problem::Fetch(FetchError::Http(error)) => !error.is_redirect() && !error.is_builder(),
        _ => false,
    }
}

fn build(ca_file: Option<&Path>) -> Result<Client, FetchError> {
    // Where another part of the process was first, its choice stands.
    drop(rustls::crypto::ring::default_provider().install_default());
    let extra = match ca_file {
        None => Vec::new(),
        Some(path) => {
            read_certificates(path).map_err(|source| FetchError::Client { path: path.to_owned(), source })?
        }
    };
    let builder = || {
        Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirect::Policy::custom(follow))
            .user_agent(concat!("bulkhead-agent/", env!("CARGO_PKG_VERSION")))
    };
    builder().tls_certs_merge(extra.clone()).build().or_else(|error| {
        // A host without any certificates, where http works all the same.
        tracing::warn!(%error, "only the certificates of artifact_ca_file are trusted");
        let path = ca_file.unwrap_or_else(|| Path::new("artifact_ca_file")).to_owned();
        let built = builder().tls_certs_only(extra).build();
        built.map_err(|source| FetchError::Client { path, source: source.into() })
    })
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Certificate::from_pem_bundle(&std::fs::read(path)?)?)
}

/// Never from https to http: what was asked for could not be read or changed on the way.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_secure = attempt.previous().iter().any(|url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("too many redirects")
    } else if was_secure && attempt.url().scheme() != "https" {
        attempt.error("from https to http")
    } else {
        attempt.follow()
    }
}

async fn once(
    client: &Client,
    wanted: &Wanted<'_>,
    file: &File,
    path: &Path,
    progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
) -> Result<Digest, Problem> {
    let http = |error: reqwest::Error| FetchError::Http(error.without_url());
    let mut response = client.get(wanted.url.clone()).send().await.map_err(http)?;
    if !response.status().is_success() {
        return Err(FetchError::Status(response.status()).into());
    }
    let total = response.content_length();
    if total.is_some_and(|total| total > wanted.max_bytes) {
        return Err(FetchError::TooLarge(wanted.max_bytes).into());
    }
    let failed = |step| move |source| Problem::caching(step, path.to_owned(), source);
    let target = file.try_clone().and_then(emptied).map_err(failed("empty"))?;
    // Writing blocks, so it is done elsewhere. It ends when the sender goes, also with this future.
    let (pieces, mut incoming) = mpsc::channel::<Bytes>(PIECES);
    let algorithm = wanted.algorithm;
    let writing = tokio::task::spawn_blocking(move || {
        let mut writer = Hashed::new(target, algorithm);
        while let Some(piece) = incoming.blocking_recv() {
            writer.write_all(&piece)?;
        }
        Ok(writer.finish().2)
    });
    let mut done = 0;
    while let Some(piece) = response.chunk().await.map_err(http)? {
        done += piece.len() as u64;
        if done > wanted.max_bytes {
            return Err(FetchError::TooLarge(wanted.max_bytes).into());
        }
        progress(done, total);
        if pieces.send(piece).await.is_err() {
            // The writer failed, and says why below.
            break;
        }
    }
    drop(pieces);
    let written = writing.await.map_err(std::io::Error::other).and_then(|result| result);
    written.map_err(failed("write"))
}

/// A second attempt starts anew.
fn emptied(mut file: File) -> std::io::Result<File> {
    use std::io::Seek as _;
    file.set_len(0)?;
    file.rewind()?;
    Ok(file)
}
