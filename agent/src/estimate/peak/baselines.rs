//! Predictors that others use, to choose from and to compare with. The names are those of Bashir et al., "Take it to the
//! Limit: Peak Prediction-driven Resource Overcommitment in Datacenters", EuroSys 2021. They look back over two hours, as
//! these did.

use super::{
    Predictor,
    history::{History, RECENT_SAMPLES},
    moments::{last, mean_and_deviation, quantile},
};

/// A fixed part of what tasks may use.
pub(super) struct Fraction {
    pub(super) name: &'static str,
    pub(super) of_limits: f64,
}

impl Predictor for Fraction {
    fn name(&self) -> &'static str {
        self.name
    }

    fn predict(&mut self, history: &History) -> f64 {
        history.limits() * self.of_limits
    }
}

/// Every task at its own percentile, as if all came to that at once.
pub(super) struct Percentile(pub(super) f64);

impl Predictor for Percentile {
    fn name(&self) -> &'static str {
        "percentile"
    }

    fn predict(&mut self, history: &History) -> f64 {
        history.tasks().map(|task| quantile(task.recent.iter().copied(), self.0)).sum()
    }
}

/// So many deviations above the mean: enough if totals were normally distributed.
pub(super) struct NSigma(pub(super) f64);

impl Predictor for NSigma {
    fn name(&self) -> &'static str {
        "n-sigma"
    }

    fn predict(&mut self, history: &History) -> f64 {
        let (mean, deviation) = mean_and_deviation(last(history.totals(), RECENT_SAMPLES));
        mean + self.0 * deviation
    }
}

/// The larger of the two.
pub(super) struct Larger(pub(super) Percentile, pub(super) NSigma);

impl Predictor for Larger {
    fn name(&self) -> &'static str {
        "max"
    }

    fn predict(&mut self, history: &History) -> f64 {
        self.0.predict(history).max(self.1.predict(history))
    }
}
