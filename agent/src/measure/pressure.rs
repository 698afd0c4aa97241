//! What the whole machine stands still for.
//!
//! Source: the kernel's `Documentation/accounting/psi.rst`.

use std::{
    collections::VecDeque,
    path::Path,
    time::{Duration, Instant},
};

use super::tasks::{
    reading::{StallCount, stall_count},
    sample::{Stalled, stalled},
};
use crate::kernel::reread::{Reread, Room};

pub use super::tasks::Stalls;

/// Where the kernel tells it.
pub const PROC: &str = "/proc/pressure";
/// What is told to others is an average over this time, as the kernel's own shortest.
const WINDOW: Duration = Duration::from_secs(10);
/// At most this many looks are kept of it.
const LOOKS: usize = 200;

/// The machine's pressure, and how bad it was at its worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Over the last ten seconds, or since the first look.
    pub mean: Stalls<Stalled>,
    /// The worst time between two looks within them.
    pub worst: Stalls<Stalled>,
}

/// Looks at the three files, which are kept open.
#[derive(Debug)]
pub struct PressureSampler {
    files: Stalls<Reread>,
    room: Room,
    looks: VecDeque<(Instant, Stalls<StallCount>)>,
}

impl PressureSampler {
    /// Opens what is in this directory; without pressure in the kernel there is nothing to tell.
    pub fn open(dir: &Path) -> Self {
        let open = |name| Reread::open(dir.join(name)).ok();
        let files = Stalls { cpu: open("cpu"), mem: open("memory"), io: open("io") };
        Self { files, room: Room::default(), looks: VecDeque::new() }
    }

    /// Looks, and forgets what is long ago. Three short system calls, of which none waits.
    pub fn look(&mut self, now: Instant) {
        let room = &mut self.room;
        let mut count = |file: &Option<Reread>| stall_count(file.as_ref()?.read(room).ok()?);
        let stalls =
            Stalls { cpu: count(&self.files.cpu), mem: count(&self.files.mem), io: count(&self.files.io) };
        self.add(now, stalls);
    }

    fn add(&mut self, now: Instant, stalls: Stalls<StallCount>) {
        // A clock that stands still, or goes backwards, gives nothing to average over.
        if self.looks.back().is_some_and(|(last, _)| now <= *last) {
            return;
        }
        self.looks.push_back((now, stalls));
        // One look before the window stays: it is where the window begins.
        let begins_before = |looks: &VecDeque<(Instant, _)>| {
            looks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW)
        };
        while begins_before(&self.looks) || self.looks.len() > LOOKS {
            self.looks.pop_front();
        }
    }

    /// What was seen so far; nothing before the second look.
    pub fn pressure(&self) -> Pressure {
        let between = |a: &(Instant, Stalls<StallCount>), b: &(Instant, Stalls<StallCount>)| {
            stalled(a.1, b.1, b.0.duration_since(a.0))
        };
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else {
            return Pressure::default();
        };
        if first.0 == last.0 {
            return Pressure::default();
        }
        let worst = self.looks.iter().zip(self.looks.iter().skip(1)).map(|(a, b)| between(a, b));
        Pressure { mean: between(first, last), worst: worst.fold(Stalls::default(), worse) }
    }
}

fn worse(a: Stalls<Stalled>, b: Stalls<Stalled>) -> Stalls<Stalled> {
    let worse = |a: Option<Stalled>, b: Option<Stalled>| match (a, b) {
        (Some(a), Some(b)) => Some(Stalled {
            some_permille: a.some_permille.max(b.some_permille),
            full_permille: a.full_permille.max(b.full_permille),
        }),
        (one, other) => one.or(other),
    };
    Stalls { cpu: worse(a.cpu, b.cpu), mem: worse(a.mem, b.mem), io: worse(a.io, b.io) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(some_usec: u64) -> Stalls<StallCount> {
        Stalls { io: Some(StallCount { some_usec, full_usec: 0 }), ..Stalls::default() }
    }

    fn some(pressure: Stalls<Stalled>) -> Option<u64> {
        pressure.io.map(|io| io.some_permille)
    }

    #[test]
    fn the_mean_and_the_worst_of_ten_seconds() {
        let mut sampler = PressureSampler::open(Path::new("/no/such"));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(sampler.pressure(), Pressure::default());
        sampler.add(at(0), io(0));
        assert_eq!(sampler.pressure(), Pressure::default(), "nothing to compare with yet");
        sampler.add(at(100), io(50_000));
        sampler.add(at(100), io(90_000));
        sampler.add(at(1000), io(50_000));
        let seen = sampler.pressure();
        assert_eq!((some(seen.mean), some(seen.worst)), (Some(50), Some(500)));
        (2..=20).for_each(|s| sampler.add(at(s * 1000), io(50_000)));
        let seen = sampler.pressure();
        assert_eq!((some(seen.mean), some(seen.worst)), (Some(0), Some(0)), "long ago");
        assert!(seen.mean.cpu.is_none(), "not told");
    }

    #[test]
    fn many_looks_are_not_all_kept() {
        let mut sampler = PressureSampler::open(Path::new("/no/such"));
        let start = Instant::now();
        (1..5000).for_each(|ms| sampler.add(start + Duration::from_millis(ms), io(ms)));
        assert_eq!(sampler.looks.len(), LOOKS);
    }

    #[test]
    fn without_pressure_in_the_kernel_none_is_told() {
        let mut sampler = PressureSampler::open(Path::new("/no/such"));
        let start = Instant::now();
        (0..3).for_each(|s| sampler.look(start + Duration::from_secs(s)));
        assert_eq!(sampler.pressure(), Pressure::default());
    }
}
