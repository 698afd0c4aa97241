//! What is safe to lend now: what neither strangers nor guaranteed tasks used at their peak.

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

/// The cap of all revocable tasks together follows what is lent, without a write for every small change.
#[derive(Clone, Debug, Default)]
pub struct RevocableCap {
    applied_milli: Option<u64>,
}

/// Caps are multiples of this.
const CAP_STEP_MILLI: u64 = 50;

impl RevocableCap {
    /// The cap to set now, or `None` where the one that is set will do. It falls at once, because others need the
    /// CPU, and rises when it does so by a tenth.
    pub fn next(&mut self, lent_milli: u64) -> Option<u64> {
        let cap = lent_milli / CAP_STEP_MILLI * CAP_STEP_MILLI;
        let stays = |applied: u64| cap >= applied && cap < applied.saturating_add((applied / 10).max(1));
        if self.applied_milli.is_some_and(stays) {
            return None;
        }
        self.applied_milli = Some(cap);
        Some(cap)
    }
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

    #[test]
    fn the_cap_falls_at_once_and_rises_when_it_is_worth_it() {
        let mut cap = RevocableCap::default();
        let lent = [1049, 1000, 1080, 1100, 1099, 1049, 10, 0, 60, 60];
        let told = lent.map(|lent| cap.next(lent));
        let expected =
            [Some(1000), None, None, Some(1100), Some(1050), Some(1000), Some(0), None, Some(50), None];
        assert_eq!(told, expected);
    }

    proptest! {
        #[test]
        fn the_cap_is_never_above_what_is_lent(lent in prop::collection::vec(0..5000u64, 1..50)) {
            let (mut cap, mut applied) = (RevocableCap::default(), 0);
            for lent in lent {
                applied = cap.next(lent).unwrap_or(applied);
                prop_assert!(applied <= lent && lent - applied <= applied / 10 + CAP_STEP_MILLI, "{applied} {lent}");
            }
        }

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
