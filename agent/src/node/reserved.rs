//! The offered ports, kept from the kernel's own choice.

use std::path::Path;

use bulkhead_proto::resources::PortNumbers;

use super::programs::pin_name_of;
use crate::{
    config::Config,
    isolate::tree::Tree,
    kernel::reserved_ports::{self, NOTES},
    metrics::Metrics,
};

/// Given back when it is dropped, unless tasks run on: their ports stay reserved until the next agent, or a cleanup.
pub(super) struct Reserved {
    agent: String,
    tree: Tree,
}

impl Reserved {
    /// Reserves the ports. Where that is not possible, a connection of anybody may take an offered port: it is told in
    /// the log and in the metrics, and the port is not offered while it is in use.
    pub(super) fn take(config: &Config, tree: &Tree, ports: &PortNumbers, metrics: &Metrics) -> Self {
        let agent = pin_name_of(config);
        let reserved = reserved_ports::reserve(Path::new(NOTES), &agent, ports);
        metrics.feature("ports_reserved", reserved.is_ok());
        if let Err(error) = reserved {
            let error = crate::error_chain(&error);
            tracing::warn!(error, "reserve the offered ports: the kernel may give them to any connection");
        }
        Self { agent, tree: tree.clone() }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // A tree that cannot be read may have tasks in it.
        if self.tree.tasks().is_ok_and(|tasks| tasks.is_empty())
            && let Err(error) = reserved_ports::give_back(Path::new(NOTES), &self.agent)
        {
            tracing::warn!(error = crate::error_chain(&error), "give the reserved ports back");
        }
    }
}
