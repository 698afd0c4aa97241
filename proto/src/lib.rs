//! `bulkhead.v1`: the protocol between agents, the master, frameworks and operators.
//!
//! The messages are documented in `proto/bulkhead/v1/*.proto`; this crate holds the code generated
//! from them, and the rules that every side keeps: [`Resources`](v1::Resources) arithmetic in [`resources`], what an
//! id is in [`ids`], how amounts and rates are written in [`amount`] and [`rate`], and in which words an agent's
//! [`Provenance`](v1::Provenance) is told in [`explain`].

/// The messages and services of `bulkhead.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated from the .proto files, which carry the documentation"
)]
pub mod v1 {
    tonic::include_proto!("bulkhead.v1");
}

/// Largest message that is read, in bytes, by whoever can be sent a list of tasks: an agent's Register, what
/// the master lists. Ten thousand tasks of a few kilobytes each.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

pub mod amount;
pub mod data_sets;
pub mod explain;
pub mod ids;
mod json;
mod ports;
pub mod rate;
pub mod resources;
