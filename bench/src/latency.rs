//! Durations, summed up by their percentiles.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longer than any launch takes that is not a hang.
const HIGHEST_US: u64 = 600_000_000;
/// Figures are exact to a thousandth.
const DIGITS: u8 = 3;

/// Collects durations.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// Percentiles in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) samples: u64,
    pub(crate) min_us: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

impl Latencies {
    /// None so far.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, HIGHEST_US, DIGITS).context("make a histogram")?))
    }

    /// One more.
    pub(crate) fn add(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(HIGHEST_US));
    }

    /// Microseconds that this part of them, 0 to 1, took at most.
    pub(crate) fn at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// All of them.
    pub(crate) fn summary(&self) -> Summary {
        let at = |quantile| self.at(quantile);
        Summary {
            samples: self.0.len(),
            min_us: self.0.min(),
            mean_us: (self.0.mean() * 10.0).round() / 10.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: self.0.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut latencies = Latencies::new().unwrap();
        (1..=1000).for_each(|us| latencies.add(Duration::from_micros(us)));
        latencies.add(Duration::from_secs(86_400));
        let summary = latencies.summary();
        assert_eq!((summary.samples, summary.min_us, summary.p50_us), (1001, 1, 501));
        assert_eq!((summary.p90_us, summary.p99_us), (901, 991));
        assert!(summary.max_us >= HIGHEST_US, "{summary:?}");
    }
}
