//! Was an offer true? Pure.

use serde::Serialize;

/// What a probe may miss of the CPU that it was offered, and what a guaranteed task may miss more than before.
const TOLERATED_PERCENT: f64 = 2.0;
/// Of the time that a probe may stand still for memory: reading the clock of the kernel's pressure is as coarse.
const STALLED_PERCENT: f64 = 1.0;

/// One offer, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Trial {
    /// Since the replay began.
    pub(crate) at_seconds: f64,
    pub(crate) offered_cpu_milli: u64,
    pub(crate) offered_mem_bytes: u64,
    pub(crate) cpu_got_percent: f64,
    /// Of the memory that it meant to touch.
    pub(crate) mem_got_percent: f64,
    pub(crate) mem_stalled_percent: f64,
    pub(crate) out_of_memory: bool,
    pub(crate) ports_asked: usize,
    pub(crate) ports_got: usize,
    /// Of what they wanted to do, guaranteed tasks did this before and meanwhile.
    pub(crate) steady_before_percent: f64,
    pub(crate) steady_meanwhile_percent: f64,
    /// A stranger came after the offer, whom it could not know.
    pub(crate) stranger_came: bool,
}

impl Trial {
    pub(crate) fn cpu(&self) -> bool {
        self.cpu_got_percent >= 100.0 - TOLERATED_PERCENT
    }

    pub(crate) fn mem(&self) -> bool {
        !self.out_of_memory && self.mem_got_percent >= 100.0 && self.mem_stalled_percent <= STALLED_PERCENT
    }

    pub(crate) fn ports(&self) -> bool {
        self.ports_got == self.ports_asked
    }

    /// It got what it was offered.
    pub(crate) fn honest(&self) -> bool {
        self.cpu() && self.mem() && self.ports()
    }

    /// It was paid for by guaranteed tasks.
    pub(crate) fn noticed(&self) -> bool {
        self.steady_before_percent - self.steady_meanwhile_percent > TOLERATED_PERCENT
    }
}

/// Over all trials, in percent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Shares {
    pub(crate) trials: usize,
    pub(crate) honest_percent: f64,
    pub(crate) cpu_percent: f64,
    pub(crate) mem_percent: f64,
    pub(crate) ports_percent: f64,
    /// Of those trials in which no stranger came after the offer.
    pub(crate) honest_undisturbed_percent: f64,
    pub(crate) noticed_percent: f64,
}

impl Shares {
    /// Zero of none.
    pub(crate) fn of(trials: &[Trial]) -> Self {
        let share = |of: &mut dyn Iterator<Item = bool>| {
            let (mut all, mut good) = (0_u32, 0_u32);
            of.for_each(|one| (all, good) = (all + 1, good + u32::from(one)));
            (f64::from(good) * 1000.0 / f64::from(all.max(1))).round() / 10.0
        };
        Self {
            trials: trials.len(),
            honest_percent: share(&mut trials.iter().map(Trial::honest)),
            cpu_percent: share(&mut trials.iter().map(Trial::cpu)),
            mem_percent: share(&mut trials.iter().map(Trial::mem)),
            ports_percent: share(&mut trials.iter().map(Trial::ports)),
            honest_undisturbed_percent: share(
                &mut trials.iter().filter(|trial| !trial.stranger_came).map(Trial::honest),
            ),
            noticed_percent: share(&mut trials.iter().map(Trial::noticed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Trial {
        Trial {
            at_seconds: 1.0,
            offered_cpu_milli: 900,
            offered_mem_bytes: 1 << 30,
            cpu_got_percent: 98.5,
            mem_got_percent: 100.0,
            mem_stalled_percent: 0.0,
            out_of_memory: false,
            ports_asked: 4,
            ports_got: 4,
            steady_before_percent: 100.0,
            steady_meanwhile_percent: 99.0,
            stranger_came: false,
        }
    }

    #[test]
    fn every_kind_must_be_there() {
        assert!(good().honest() && !good().noticed());
        let bad = [
            Trial { cpu_got_percent: 97.9, ..good() },
            Trial { mem_got_percent: 99.0, ..good() },
            Trial { mem_stalled_percent: 1.5, ..good() },
            Trial { out_of_memory: true, ..good() },
            Trial { ports_got: 3, ..good() },
        ];
        assert!(bad.iter().all(|trial| !trial.honest()));
        assert!(Trial { steady_meanwhile_percent: 97.0, ..good() }.noticed());
        assert!(!Trial { steady_before_percent: 50.0, steady_meanwhile_percent: 49.0, ..good() }.noticed());
    }

    #[test]
    fn shares_are_of_all_and_of_the_undisturbed() {
        let disturbed = Trial { cpu_got_percent: 50.0, stranger_came: true, ..good() };
        let shares = Shares::of(&[good(), disturbed, good()]);
        assert!((shares.honest_percent - 66.7).abs() < 1e-9 && (shares.mem_percent - 100.0).abs() < 1e-9);
        assert!((shares.honest_undisturbed_percent - 100.0).abs() < 1e-9);
        assert_eq!(Shares::of(&[]), Shares::default());
    }
}
