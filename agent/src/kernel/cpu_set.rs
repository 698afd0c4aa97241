//! Sets of CPUs and of memory nodes, in the form that sysfs and cpusets write them: `0-3,8`.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// Numbers beyond this are mistakes: no kernel is built for more CPUs (`CONFIG_NR_CPUS` ends at 8192).
const MAX_NUMBER: u32 = 65_535;

/// Numbers of CPUs or of memory nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuSet(BTreeSet<u32>);

/// Text that is no such list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list of CPUs or nodes: write it like 0-3,8")]
pub struct CpuSetError(pub String);

impl CpuSet {
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The lowest number.
    pub fn first(&self) -> Option<u32> {
        self.0.first().copied()
    }

    /// Is this one of them?
    pub fn contains(&self, number: u32) -> bool {
        self.0.contains(&number)
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Those in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    /// Those in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// Are all of them in `other`?
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(text: &str) -> Result<Self, CpuSetError> {
        let bad = || CpuSetError(text.trim().to_owned());
        let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n <= MAX_NUMBER).ok_or_else(bad);
        let mut numbers = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut numbers = self.0.iter().copied().peekable();
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| *next == last + 1) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let read = |text: &str| text.parse::<CpuSet>().map(|set| set.iter().collect::<Vec<_>>());
        assert_eq!(read("0-2,5\n"), Ok(vec![0, 1, 2, 5]));
        assert_eq!(read("\n"), Ok(vec![]));
        for bad in ["x", "3-1", "1-", "-1", "0-4294967295", "1 2"] {
            assert_eq!(read(bad), Err(CpuSetError(bad.into())));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(numbers in prop::collection::btree_set(0..200u32, 0..60)) {
            let set: CpuSet = numbers.into_iter().collect();
            prop_assert_eq!(set.to_string().parse(), Ok(set));
        }
    }
}
