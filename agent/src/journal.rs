//! The agent's durable log: what was promised before it is done, what happened before it is said.
//!
//! A launch is in the journal before its program runs, an end before its status is sent; so after a
//! crash of the agent or of the host nothing that was acknowledged is forgotten, and nothing that may
//! have run is unknown. A record is `length, CRC-32, protobuf`; a torn tail (the host died while writing)
//! ends the replay and is cut off. Tasks that are over and acknowledged are dropped when the journal is opened,
//! and whenever it has grown by [`COMPACT_BYTES`].

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_proto::v1;
use prost::Message as _;
use tokio::sync::Mutex;

use crate::kernel::appender::{AppendError, Appender, replace_file};

pub mod replay;
pub use replay::{Replayed, replay};

/// One thing that happened.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// The framework of the task.
    #[prost(string, tag = "1")]
    pub framework_id: String,
    /// The task.
    #[prost(string, tag = "2")]
    pub task_id: String,
    /// What happened to it.
    #[prost(oneof = "Fact", tags = "3, 4, 5, 6, 7")]
    pub fact: Option<Fact>,
}

/// What happened to a task.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Fact {
    /// It was accepted; its program does not run yet.
    #[prost(message, tag = "3")]
    Accepted(Accepted),
    /// Its program was executed.
    #[prost(message, tag = "4")]
    Started(Started),
    /// It is over; the status is the one that is sent until it is acknowledged.
    #[prost(message, tag = "5")]
    Ended(v1::TaskStatus),
    /// The framework has every status up to this sequence.
    #[prost(uint64, tag = "6")]
    Acknowledged(u64),
    /// It runs, and holds this grant from now on.
    #[prost(message, tag = "7")]
    Resized(v1::Grant),
}

/// A launch that the agent took on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Accepted {
    /// What to run.
    #[prost(message, optional, tag = "1")]
    pub spec: Option<v1::TaskSpec>,
    /// When, in milliseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub unix_time_ms: u64,
    /// The sequence of its first status: above 1 where the framework used the id before.
    #[prost(uint64, tag = "3")]
    pub first_sequence: u64,
    /// The role of its framework.
    #[prost(string, tag = "4")]
    pub role: String,
}

/// The process of a task, so that a later agent finds it again and mistakes no other for it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Started {
    /// Process id of the program.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: differs from that of any later process with the same id.
    #[prost(uint64, tag = "2")]
    pub start_ticks: u64,
    /// Of the boot it runs in.
    #[prost(string, tag = "3")]
    pub boot_id: String,
    /// Id of its cgroup: the key of its port rules and of its exit record.
    #[prost(uint64, tag = "4")]
    pub cgroup_id: u64,
    /// When, in milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub unix_time_ms: u64,
    /// The task's directory on this host.
    #[prost(string, tag = "6")]
    pub sandbox: String,
    /// The image whose layers it uses, as the store of images knows it; empty is none.
    #[prost(string, tag = "7")]
    pub image: String,
}

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A record could not be made durable.
    #[error(transparent)]
    Append(#[from] AppendError),
}

const FILE: &str = "journal";
/// Refuses absurd lengths when reading; a task specification is far smaller.
const MAX_RECORD_BYTES: usize = 16 << 20;

/// Between two compactions: some ten thousand tasks, read back in a fraction of a second.
pub const COMPACT_BYTES: u64 = 8 << 20;

/// The handle to the open journal; cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    appender: Appender,
    /// Locked while an entry is queued, so that the order of the file is the order of the state.
    live: Arc<Mutex<Live>>,
    compact_bytes: u64,
}

/// What the file says, and how much it grew since it said only that.
#[derive(Debug)]
struct Live {
    state: Replayed,
    grown_bytes: u64,
}

impl Journal {
    /// Opens the journal in `work_dir`, replays it, and rewrites it without what is over.
    ///
    /// # Errors
    /// When a file cannot be read or written. Damage is no error: the replay ends before it, and
    /// [`Replayed::damaged_bytes`] says how much was cut off.
    pub fn open(work_dir: &Path) -> Result<(Self, Replayed), JournalError> {
        let path = work_dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(JournalError::Io { op: "read", path, source }),
        };
        let (entries, damaged_bytes) = decode(&bytes);
        let replayed = replay(entries, damaged_bytes);
        let (file, end) = rewrite(work_dir, &replayed)?;
        let appender = Appender::start(&path, file, end)?;
        let live = Live { state: replay(replayed.entries(), 0), grown_bytes: 0 };
        Ok((Self { appender, live: Arc::new(Mutex::new(live)), compact_bytes: COMPACT_BYTES }, replayed))
    }

    /// Makes one fact about a task durable.
    ///
    /// # Errors
    /// [`JournalError::Append`]: the disk is full or broken.
    pub async fn record(&self, framework_id: &str, task_id: &str, fact: Fact) -> Result<(), JournalError> {
        let entry = Entry { framework_id: framework_id.into(), task_id: task_id.into(), fact: Some(fact) };
        let record = encode(&entry);
        let mut live = self.live.lock().await;
        live.state.apply(entry);
        live.grown_bytes += record.len() as u64;
        let durable = self.appender.append(record).await?;
        if live.grown_bytes >= self.compact_bytes {
            live.grown_bytes = 0;
            self.appender.replace(live.state.entries().iter().flat_map(encode).collect()).await?;
        }
        drop(live);
        Ok(durable.await?)
    }

    /// Writes a record that says nothing, to see whether the disk takes it.
    ///
    /// # Errors
    /// [`JournalError::Append`]: it still does not.
    pub async fn test(&self) -> Result<(), JournalError> {
        let nothing = Entry { framework_id: String::new(), task_id: String::new(), fact: None };
        Ok(self.appender.append(encode(&nothing)).await?.await?)
    }

    /// Is it written through io_uring?
    pub fn through_uring(&self) -> bool {
        self.appender.through_uring()
    }
}

/// Puts a journal of just the live part into the old one's place.
fn rewrite(work_dir: &Path, replayed: &Replayed) -> Result<(File, u64), JournalError> {
    let path = work_dir.join(FILE);
    let bytes: Vec<u8> = replayed.entries().iter().flat_map(encode).collect();
    let file =
        replace_file(&path, &bytes).map_err(|source| JournalError::Io { op: "rewrite", path, source })?;
    Ok((file, bytes.len() as u64))
}

fn encode(entry: &Entry) -> Vec<u8> {
    let body = entry.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut record = Vec::with_capacity(body.len() + 8);
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    record.extend_from_slice(&body);
    record
}

/// The entries up to the first damage, and how many bytes follow from there.
fn decode(mut bytes: &[u8]) -> (Vec<Entry>, usize) {
    let mut entries = Vec::new();
    while let Some((entry, rest)) = decode_one(bytes) {
        entries.push(entry);
        bytes = rest;
    }
    (entries, bytes.len())
}

fn decode_one(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if length > MAX_RECORD_BYTES {
        return None;
    }
    let (body, rest) = rest.split_at_checked(length)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return None;
    }
    Some((Entry::decode(body).ok()?, rest))
}

#[cfg(test)]
mod tests;
