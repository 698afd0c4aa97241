//! The real `bulkhead` binary against a master and agents that do as each test says.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the fakes and helpers of a test fail the test"
)]

mod events;
mod explain;
mod fake_agent;
mod fake_master;
mod kill;
mod lists;
mod logs;
mod process;
mod roles;
mod run;
mod run_trouble;
