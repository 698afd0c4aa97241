//! The BPF programs on the running kernel, as root: what tasks may bind, open and send, and how they
//! ended.
//!
//! Each test has a cgroup tree, a pin directory and ports of its own, and removes them. Where they
//! cannot run they print `SKIP <test>: <reason>`.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests, also outside test functions"
)]

mod autobind;
mod connections;
mod cost;
mod devices;
mod exits;
mod fixture;
mod helper;
mod incoming;
mod model;
mod names;
mod net;
mod pacing;
mod pins;
mod ports;
mod reserved;
mod runqueue;
mod socket;
mod talk;
mod tcp;
mod traffic;
