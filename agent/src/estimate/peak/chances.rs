//! How likely it is that single tasks rise: with few tasks on a node, its peaks are those of one of them.
//!
//! Everything is in parts of the task's limit, so it holds for any unit.

use super::{
    history::{RECENT_SAMPLES, TaskHistory},
    moments::{last, max, mean_and_deviation},
    weights::{CHANCES, HIDDEN},
};

/// A rise is from the mean of the last half hour to the peak of the next hour; in parts of the limit.
pub(super) const RISES: [f64; 5] = [0.1, 0.2, 0.35, 0.5, 0.7];
/// Twelve values, their logarithms, skew, age, and one.
pub(super) const CHANCE_INPUTS: usize = 2 * VALUES + 3;
const VALUES: usize = 12;
pub(super) const HIDDEN_UNITS: usize = 16;
/// No task rises by more.
const LARGEST_RISE: f64 = 1.3;
/// Of the smallest rise that counts as one; something always rises a little.
const CHANCE_OF_ANY: f64 = 0.9;
const LEAST_CHANCE: f64 = 1e-7;
/// How fast chances fall above the last of [`RISES`]: by a factor of e each so much of the limit.
const TAIL: f64 = 0.12;

/// What sums over tasks are made of, in the samples' unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct TaskShape {
    pub(super) now: f64,
    pub(super) mean_6: f64,
    pub(super) mean_24: f64,
    pub(super) mean: f64,
    pub(super) largest_3: f64,
    pub(super) largest_6: f64,
    pub(super) largest_12: f64,
    pub(super) largest_24: f64,
    pub(super) largest: f64,
    pub(super) deviation: f64,
    pub(super) deviation_24: f64,
    pub(super) deviation_12: f64,
    /// Mean, whatever the direction.
    pub(super) step: f64,
    /// Mean of the squares.
    pub(super) step_squared: f64,
    /// Central moments.
    pub(super) third: f64,
    pub(super) third_24: f64,
    count: usize,
    limit: f64,
}

impl TaskShape {
    pub(super) fn of(task: &TaskHistory) -> Self {
        let recent = &task.recent;
        let (mean_24, deviation_24) = mean_and_deviation(last(recent, RECENT_SAMPLES));
        let (_, deviation_12) = mean_and_deviation(last(recent, 12));
        let steps = recent.iter().zip(recent.iter().skip(1)).map(|(before, after)| after - before);
        let count = recent.len().max(1) as f64;
        let step_count = count - 1.0;
        let per_step = |sum: f64| if step_count > 0.0 { sum / step_count } else { 0.0 };
        Self {
            now: recent.back().copied().unwrap_or(0.0),
            mean_6: mean_and_deviation(last(recent, 6)).0,
            mean_24,
            mean: task.moments.mean(),
            largest_3: max(last(recent, 3)),
            largest_6: max(last(recent, 6)),
            largest_12: max(last(recent, 12)),
            largest_24: max(last(recent, RECENT_SAMPLES)),
            largest: task.peak.value(),
            deviation: task.moments.variance().sqrt(),
            deviation_24,
            deviation_12,
            step: per_step(steps.clone().map(f64::abs).sum()),
            step_squared: per_step(steps.map(|step| step * step).sum()),
            third: task.moments.third(),
            third_24: recent.iter().map(|sample| (sample - mean_24).powi(3)).sum::<f64>() / count,
            count: task.moments.count(),
            limit: task.limit,
        }
    }

    /// Logarithms of the chances of each of [`RISES`].
    fn chances(&self) -> [f64; RISES.len()] {
        let part = |value: f64| if self.limit > 0.0 { value / self.limit } else { 0.0 };
        let values: [f64; VALUES] = [
            self.now,
            self.mean_6,
            self.mean_24,
            self.mean,
            self.largest_3,
            self.largest_6,
            self.largest_12,
            self.largest_24,
            self.largest,
            self.deviation,
            self.deviation_24,
            self.step,
        ]
        .map(part);
        let mut inputs = [1.0; CHANCE_INPUTS];
        inputs[..VALUES].copy_from_slice(&values);
        for (input, value) in inputs[VALUES..].iter_mut().zip(values) {
            *input = (value * 100.0).ln_1p() / 5.0;
        }
        inputs[2 * VALUES] = part(self.third.cbrt());
        inputs[2 * VALUES + 1] = 1.0 / (self.count.max(1) as f64).sqrt();
        let hidden = HIDDEN.each_ref().map(|weights| weigh(weights, &inputs).tanh());
        CHANCES.each_ref().map(|weights| {
            let odds = weigh(weights, &hidden) + weights[HIDDEN_UNITS];
            // The logarithm of the logistic function.
            -(-odds).exp().ln_1p()
        })
    }
}

fn weigh(weights: &[f64], values: &[f64]) -> f64 {
    weights.iter().zip(values).map(|(weight, value)| weight * value).sum()
}

/// How many tasks are expected to rise by more than each of [`RISES`], in parts of the tasks' mean limit.
pub(super) struct Rising {
    pub(super) expected: [f64; RISES.len()],
    count: f64,
}

impl Rising {
    /// `limit` is the mean one.
    pub(super) fn of(tasks: &[TaskShape], limit: f64) -> Self {
        let mut expected = [0.0; RISES.len()];
        for task in tasks {
            let chances = task.chances();
            if task.limit == limit {
                expected.iter_mut().zip(chances).for_each(|(sum, chance)| *sum += chance.exp());
            } else {
                let rises = RISES.map(|rise| rise * limit / task.limit);
                expected.iter_mut().zip(rises).for_each(|(sum, rise)| *sum += chance_of(rise, &chances));
            }
        }
        Self { expected, count: tasks.len() as f64 }
    }

    /// The rise that `risk` tasks are expected to exceed, in parts of the mean limit.
    pub(super) fn at_risk(&self, risk: f64) -> f64 {
        let at = risk.ln();
        let (mut rise, mut level) = (0.0, (CHANCE_OF_ANY * self.count).max(LEAST_CHANCE).ln());
        if level < at {
            return 0.0;
        }
        for (next_rise, expected) in RISES.into_iter().zip(self.expected) {
            let next = expected.max(LEAST_CHANCE).ln();
            if next < at && at <= level {
                return rise + (level - at) / (level - next + 1e-9) * (next_rise - rise);
            }
            (rise, level) = (next_rise, next);
        }
        (rise + (level - at).max(0.0) * TAIL).min(LARGEST_RISE)
    }
}

/// Between the chances of [`RISES`], and beyond them; a task cannot rise above its limit.
fn chance_of(rise: f64, chances: &[f64; RISES.len()]) -> f64 {
    if rise.is_nan() || rise >= 1.0 {
        return 0.0;
    }
    let (mut low, mut level) = (0.0, CHANCE_OF_ANY.ln());
    for (high, chance) in RISES.into_iter().zip(chances) {
        if rise < high {
            return (level + (chance - level) * (rise - low) / (high - low)).exp();
        }
        (low, level) = (high, *chance);
    }
    (level - (rise - low) / TAIL).exp()
}
