//! The allocator's properties by their names, what it was told to do, and a reference that does the same by brute force.

mod dealing;
mod properties;
mod quota;
mod reference;
mod starvation;

use std::sync::Arc;

use bulkhead_proto::{resources::PortSet, v1::ResourceClass};

use super::*;

const NOW: UnixMs = UnixMs(1_000);
const GIB: u64 = 1 << 30;

fn bundle(cpu_milli: u64, mem_bytes: u64) -> Bundle {
    let mut bundle = Bundle::default();
    (bundle.0[CPU], bundle.0[MEM]) = (cpu_milli, mem_bytes);
    bundle
}

/// Only these two kinds are bounded.
fn limit(cpu_milli: u64, mem_bytes: u64) -> RoleSettings {
    let mut limit = Bundle::UNBOUNDED;
    (limit.0[CPU], limit.0[MEM]) = (cpu_milli, mem_bytes);
    RoleSettings { limit, ..RoleSettings::default() }
}

fn guarantee(cpu_milli: u64, mem_bytes: u64) -> RoleSettings {
    RoleSettings { guarantee: bundle(cpu_milli, mem_bytes), ..RoleSettings::default() }
}

fn weight(weight: f64) -> RoleSettings {
    RoleSettings { weight: Weight::try_from(weight).unwrap(), ..RoleSettings::default() }
}

fn pot(amounts: Bundle) -> Pot {
    Pot::new(amounts, Arc::default())
}

fn with_ports(amounts: Bundle, ports: &str) -> Pot {
    Pot::new(amounts, Arc::new(ports.parse::<PortSet>().unwrap()))
}

fn wants(cpu_milli: u64, mem_bytes: u64) -> Wants {
    let minimum = Resources { cpu_milli, mem_bytes, ..Resources::default() };
    Wants::new(&[ResourceClass::Guaranteed], &minimum)
}

fn drf() -> Allocator {
    Allocator::new(Box::new(Drf), &[])
}

impl Allocator {
    fn agent(&mut self, amounts: Bundle) -> u32 {
        let agent = self.add_agent();
        self.set_agent(agent, &amounts, pot(amounts));
        agent
    }

    fn framework(&mut self, role: &str) -> u32 {
        self.framework_wanting(role, wants(0, 0))
    }

    fn framework_wanting(&mut self, role: &str, wants: Wants) -> u32 {
        let framework = self.add_framework(role, wants);
        self.set_connected(framework, true);
        framework
    }

    /// Takes an allocation back, as if it had been declined or its task had ended.
    fn give_back(&mut self, made: &Allocation) {
        let mut held = *self.held_by(made.framework).unwrap();
        held.remove(&made.pot.amounts);
        self.set_held(made.framework, &held);
        let capacity = self.agents[at(made.agent)].as_ref().unwrap().capacity;
        let free = self.free_of(made.agent).unwrap().plus(&made.pot);
        self.set_agent(made.agent, &capacity, free);
    }

    fn decline(&mut self, made: &Allocation, until: UnixMs) {
        self.give_back(made);
        let idle = self.free_of(made.agent).unwrap().clone();
        self.refuse(made.framework, made.agent, made.class, idle, until);
    }

    /// Thousandths of a CPU that a framework holds.
    fn cpu(&self, framework: u32) -> u128 {
        self.held_by(framework).unwrap().0[CPU]
    }
}

/// Who got how many thousandths of a CPU.
fn cpus(made: &[Allocation]) -> Vec<(u32, u64)> {
    made.iter().map(|a| (a.framework, a.pot.amounts.0[CPU])).collect()
}
