//! When requests come: as from many clients who know nothing of each other, and do not wait for answers.

use std::time::Duration;

/// Moments since the beginning, without an end; the same for the same seed.
///
/// The gaps are exponentially distributed. Nobody is asked whether the service is ready, so a service that stands still is late
/// for all that came meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    random: fastrand::Rng,
    every: Duration,
    at: Duration,
}

impl Arrivals {
    /// One `every` so often in the mean.
    pub(crate) fn new(seed: u64, every: Duration) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), every, at: Duration::ZERO }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // 1 - x is above zero, where the logarithm is finite.
        let gap = -(1.0 - self.random.f64()).ln();
        self.at += self.every.mul_f64(gap);
        Some(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_in_order_at_the_rate_and_the_same_again() {
        let every = Duration::from_millis(2);
        let some = |seed| Arrivals::new(seed, every).take(20_000).collect::<Vec<_>>();
        let arrivals = some(7);
        assert!(arrivals.is_sorted());
        let mean = arrivals[19_999] / 20_000;
        assert!(mean > every.mul_f64(0.97) && mean < every.mul_f64(1.03), "{mean:?}");
        assert_eq!(arrivals, some(7));
        assert_ne!(arrivals, some(8));
        let together = arrivals.windows(2).filter(|two| two[1] - two[0] < every / 10).count();
        assert!(together > 1500, "a tenth of the gaps are below a tenth of the mean: {together}");
    }
}
