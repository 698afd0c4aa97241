//! Sets of ports, as grants and offers carry them: TCP and UDP apart.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    str::FromStr,
};

use crate::v1::{PortRange, Protocol};

mod range;

pub use range::PortNumbers;

/// A set of ports between 1 and 65535 for each protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortSet {
    tcp: PortNumbers,
    udp: PortNumbers,
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
    /// A protocol that this build does not know.
    #[error("ports {first}-{last}: protocol {protocol} is neither TCP (1), UDP (2) nor both (0)")]
    BadProtocol {
        /// The first port of the range.
        first: u32,
        /// The last port of the range.
        last: u32,
        /// What was said.
        protocol: i32,
    },
    /// Not written as `N` or `N-M`, separated by commas.
    #[error(
        "ports {text:?}: write single ports and ranges separated by commas, each with /tcp or /udp where it is not \
         for both, like 8080/tcp,53/udp,31000-31010"
    )]
    BadText {
        /// What was written.
        text: String,
    },
}

impl PortSet {
    /// The same numbers for both protocols.
    pub fn both(numbers: PortNumbers) -> Self {
        Self { tcp: numbers.clone(), udp: numbers }
    }

    /// Numbers of each protocol.
    pub fn new(tcp: PortNumbers, udp: PortNumbers) -> Self {
        Self { tcp, udp }
    }

    /// The set that these ranges cover together; they may overlap and come in any order.
    ///
    /// # Errors
    /// [`PortSetError`] for the first range that no machine has.
    pub fn from_ranges(ranges: &[PortRange]) -> Result<Self, PortSetError> {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for &PortRange { first, last, protocol } in ranges {
            let (Ok(a), Ok(b)) = (u16::try_from(first), u16::try_from(last)) else {
                return Err(PortSetError::BadRange { first, last });
            };
            if a == 0 || b < a {
                return Err(PortSetError::BadRange { first, last });
            }
            let protocol = Protocol::try_from(protocol).map_err(|_| PortSetError::BadProtocol {
                first,
                last,
                protocol,
            })?;
            if protocol != Protocol::Udp {
                tcp.push((a, b));
            }
            if protocol != Protocol::Tcp {
                udp.push((a, b));
            }
        }
        Ok(Self { tcp: PortNumbers::from_pairs(tcp), udp: PortNumbers::from_pairs(udp) })
    }

    /// The set of these single ports, for both protocols; 0 is left out.
    pub fn from_ports(ports: impl IntoIterator<Item = u16>) -> Self {
        Self::both(ports.into_iter().collect())
    }

    /// The same set as protocol ranges: those of both protocols first, then what only one of them has.
    pub fn to_ranges(&self) -> Vec<PortRange> {
        let [both, tcp, udp] = self.parts();
        let parts = [(both, Protocol::Unspecified), (tcp, Protocol::Tcp), (udp, Protocol::Udp)];
        let ranges = parts.iter().flat_map(|(numbers, protocol)| {
            let range = |&(a, b): &(u16, u16)| PortRange {
                first: a.into(),
                last: b.into(),
                protocol: (*protocol).into(),
            };
            numbers.ranges().iter().map(range)
        });
        ranges.collect()
    }

    /// Numbers that TCP has.
    pub fn tcp(&self) -> &PortNumbers {
        &self.tcp
    }

    /// Numbers that UDP has.
    pub fn udp(&self) -> &PortNumbers {
        &self.udp
    }

    /// Numbers that either protocol has.
    pub fn numbers(&self) -> PortNumbers {
        self.tcp.union(&self.udp)
    }

    /// How many numbers, whether for one protocol or for both.
    pub fn len(&self) -> usize {
        self.numbers().len()
    }

    /// How many ports, a number that both protocols have as two.
    pub fn len_by_protocol(&self) -> usize {
        self.tcp.len() + self.udp.len()
    }

    /// No port at all.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    /// Is this port in the set? Without a protocol: for both.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        (protocol == Protocol::Udp || self.tcp.contains(port))
            && (protocol == Protocol::Tcp || self.udp.contains(port))
    }

    /// Are all ports of `other` here too?
    pub fn is_superset(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }

    /// The `count` lowest numbers that both protocols have, or `None` where there are fewer.
    pub fn lowest(&self, count: usize) -> Option<Self> {
        let [both, ..] = self.parts();
        (both.len() >= count).then(|| Self::from_ports(both.iter().take(count)))
    }

    /// The `count` lowest numbers, or as many as there are, each for the protocols that have it.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        let numbers: PortNumbers = self.numbers().iter().take(count).collect();
        self.intersection(&Self::both(numbers))
    }

    /// Ports that are in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.each(other, PortNumbers::union)
    }

    /// Ports that are here and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.each(other, PortNumbers::difference)
    }

    /// Ports that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.each(other, PortNumbers::intersection)
    }

    fn each(&self, other: &Self, of: fn(&PortNumbers, &PortNumbers) -> PortNumbers) -> Self {
        Self { tcp: of(&self.tcp, &other.tcp), udp: of(&self.udp, &other.udp) }
    }

    /// What both protocols have, what TCP alone has, and UDP.
    fn parts(&self) -> [PortNumbers; 3] {
        let both = self.tcp.intersection(&self.udp);
        [both.clone(), self.tcp.difference(&both), self.udp.difference(&both)]
    }
}

