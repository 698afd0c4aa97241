//! Sets of ports, as grants and offers carry them.

use std::{fmt, str::FromStr};

use crate::v1::PortRange;

/// A set of ports between 1 and 65535, kept as disjoint, ascending, inclusive ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortSet {
    ranges: Vec<(u16, u16)>,
}

/// A range that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// The bounds are reversed, or outside 1..=65535.
    #[error("ports {first}-{last}: a range goes from a lower to a higher port, both between 1 and 65535")]
    BadRange {
        /// The first port of the range.
        first: u32,
        /// The last port of the range.
        last: u32,
    },
    /// Not written as `N` or `N-M`, separated by commas.
    #[error("ports {text:?}: write single ports and ranges separated by commas, like 8080,31000-31010")]
    BadText {
        /// What was written.
        text: String,
    },
}

impl PortSet {
    /// The set that these ranges cover together; they may overlap and come in any order.
    ///
    /// # Errors
    /// [`PortSetError::BadRange`] for the first range that no machine has.
    pub fn from_ranges(ranges: &[PortRange]) -> Result<Self, PortSetError> {
        let mut pairs = Vec::with_capacity(ranges.len());
        for &PortRange { first, last } in ranges {
            let (Ok(a), Ok(b)) = (u16::try_from(first), u16::try_from(last)) else {
                return Err(PortSetError::BadRange { first, last });
            };
            if a == 0 || b < a {
                return Err(PortSetError::BadRange { first, last });
            }
            pairs.push((a, b));
        }
        Ok(Self::merged(pairs))
    }

    /// The set of these single ports; 0 is left out.
    pub fn from_ports(ports: impl IntoIterator<Item = u16>) -> Self {
        Self::merged(ports.into_iter().filter(|&p| p != 0).map(|p| (p, p)).collect())
    }

    /// The same set as protocol ranges.
    pub fn to_ranges(&self) -> Vec<PortRange> {
        self.ranges.iter().map(|&(a, b)| PortRange { first: a.into(), last: b.into() }).collect()
    }

    /// How many ports.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|&(a, b)| usize::from(b - a) + 1).sum()
    }

    /// No port at all.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Is this port in the set?
    pub fn contains(&self, port: u16) -> bool {
        let after = self.ranges.partition_point(|&(first, _)| first <= port);
        after > 0 && self.ranges[after - 1].1 >= port
    }

    /// Are all ports of `other` here too?
    pub fn is_superset(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }

    /// Each port, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges.iter().flat_map(|&(a, b)| a..=b)
    }

    /// The `count` lowest ports, or `None` where there are fewer.
    pub fn lowest(&self, count: usize) -> Option<Self> {
        (self.len() >= count).then(|| Self::from_ports(self.iter().take(count)))
    }

    /// Ports that are in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::merged(self.ranges.iter().chain(&other.ranges).copied().collect())
    }

    /// Ports that are here and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.ranges.len());
        for &(first, last) in &self.ranges {
            // Wider than a port, so that one past 65535 can be said.
            let mut from = u32::from(first);
            for &(a, b) in other.ranges.iter().filter(|&&(a, b)| b >= first && a <= last) {
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

    fn merged(mut pairs: Vec<(u16, u16)>) -> Self {
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
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, &(a, b)) in self.ranges.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if a == b { write!(f, "{comma}{a}")? } else { write!(f, "{comma}{a}-{b}")? }
        }
        Ok(())
    }
}

impl FromStr for PortSet {
    type Err = PortSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || PortSetError::BadText { text: text.to_owned() };
        let number = |s: &str| s.trim().parse::<u32>().map_err(|_| bad());
        let mut ranges = Vec::new();
        for part in text.split(',').filter(|p| !p.trim().is_empty()) {
            let (first, last) = match part.split_once('-') {
                Some((a, b)) => (number(a)?, number(b)?),
                None => (number(part)?, number(part)?),
            };
            ranges.push(PortRange { first, last });
        }
        Self::from_ranges(&ranges)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    /// Ranges near both ends of the port space, where arithmetic goes wrong.
    fn any_set() -> impl Strategy<Value = PortSet> {
        let low = (1u32..60, 0u32..9);
        let high = (65_500u32..=65_530, 0u32..6);
        prop::collection::vec(prop_oneof![low, high], 0..8).prop_map(|v| {
            let ranges: Vec<_> = v.into_iter().map(|(a, n)| PortRange { first: a, last: a + n }).collect();
            PortSet::from_ranges(&ranges).unwrap()
        })
    }

    fn model(set: &PortSet) -> BTreeSet<u16> {
        set.iter().collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(a in any_set(), b in any_set()) {
            prop_assert_eq!(model(&a.union(&b)), &model(&a) | &model(&b));
            prop_assert_eq!(model(&a.difference(&b)), &model(&a) - &model(&b));
            prop_assert_eq!(a.is_superset(&b), model(&a).is_superset(&model(&b)));
            prop_assert_eq!(a.len(), model(&a).len());
            for port in [1, 30, 59, 65_500, 65_535] {
                prop_assert_eq!(a.contains(port), model(&a).contains(&port));
            }
        }

        #[test]
        fn text_comes_back(a in any_set()) {
            prop_assert_eq!(&set(&a.to_string()), &a);
            prop_assert_eq!(PortSet::from_ranges(&a.to_ranges()).unwrap(), a);
        }
    }

    #[test]
    fn touching_ranges_become_one() {
        assert_eq!(set("5,1-3,4,9-9").to_string(), "1-5,9");
    }

    #[test]
    fn impossible_ranges_are_named() {
        for (text, first, last) in [("0", 0, 0), ("65536", 65_536, 65_536), ("7-5", 7, 5)] {
            assert_eq!(text.parse::<PortSet>(), Err(PortSetError::BadRange { first, last }));
        }
        for text in ["a", "1-", "-3", "1--2", "99999999999"] {
            assert!(matches!(text.parse::<PortSet>(), Err(PortSetError::BadText { .. })), "{text}");
        }
    }

    #[test]
    fn lowest_takes_from_the_front() {
        assert_eq!(set("10-12,20").lowest(4).unwrap().to_string(), "10-12,20");
        assert_eq!(set("10-12,20").lowest(2).unwrap().to_string(), "10-11");
        assert_eq!(set("10").lowest(2), None);
    }
}
