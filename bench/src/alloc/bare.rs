//! The allocator alone.

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use bulkhead_master::{
    allocator::{Allocation, Allocator, Bundle, CPU, Drf, MEM, Pot, RoleSettings, Totals, Wants},
    ids::UnixMs,
};
use bulkhead_proto::v1::{ResourceClass, Resources};

use super::{Row, Shape, Timing, machine};

const OF: &str = "allocator";
const NOW: UnixMs = UnixMs(1_000_000);
/// Longer than any measurement: a round of declines meets all refusals of those before.
const REFUSED: UnixMs = UnixMs(1 << 60);
const DECLINE_ROUNDS: u32 = 20;
const SINGLES: u32 = 2_000;

struct Cluster {
    allocator: Allocator,
    capacity: Pot,
    agents: Vec<u32>,
    frameworks: Vec<u32>,
}

impl Cluster {
    fn new(shape: Shape) -> Self {
        let machine = machine();
        let amounts = Bundle::of(ResourceClass::Guaranteed, &machine);
        let capacity = Pot::new(amounts, Arc::new(machine.port_set().unwrap_or_default()));
        let mut cluster = Self {
            allocator: Allocator::new(Box::new(Drf), &[]),
            capacity,
            agents: Vec::new(),
            frameworks: Vec::new(),
        };
        for framework in 0..shape.frameworks {
            let wants = Wants::new(&[ResourceClass::Guaranteed], &Resources::default());
            let number = cluster.allocator.add_framework(&shape.role(framework), wants);
            cluster.allocator.set_connected(number, true);
            cluster.frameworks.push(number);
        }
        for _ in 0..shape.agents {
            cluster.add_agent();
        }
        cluster
    }

    fn add_agent(&mut self) {
        let agent = self.allocator.add_agent();
        self.agents.push(agent);
        self.set_free(agent, self.capacity.clone());
    }

    fn set_free(&mut self, agent: u32, free: Pot) {
        self.allocator.set_agent(agent, &self.capacity.amounts, free);
    }

    /// As the core does it when a task has ended or an offer is declined: what is free is all that is said.
    fn give_back(&mut self, made: &Allocation) {
        let mut held = self.allocator.held_by(made.framework).copied().unwrap_or_default();
        held.remove(&made.pot.amounts);
        self.allocator.set_held(made.framework, &held);
        self.set_free(made.agent, self.capacity.clone());
    }
}

/// All agents at once to all frameworks.
pub(super) fn full(shape: Shape, rounds: u32) -> Result<Row> {
    let mut timing = Timing::new()?;
    for _ in 0..rounds {
        let mut cluster = Cluster::new(shape);
        timing.time(|| cluster.allocator.allocate(NOW).len());
    }
    Ok(timing.row(OF, "everything is free", shape))
}

/// Everybody declines everything, and all is dealt out anew among those who have not refused it yet.
pub(super) fn declines(shape: Shape, rounds: u32) -> Result<Row> {
    let mut timing = Timing::new()?;
    for _ in 0..rounds {
        let mut cluster = Cluster::new(shape);
        let mut made = cluster.allocator.allocate(NOW);
        for _ in 0..DECLINE_ROUNDS {
            timing.time(|| {
                for one in &made {
                    cluster.give_back(one);
                    let idle = cluster.capacity.clone();
                    cluster.allocator.refuse(one.framework, one.agent, one.class, idle, REFUSED);
                }
                made = cluster.allocator.allocate(NOW);
                made.len()
            });
        }
    }
    Ok(timing.row(OF, "all offers are declined", shape))
}

/// Roles that have used up their quotas, and agents of which much is free.
pub(super) fn quota(shape: Shape, rounds: u32) -> Result<[Row; 2]> {
    let (mut idle, mut busy) = (Timing::new()?, Timing::new()?);
    for _ in 0..rounds {
        let mut cluster = Cluster::new(shape);
        let mut limit = Bundle::UNBOUNDED;
        (limit.0[CPU], limit.0[MEM]) = (1_000, 1 << 30);
        for role in 0..shape.roles {
            let settings = RoleSettings { limit, ..RoleSettings::default() };
            cluster.allocator.set_role(&format!("team-{role}"), settings);
        }
        for &framework in &cluster.frameworks {
            let held = Totals(limit.0.map(|amount| if amount == u64::MAX { 0 } else { amount.into() }));
            cluster.allocator.set_held(framework, &held);
        }
        cluster.allocator.allocate(NOW);
        idle.time(|| cluster.allocator.allocate(NOW).len());
        let less =
            Bundle::of(ResourceClass::Guaranteed, &Resources { cpu_milli: 1_000, ..Resources::default() });
        for agent in cluster.agents.clone() {
            let free = Pot::new(cluster.capacity.amounts.minus(&less), cluster.capacity.ports.clone());
            cluster.set_free(agent, free);
        }
        cluster.allocator.allocate(NOW);
        busy.time(|| {
            for agent in cluster.agents.clone() {
                cluster.set_free(agent, cluster.capacity.clone());
            }
            cluster.allocator.allocate(NOW).len()
        });
    }
    let quota_used_up = "more is free, and every quota is used up";
    Ok([idle.row(OF, "nothing changed", shape), busy.row(OF, quota_used_up, shape)])
}

/// One agent more, and one task less, in a cluster that is given away.
pub(super) fn single(shape: Shape) -> Result<[Row; 2]> {
    let mut cluster = Cluster::new(shape);
    let made = cluster.allocator.allocate(NOW);
    let (mut freed, mut added) = (Timing::new()?, Timing::new()?);
    for one in made.iter().cycle().step_by(7).take(SINGLES as usize) {
        freed.time(|| {
            cluster.give_back(one);
            cluster.allocator.allocate(NOW).len()
        });
        // Somebody else has it now; the next time round it is given back by hand.
        let begun = Instant::now();
        cluster.add_agent();
        let offers = cluster.allocator.allocate(NOW).len();
        added.add(begun.elapsed(), offers);
    }
    Ok([freed.row(OF, "one task ended", shape), added.row(OF, "one agent came", shape)])
}
