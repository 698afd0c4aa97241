//! Amounts of every kind of resource, as the allocator counts them.

use std::collections::BTreeMap;

use bulkhead_proto::{
    resources::{PortSet, SCALARS},
    v1::{ResourceClass, Resources},
};

/// How many kinds there are: the scalars of [`SCALARS`], the number of ports, and CPU that is lent.
pub const KINDS: usize = SCALARS.len() + 2;
/// Guaranteed CPU, in thousandths.
pub const CPU: usize = 0;
/// Memory of both classes, in bytes.
pub const MEM: usize = 1;
/// Number of ports; one that both protocols have counts twice.
pub const PORTS: usize = SCALARS.len();
/// CPU of revocable holdings, in thousandths.
pub const REVOCABLE_CPU: usize = SCALARS.len() + 1;

/// An offer with less than this CPU *and* less than [`MIN_OFFER_MEM_BYTES`] of memory is not worth a message:
/// no program runs on a hundredth of a CPU, and the reserve of a busy machine moves by more than this.
pub const MIN_OFFER_CPU_MILLI: u64 = 10;
/// See [`MIN_OFFER_CPU_MILLI`]. The smallest memory that a container of any use has had in Mesos, too.
pub const MIN_OFFER_MEM_BYTES: u64 = 32 << 20;

/// The name of a kind, with its unit, as it stands in the configuration.
pub fn kind_name(kind: usize) -> &'static str {
    match kind {
        PORTS => "ports",
        REVOCABLE_CPU => "revocable_cpu_milli",
        scalar => SCALARS.get(scalar).map_or("", |s| s.name),
    }
}

/// The kind of this name.
pub fn kind_named(name: &str) -> Option<usize> {
    (0..KINDS).find(|&kind| kind_name(kind) == name)
}

/// A name that is no kind's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no kind of resource; the kinds are {}", all_kinds())]
pub struct NoSuchKind {
    name: String,
}

fn all_kinds() -> String {
    (0..KINDS).map(kind_name).collect::<Vec<_>>().join(", ")
}

/// The kind of this name, or which names there are.
///
/// # Errors
/// For any other name.
pub fn kind_called(name: &str) -> Result<usize, NoSuchKind> {
    kind_named(name).ok_or_else(|| NoSuchKind { name: name.chars().take(100).collect() })
}

/// So much of each kind, in the units of [`kind_name`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bundle(pub [u64; KINDS]);

impl Bundle {
    /// As much as can be said: the absence of a bound.
    pub const UNBOUNDED: Self = Self([u64::MAX; KINDS]);

    /// The amounts of a holding of this class.
    pub fn of(class: ResourceClass, resources: &Resources) -> Self {
        // A range that no machine has was refused when it came in.
        let ports = resources.port_set().unwrap_or_default();
        let mut bundle = Self([0; KINDS]);
        for (amount, kind) in bundle.0.iter_mut().zip(&SCALARS) {
            *amount = (kind.get)(resources);
        }
        bundle.0[PORTS] = ports.len_by_protocol() as u64;
        if class == ResourceClass::Revocable {
            bundle.0[REVOCABLE_CPU] = std::mem::take(&mut bundle.0[CPU]);
        }
        bundle
    }

    /// This, with other amounts of these kinds.
    ///
    /// # Errors
    /// For a name that is no kind's.
    pub fn with_kinds(mut self, amounts: &BTreeMap<String, u64>) -> Result<Self, NoSuchKind> {
        for (name, &amount) in amounts {
            self.0[kind_called(name)?] = amount;
        }
        Ok(self)
    }

    /// What there is anything of, by name.
    pub fn by_kind(&self) -> BTreeMap<String, u64> {
        by_kind(&self.0, |amount| amount > 0)
    }

    /// What is bounded, by name.
    pub fn bounds_by_kind(&self) -> BTreeMap<String, u64> {
        by_kind(&self.0, |amount| amount < u64::MAX)
    }

