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

/// A directory that was listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// Place of the one that it is in, which comes before it; itself for the first.
    pub(super) parent: usize,
    /// How deep it is.
    pub(super) depth: usize,
    /// Files in it.
    pub(super) files: u64,
    /// Directories in it that were not listed.
    pub(super) unlisted: u64,
}

/// Files that there probably are below the first of these.
///
/// A directory that was not listed is taken for like those beside it that were, with all that is below them; where there
/// are none, for like those as deep as it.
pub(super) fn estimated_tree(dirs: &[Listed]) -> u64 {
    let mut deepest_first: Vec<usize> = (0..dirs.len()).collect();
    deepest_first.sort_by_key(|place| std::cmp::Reverse((dirs[*place].depth, *place)));
    let files = dirs.iter().fold(0_u64, |sum, dir| sum.saturating_add(dir.files));
    // Sum and number: of what is in each, and of those of each depth.
    let mut inside = vec![(0_u64, 0_u64); dirs.len()];
    let deepest = dirs.iter().map(|dir| dir.depth).max().unwrap_or(0);
    let mut as_deep = vec![(0_u64, 0_u64); deepest + 2];
    let mut total = 0;
    for place in deepest_first {
        let dir = dirs[place];
        let (sum, count) = inside[place];
        let (like, of) = match ((sum, count), as_deep[dir.depth + 1]) {
            ((_, 0), (_, 0)) => (files, dirs.len() as u64),
            ((_, 0), deep) => deep,
            (beside, _) => beside,
        };
        let rest = super::tally::scaled(like, dir.unlisted, of);
        total = dir.files.saturating_add(sum).saturating_add(rest);
        let add = |to: &mut (u64, u64)| *to = (to.0.saturating_add(total), to.1 + 1);
        add(&mut as_deep[dir.depth]);
        if dir.parent != place {
            add(&mut inside[dir.parent]);
        }
    }
    total
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
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

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

    #[test]
    fn a_tree_is_estimated_by_what_is_beside_what_was_not_listed() {
        let dir = |parent, depth, files, unlisted| Listed { parent, depth, files, unlisted };
        assert_eq!(estimated_tree(&[]), 0);
        assert_eq!(estimated_tree(&[dir(0, 0, 7, 0)]), 7);
        // Two of four were listed; one of them has a directory whose two others were not.
        let dirs = [dir(0, 0, 1, 2), dir(0, 1, 10, 0), dir(0, 1, 0, 2), dir(2, 2, 30, 0)];
        assert_eq!(estimated_tree(&dirs), 1 + (10 + 90) + 2 * 50);
        // Nothing beside it was listed, but others as deep were.
        let dirs = [dir(0, 0, 0, 0), dir(0, 1, 0, 3), dir(0, 1, 0, 0), dir(2, 2, 8, 0)];
        assert_eq!(estimated_tree(&dirs), 8 + 3 * 8);
        assert_eq!(estimated_tree(&[dir(0, 0, 4, 5)]), 4 + 5 * 4, "there is only itself");
    }

    proptest! {
        #[test]
        fn an_estimate_of_a_tree_is_all_of_it_where_all_was_listed(
            dirs in prop::collection::vec((any::<prop::sample::Index>(), 0_u64..100), 1..40),
            unlisted in prop::collection::vec(0_u64..3, 40),
        ) {
            let mut tree: Vec<Listed> = Vec::new();
            for (place, (parent, files)) in dirs.iter().enumerate() {
                let parent = if place == 0 { 0 } else { parent.index(place) };
                let depth = if place == 0 { 0 } else { tree[parent].depth + 1 };
                tree.push(Listed { parent, depth, files: *files, unlisted: 0 });
            }
            let files: u64 = tree.iter().map(|dir| dir.files).sum();
            prop_assert_eq!(estimated_tree(&tree), files);
            tree.iter_mut().zip(unlisted).for_each(|(dir, unlisted)| dir.unlisted = unlisted);
            prop_assert!(estimated_tree(&tree) >= files);
        }

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
