//! What there is to give on one agent: amounts, and which ports they are.

use std::sync::Arc;

use bulkhead_proto::{resources::PortSet, v1::ResourceClass};

use super::bundle::{Bundle, CPU, KINDS, MEM, PORTS, REVOCABLE_CPU, cpu_kind};

/// CPU is divided in steps of a hundredth: nobody is helped by a thousandth.
const CPU_STEP_MILLI: u64 = 10;
/// Memory is divided in steps of a mebibyte.
const MEM_STEP_BYTES: u64 = 1 << 20;

/// Amounts with their ports. The number of ports among the amounts is that of the set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pot {
    /// How much.
    pub amounts: Bundle,
    /// Which ports; shared, as most agents give theirs away whole.
    pub ports: Arc<PortSet>,
}

impl Pot {
    /// These amounts, and these ports whatever number of them the amounts say.
    pub fn new(mut amounts: Bundle, ports: Arc<PortSet>) -> Self {
        amounts.0[PORTS] = ports.len_by_protocol() as u64;
        Self { amounts, ports }
    }

    /// What an offer of this class can be made of.
    pub(super) fn of_class(&self, class: ResourceClass) -> Self {
        let other = if class == ResourceClass::Revocable { CPU } else { REVOCABLE_CPU };
        let mut pot = self.clone();
        pot.amounts.0[other] = 0;
        pot
    }

    /// The agent in a guaranteed and a revocable part; memory, disk, bandwidth and the highest ports in proportion to CPU.
    pub(super) fn by_class(&self) -> (Self, Self) {
        let (firm_cpu, lent_cpu) = (self.amounts.0[CPU], self.amounts.0[REVOCABLE_CPU]);
        let mut firm = self.of_class(ResourceClass::Guaranteed);
        for kind in (0..KINDS).filter(|&kind| kind != CPU && kind != PORTS) {
            firm.amounts.0[kind] =
                part_of(firm.amounts.0[kind], firm_cpu, u128::from(firm_cpu) + u128::from(lent_cpu));
        }
        if !self.ports.is_empty() {
            let all = self.ports.len() as u64;
            let count = part_of(all, firm_cpu, u128::from(firm_cpu) + u128::from(lent_cpu));
            firm = Self::new(
                firm.amounts,
                Arc::new(self.ports.first(usize::try_from(count).unwrap_or_default())),
            );
        }
        let lent = self.without(&firm);
        (firm, lent)
    }

    /// What is left without `taken`, which was taken out of it.
    pub(super) fn without(&self, taken: &Self) -> Self {
        let amounts = self.amounts.minus(&taken.amounts);
        let ports = if amounts.0[PORTS] == 0 {
            Arc::default()
        } else if taken.amounts.0[PORTS] == 0 {
            self.ports.clone()
        } else {
            Arc::new(self.ports.difference(&taken.ports))
        };
        Self { amounts, ports }
    }

    /// Both together.
    pub(super) fn plus(&self, other: &Self) -> Self {
        if other.amounts.0[PORTS] == 0 {
            return Self { amounts: self.amounts.plus(&other.amounts), ports: self.ports.clone() };
        }
        Self::new(self.amounts.plus(&other.amounts), Arc::new(self.ports.union(&other.ports)))
    }

    /// As much of it as there is room for.
    pub(super) fn at_most(&self, room: &Bundle) -> Self {
        let amounts = self.amounts.at_most(room);
        if amounts.0[PORTS] == self.amounts.0[PORTS] {
            return Self { amounts, ports: self.ports.clone() };
        }
        // A number counts twice where both protocols have it.
        let count = usize::try_from(amounts.0[PORTS] / 2).unwrap_or_default();
        Self::new(amounts, Arc::new(self.ports.first(count)))
    }

    /// A part of every kind, in millionths, rounded up to whole steps; at least `least`, of which this is enough.
    pub(super) fn part(&self, class: ResourceClass, millionths: u64, least: &Self) -> Self {
        let cpu = cpu_kind(class);
        let mut amounts = Bundle(self.amounts.0.map(|amount| part_of(amount, millionths, 1_000_000)));
        amounts.0[cpu] = amounts.0[cpu].div_ceil(CPU_STEP_MILLI).saturating_mul(CPU_STEP_MILLI);
        amounts.0[MEM] = amounts.0[MEM].div_ceil(MEM_STEP_BYTES).saturating_mul(MEM_STEP_BYTES);
        let amounts = amounts.at_least(&least.amounts).at_most(&self.amounts);
        if self.ports.is_empty() {
            return Self { amounts, ports: Arc::default() };
        }
        let count = part_of(self.ports.len() as u64, millionths, 1_000_000);
        let any = self.ports.difference(&least.ports).first(usize::try_from(count).unwrap_or_default());
        Self::new(amounts, Arc::new(any.union(&least.ports)))
    }

    /// What is in both.
    pub(super) fn intersect(&self, other: &Self) -> Self {
        let amounts = self.amounts.at_most(&other.amounts);
        if Arc::ptr_eq(&self.ports, &other.ports) || other.ports.is_superset(&self.ports) {
            return Self { amounts, ports: self.ports.clone() };
        }
        Self::new(amounts, Arc::new(self.ports.intersection(&other.ports)))
    }

    /// Is all of `other` here?
    pub(super) fn contains(&self, other: &Self) -> bool {
        self.amounts.contains(&other.amounts)
            && (other.ports.is_empty() || self.ports.is_superset(&other.ports))
    }
}

/// `amount * numerator / denominator`, rounded down; nothing of nothing.
fn part_of(amount: u64, numerator: u64, denominator: u128) -> u64 {
    let part = (u128::from(amount) * u128::from(numerator)).checked_div(denominator).unwrap_or(0);
    u64::try_from(part).unwrap_or(amount)
}
