//! When is a task that crawls at its memory limit to be ended? Pure.

use std::time::{Duration, Instant};

/// Slices shorter than this would mistake a single stall of the kernel (two seconds at `memory.high`) for all of it.
const SLICE: Duration = Duration::from_secs(2);

/// What a grant takes for a stall: this percentage of the time, for this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) percent: u32,
    pub(super) lasting: Duration,
}

impl Bound {
    /// The time is looked at in equal slices, each of which has to be stalled.
    pub(super) fn slice(&self) -> Duration {
        let slices = (self.lasting.as_millis() / SLICE.as_millis()).max(1);
        self.lasting / u32::try_from(slices).unwrap_or(u32::MAX)
    }
}

/// What the kernel counted so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// All processes stood still at once.
    pub(super) full_usec: u64,
    /// The task ran into its `memory.high` or its `memory.max`.
    pub(super) hits: u64,
}

/// What a look at the counters says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It got on, or does not stand at its own limits: nothing to do until the kernel reports pressure again.
    Calm,
    /// Stalled so far; the next look is due after another slice.
    Stalling,
    /// Stalled for as long as the grant allows.
    Stalled {
        /// Of its time.
        percent: u64,
        /// The time.
        lasted: Duration,
    },
}

/// A time of pressure, from when the kernel reported it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Episode {
    since: Instant,
    first: Reading,
    looked: Instant,
    last: Reading,
}

impl Episode {
    /// The kernel has just reported pressure.
    pub(super) fn begin(now: Instant, reading: Reading) -> Self {
        Self { since: now, first: reading, looked: now, last: reading }
    }

    /// A look after a slice.
    pub(super) fn look(&mut self, now: Instant, reading: Reading, bound: &Bound) -> Verdict {
        let slice = percent(self.last, reading, now.saturating_duration_since(self.looked));
        (self.looked, self.last) = (now, reading);
        if slice < u64::from(bound.percent) {
            return Verdict::Calm;
        }
        let lasted = now.saturating_duration_since(self.since);
        if lasted < bound.lasting {
            return Verdict::Stalling;
        }
        // Pressure from elsewhere: somebody above or beside it takes the memory, and the task is not to blame.
        if reading.hits <= self.first.hits {
            return Verdict::Calm;
        }
        Verdict::Stalled { percent: percent(self.first, reading, lasted), lasted }
    }
}

/// The stalled part of the time; 100 at most, as the counter and the clock are not read at one moment.
fn percent(from: Reading, to: Reading, wall: Duration) -> u64 {
    let stalled = u128::from(to.full_usec.saturating_sub(from.full_usec));
    let percent = (stalled * 100).checked_div(wall.as_micros()).unwrap_or(0);
    u64::try_from(percent.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUND: Bound = Bound { percent: 80, lasting: Duration::from_secs(6) };

    /// Looks after each slice, of which this many milliseconds were stalled; `hits` each time.
    fn verdicts(bound: Bound, stalled_ms: &[u64], hits: u64) -> Vec<Verdict> {
        let mut now = Instant::now();
        let mut reading = Reading { full_usec: 7, hits: 3 };
        let mut episode = Episode::begin(now, reading);
        let look = |ms: &u64| {
            now += bound.slice();
            reading = Reading { full_usec: reading.full_usec + ms * 1000, hits: reading.hits + hits };
            episode.look(now, reading, &bound)
        };
        stalled_ms.iter().map(look).collect()
    }

    #[test]
    fn a_stall_has_to_last() {
        use Verdict::*;
        assert_eq!(BOUND.slice(), Duration::from_secs(2));
        let stalled = Stalled { percent: 85, lasted: BOUND.lasting };
        assert_eq!(verdicts(BOUND, &[1700, 1700, 1700], 1), [Stalling, Stalling, stalled]);
        assert_eq!(verdicts(BOUND, &[1700, 1500], 1), [Stalling, Calm], "it got on in between");
        assert_eq!(
            verdicts(BOUND, &[2000, 2000, 2000], 0),
            [Stalling, Stalling, Calm],
            "not at its own limit"
        );
    }

    #[test]
    fn short_stalls_are_one_slice_and_long_ones_many() {
        let slice = |ms| Bound { percent: 80, lasting: Duration::from_millis(ms) }.slice();
        assert_eq!([1, 1500, 2000, 3999].map(|ms| slice(ms).as_millis()), [1, 1500, 2000, 3999]);
        assert_eq!([5000, 10_000].map(|ms| slice(ms).as_millis()), [2500, 2000]);
        assert_eq!(slice(0), Duration::ZERO);
        assert!(slice(u64::MAX) >= SLICE);
    }

    proptest! {
        #[test]
        fn only_who_stalled_in_every_slice_is_ended(
            percent in 1..=100_u32,
            lasting_ms in 1..60_000_u64,
            slices in proptest::collection::vec(0..=100_u64, 1..40),
        ) {
            let bound = Bound { percent, lasting: Duration::from_millis(lasting_ms) };
            let slice_usec = u64::try_from(bound.slice().as_micros()).unwrap();
            let stalled: Vec<u64> = slices.iter().map(|p| (slice_usec * p / 100) / 1000).collect();
            let verdicts = verdicts(bound, &stalled, 1);
            let end = verdicts.iter().position(|v| *v != Verdict::Stalling).unwrap_or(verdicts.len());
            if let Some(Verdict::Stalled { percent: told, lasted }) = verdicts.get(end) {
                prop_assert!(*told >= u64::from(percent));
                prop_assert!(*lasted >= bound.lasting);
                prop_assert!(slices[..=end].iter().all(|p| *p >= u64::from(percent)));
            }
        }
    }
}
