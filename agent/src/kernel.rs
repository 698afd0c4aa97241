//! Thin, typed wrappers around the kernel, and the agent's only `unsafe`.
#![allow(unsafe_code, reason = "system calls that no crate wraps; every block states what makes it sound")]

pub mod appender;
pub mod block;
pub mod bpf;
pub mod cgroupfs;
pub mod core_scheduling;
pub mod cpu_clock;
pub mod cpu_set;
pub mod io_cost;
pub mod landlock;
pub mod limits;
pub mod mounts;
mod netlink;
pub mod netns;
pub mod page_cache;
pub mod pidfd;
pub mod pressure;
pub mod priority;
pub mod probe;
pub mod quota;
pub mod quota_warnings;
pub mod ready;
pub mod reread;
pub mod reserved_ports;
pub mod rtnetlink;
pub mod sock_diag;
pub mod spawn;
mod stack;
