//! Starts what protects guaranteed tasks from revocable ones.

use std::sync::Arc;

use super::NodeError;
use crate::{
    config::Config,
    isolate::{revocable::Revocable, tree::Tree},
    keeper::Sender,
    measure::tasks::Watched,
    metrics::Metrics,
    qos::{Ladder, control},
};

/// Where it is wanted, and the kernel tells of waiting; elsewhere weights and protections are all there is.
pub(super) fn start(
    config: &Config,
    tree: &Tree,
    revocable: Arc<Revocable>,
    watched: &Arc<Watched>,
    keeper: &Sender,
    metrics: &Metrics,
) -> Result<(), NodeError> {
    let thresholds = config.qos.thresholds()?;
    if !config.qos.enabled {
        return Ok(());
    }
    let parts = control::Parts {
        tree: tree.clone(),
        revocable,
        watched: Arc::clone(watched),
        keeper: keeper.clone(),
        metrics: metrics.qos()?,
        policy: Box::new(Ladder::new(thresholds)),
    };
    if let Err(error) = control::spawn(parts, &thresholds) {
        let error = crate::error_chain(&error);
        tracing::warn!(error, "guaranteed tasks are protected by weights alone");
    }
    Ok(())
}
