//! Who is offered what is free.
//!
//! The core calls [`Allocator::allocate`] at the end of a step, with only the agents whose free resources or whose
//! takers have changed since the last call: an allocator sees a small part of the cluster at a time and must be fair
//! from what [`Demand`] says each framework holds already. It keeps no clock and does no I/O, so that the same inputs
//! give the same offers in a test, in a simulation and in production.
//!
//! [`Fair`] is the one in use. A dominant-resource-fair one with roles, weights and quotas fits the same trait: it
//! needs `Demand` to carry the role's weight, and nothing else in the master changes.

mod fair;

use bulkhead_proto::v1::{ResourceClass, Resources};

pub use fair::Fair;

use crate::{
    ids::{AgentId, FrameworkId},
    ledger::Totals,
};

/// An offer with less than this CPU *and* less than [`MIN_OFFER_MEM_BYTES`] of memory is not worth a message:
/// no program runs on a hundredth of a CPU, and the reserve of a busy machine moves by more than this.
pub const MIN_OFFER_CPU_MILLI: u64 = 10;
/// See [`MIN_OFFER_CPU_MILLI`]. The smallest memory that a container of any use has had in Mesos, too.
pub const MIN_OFFER_MEM_BYTES: u64 = 32 << 20;

/// Turns what is free into offers.
pub trait Allocator: Send {
    /// Divides `supply` among `demand`.
    ///
    /// The core promises: agents come once each; frameworks come once each and are connected.
    /// The allocator promises: the allocations on one agent are together at most its supply, and each one is worth
    /// offering, reaches its framework's minimum and was not refused ([`Demand::takes`](Demand#structfield.takes)).
    fn allocate(&mut self, cluster: Totals, supply: &[Supply], demand: &[Demand<'_>]) -> Vec<Allocation>;
}

/// What is free on one agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Supply {
    /// Where.
    pub agent: AgentId,
    /// Guaranteed CPU, and the memory and ports that both classes share.
    pub pool: Resources,
    /// CPU for revocable offers.
    pub revocable_cpu_milli: u64,
}

/// Answers whether a framework may be offered this much of an agent.
pub type Takes<'a> = Box<dyn Fn(&AgentId, ResourceClass, &Resources) -> bool + 'a>;

/// One framework that waits for offers.
pub struct Demand<'a> {
    /// Who.
    pub framework: FrameworkId,
    /// What it holds everywhere, offers included.
    pub held: Totals,
    /// Number of its newest offer, counted over all frameworks; 0 where it never had one.
    pub last_offered: u64,
    /// May this be offered to it: the class is wanted, the amount is worth a message, reaches the framework's
    /// minimum, and is not refused?
    pub takes: Takes<'a>,
}

/// One offer to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// To whom.
    pub framework: FrameworkId,
    /// Where.
    pub agent: AgentId,
    /// How firmly.
    pub class: ResourceClass,
    /// How much.
    pub resources: Resources,
}

/// Is this enough for anybody? A revocable offer is one of CPU: without any it only keeps memory from others.
pub fn worth_offering(class: ResourceClass, resources: &Resources) -> bool {
    let cpu = resources.cpu_milli >= MIN_OFFER_CPU_MILLI;
    cpu || (class != ResourceClass::Revocable && resources.mem_bytes >= MIN_OFFER_MEM_BYTES)
}
