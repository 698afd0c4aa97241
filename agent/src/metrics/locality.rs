//! What looking at data sets costs.

use std::time::Duration;

use prometheus::{Counter, IntCounter, IntGauge};

use super::Metrics;

/// Counts looks at data sets.
#[derive(Clone, Debug)]
pub struct LocalityMetrics {
    data_sets: IntGauge,
    looks: IntCounter,
    seconds: Counter,
}

impl Metrics {
    /// To be told of looks at data sets.
    ///
    /// # Errors
    /// When it was asked for before.
    pub fn locality(&self) -> Result<LocalityMetrics, prometheus::Error> {
        let metrics = LocalityMetrics {
            data_sets: IntGauge::new("bulkhead_agent_data_sets", "Data sets that frameworks have named.")?,
            looks: IntCounter::new("bulkhead_agent_data_set_looks_total", "Looks at where data is.")?,
            seconds: Counter::new("bulkhead_agent_data_set_look_seconds_total", "Time that looks took.")?,
        };
        self.registry.register(Box::new(metrics.data_sets.clone()))?;
        self.registry.register(Box::new(metrics.looks.clone()))?;
        self.registry.register(Box::new(metrics.seconds.clone()))?;
        Ok(metrics)
    }
}

impl LocalityMetrics {
    /// A look took so long; so many data sets are named.
    pub fn looked(&self, took: Duration, data_sets: usize) {
        self.looks.inc();
        self.seconds.inc_by(took.as_secs_f64());
        self.data_sets.set(i64::try_from(data_sets).unwrap_or(i64::MAX));
    }
}
