//! Sums of samples that are kept without the samples, and those of samples that are there.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::MEMORY_SAMPLES;

/// Mean, variance and third central moment of what was added. After [`MEMORY_SAMPLES`] the older count less and less.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Moments {
    count: usize,
    mean: f64,
    variance: f64,
    third: f64,
}

impl Moments {
    pub(super) fn add(&mut self, sample: f64) {
        self.count = (self.count + 1).min(MEMORY_SAMPLES);
        let part = 1.0 / self.count as f64;
        let distance = sample - self.mean;
        let shift = part * distance;
        // Of a mixture: the old samples, seen from the new mean, and the new one.
        let old = self.third - 3.0 * shift * self.variance - shift.powi(3);
        self.third = (1.0 - part) * old + part * (distance - shift).powi(3);
        self.variance = (1.0 - part) * (self.variance + part * distance * distance);
        self.mean += shift;
    }

    /// How many are remembered.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn is_finite(&self) -> bool {
        self.mean.is_finite() && self.variance.is_finite() && self.third.is_finite()
    }

    pub(super) fn mean(&self) -> f64 {
        self.mean
    }

    pub(super) fn variance(&self) -> f64 {
        self.variance.max(0.0)
    }

    pub(super) fn third(&self) -> f64 {
        self.third
    }
}

/// The largest of the last half to whole day.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct DayPeak {
    current: f64,
    before: f64,
    age: usize,
}

impl DayPeak {
    pub(super) fn add(&mut self, sample: f64) {
        if self.age == MEMORY_SAMPLES / 2 {
            *self = Self { current: 0.0, before: self.current, age: 0 };
        }
        self.age += 1;
        self.current = self.current.max(sample);
    }

    pub(super) fn value(&self) -> f64 {
        self.current.max(self.before)
    }
}

/// The last `count` of them.
pub(super) fn last(samples: &VecDeque<f64>, count: usize) -> impl Iterator<Item = f64> + Clone {
    samples.range(samples.len().saturating_sub(count)..).copied()
}

pub(super) fn max(samples: impl Iterator<Item = f64>) -> f64 {
    samples.fold(0.0, f64::max)
}

/// Mean, and deviation of the whole.
pub(super) fn mean_and_deviation(samples: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = samples.clone().count().max(1) as f64;
    let mean = samples.clone().sum::<f64>() / count;
    let variance = samples.map(|sample| (sample - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

/// The value that this share of the samples, from 0 to 1, is not above, between neighbours where it lies between them.
pub(super) fn quantile(samples: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<f64> = samples.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    quantile_of_sorted(&sorted, share)
}

/// The same of samples in ascending order; 0 where there are none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the number of samples")]
pub(super) fn quantile_of_sorted(sorted: &[f64], share: f64) -> f64 {
    let Some(top) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share.clamp(0.0, 1.0) * top as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[(at.ceil() as usize).min(top)]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_all_samples() {
        let samples: Vec<f64> = (0..200).map(|i| f64::from((i * 7919) % 101)).collect();
        let mut moments = Moments::default();
        samples.iter().for_each(|sample| moments.add(*sample));
        let mean = samples.iter().sum::<f64>() / 200.0;
        let central = |power| samples.iter().map(|s| (s - mean).powi(power)).sum::<f64>() / 200.0;
        assert!((moments.mean() - mean).abs() < 1e-9, "{}", moments.mean());
        assert!((moments.variance() - central(2)).abs() < 1e-6, "{}", moments.variance());
        assert!((moments.third() - central(3)).abs() < 1e-3, "{}", moments.third());
    }

    #[test]
    fn a_peak_is_remembered_for_half_a_day_and_not_for_two() {
        let mut peak = DayPeak::default();
        peak.add(9.0);
        (0..MEMORY_SAMPLES / 2).for_each(|_| peak.add(1.0));
        assert_eq!(peak.value(), 9.0);
        (0..MEMORY_SAMPLES).for_each(|_| peak.add(1.0));
        assert_eq!(peak.value(), 1.0);
    }

    #[test]
    fn quantiles_lie_between_samples() {
        let of = |share| quantile([4.0, 1.0, 3.0, 2.0].into_iter(), share);
        assert_eq!([of(0.0), of(0.5), of(1.0), of(0.9)], [1.0, 2.5, 4.0, 3.7]);
        assert_eq!(quantile(std::iter::empty(), 0.5), 0.0);
    }
}
