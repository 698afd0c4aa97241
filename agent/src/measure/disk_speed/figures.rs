//! From completions to figures. Pure.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Latencies from a microsecond to a minute are told apart, to about one percent.
const SLOWEST_USEC: u64 = 60_000_000;
const DIGITS: u8 = 2;

/// The completions of one kind of request.
#[derive(Clone, Debug)]
pub struct Tally {
    latencies_usec: Histogram<u32>,
    bytes: u64,
    ops: u64,
    last: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    /// Nothing completed yet.
    #[expect(clippy::expect_used, reason = "constants within the bounds that the histogram documents")]
    pub fn new() -> Self {
        let latencies_usec = Histogram::new_with_bounds(1, SLOWEST_USEC, DIGITS).expect("valid bounds");
        Self { latencies_usec, bytes: 0, ops: 0, last: Duration::ZERO }
    }

    /// A request of `bytes` that took `latency` was complete `at`, since the beginning.
    pub fn complete(&mut self, bytes: u64, latency: Duration, at: Duration) {
        let usec = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies_usec.saturating_record(usec.clamp(1, SLOWEST_USEC));
        self.bytes = self.bytes.saturating_add(bytes);
        self.ops += 1;
        self.last = self.last.max(at);
    }

    /// What they come to, over the time up to the last of them.
    pub fn figures(&self) -> Figures {
        let at = |quantile| self.latencies_usec.value_at_quantile(quantile);
        Figures {
            bytes_per_sec: per_sec(self.bytes, self.last),
            ops_per_sec: per_sec(self.ops, self.last),
            p50_usec: at(0.5),
            p95_usec: at(0.95),
            p99_usec: at(0.99),
            max_usec: if self.ops == 0 { 0 } else { self.latencies_usec.max() },
        }
    }
}

fn per_sec(amount: u64, over: Duration) -> u64 {
    let nanos = u128::from(amount).saturating_mul(1_000_000_000).checked_div(over.as_nanos()).unwrap_or(0);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// How fast one kind of request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes moved.
    pub bytes_per_sec: u64,
    /// Requests completed.
    pub ops_per_sec: u64,
    /// Half of the requests took at most this long, from submission to completion...
    pub p50_usec: u64,
    /// ... 95 % of them...
    pub p95_usec: u64,
    /// ... 99 % of them...
    pub p99_usec: u64,
    /// ... and the slowest.
    pub max_usec: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_time_to_the_last_completion() {
        let mut tally = Tally::new();
        for i in 1..=100_u64 {
            tally.complete(4096, Duration::from_micros(i * 10), Duration::from_millis(i * 20));
        }
        let figures = tally.figures();
        assert_eq!((figures.ops_per_sec, figures.bytes_per_sec), (50, 204_800));
        let near = |is: u64, should: u64| assert!(is.abs_diff(should) <= should / 50, "{is} {should}");
        near(figures.p50_usec, 500);
        near(figures.p95_usec, 950);
        near(figures.p99_usec, 990);
        near(figures.max_usec, 1000);
    }

    #[test]
    fn nothing_and_extremes_are_figures_too() {
        assert_eq!(Tally::new().figures(), Figures::default());
        let mut tally = Tally::new();
        tally.complete(u64::MAX, Duration::MAX, Duration::from_nanos(1));
        tally.complete(u64::MAX, Duration::ZERO, Duration::ZERO);
        let figures = tally.figures();
        assert_eq!(figures.bytes_per_sec, u64::MAX);
        assert!(figures.max_usec >= SLOWEST_USEC && figures.p50_usec <= 2, "{figures:?}");
    }
}
