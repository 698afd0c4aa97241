//! Asks WebHDFS which blocks of a path have a replica on this node.
//!
//! `LISTSTATUS` tells files with their lengths, `GETFILEBLOCKLOCATIONS` (Hadoop 3.4, HttpFS 3.3) or its elder
//! `GET_BLOCK_LOCATIONS` where the blocks of one are. A server is asked only where the operator allows it by name;
//! redirects are not followed, answers are bounded in size and time, and nothing in them is trusted.
//!
//! Source: the WebHDFS REST API of Apache Hadoop.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use fastrand::Rng;
use nix::ifaddrs::getifaddrs;
use reqwest::{Client, StatusCode, Url, redirect};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    LookError,
    name::HdfsPath,
    sample::{Reservoir, estimated_files},
    tally::{Home, Tally},
};
use crate::config::LocalityConfig;

/// Longest answer: a directory of about fifty thousand files.
const MOST_BYTES: usize = 16 << 20;
/// Files that are kept to be asked about: more than there is time for.
const MOST_FILES: usize = 1024;
/// Directories that may wait to be listed; the others count as unlisted.
const MOST_DIRS: usize = 4096;

/// WebHDFS did not tell.
#[derive(Debug, thiserror::Error)]
pub enum HdfsError {
    /// No client.
    #[error("set up HTTP: {0}")]
    Client(#[source] reqwest::Error),
    /// The server is not there, or something broke.
    #[error("{0} does not answer{hint}", hint = if *.1 { " in time" } else { "" })]
    Silent(String, bool),
    /// It refused.
    #[error("{0} answered {1}{2}")]
    Refused(String, StatusCode, String),
    /// It sends us elsewhere.
    #[error("{0} redirects to another server, which is not followed: name the active NameNode")]
    Redirected(String),
    /// There is nothing.
    #[error("there is no such path")]
    Missing,
    /// It is no WebHDFS.
    #[error("{0} answered something that is not WebHDFS")]
    Garbage(String),
    /// The answer is too long.
    #[error("the answer of {0} is longer than {MOST_BYTES} bytes")]
    TooLong(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    file_statuses: Statuses,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statuses {
    file_status: Vec<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    path_suffix: String,
    length: u64,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Located {
    block_locations: Locations,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Locations {
    #[serde(default)]
    block_location: Vec<Location>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Location {
    length: u64,
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    cached_hosts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ElderLocated {
    located_blocks: ElderBlocks,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ElderBlocks {
    #[serde(default)]
    located_blocks: Vec<ElderBlock>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ElderBlock {
    block: ElderLength,
    #[serde(default)]
    locations: Vec<ElderNode>,
    #[serde(default)]
    cached_locations: Vec<ElderNode>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ElderLength {
    num_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ElderNode {
    #[serde(default)]
    host_name: String,
    #[serde(default)]
    ip_addr: String,
}

#[derive(Deserialize)]
struct Remote {
    #[serde(rename = "RemoteException")]
    exception: Exception,
}

#[derive(Deserialize)]
struct Exception {
    exception: String,
}

impl From<ElderBlock> for Location {
    fn from(block: ElderBlock) -> Self {
        let names =
            |nodes: Vec<ElderNode>| nodes.into_iter().flat_map(|n| [n.host_name, n.ip_addr]).collect();
        Self {
            length: block.block.num_bytes,
            hosts: names(block.locations),
            names: Vec::new(),
            cached_hosts: names(block.cached_locations),
        }
    }
}

/// What HDFS calls this node.
#[derive(Debug)]
struct Here {
    names: BTreeSet<String>,
}

impl Here {
    /// The host's name, and its addresses but for loopback.
    fn new(hostname: &str) -> Self {
        let addresses = getifaddrs().into_iter().flatten().filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| std::net::IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| std::net::IpAddr::V6(a.ip())))
        });
        let addresses = addresses.filter(|ip| !ip.is_loopback()).map(|ip| ip.to_string());
        Self { names: addresses.chain([hostname.to_ascii_lowercase()]).collect() }
    }

    fn is(&self, host: &str) -> bool {
        !host.is_empty() && self.names.contains(&host.to_ascii_lowercase())
    }

    /// Is one of these this node? `names` have a port.
    fn among(&self, hosts: &[String], names: &[String]) -> bool {
        let bare = |name: &String| name.rsplit_once(':').is_some_and(|(host, _)| self.is(host));
        hosts.iter().any(|host| self.is(host)) || names.iter().any(bare)
    }
}

/// Adds a file whose blocks are there to what is known. Blocks beyond its length do not count, and what no block covers is
/// elsewhere.
fn add_file(tally: &mut Tally, length: u64, blocks: &[Location], here: &Here) {
    let (mut left, mut cached, mut local) = (length, 0, 0);
    for block in blocks {
        let bytes = block.length.min(left);
        left -= bytes;
        if here.among(&block.cached_hosts, &[]) {
            cached += bytes;
        } else if here.among(&block.hosts, &block.names) {
            local += bytes;
        }
    }
    // Which of the node's disks a DataNode uses is not told.
    tally.add(cached, local, &Home::Disk(String::new()));
    let elsewhere = length - cached - local;
    if elsewhere > 0 {
        let amount = tally.homes.entry(Home::Elsewhere).or_default();
        amount.bytes = amount.bytes.saturating_add(elsewhere);
        amount.files += 1;
    }
}

/// The client.
#[derive(Debug)]
pub(super) struct WebHdfs {
    http: Option<Client>,
    allowed: Vec<String>,
    user: String,
    here: Here,
    time_bound: Duration,
}

impl WebHdfs {
    /// Asks the servers that the operator allows.
    ///
    /// # Errors
    /// When no client can be made.
    pub(super) fn new(config: &LocalityConfig, hostname: &str) -> Result<Self, HdfsError> {
        let time_bound = Duration::from_millis(config.hdfs_time_bound_ms);
        Ok(Self {
            http: if config.name_nodes.is_empty() { None } else { Some(client(time_bound)?) },
            allowed: config.name_nodes.clone(),
            user: config.hdfs_user.clone(),
            here: Here::new(hostname),
            time_bound,
        })
    }

    /// Where the blocks of a path are, as far as there is time to ask.
    pub(super) async fn look(&self, path: &HdfsPath, seed: u64) -> Result<Tally, LookError> {
        let allowed = self.allowed.iter().any(|node| node.eq_ignore_ascii_case(&path.name_node));
        let http = self.http.as_ref().filter(|_| allowed);
        let http = http.ok_or_else(|| LookError::NameNode(path.name_node.clone()))?;
        let asked =
            Asking { http, node: &path.name_node, user: &self.user, until: Instant::now() + self.time_bound };
        Ok(self.go_through(&asked, &path.path, &mut Rng::with_seed(seed)).await?)
    }

    async fn go_through(&self, asking: &Asking<'_>, path: &str, rng: &mut Rng) -> Result<Tally, HdfsError> {
        let list_until = Instant::now() + self.time_bound / 2;
        let mut files = Reservoir::new(MOST_FILES);
        let mut waiting = vec![path.to_owned()];
        let (mut listed, mut dropped, mut skipped) = (0, 0, 0);
        while !waiting.is_empty() && (listed == 0 || Instant::now() < list_until) {
            let dir = waiting.swap_remove(rng.usize(..waiting.len()));
            let entries = match asking.list(&dir).await {
                Ok(entries) => entries,
                Err(error) if listed == 0 => return Err(error),
                Err(_) => {
                    skipped += 1;
                    continue;
                }
            };
            listed += 1;
            for entry in entries {
                let at = join(&dir, &entry.path_suffix);
                match entry.r#type.as_str() {
                    "FILE" => files.show(rng, || (at, entry.length)),
                    "DIRECTORY" if waiting.len() < MOST_DIRS => waiting.push(at),
                    "DIRECTORY" => dropped += 1,
                    _ => {}
                }
            }
        }
        let unlisted = dropped + waiting.len() as u64;
        let total = estimated_files(files.shown(), listed, unlisted);
        let mut tally = Tally { skipped, sampled: unlisted > 0, ..Tally::default() };
        let mut problem = None;
        for (file, length) in files.shuffled(rng) {
            if tally.seen > 0 && asking.left().is_zero() {
                break;
            }
            match asking.blocks(&file).await {
                Ok(blocks) => add_file(&mut tally, length, &blocks, &self.here),
                Err(error) => {
                    tally.skipped += 1;
                    problem.get_or_insert(error);
                    if asking.left().is_zero() {
                        break;
                    }
                }
            }
        }
        match problem {
            Some(problem) if tally.seen == 0 => Err(problem),
            _ => {
                let total = total.saturating_sub(tally.skipped).max(tally.seen);
                Ok(tally.extrapolated(total))
            }
        }
    }
}

fn client(time_bound: Duration) -> Result<Client, HdfsError> {
    // Where another part of the process was first, its choice stands.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .timeout(time_bound)
        // Only http is spoken, which hosts without any certificates can do too.
        .tls_certs_only([])
        .user_agent(concat!("bulkhead-agent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(HdfsError::Client)
}

/// `LISTSTATUS` of a file names it with an empty suffix.
fn join(dir: &str, suffix: &str) -> String {
    if suffix.is_empty() { dir.to_owned() } else { format!("{}/{suffix}", dir.trim_end_matches('/')) }
}

/// One look at one server.
struct Asking<'a> {
    http: &'a Client,
    node: &'a str,
    user: &'a str,
    until: Instant,
}

impl Asking<'_> {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    async fn list(&self, path: &str) -> Result<Vec<Status>, HdfsError> {
        let listed: Listed = self.get(path, "LISTSTATUS").await?;
        Ok(listed.file_statuses.file_status)
    }

    async fn blocks(&self, path: &str) -> Result<Vec<Location>, HdfsError> {
        match self.get::<Located>(path, "GETFILEBLOCKLOCATIONS").await {
            Ok(located) => Ok(located.block_locations.block_location),
            // It does not know the operation.
            Err(HdfsError::Refused(_, StatusCode::BAD_REQUEST, _)) => {
                let located: ElderLocated = self.get(path, "GET_BLOCK_LOCATIONS").await?;
                Ok(located.located_blocks.located_blocks.into_iter().map(Location::from).collect())
            }
            Err(error) => Err(error),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, operation: &str) -> Result<T, HdfsError> {
        let node = || self.node.to_owned();
        let url = url(self.node, path, operation, self.user).ok_or_else(|| HdfsError::Garbage(node()))?;
        let silent = |error: reqwest::Error| HdfsError::Silent(node(), error.is_timeout());
        // A millisecond, as a bound of zero is none.
        let request = self.http.get(url).timeout(self.left().max(Duration::from_millis(1)));
        let mut response = request.send().await.map_err(silent)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(HdfsError::Redirected(node()));
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(silent)? {
            if body.len() + piece.len() > MOST_BYTES {
                return Err(HdfsError::TooLong(node()));
            }
            body.extend_from_slice(&piece);
        }
        if status == StatusCode::NOT_FOUND {
            return Err(HdfsError::Missing);
        }
        if !status.is_success() {
            return Err(HdfsError::Refused(node(), status, exception(&body)));
        }
        serde_json::from_slice(&body).map_err(|_| HdfsError::Garbage(node()))
    }
}

fn url(node: &str, path: &str, operation: &str, user: &str) -> Option<Url> {
    let mut url = Url::parse(&format!("http://{node}/")).ok()?;
    let parts = path.split('/').filter(|part| !part.is_empty());
    url.path_segments_mut().ok()?.clear().extend(["webhdfs", "v1"]).extend(parts);
    url.query_pairs_mut().append_pair("op", operation);
    if !user.is_empty() {
        url.query_pairs_mut().append_pair("user.name", user);
    }
    Some(url)
}

/// The class of the server's exception, where it names one: `: StandbyException`.
fn exception(body: &[u8]) -> String {
    let remote = serde_json::from_slice::<Remote>(body).map(|remote| remote.exception.exception);
    let is_class = |name: &String| name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric());
    remote.ok().filter(is_class).map(|name| format!(": {name}")).unwrap_or_default()
}

#[cfg(test)]
#[path = "hdfs_tests.rs"]
mod tests;
