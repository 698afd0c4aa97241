//! A fixed piece of work: where it takes longer, the machine gave less.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// What the work reads again and again: it fits the caches of a core, as long as nobody else fills them.
const CELLS: usize = 32 << 10;
/// Long enough for the clock to be exact, short enough to be between two interruptions.
const TRIAL: Duration = Duration::from_millis(10);
/// The fastest of these was disturbed the least.
const TRIALS: usize = 7;

/// Does rounds of arithmetic, each on a cell that depends on the one before.
#[derive(Debug)]
pub(crate) struct Work {
    cells: Vec<u64>,
    state: u64,
}

impl Work {
    /// Nothing done yet.
    pub(crate) fn new() -> Self {
        Self { cells: (0_u64..).take(CELLS).map(next).collect(), state: 1 }
    }

    /// Does this many.
    pub(crate) fn rounds(&mut self, count: u64) {
        for _ in 0..count {
            let at = usize::try_from(self.state >> 33).unwrap_or(0) % CELLS;
            self.state = next(self.state ^ self.cells[at]);
        }
        black_box(self.state);
    }

    /// How many rounds take this long on an idle CPU of this machine; at least one.
    pub(crate) fn rounds_in(&mut self, time: Duration) -> u64 {
        let mut count = 1000;
        let mut once = |count| {
            let begun = Instant::now();
            self.rounds(count);
            begun.elapsed()
        };
        while once(count) < TRIAL {
            count *= 2;
        }
        let fastest = (0..TRIALS).map(|_| once(count)).min().unwrap_or(TRIAL);
        scaled(count, time, fastest)
    }
}

/// Of `count` in `taken`, those in `time`.
fn scaled(count: u64, time: Duration, taken: Duration) -> u64 {
    let rounds = u128::from(count) * time.as_nanos() / taken.as_nanos().max(1);
    u64::try_from(rounds).unwrap_or(u64::MAX).max(1)
}

/// Numbers that no compiler foresees: Knuth's linear congruential generator.
fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_in_proportion_to_time() {
        let (ms, us) = (Duration::from_millis, Duration::from_micros);
        assert_eq!(scaled(1000, ms(1), ms(10)), 100);
        assert_eq!(scaled(1000, us(1), ms(10)), 1, "there is no less than a round");
        assert_eq!(scaled(1000, ms(1), ms(0)), 1_000_000_000, "a clock that stands still");
        assert!(Work::new().rounds_in(ms(2)) > Work::new().rounds_in(us(1)));
    }
}
