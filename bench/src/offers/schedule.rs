//! What happens when, by a seed: the same for every agent that is tried. Pure.

use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;
/// Strangers come so far apart...
const GAP_MS: std::ops::Range<u64> = 8000..28_000;
/// ... and stay this long, so that there are mostly one or two.
const STAY_MS: std::ops::Range<u64> = 15_000..55_000;
/// Of the machine's CPU.
const STRANGER_CPU_PERCENT: std::ops::Range<u64> = 5..20;
/// Of the machine's memory.
const STRANGER_MEM_PERCENT: std::ops::Range<u64> = 3..10;
/// How long a guaranteed task keeps a level, and which part of its grant that is.
const LEVEL_MS: std::ops::Range<u64> = 2000..6000;
const LEVEL_PERCENT: std::ops::Range<u64> = 10..80;

/// Somebody outside of the agent, who comes and goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stay {
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    pub(crate) cpu_milli: u64,
    pub(crate) mem_bytes: u64,
    /// Binds the so manieth of the ports on offer.
    pub(crate) port: u16,
}

/// All of them, in the order in which they come; without an end.
#[derive(Clone, Debug)]
pub(crate) struct Strangers {
    random: fastrand::Rng,
    at: Duration,
    cpus: u64,
    mem_bytes: u64,
    ports: u16,
}

impl Strangers {
    /// For a machine of this size.
    pub(crate) fn new(seed: u64, cpus: u64, mem_bytes: u64, ports: u16) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), at: Duration::ZERO, cpus, mem_bytes, ports }
    }
}

impl Iterator for Strangers {
    type Item = Stay;

    fn next(&mut self) -> Option<Stay> {
        self.at += MS(self.random.u64(GAP_MS));
        Some(Stay {
            from: self.at,
            until: self.at + MS(self.random.u64(STAY_MS)),
            cpu_milli: self.cpus * 10 * self.random.u64(STRANGER_CPU_PERCENT),
            mem_bytes: self.mem_bytes / 100 * self.random.u64(STRANGER_MEM_PERCENT),
            port: self.random.u16(0..self.ports.max(1)),
        })
    }
}

/// Did anybody come within this time?
pub(crate) fn came(strangers: Strangers, from: Duration, until: Duration) -> bool {
    strangers.map(|stay| stay.from).take_while(|at| *at < until).any(|at| at >= from)
}

/// How much of its grant a guaranteed task uses, and until when; without an end.
#[derive(Clone, Debug)]
pub(crate) struct Levels {
    random: fastrand::Rng,
    until: Duration,
    percent: u64,
}

impl Levels {
    /// Of one task.
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), until: Duration::ZERO, percent: 0 }
    }

    /// At this moment, which must not be before that of the call before.
    pub(crate) fn percent(&mut self, at: Duration) -> u64 {
        while self.until <= at {
            self.until += MS(self.random.u64(LEVEL_MS));
            self.percent = self.random.u64(LEVEL_PERCENT);
        }
        self.percent
    }
}

/// When offers are tried: each somewhere in the first third of a slot of its own.
pub(crate) fn moments(seed: u64, count: u64, slot: Duration) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let slots = (0_u32..).zip(0..count).map(|(number, _)| slot * number);
    slots.map(|begin| begin + (slot / 3).mul_f64(random.f64())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_schedule() {
        let some = |seed| Strangers::new(seed, 4, 1 << 30, 40).take(50).collect::<Vec<_>>();
        assert_eq!(some(3), some(3));
        assert_ne!(some(3), some(4));
        let stays = some(3);
        assert!(stays.is_sorted_by_key(|stay| stay.from));
        assert!(stays.iter().all(|stay| stay.until > stay.from && (200..800).contains(&stay.cpu_milli)));
        let slot = Duration::from_secs(9);
        let moments = moments(1, 20, slot);
        assert!(moments.windows(2).all(|two| two[1] - two[0] >= slot / 3 * 2));
    }

    #[test]
    fn levels_last_a_while_and_change() {
        let mut levels = Levels::new(5);
        let seen: Vec<_> = (0..600).map(|tenth| levels.percent(MS(tenth * 100))).collect();
        let changes = seen.windows(2).filter(|two| two[0] != two[1]).count();
        assert!((9..=30).contains(&changes), "in a minute: {changes}");
        assert!(seen.iter().all(|percent| LEVEL_PERCENT.contains(percent)));
    }

    #[test]
    fn whoever_comes_in_time_came() {
        let strangers = Strangers::new(3, 4, 1 << 30, 40);
        let first = strangers.clone().next().unwrap().from;
        assert!(came(strangers.clone(), Duration::ZERO, first + MS(1)));
        assert!(!came(strangers.clone(), Duration::ZERO, first));
        assert!(!came(strangers, first + MS(1), first + MS(2)));
    }
}
