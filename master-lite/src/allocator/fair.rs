//! The whole of what is free on an agent goes to the framework that has least.

use bulkhead_proto::{
    resources::PortSet,
    v1::{ResourceClass, Resources},
};

use super::{Allocation, Allocator, Demand, Supply};
use crate::{ids::AgentId, ledger::Totals};

/// Offers each agent whole, to the framework with the smallest dominant share first.
///
/// *Dominant share*: the larger of the framework's parts of the cluster's CPU and memory, offers it has not answered
/// included, so that within one call, too, the next agent goes to somebody else. *Ties* go to the framework whose last
/// offer is longest ago, then to the smaller id.
///
/// An agent's memory and ports are divided only where one framework takes its guaranteed and one its revocable CPU at
/// the same time: then in proportion to that CPU. Where the guaranteed part would not be enough after the division, it
/// goes undivided: the promise comes before the loan.
///
/// # Properties
/// - **Deterministic**: equal inputs give equal allocations.
/// - **Order**: no framework that would take an agent has a smaller share than the one that gets it.
/// - **Cost**: `demand` is sorted once; an agent costs as many looks as there are frameworks that refuse it.
#[derive(Debug, Default)]
pub struct Fair;

impl Allocator for Fair {
    fn allocate(&mut self, cluster: Totals, supply: &[Supply], demand: &[Demand<'_>]) -> Vec<Allocation> {
        let mut queue = Queue::new(cluster, demand);
        let mut made = Vec::new();
        for agent in supply {
            for (taker, class, resources) in divide(agent, &queue) {
                queue.charge(taker, &resources);
                let framework = demand[taker].framework.clone();
                made.push(Allocation { framework, agent: agent.agent.clone(), class, resources });
            }
        }
        made
    }
}

/// Index of a framework in the demand, the class, and how much.
type Taking = (usize, ResourceClass, Resources);

fn divide(supply: &Supply, queue: &Queue<'_>) -> Vec<Taking> {
    let first = |class, resources: &Resources| queue.first_taker(&supply.agent, class, resources);
    let (firm, lent) = split(supply);
    let firm_taker = first(ResourceClass::Guaranteed, &firm);
    let lent_taker = first(ResourceClass::Revocable, &lent);
    if let (Some(f), Some(l)) = (firm_taker, lent_taker) {
        return vec![(f, ResourceClass::Guaranteed, firm), (l, ResourceClass::Revocable, lent)];
    }
    if let Some(f) = first(ResourceClass::Guaranteed, &supply.pool) {
        let mut takings = vec![(f, ResourceClass::Guaranteed, supply.pool.clone())];
        let bare = Resources { cpu_milli: supply.revocable_cpu_milli, ..Resources::default() };
        takings.extend(first(ResourceClass::Revocable, &bare).map(|l| (l, ResourceClass::Revocable, bare)));
        return takings;
    }
    let whole = Resources { cpu_milli: supply.revocable_cpu_milli, ..supply.pool.clone() };
    first(ResourceClass::Revocable, &whole)
        .map(|l| (l, ResourceClass::Revocable, whole))
        .into_iter()
        .collect()
}

/// The agent in a guaranteed and a revocable part; memory and the highest ports in proportion to CPU.
fn split(supply: &Supply) -> (Resources, Resources) {
    let firm_cpu = u128::from(supply.pool.cpu_milli);
    let lent_cpu = u128::from(supply.revocable_cpu_milli);
    let firm_part = |amount: u64| {
        let part = (u128::from(amount) * firm_cpu).checked_div(firm_cpu + lent_cpu).unwrap_or(0);
        u64::try_from(part).unwrap_or(amount)
    };
    // A range that no machine has was refused when the report came in.
    let ports = supply.pool.port_set().unwrap_or_default();
    let firm_count = usize::try_from(firm_part(ports.len() as u64)).unwrap_or_default();
    let firm_ports = ports.first(firm_count);
    let firm = Resources {
        cpu_milli: supply.pool.cpu_milli,
        mem_bytes: firm_part(supply.pool.mem_bytes),
        ports: PortSet::to_ranges(&firm_ports),
        ..Resources::default()
    };
    let rest = supply.pool.saturating_sub(&firm);
    (firm, Resources { cpu_milli: supply.revocable_cpu_milli, ..rest })
}

/// The frameworks in order of need.
struct Queue<'a> {
    cluster: Totals,
    demand: &'a [Demand<'a>],
    held: Vec<Totals>,
    last_offered: Vec<u64>,
    /// Indexes into `demand`, the neediest first.
    order: Vec<usize>,
}

impl<'a> Queue<'a> {
    fn new(cluster: Totals, demand: &'a [Demand<'a>]) -> Self {
        let mut queue = Self {
            cluster,
            demand,
            held: demand.iter().map(|d| d.held).collect(),
            last_offered: demand.iter().map(|d| d.last_offered).collect(),
            order: (0..demand.len()).collect(),
        };
        let mut order = std::mem::take(&mut queue.order);
        order.sort_by_key(|&i| queue.need(i));
        queue.order = order;
        queue
    }

    /// Smaller is needier.
    fn need(&self, index: usize) -> impl Ord + use<'a> {
        let demand = self.demand;
        (dominant_share(self.held[index], self.cluster), self.last_offered[index], &demand[index].framework)
    }

    fn first_taker(&self, agent: &AgentId, class: ResourceClass, resources: &Resources) -> Option<usize> {
        self.order.iter().copied().find(|&i| (self.demand[i].takes)(agent, class, resources))
    }

    /// Counts what a framework was just given, and moves it back in the order.
    fn charge(&mut self, index: usize, resources: &Resources) {
        let newest = self.last_offered.iter().copied().max().unwrap_or_default();
        self.held[index].add(resources);
        self.last_offered[index] = newest.saturating_add(1);
        self.order.retain(|&i| i != index);
        let need = self.need(index);
        let place = self.order.partition_point(|&i| self.need(i) < need);
        self.order.insert(place, index);
    }
}

/// The larger part of CPU or memory, in parts of 2^32. A cluster without a kind gives it no weight.
fn dominant_share(held: Totals, cluster: Totals) -> u128 {
    let part = |have: u128, all: u128| (have << 32).checked_div(all).unwrap_or(0);
    part(held.cpu_milli, cluster.cpu_milli).max(part(held.mem_bytes, cluster.mem_bytes))
}

#[cfg(test)]
#[path = "fair_tests.rs"]
mod tests;