/// Ascending; `/tcp` and `/udp` stand behind what is not for both.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffixes = ["", "/tcp", "/udp"];
        // Parts share no port of one protocol, but a TCP range may begin where one of UDP does.
        let mut ranges = BTreeSet::new();
        for (numbers, suffix) in self.parts().iter().zip(suffixes) {
            ranges.extend(numbers.ranges().iter().map(|&range| (range, suffix)));
        }
        for (i, ((a, b), suffix)) in ranges.into_iter().enumerate() {
            if i > 0 {
                f.write_char(',')?;
            }
            if a == b { write!(f, "{a}{suffix}")? } else { write!(f, "{a}-{b}{suffix}")? }
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
            let (part, protocol) = match part.split_once('/') {
                None => (part, Protocol::Unspecified),
                Some((part, name)) if name.trim().eq_ignore_ascii_case("tcp") => (part, Protocol::Tcp),
                Some((part, name)) if name.trim().eq_ignore_ascii_case("udp") => (part, Protocol::Udp),
                Some(_) => return Err(bad()),
            };
            let (first, last) = match part.split_once('-') {
                Some((a, b)) => (number(a)?, number(b)?),
                None => (number(part)?, number(part)?),
            };
            ranges.push(PortRange { first, last, protocol: protocol.into() });
        }
        Self::from_ranges(&ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    /// Ranges near both ends of the port space, where arithmetic goes wrong.
    fn any_set() -> impl Strategy<Value = PortSet> {
        let low = (1u32..60, 0u32..9);
        let high = (65_500u32..=65_530, 0u32..6);
        prop::collection::vec((prop_oneof![low, high], 0i32..3), 0..8).prop_map(|v| {
            let range = |((first, n), protocol)| PortRange { first, last: first + n, protocol };
            PortSet::from_ranges(&v.into_iter().map(range).collect::<Vec<_>>()).unwrap()
        })
    }

    const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

    /// Each port by its protocol: what a set of ports is.
    fn model(set: &PortSet) -> BTreeSet<(bool, u16)> {
        set.tcp.iter().map(|port| (false, port)).chain(set.udp.iter().map(|port| (true, port))).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(a in any_set(), b in any_set(), count in 0usize..20) {
            let (ma, mb) = (model(&a), model(&b));
            prop_assert_eq!(model(&a.union(&b)), &ma | &mb);
            prop_assert_eq!(model(&a.difference(&b)), &ma - &mb);
            prop_assert_eq!(model(&a.intersection(&b)), &ma & &mb);
            prop_assert_eq!(a.is_superset(&b), ma.is_superset(&mb));
            prop_assert_eq!(a.len_by_protocol(), ma.len());
            let numbers: BTreeSet<u16> = ma.iter().map(|(_, port)| *port).collect();
            prop_assert_eq!(a.len(), numbers.len());
            for port in [1, 30, 59, 65_500, 65_535] {
                let [tcp, udp] = [false, true].map(|udp| ma.contains(&(udp, port)));
                prop_assert_eq!(PROTOCOLS.map(|p| a.contains(p, port)), [tcp, udp]);
                prop_assert_eq!(a.contains(Protocol::Unspecified, port), tcp && udp);
            }
            let both: Vec<u16> =
                numbers.iter().copied().filter(|p| [false, true].iter().all(|u| ma.contains(&(*u, *p)))).collect();
            let lowest = both.get(..count).map(|ports| PortSet::from_ports(ports.iter().copied()));
            prop_assert_eq!(a.lowest(count), lowest);
            let first: BTreeSet<u16> = numbers.into_iter().take(count).collect();
            let expected: BTreeSet<_> = ma.into_iter().filter(|(_, port)| first.contains(port)).collect();
            prop_assert_eq!(model(&a.first(count)), expected);
        }

        #[test]
        fn text_and_ranges_come_back(a in any_set()) {
            prop_assert_eq!(&set(&a.to_string()), &a);
            prop_assert_eq!(PortSet::from_ranges(&a.to_ranges()).unwrap(), a);
        }

        #[test]
        fn no_text_panics(text in "[0-9,/tcpud -]{0,20}") {
            if let Ok(set) = text.parse::<PortSet>() {
                prop_assert_eq!(set.to_string().parse::<PortSet>().unwrap(), set);
            }
        }
    }

    #[test]
    fn touching_ranges_become_one() {
        assert_eq!(set("5,1-3,4,9-9").to_string(), "1-5,9");
        assert_eq!(set("5/tcp,5/udp").to_string(), "5");
        assert_eq!(set("8080/tcp, 53/UDP,31000-31010").to_string(), "53/udp,8080/tcp,31000-31010");
        assert_eq!(set("1-9/tcp,4-12/udp").to_string(), "1-3/tcp,4-9,10-12/udp");
    }

    #[test]
    fn impossible_ranges_are_named() {
        for (text, first, last) in [("0", 0, 0), ("65536/tcp", 65_536, 65_536), ("7-5", 7, 5)] {
            assert_eq!(text.parse::<PortSet>(), Err(PortSetError::BadRange { first, last }));
        }
        for text in ["a", "1-", "-3", "1--2", "99999999999", "5/sctp", "5/", "5/tcp/udp"] {
            assert!(matches!(text.parse::<PortSet>(), Err(PortSetError::BadText { .. })), "{text}");
        }
        let unknown = PortRange { first: 1, last: 2, protocol: 132 };
        let error = PortSet::from_ranges(&[unknown]).unwrap_err();
        assert!(error.to_string().contains("132"), "{error}");
    }

    #[test]
    fn lowest_takes_what_both_protocols_have() {
        assert_eq!(set("10-12,20").lowest(4).unwrap().to_string(), "10-12,20");
        assert_eq!(set("9/tcp,10-12,20").lowest(2).unwrap().to_string(), "10-11");
        assert_eq!(set("10,11/udp").lowest(2), None);
    }
}
