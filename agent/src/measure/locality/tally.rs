//! Bytes by where they are, and from a part of a data set to all of it. Pure.

use std::collections::BTreeMap;

/// Where bytes are that are not in memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Home {
    /// On this disk, as below /sys/block; empty where it cannot be told which.
    Disk(String),
    /// On another node.
    Elsewhere,
}

/// Bytes and files in one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    /// Each costs the disk a seek.
    pub(super) files: u64,
}

/// What was seen of a data set, and how much of it that was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) cached_bytes: u64,
    pub(super) homes: BTreeMap<Home, Amount>,
    /// Files that were looked at.
    pub(super) seen: u64,
    /// Files that there are; at least `seen`.
    pub(super) total: u64,
    /// Entries that could not be looked at.
    pub(super) skipped: u64,
    /// Something was extrapolated.
    pub(super) sampled: bool,
}

impl Tally {
    /// Adds one file: so much of it in memory, the rest at home.
    pub(super) fn add(&mut self, cached_bytes: u64, rest_bytes: u64, home: &Home) {
        self.seen += 1;
        self.total = self.total.max(self.seen);
        self.cached_bytes = self.cached_bytes.saturating_add(cached_bytes);
        if rest_bytes > 0 {
            let amount = self.homes.entry(home.clone()).or_default();
            amount.bytes = amount.bytes.saturating_add(rest_bytes);
            amount.files += 1;
        }
    }

    /// Takes what was seen for a fair sample of `total` files.
    ///
    /// Never less than what was seen; with `total` at most that, nothing changes.
    pub(super) fn extrapolated(mut self, total: u64) -> Self {
        if total <= self.seen || self.seen == 0 {
            self.total = self.seen.max(total);
            return self;
        }
        let seen = self.seen;
        self.cached_bytes = scaled(self.cached_bytes, total, seen);
        for amount in self.homes.values_mut() {
            amount.bytes = scaled(amount.bytes, total, seen);
            amount.files = scaled(amount.files, total, seen);
        }
        self.total = total;
        self.sampled = true;
        self
    }

    /// All bytes at homes that `which` names.
    pub(super) fn bytes_at(&self, which: impl Fn(&Home) -> bool) -> u64 {
        let amounts = self.homes.iter().filter(|(home, _)| which(home));
        amounts.fold(0, |sum, (_, amount)| sum.saturating_add(amount.bytes))
    }
}

/// `amount * of / part`, with neither overflow nor division by zero.
pub(super) fn scaled(amount: u64, of: u64, part: u64) -> u64 {
    let scaled = u128::from(amount) * u128::from(of) / u128::from(part.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_half_stands_for_the_whole() {
        let disk = Home::Disk("vda".into());
        let mut tally = Tally::default();
        tally.add(100, 0, &disk);
        tally.add(0, 300, &disk);
        let all = tally.clone().extrapolated(4);
        assert_eq!((all.cached_bytes, all.homes[&disk]), (200, Amount { bytes: 600, files: 2 }));
        assert!(all.sampled && all.total == 4 && all.seen == 2);
        assert_eq!(tally.clone().extrapolated(2), tally, "all was seen");
        assert_eq!(Tally::default().extrapolated(9).total, 9);
    }

    proptest! {
        #[test]
        fn an_extrapolation_is_between_what_was_seen_and_as_much_for_each(
            files in prop::collection::vec((any::<u32>(), any::<u32>()), 1..50),
            more in 0_u64..1_000_000,
        ) {
            let mut tally = Tally::default();
            for (cached, rest) in &files {
                tally.add((*cached).into(), (*rest).into(), &Home::Elsewhere);
            }
            let (seen, total) = (tally.seen, tally.seen + more);
            let largest = files.iter().map(|(c, r)| u64::from((*c).max(*r))).max().unwrap_or(0);
            let all = tally.clone().extrapolated(total);
            prop_assert!(all.cached_bytes >= tally.cached_bytes);
            prop_assert!(all.bytes_at(|_| true) >= tally.bytes_at(|_| true));
            prop_assert!(all.cached_bytes <= total * largest && all.bytes_at(|_| true) <= total * largest);
            prop_assert_eq!(all.sampled, total > seen);
        }

        #[test]
        fn scaling_never_overflows(amount: u64, of: u64, part: u64) {
            let result = scaled(amount, of, part);
            prop_assert!(of < part || part == 0 || result >= amount.min(result));
        }
    }
}
