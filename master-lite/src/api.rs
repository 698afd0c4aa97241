//! The master's network side: gRPC for agents, frameworks and operators, HTTP for metrics, on one port.
//!
//! | task | reads from | writes to |
//! |---|---|---|
//! | [`driver`] (one) | its inbox (bounded; readers wait when it is full) | every session's outbox (bounded; never waits) |
//! | session reader (one a stream) | the peer's stream | the driver's inbox |
//! | connection (hyper) | the session's outbox | the peer |
//!
//! The driver never waits for a peer: a session whose outbox is full is cut, with a message that says so.

pub mod driver;

mod agent_link;
mod http;
mod operator;
mod scheduler;
mod session;

use std::time::Duration;

use bulkhead_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        agent_link_server::AgentLinkServer, operator_server::OperatorServer,
        scheduler_server::SchedulerServer,
    },
};
use tonic::service::Routes;

use crate::metrics::Metrics;

/// A peer that does not answer an HTTP/2 ping for this long is dead: its connection is closed.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often connections without traffic are pinged.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// An Accept launches many tasks at once.
const MAX_SCHEDULER_MESSAGE_BYTES: usize = 16 << 20;

/// Everything the master answers to.
pub fn routes(driver: &driver::Handle, metrics: Metrics) -> Routes {
    let agents = AgentLinkServer::new(agent_link::Service::new(driver.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let schedulers = SchedulerServer::new(scheduler::Service::new(driver.clone()))
        .max_decoding_message_size(MAX_SCHEDULER_MESSAGE_BYTES);
    let operators = OperatorServer::new(operator::Service::new(driver.clone()));
    let grpc = Routes::new(agents).add_service(schedulers).add_service(operators);
    Routes::from(http::add_routes(grpc.into_axum_router(), driver.clone(), metrics))
}
