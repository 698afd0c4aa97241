//! Arithmetic on [`Resources`], the same for the agent, the master and frameworks.
//!
//! Amounts never go below zero and never wrap: what cannot be subtracted is `None`
//! ([`Resources::checked_sub`]) or stops at zero ([`Resources::saturating_sub`]).
//! Ports are sets, of TCP and of UDP: adding is the union, subtracting the difference, and a subtraction of a port
//! that is not there is `None`, like taking more CPU than there is.

use crate::v1::{PortRange, Resources};

pub use crate::ports::{PortNumbers, PortSet, PortSetError};

/// A kind of resource that is an amount. Everything that goes through all kinds goes through [`SCALARS`].
#[derive(Clone, Copy, Debug)]
pub struct Scalar {
    /// The field's name, which carries its unit.
    pub name: &'static str,
    /// For sentences such as "100 bytes of memory".
    pub unit: &'static str,
    /// Reads it.
    pub get: fn(&Resources) -> u64,
    /// Sets it.
    pub set: fn(&mut Resources, u64),
}

macro_rules! scalars {
    ($($field:ident: $unit:literal,)*) => {
        [$(Scalar {
            name: stringify!($field),
            unit: $unit,
            get: |resources| resources.$field,
            set: |resources, amount| resources.$field = amount,
        },)*]
    };
}

/// Every kind but the ports, CPU and memory first.
pub const SCALARS: [Scalar; 9] = scalars! {
    cpu_milli: "thousandths of a CPU",
    mem_bytes: "bytes of memory",
    disk_bytes: "bytes of disk",
    disk_read_bytes_per_sec: "bytes a second from disk",
    disk_write_bytes_per_sec: "bytes a second to disk",
    disk_read_ops_per_sec: "disk reads a second",
    disk_write_ops_per_sec: "disk writes a second",
    net_egress_bits_per_sec: "bits a second to send",
    net_ingress_bits_per_sec: "bits a second to receive",
};

impl Resources {
    /// The ports as a set. Ranges that no machine has (0, above 65535, reversed) are an error.
    ///
    /// # Errors
    /// [`PortSetError`] names the first range that is not one.
    pub fn port_set(&self) -> Result<PortSet, PortSetError> {
        PortSet::from_ranges(&self.ports)
    }

    /// Nothing of any kind.
    pub fn is_empty(&self) -> bool {
        SCALARS.iter().all(|kind| (kind.get)(self) == 0) && self.valid_ports().is_empty()
    }

    /// Is every amount of `other` here too?
    pub fn contains(&self, other: &Resources) -> bool {
        SCALARS.iter().all(|kind| (kind.get)(self) >= (kind.get)(other))
            && self.valid_ports().is_superset(&other.valid_ports())
    }

    /// Both together. Sums stop at the largest number; ports are united.
    #[must_use]
    pub fn plus(&self, other: &Resources) -> Resources {
        self.merge(other, u64::saturating_add, PortSet::union)
    }

    /// What is left without `other`, or `None` where `other` is not contained.
    pub fn checked_sub(&self, other: &Resources) -> Option<Resources> {
        self.contains(other).then(|| self.saturating_sub(other))
    }

    /// What is left without `other`, each kind at least nothing.
    #[must_use]
    pub fn saturating_sub(&self, other: &Resources) -> Resources {
        self.merge(other, u64::saturating_sub, PortSet::difference)
    }

    /// The smaller of both, kind by kind; the ports that are in both.
    #[must_use]
    pub fn at_most(&self, other: &Resources) -> Resources {
        self.merge(other, u64::min, PortSet::intersection)
    }

    /// The larger of both, kind by kind; the ports that are in either.
    #[must_use]
    pub fn at_least(&self, other: &Resources) -> Resources {
        self.merge(other, u64::max, PortSet::union)
    }

    fn merge(
        &self,
        other: &Resources,
        amounts: fn(u64, u64) -> u64,
        ports: fn(&PortSet, &PortSet) -> PortSet,
    ) -> Resources {
        let ports = ports(&self.valid_ports(), &other.valid_ports()).to_ranges();
        let mut merged = Resources { ports, ..Resources::default() };
        for kind in &SCALARS {
            (kind.set)(&mut merged, amounts((kind.get)(self), (kind.get)(other)));
        }
        merged
    }

    /// The ports that exist. Input from outside is checked with [`Resources::port_set`] where it
    /// enters; arithmetic leaves out what slipped through instead of failing in the middle.
    fn valid_ports(&self) -> PortSet {
        self.ports
            .iter()
            .filter_map(|r| PortSet::from_ranges(std::slice::from_ref(r)).ok())
            .fold(PortSet::default(), |all, one| all.union(&one))
    }
}

impl From<&PortSet> for Vec<PortRange> {
    fn from(set: &PortSet) -> Self {
        set.to_ranges()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ports() -> impl Strategy<Value = Vec<PortRange>> {
        let range = (1u32..200, 0u32..20, 0i32..3);
        prop::collection::vec(range, 0..6).prop_map(|ranges| {
            let range = |(first, len, protocol)| PortRange { first, last: first + len, protocol };
            ranges.into_iter().map(range).collect()
        })
    }

    fn resources() -> impl Strategy<Value = Resources> {
        (prop::array::uniform9(0u64..1000), ports()).prop_map(|(amounts, ports)| {
            let ports = PortSet::from_ranges(&ports).unwrap().to_ranges();
            let mut resources = Resources { ports, ..Resources::default() };
            for (kind, amount) in SCALARS.iter().zip(amounts) {
                (kind.set)(&mut resources, amount);
            }
            resources
        })
    }

    proptest! {
        #[test]
        fn what_was_taken_and_what_is_left_add_up(a in resources(), b in resources()) {
            let taken = a.at_most(&b);
            let left = a.checked_sub(&taken).expect("the smaller of both is contained");
            prop_assert_eq!(left.plus(&taken), a.clone());
            prop_assert!(a.at_least(&b).contains(&a) && a.at_least(&b).contains(&b));
        }

        #[test]
        fn subtraction_is_refused_exactly_when_not_contained(a in resources(), b in resources()) {
            prop_assert_eq!(a.checked_sub(&b).is_some(), a.contains(&b));
        }
    }

    #[test]
    fn a_port_that_is_not_there_cannot_be_taken() {
        let with = |text: &str| Resources {
            ports: text.parse::<PortSet>().unwrap().to_ranges(),
            ..Resources::default()
        };
        assert_eq!(with("10-12").checked_sub(&with("12-13")), None);
        assert_eq!(with("10-12").saturating_sub(&with("12-13")), with("10-11"));
        assert_eq!(with("10-12/tcp").checked_sub(&with("12/udp")), None, "of the other protocol");
        assert_eq!(with("10-12").checked_sub(&with("12/udp")), Some(with("10-11,12/tcp")));
        assert_eq!(with("10/tcp").plus(&with("10/udp")), with("10"));
    }
}
