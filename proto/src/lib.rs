//! `bulkhead.v1`: the protocol between agents, the master, frameworks and operators.
//!
//! The messages are documented in `proto/bulkhead/v1/*.proto`; this crate holds the code generated
//! from them, and the rules that every side keeps: [`Resources`](v1::Resources) arithmetic in [`resources`], what an
//! id is in [`ids`].

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

pub mod ids;
mod json;
mod ports;
pub mod resources;
