//! Port numbers of one protocol.

/// Numbers between 1 and 65535, kept as disjoint, ascending, inclusive ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortNumbers {
    ranges: Vec<(u16, u16)>,
}

impl PortNumbers {
    /// The numbers of inclusive ranges, which may overlap and come in any order; no bound is 0, and none is reversed.
    pub(super) fn from_pairs(mut pairs: Vec<(u16, u16)>) -> Self {
        pairs.sort_unstable();
        let mut ranges: Vec<(u16, u16)> = Vec::with_capacity(pairs.len());
        for (a, b) in pairs {
            match ranges.last_mut() {
                Some(last) if u32::from(a) <= u32::from(last.1) + 1 => last.1 = last.1.max(b),
                _ => ranges.push((a, b)),
            }
        }
        Self { ranges }
    }

    /// First and last number of each range.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.ranges
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|&(a, b)| usize::from(b - a) + 1).sum()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Is it among them?
    pub fn contains(&self, port: u16) -> bool {
        let after = self.ranges.partition_point(|&(first, _)| first <= port);
        after > 0 && self.ranges[after - 1].1 >= port
    }

    /// Each, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges.iter().flat_map(|&(a, b)| a..=b)
    }

    /// Numbers that are in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::from_pairs(self.ranges.iter().chain(&other.ranges).copied().collect())
    }

    /// Numbers that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.difference(&self.difference(other))
    }

    /// Numbers that are here and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.ranges.len());
        for &(first, last) in &self.ranges {
            // Wider than a port, so that one past 65535 can be said.
            let mut from = u32::from(first);
            let near = &other.ranges[other.ranges.partition_point(|&(_, b)| b < first)..];
            for &(a, b) in near.iter().take_while(|&&(a, _)| a <= last) {
                if u32::from(a) > from {
                    left.push((from, u32::from(a) - 1));
                }
                from = from.max(u32::from(b) + 1);
            }
            if from <= u32::from(last) {
                left.push((from, u32::from(last)));
            }
        }
        // Both bounds lie within a range of u16 bounds.
        let narrow = |p: u32| u16::try_from(p).unwrap_or(u16::MAX);
        Self { ranges: left.into_iter().map(|(a, b)| (narrow(a), narrow(b))).collect() }
    }
}

/// Of single numbers; 0 is left out.
impl FromIterator<u16> for PortNumbers {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        Self::from_pairs(ports.into_iter().filter(|&p| p != 0).map(|p| (p, p)).collect())
    }
}
