//! Why an agent does not start, or stopped.

use crate::{
    api,
    config::ConfigError,
    identity::IdentityError,
    isolate::IsolateError,
    journal::JournalError,
    keeper::RecoverError,
    kernel::{
        bpf::BpfError, cgroupfs::CgroupError, io_cost::IoCostError, quota::QuotaError,
        reserved_ports::ReserveError,
    },
    launch::host_parts::HostPartsError,
    link::LinkError,
    measure::{disk_speed::ModelError, locality::HdfsError, node::MeasureError},
};

/// Why an agent does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The work directory, or another agent.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cgroup tree.
    #[error(
        "set up the cgroup tree: the agent needs root, or a cgroup that was delegated to it (--cgroup-root)"
    )]
    Tree(#[source] CgroupError),
    /// What holds for all tasks together.
    #[error("set up what holds for all tasks together")]
    Isolate(#[from] IsolateError),
    /// A kernel feature without which no task can be held.
    #[error(
        "this kernel lacks {name} ({detail}), without which no task can be held: see `bulkhead-agent probe`"
    )]
    Missing {
        /// The feature.
        name: &'static str,
        /// Why it is not there.
        detail: String,
    },
    /// The store of images.
    #[error(transparent)]
    Images(#[from] bulkhead_image::ImageError),
    /// The credentials for registries.
    #[error(transparent)]
    Credentials(#[from] bulkhead_image::CredentialsError),
    /// The cache of artifacts.
    #[error(transparent)]
    Cache(#[from] bulkhead_stage::CacheError),
    /// The tasks of the agent before this one.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The BPF programs.
    #[error("load the BPF programs")]
    Bpf(#[from] BpfError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The quotas of the work directory.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// What tasks' files are mounted from.
    #[error(transparent)]
    HostParts(#[from] HostPartsError),
    /// The kernel's counters.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The agent's own API.
    #[error(transparent)]
    Api(#[from] api::ApiError),
    /// The master's address.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A part of the agent panicked.
    #[error("a part of the agent ended unexpectedly")]
    Task(#[from] tokio::task::JoinError),
    /// The disk's model.
    #[error(transparent)]
    DiskModel(#[from] ModelError),
    /// The disk's cost model in the kernel.
    #[error(transparent)]
    IoCost(#[from] IoCostError),
    /// Asking HDFS about data sets.
    #[error(transparent)]
    Locality(#[from] HdfsError),
    /// The list of ports that the kernel does not choose.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// A metric registered twice.
    #[error("register the metrics")]
    Metrics(#[from] prometheus::Error),
    /// This program's own file, which loads the BPF programs.
    #[error("find this program's own file")]
    Exe(#[source] std::io::Error),
}
