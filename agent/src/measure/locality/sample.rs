//! A fair choice of a stream that may be long: every element has the same chance. Pure but for its seed.

use fastrand::Rng;

/// Keeps at most so many of all elements that it is shown, each with the same probability.
///
/// Source: Vitter's algorithm R, "Random sampling with a reservoir" (1985).
#[derive(Debug)]
pub(super) struct Reservoir<T> {
    kept: Vec<T>,
    most: usize,
    shown: u64,
}

impl<T> Reservoir<T> {
    /// Keeps `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { kept: Vec::new(), most, shown: 0 }
    }

    /// Shows it one more; `make` is called only where it is kept.
    pub(super) fn show(&mut self, rng: &mut Rng, make: impl FnOnce() -> T) {
        self.shown += 1;
        if self.kept.len() < self.most {
            self.kept.push(make());
        } else if let Ok(place) = usize::try_from(rng.u64(..self.shown))
            && let Some(slot) = self.kept.get_mut(place)
        {
            *slot = make();
        }
    }

    /// How many it was shown.
    pub(super) fn shown(&self) -> u64 {
        self.shown
    }

    /// What it kept, in random order.
    pub(super) fn shuffled(mut self, rng: &mut Rng) -> Vec<T> {
        rng.shuffle(&mut self.kept);
        self.kept
    }
}

/// Files that there probably are, where `unlisted` directories were found and not listed: those hold as many as the others.
///
/// What lies deeper is not counted, so it is a low estimate; never below `files`.
pub(super) fn estimated_files(files: u64, listed: u64, unlisted: u64) -> u64 {
    files.saturating_add(super::tally::scaled(files, unlisted, listed.max(1)))
}

/// The numbers below `n`, each once, spread: any first part of them is spread evenly over the whole.
pub(super) fn spread(n: u64) -> impl Iterator<Item = u64> {
    // About the golden ratio, and without a common divisor.
    let mut step = n / 1000 * 618 + n % 1000 * 618 / 1000;
    while step > 1 && greatest_common_divisor(step, n) > 1 {
        step -= 1;
    }
    let step = step.max(1);
    (0..n).scan(0_u64, move |at, _| {
        let this = *at;
        *at = (*at + step) % n;
        Some(this)
    })
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fastrand::Rng;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn every_element_has_the_same_chance() {
        let mut rng = Rng::with_seed(7);
        let mut counts = [0_u32; 20];
        for _ in 0..4000 {
            let mut reservoir = Reservoir::new(5);
            (0..20_usize).for_each(|n| reservoir.show(&mut rng, || n));
            assert_eq!(reservoir.shown(), 20);
            reservoir.shuffled(&mut rng).into_iter().for_each(|n| counts[n] += 1);
        }
        // 1000 each; five standard deviations are 137.
        assert!(counts.iter().all(|count| (863..1137).contains(count)), "{counts:?}");
    }

    #[test]
    fn directories_that_were_not_listed_count_like_the_others() {
        assert_eq!(estimated_files(100, 10, 0), 100);
        assert_eq!(estimated_files(100, 10, 5), 150);
        assert_eq!(estimated_files(0, 0, 5), 0);
        assert_eq!(estimated_files(u64::MAX, 1, u64::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn spreading_leaves_nothing_out(n in 0_u64..3000) {
            let all: BTreeSet<_> = spread(n).collect();
            prop_assert_eq!(all, (0..n).collect::<BTreeSet<_>>());
        }

        #[test]
        fn an_estimate_is_never_below_what_was_counted(files: u64, listed: u64, unlisted: u64) {
            prop_assert!(estimated_files(files, listed, unlisted) >= files);
        }

        #[test]
        fn a_reservoir_keeps_all_where_it_has_room(shown in 0_usize..40, most in 0_usize..60, seed: u64) {
            let mut rng = Rng::with_seed(seed);
            let mut reservoir = Reservoir::new(most);
            (0..shown).for_each(|n| reservoir.show(&mut rng, || n));
            let kept: BTreeSet<_> = reservoir.shuffled(&mut rng).into_iter().collect();
            prop_assert_eq!(kept.len(), shown.min(most));
        }
    }
}
