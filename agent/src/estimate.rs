//! What is in use, and what is safe to lend, from samples. Pure: `now` is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The largest value of the last while: the plainest predictor of what may be needed next.
///
/// Values are in whatever unit the caller adds; samples older than the window do not count.
#[derive(Clone, Debug)]
pub struct WindowPeak {
    window: Duration,
    /// Ascending in time, descending in value: only values that can still become the peak.
    candidates: VecDeque<(Instant, u64)>,
    first: Option<Instant>,
}

impl WindowPeak {
    /// Looks back over `window`.
    pub fn new(window: Duration) -> Self {
        Self { window, candidates: VecDeque::new(), first: None }
    }

    /// Takes in one sample. A clock that went backwards counts as standing still.
    pub fn add(&mut self, value: u64, now: Instant) {
        let now = self.candidates.back().map_or(now, |(last, _)| now.max(*last));
        self.first.get_or_insert(now);
        while self.candidates.back().is_some_and(|(_, v)| *v <= value) {
            self.candidates.pop_back();
        }
        self.candidates.push_back((now, value));
        while self.candidates.front().is_some_and(|(at, _)| now.duration_since(*at) > self.window) {
            self.candidates.pop_front();
        }
    }

    /// The peak, or `None` before the first sample.
    pub fn peak(&self) -> Option<u64> {
        self.candidates.front().map(|(_, value)| *value)
    }

    /// Has it watched for at least this long?
    pub fn watched_for(&self, at_least: Duration, now: Instant) -> bool {
        self.first.is_some_and(|first| now.saturating_duration_since(first) >= at_least)
    }
}

/// Idle CPU is lent up to this share: a burst of the guaranteed tasks finds room at once.
const LEND_PERCENT: u64 = 90;

/// CPU that is safe to lend: what neither strangers nor guaranteed tasks used at their peak.
///
/// Never above `capacity_milli`, and zero where the peaks fill it.
pub fn lendable_cpu_milli(capacity_milli: u64, strangers_milli: u64, guaranteed_peak_milli: u64) -> u64 {
    let used = strangers_milli.saturating_add(guaranteed_peak_milli);
    capacity_milli.saturating_sub(used) / 100 * LEND_PERCENT
        + capacity_milli.saturating_sub(used) % 100 * LEND_PERCENT / 100
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_peak_is_forgotten_after_the_window() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut peak = WindowPeak::new(Duration::from_secs(10));
        assert_eq!(peak.peak(), None);
        for (second, value) in [(0, 5), (1, 9), (2, 3), (11, 4)] {
            peak.add(value, at(second));
        }
        assert_eq!(peak.peak(), Some(9));
        peak.add(1, at(12));
        assert_eq!(peak.peak(), Some(4));
        assert!(peak.watched_for(Duration::from_secs(12), at(12)));
        assert!(!peak.watched_for(Duration::from_secs(13), at(12)));
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_through_all_samples(samples in prop::collection::vec((0..5u64, 0..100u64), 1..50)) {
            let start = Instant::now();
            let window = Duration::from_secs(7);
            let mut peak = WindowPeak::new(window);
            let mut all = Vec::new();
            let mut now = start;
            for (pause, value) in samples {
                now += Duration::from_secs(pause);
                peak.add(value, now);
                all.push((now, value));
                let expected = all.iter().filter(|(at, _)| now - *at <= window).map(|(_, v)| *v).max();
                prop_assert_eq!(peak.peak(), expected);
            }
        }

        #[test]
        fn lending_never_exceeds_what_is_left(capacity in 0..1_000_000u64, a in any::<u64>(), b in any::<u64>()) {
            let lent = lendable_cpu_milli(capacity, a, b);
            prop_assert!(lent <= capacity.saturating_sub(a.saturating_add(b)));
        }
    }
}
