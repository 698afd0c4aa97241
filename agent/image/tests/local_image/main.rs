//! Images that the tests make themselves, unpacked as root: what they become, what is refused, and what is left.
//!
//! Where a test cannot run it prints `SKIP <test>: <reason>`.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests, also outside test functions"
)]

mod fixture;
mod hostile;
mod layers;
mod registry;
mod sources;
mod store;
