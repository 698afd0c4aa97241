//! Starts looking at the data sets that frameworks name.

use std::sync::Arc;

use super::NodeError;
use crate::{
    config::Config,
    keeper::{Message, Sender},
    launch::blocking,
    measure::locality::{Answers, Looker, Meter, Names, watch},
    metrics::Metrics,
};

/// Measures what is measured once, and looks from now on.
pub(super) async fn start(config: &Config, metrics: &Metrics) -> Result<(Names, Answers), NodeError> {
    let looker = Arc::new(Looker::new(config)?);
    let for_meter = config.clone();
    let meter = blocking(move || Meter::start(&for_meter)).await;
    let cost = metrics.locality()?;
    let cost = Box::new(move |took, data_sets| cost.looked(took, data_sets));
    Ok(watch(looker, meter, config.locality.clone(), cost))
}

/// Brings the answers to the keeper, which has the way to the master.
pub(super) async fn forward(mut answers: Answers, keeper: Sender) {
    while let Some(news) = answers.recv().await {
        if keeper.send(Message::DataAccess(news)).await.is_err() {
            return;
        }
    }
}