    /// The same as [`Resources`] of an offer of this class, with these ports.
    pub fn to_resources(&self, class: ResourceClass, ports: &PortSet) -> Resources {
        let mut resources = Resources { ports: ports.to_ranges(), ..Resources::default() };
        for (&amount, kind) in self.0.iter().zip(&SCALARS) {
            (kind.set)(&mut resources, amount);
        }
        resources.cpu_milli = self.cpu(class);
        resources
    }

    /// CPU of this class.
    pub fn cpu(&self, class: ResourceClass) -> u64 {
        self.0[cpu_kind(class)]
    }

    /// The smaller of both, kind by kind.
    #[must_use]
    pub fn at_most(&self, other: &Self) -> Self {
        self.each(other, u64::min)
    }

    /// The larger of both, kind by kind.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> Self {
        self.each(other, u64::max)
    }

    /// Both together; sums stop at the largest number.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    /// What is left without `other`, each kind at least nothing.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.each(other, u64::saturating_sub)
    }

    /// Is every amount of `other` here too?
    pub fn contains(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(have, want)| have >= want)
    }

    /// Is this enough for anybody? A revocable offer is one of CPU: without any it only keeps memory from others.
    pub fn is_worth_offering(&self, class: ResourceClass) -> bool {
        self.cpu(class) >= MIN_OFFER_CPU_MILLI
            || (class != ResourceClass::Revocable && self.0[MEM] >= MIN_OFFER_MEM_BYTES)
    }

    fn each(&self, other: &Self, of: fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|kind| of(self.0[kind], other.0[kind])))
    }
}

/// Which CPU a class is made of.
pub(super) fn cpu_kind(class: ResourceClass) -> usize {
    if class == ResourceClass::Revocable { REVOCABLE_CPU } else { CPU }
}

/// Sums of bundles over many agents, wide enough for any that agents can report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals(pub [u128; KINDS]);

impl Totals {
    /// Counts more in.
    pub fn add(&mut self, bundle: &Bundle) {
        for (sum, &more) in self.0.iter_mut().zip(&bundle.0) {
            *sum = sum.saturating_add(more.into());
        }
    }

    /// Counts out what was counted in before.
    pub fn remove(&mut self, bundle: &Bundle) {
        for (sum, &less) in self.0.iter_mut().zip(&bundle.0) {
            *sum = sum.saturating_sub(less.into());
        }
    }

    /// Replaces a part of the sum.
    pub(super) fn exchange(&mut self, old: &Self, new: &Self) {
        for (sum, (old, new)) in self.0.iter_mut().zip(old.0.iter().zip(&new.0)) {
            *sum = sum.saturating_sub(*old).saturating_add(*new);
        }
    }

    /// What there is anything of, by name; as far as numbers of 64 bits go.
    pub fn by_kind(&self) -> BTreeMap<String, u64> {
        by_kind(&self.0.map(narrow), |amount| amount > 0)
    }

    /// Nothing of any kind.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&amount| amount == 0)
    }

    /// What is left of a bound.
    pub(super) fn left_of(&self, bound: &Bundle) -> Bundle {
        Bundle(std::array::from_fn(|kind| match bound.0[kind] {
            u64::MAX => u64::MAX,
            bound => bound.saturating_sub(narrow(self.0[kind])),
        }))
    }

    /// What is here beyond `other`, as far as one agent can have it.
    pub(super) fn beyond(&self, other: &Self) -> Bundle {
        Bundle(std::array::from_fn(|kind| narrow(self.0[kind].saturating_sub(other.0[kind]))))
    }
}

impl From<&Bundle> for Totals {
    fn from(bundle: &Bundle) -> Self {
        Self(bundle.0.map(u128::from))
    }
}

fn by_kind(amounts: &[u64; KINDS], is_told: fn(u64) -> bool) -> BTreeMap<String, u64> {
    let told = amounts.iter().enumerate().filter(|&(_, &amount)| is_told(amount));
    told.map(|(kind, &amount)| (kind_name(kind).to_owned(), amount)).collect()
}

fn narrow(amount: u128) -> u64 {
    u64::try_from(amount).unwrap_or(u64::MAX)
}
