//! How often a predictor was too low, and how much too high it was otherwise.

use bulkhead_agent::estimate::peak::{HORIZON_SAMPLES, Peak, TaskSample};
use serde::Serialize;

/// Before that many samples nobody is asked: two hours.
const WARM_UP_SAMPLES: usize = 24;
/// What samples are percent of.
pub(crate) const LIMIT: f64 = 100.0;

/// Two shares; the truth is the largest total within an hour.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Score {
    pub(crate) predictions: u64,
    /// Share of predictions below the truth.
    pub(crate) violation_rate: f64,
    /// Sum of the predictions over the sum of the truths.
    pub(crate) margin: f64,
}

/// Sums of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    predictions: u64,
    violations: u64,
    predicted: f64,
    truth: f64,
}

impl Tally {
    /// Walks one machine through its day.
    pub(crate) fn walk(&mut self, tasks: &[&[f64]], peak: &mut Peak) {
        let length = tasks.first().map_or(0, |task| task.len());
        let totals: Vec<f64> = (0..length).map(|t| tasks.iter().map(|task| task[t]).sum()).collect();
        for t in 0..length {
            if t >= WARM_UP_SAMPLES
                && t + HORIZON_SAMPLES <= length
                && let Some(prediction) = peak.value()
            {
                let truth = totals[t..t + HORIZON_SAMPLES].iter().copied().fold(0.0, f64::max);
                self.predictions += 1;
                self.violations += u64::from(prediction < truth);
                self.predicted += prediction;
                self.truth += truth;
            }
            let of = |(id, task): (usize, &&[f64])| TaskSample { id: id as u64, used: task[t], limit: LIMIT };
            peak.add(&tasks.iter().enumerate().map(of).collect::<Vec<_>>());
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.predictions += other.predictions;
        self.violations += other.violations;
        self.predicted += other.predicted;
        self.truth += other.truth;
    }

    pub(crate) fn score(&self) -> Score {
        Score {
            predictions: self.predictions,
            violation_rate: self.violations as f64 / self.predictions.max(1) as f64,
            margin: if self.truth > 0.0 { self.predicted / self.truth } else { 1.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use bulkhead_agent::estimate::peak::{Kind, Method};

    #[test]
    fn a_day_is_scored_from_the_third_hour_to_the_last() {
        // One peak, which the twelve predictions before and at it have to see.
        let mut day = [10.0; 288];
        day[100] = 40.0;
        let mut tally = Tally::default();
        // A fifth of the limit, but never less than what is used.
        let method = Method { predictor: Kind::Fraction, fraction: 0.2, ..Method::default() };
        tally.walk(&[&day], &mut Peak::new(&method, LIMIT));
        let score = tally.score();
        assert_eq!(score.predictions, 288 - 24 - 11);
        assert_eq!(score.violation_rate, 12.0 / 253.0);
        let predicted = 252.0 * 20.0 + 40.0;
        assert_eq!(score.margin, predicted / (241.0 * 10.0 + 12.0 * 40.0));
    }

    #[test]
    fn a_day_without_an_hour_after_the_warm_up_scores_nothing() {
        let mut tally = Tally::default();
        tally.walk(&[&[1.0; 20]], &mut Peak::new(&Method::default(), LIMIT));
        assert_eq!((tally.score().predictions, tally.score().violation_rate), (0, 0.0));
    }
}
