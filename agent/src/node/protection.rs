//! Starts what protects guaranteed tasks from revocable ones.

use std::sync::Arc;

use super::NodeError;
use crate::{
    config::Config,
    isolate::{revocable::Revocable, tree::Tree},
    keeper::Sender,
    measure::{runqueue::LatestWaits, tasks::Watched},
    metrics::Metrics,
    qos::{
        Ladder, Means,
        control::{self, Protection},
    },
};

/// What it works with.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) tree: &'a Tree,
    pub(super) revocable: Arc<Revocable>,
    pub(super) watched: &'a Arc<Watched>,
    pub(super) waits: LatestWaits,
    pub(super) keeper: &'a Sender,
    pub(super) metrics: &'a Metrics,
}

/// Where it is wanted, and the kernel tells of waiting; elsewhere weights and protections are all there is.
pub(super) fn start(parts: Parts<'_>) -> Result<Option<Protection>, NodeError> {
    let thresholds = parts.config.qos.thresholds()?;
    if !parts.config.qos.enabled {
        return Ok(None);
    }
    let cgroup = parts.revocable.cgroup();
    let means = Means { cpu: cgroup.has("cpu.max"), io: cgroup.has("io.weight") };
    let parts = control::Parts {
        tree: parts.tree.clone(),
        revocable: parts.revocable,
        watched: Arc::clone(parts.watched),
        waits: parts.waits,
        keeper: parts.keeper.clone(),
        metrics: parts.metrics.qos()?,
        policy: Box::new(Ladder::new(thresholds, means)),
    };
    Ok(control::spawn(parts, &thresholds)
        .inspect_err(|error| {
            let error = crate::error_chain(error);
            tracing::warn!(error, "guaranteed tasks are protected by weights alone");
        })
        .ok())
}
