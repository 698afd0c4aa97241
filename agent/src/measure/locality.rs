//! What it costs to reach a data set from this node: how much of it is in memory, on the node's disks, and elsewhere.
//!
//! ```text
//! name -> roots (openat2) -> walk: list, choose, look -> extent (page cache) -> tally ─┐
//!      -> hdfs (WebHDFS) ──────────────────────────────────────────────────────> tally ┼─> cost -> DataAccess -> news
//!                                      bandwidth: page cache, disks, link ─────────────┘
//! ```
//! Data is never read, so that looking changes nothing about what is cached. What frameworks name is hostile: paths are
//! opened below the roots that the operator allows and nowhere else, and nothing but a regular file is ever opened for
//! reading.

mod bandwidth;
mod cost;
mod extent;
mod hdfs;
mod name;
mod news;
mod place;
mod roots;
mod sample;
mod tally;
mod walk;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::{
    data_sets::{MAX_ERROR_BYTES, cut},
    v1::DataAccess,
};

pub use bandwidth::{Bandwidths, Meter};
pub use hdfs::HdfsError;
pub use news::is_news;
pub use watch::{Answers, LookCost, MOST_ANSWERS, Names, watch};

use crate::{config::Config, kernel::page_cache::PageCache};
use hdfs::WebHdfs;
use name::DataSet;
use roots::Roots;
use tally::Tally;

/// Nothing can be told about a data set. The texts go to the framework.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The name is not one.
    #[error("{0}")]
    Name(String),
    /// The operator allows no local paths at all.
    #[error("this agent tells nothing about local paths: its operator can allow some with locality.roots")]
    NoRoots,
    /// Or not this one.
    #[error("it is not below a directory that the agent's operator allows (locality.roots)")]
    Outside,
    /// Or not this server.
    #[error("the agent's operator does not allow to ask {0} (locality.name_nodes)")]
    NameNode(String),
    /// A symbolic link leads out of the root.
    #[error("a symbolic link in it is absolute or leads out of what the agent's operator allows")]
    Link,
    /// There is nothing.
    #[error("there is no such file or directory on this node")]
    Missing,
    /// The pattern fits nothing.
    #[error("nothing on this node matches the pattern")]
    Dangling,
    /// A device, a FIFO, a socket.
    #[error("it is {0}, and no data")]
    Kind(&'static str),
    /// Everything in it is closed to the agent.
    #[error("none of its {0} entries could be opened: {1}")]
    AllSkipped(u64, io::Error),
    /// The time bound was over before the first file.
    #[error("there was no time to look at a single file of it (locality.time_bound_ms)")]
    NoTime,
    /// The kernel refused.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// Looking did not come back.
    #[error("no answer within {} s: does the file system below it hang?", .0.as_secs())]
    Stuck(Duration),
    /// WebHDFS did not tell.
    #[error("WebHDFS: {0}")]
    Hdfs(#[from] HdfsError),
}

/// Looks at data sets, as one node's operator allows it.
pub struct Looker {
    roots: Roots,
    page_cache: PageCache,
    hdfs: WebHdfs,
    time_bound: Duration,
}

impl Looker {
    /// With these settings.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(config: &Config) -> Result<Self, HdfsError> {
        let locality = &config.locality;
        Ok(Self {
            roots: Roots::new(locality.roots.clone()),
            page_cache: PageCache::probe(),
            hdfs: WebHdfs::new(locality, &config.shown_hostname())?,
            time_bound: Duration::from_millis(locality.time_bound_ms),
        })
    }

    /// Where the data is now.
    async fn look(self: &Arc<Self>, name: &str, seed: u64) -> Result<Tally, LookError> {
        match DataSet::parse(name).map_err(LookError::Name)? {
            DataSet::Hdfs(path) => self.hdfs.look(&path, seed).await,
            DataSet::Local(set) => {
                let this = Arc::clone(self);
                let work = move || {
                    let bounds = walk::Bounds::within(this.time_bound, Instant::now());
                    walk::look(&set, &this.roots, this.page_cache, bounds, seed)
                };
                watch::on_a_thread(name, work, this_long(self.time_bound)).await
            }
        }
    }

    /// The answer about one data set, with what it costs.
    pub async fn access(self: &Arc<Self>, name: &str, bandwidths: &Bandwidths, seed: u64) -> DataAccess {
        match self.look(name, seed).await {
            Ok(tally) => cost::access(name, &tally, bandwidths),
            Err(error) => untold(name, &error.to_string()),
        }
    }
}

/// Looking ends by itself within its time bound, unless the kernel does not come back.
fn this_long(time_bound: Duration) -> Duration {
    time_bound + Duration::from_secs(5)
}

/// The answer about a data set about which nothing can be told.
pub fn untold(name: &str, why: &str) -> DataAccess {
    DataAccess {
        data_set: name.to_owned(),
        error: cut(why.to_owned(), MAX_ERROR_BYTES),
        ..DataAccess::default()
    }
}

/// Paths of disk models that exist: those that were named, and the one of the work directory's disk.
fn model_files(config: &Config) -> Vec<PathBuf> {
    config.locality.disk_models.iter().cloned().chain(config.disk_model_path()).collect()
}
