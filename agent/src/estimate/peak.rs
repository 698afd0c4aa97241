//! How much the tasks of a node will use together at their peak within the next hour.
//!
//! ```text
//! samples -> History -> Predictor -> Peak
//!                       Learned: TaskShape -> Rising -> Features -> Correction
//! ```
//!
//! A predictor sees samples of one resource, one each [`SAMPLE_PERIOD`], and answers in the same unit. Nothing here is
//! about CPU or memory alone, or about a unit: shapes are in parts of tasks' limits and of the node's own scale.

mod baselines;
mod chances;
mod features;
mod history;
mod learned;
mod moments;
mod weights;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use baselines::{Fraction, Larger, NSigma, Percentile};
pub use history::{History, TaskSample};
pub use learned::{Correction, Learned};

/// Between two samples. Each is the mean over the period.
pub const SAMPLE_PERIOD: Duration = Duration::from_secs(300);
/// How far ahead a peak is looked for: an hour.
pub const HORIZON_SAMPLES: usize = 12;
/// How far back anything is remembered: a day.
pub const MEMORY_SAMPLES: usize = 288;
/// One answer in a hundred may turn out too low: there lend those who measured it at scale (Bashir et al.).
pub const DEFAULT_ERROR_BUDGET: f64 = 0.01;

/// Says how high a node's peak will be. Each has a state of its own for one node and one resource.
pub trait Predictor: Send {
    /// What the operator calls it.
    fn name(&self) -> &'static str;

    /// The largest total within [`HORIZON_SAMPLES`] from now. Called once after each sample; [`Peak`] bounds the answer.
    fn predict(&mut self, history: &History) -> f64;

    /// What it learned of its node, where it learns.
    fn correction(&self) -> Option<&Correction> {
        None
    }

    /// Goes on with what was learned before a restart.
    fn resume(&mut self, _: Correction) {}
}

/// The predictors that can be chosen.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The sum of limits: nothing is predicted.
    None,
    /// A fixed part of the sum of limits.
    Fraction,
    /// Each task at its own percentile.
    Percentile,
    /// The node's mean and so many times its deviation.
    NSigma,
    /// The larger of the last two.
    Max,
    /// Learned on traces, and corrected by its own misses.
    #[default]
    Learned,
}

/// How a peak is predicted.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Method {
    /// Which predictor.
    pub predictor: Kind,
    /// Share of answers that may turn out too low (learned).
    pub error_budget: f64,
    /// Part of the sum of limits (fraction).
    pub fraction: f64,
    /// Of each task's samples, from 0 to 1 (percentile, max).
    pub percentile: f64,
    /// Deviations above the mean (n-sigma, max).
    pub sigmas: f64,
}

impl Default for Method {
    /// The parameters of all but ours are those that Bashir et al. found in use.
    fn default() -> Self {
        Self {
            predictor: Kind::default(),
            error_budget: DEFAULT_ERROR_BUDGET,
            fraction: 0.9,
            percentile: 0.99,
            sigmas: 5.0,
        }
    }
}

impl Method {
    /// A fresh one.
    pub fn predictor(&self) -> Box<dyn Predictor> {
        let (percentile, sigmas) = (Percentile(self.percentile), NSigma(self.sigmas));
        match self.predictor {
            Kind::None => Box::new(Fraction { name: "none", of_limits: 1.0 }),
            Kind::Fraction => Box::new(Fraction { name: "fraction", of_limits: self.fraction }),
            Kind::Percentile => Box::new(percentile),
            Kind::NSigma => Box::new(sigmas),
            Kind::Max => Box::new(Larger(percentile, sigmas)),
            Kind::Learned => Box::new(Learned::new(self.error_budget)),
        }
    }
}

/// The predicted peak of one node and resource, sample by sample.
///
/// Answers are finite, never negative, never below the last sample's total, and never above the sum of limits or the
/// capacity.
pub struct Peak {
    history: History,
    predictor: Box<dyn Predictor>,
    value: Option<f64>,
}

/// What of a [`Peak`] outlives a restart.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PeakState {
    history: History,
    correction: Option<Correction>,
}

impl Peak {
    /// Of a node that has so much.
    pub fn new(method: &Method, capacity: f64) -> Self {
        Self { history: History::new(capacity), predictor: method.predictor(), value: None }
    }

    /// Goes on where another was, on a node that may have another capacity now.
    pub fn resume(&mut self, state: PeakState) {
        self.history.resume(state.history);
        if let Some(correction) = state.correction {
            self.predictor.resume(correction);
        }
    }

    /// Takes in what all tasks used in one period. A task that is not among them is gone.
    pub fn add(&mut self, tasks: &[TaskSample]) {
        self.history.add(tasks);
        self.value = self.history.bounded(self.predictor.predict(&self.history));
    }

    /// The largest total within the next hour; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        self.value
    }

    /// What to keep for a restart.
    pub fn state(&self) -> PeakState {
        PeakState { history: self.history.clone(), correction: self.predictor.correction().cloned() }
    }
}

#[cfg(test)]
mod tests;
