//! Real masters and agents for tests, the benchmarks and the demo.
//!
//! ```text
//! binaries -> process -> cluster   a master and an agent of their own, and everything of them gone in the end
//!                           |
//!             framework, task      a scheduler that a test drives step by step
//!             host, disk, harness  what this machine can do, and tests that are skipped with a reason
//!             http, signals        for programs around a cluster: fetching a page, and a clean end
//! ```
//!
//! Needs root, like the agent. Clusters of several processes can run side by side: each has its own work
//! directory, cgroup, pins and ports.

pub mod binaries;
pub mod cluster;
pub mod disk;
pub mod framework;
pub mod harness;
pub mod host;
pub mod http;
pub mod process;
pub mod programs;
pub mod signals;
pub mod task;
pub mod traces;

pub use cluster::{Cluster, Options};
pub use framework::Framework;
pub use task::Task;

use std::time::Duration;

/// Only a hang takes this long, also on an emulated processor.
pub const HANG: Duration = Duration::from_secs(90);
