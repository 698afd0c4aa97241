use proptest::prelude::*;

use super::*;
use crate::{allocator::worth_offering, ids::FrameworkId};

const CLUSTER: Totals = Totals { cpu_milli: 10_000, mem_bytes: 10_000 };

fn supply(agent: &str, cpu_milli: u64, mem_bytes: u64, revocable_cpu_milli: u64) -> Supply {
    let pool = Resources { cpu_milli, mem_bytes, ports: Vec::new(), ..Resources::default() };
    Supply { agent: agent.into(), pool, revocable_cpu_milli }
}

fn demand(id: &str, cpu_milli: u128, mem_bytes: u128, last_offered: u64) -> Demand<'static> {
    wanting(id, cpu_milli, mem_bytes, last_offered, &[ResourceClass::Guaranteed])
}

fn wanting(
    id: &str,
    cpu_milli: u128,
    mem_bytes: u128,
    last_offered: u64,
    classes: &'static [ResourceClass],
) -> Demand<'static> {
    let takes = move |_: &AgentId, class: ResourceClass, resources: &Resources| {
        classes.contains(&class) && worth_offering(class, resources)
    };
    let held = Totals { cpu_milli, mem_bytes };
    Demand { framework: id.into(), held, last_offered, takes: Box::new(takes) }
}

fn takers(supply: &[Supply], demand: &[Demand<'_>]) -> Vec<String> {
    Fair.allocate(CLUSTER, supply, demand).iter().map(|a| a.framework.to_string()).collect()
}

#[test]
fn the_smallest_dominant_share_is_served_first() {
    let demand =
        [demand("cpu-heavy", 5_000, 0, 0), demand("mem-heavy", 0, 4_000, 0), demand("even", 3_000, 3_000, 0)];
    assert_eq!(takers(&[supply("a", 100, 100, 0)], &demand), ["even"]);
}

#[test]
fn equal_shares_take_turns() {
    let demand = [demand("a", 0, 0, 7), demand("b", 0, 0, 3), demand("c", 0, 0, 5)];
    let agents = ["1", "2", "3", "4"].map(|id| supply(id, 100, 100, 0));
    assert_eq!(takers(&agents, &demand), ["b", "c", "a", "b"]);
}

#[test]
fn an_agent_goes_to_the_next_one_when_the_first_does_not_take_it() {
    let mut refusing = demand("first", 0, 0, 0);
    refusing.takes = Box::new(|agent, class, _| agent.as_str() != "a" && class == ResourceClass::Guaranteed);
    let demand = [refusing, demand("second", 9_000, 0, 0)];
    assert_eq!(takers(&[supply("a", 100, 100, 0), supply("b", 100, 100, 0)], &demand), ["second", "first"]);
}

#[test]
fn an_empty_cluster_or_nobody_gives_nothing() {
    assert!(takers(&[], &[demand("a", 0, 0, 0)]).is_empty());
    assert!(takers(&[supply("a", 100, 100, 0)], &[]).is_empty());
    assert!(Fair.allocate(Totals::default(), &[supply("a", 0, 0, 0)], &[demand("a", 0, 0, 0)]).is_empty());
}

#[test]
fn the_promise_goes_whole_where_a_part_would_not_do() {
    let mut large = demand("large", 0, 0, 0);
    large.takes = Box::new(|_, class, r| class == ResourceClass::Guaranteed && r.mem_bytes >= 900);
    let lent = wanting("lent", 0, 0, 0, &[ResourceClass::Revocable]);
    let made = Fair.allocate(CLUSTER, &[supply("a", 1_000, 1_000, 1_000)], &[large, lent]);
    let got: Vec<_> = made.iter().map(|a| (a.framework.as_str(), a.resources.mem_bytes)).collect();
    assert_eq!(got, [("large", 1_000), ("lent", 0)]);
}

proptest! {
    #[test]
    fn nothing_is_given_that_is_not_there(
        agents in prop::collection::vec((0u64..3_000, 0u64..1 << 30, 0u64..3_000, 0u32..30), 0..8),
        frameworks in prop::collection::vec((0u128..9_000, 0u64..5, 0usize..4), 0..6),
    ) {
        let choices: [&'static [ResourceClass]; 4] = [
            &[],
            &[ResourceClass::Guaranteed],
            &[ResourceClass::Revocable],
            &[ResourceClass::Guaranteed, ResourceClass::Revocable],
        ];
        let supply: Vec<_> = agents.iter().enumerate().map(|(i, &(cpu, mem, lent, ports))| {
            let mut supply = supply(&i.to_string(), cpu, mem, lent);
            supply.pool.ports = (1..=ports).map(|p| bulkhead_proto::v1::PortRange { first: p * 2, last: p * 2, ..bulkhead_proto::v1::PortRange::default() }).collect();
            supply
        }).collect();
        let demand: Vec<_> = frameworks.iter().enumerate()
            .map(|(i, &(held, last, classes))| wanting(&i.to_string(), held, 0, last, choices[classes]))
            .collect();
        let made = Fair.allocate(CLUSTER, &supply, &demand);
        for agent in &supply {
            let mut left = agent.pool.clone();
            let mut lent = agent.revocable_cpu_milli;
            for one in made.iter().filter(|a| a.agent == agent.agent) {
                let taker = demand.iter().find(|d| d.framework == one.framework).unwrap();
                prop_assert!((taker.takes)(&one.agent, one.class, &one.resources));
                let mut pool = one.resources.clone();
                if one.class == ResourceClass::Revocable {
                    lent = lent.checked_sub(std::mem::take(&mut pool.cpu_milli)).expect("no more than is lent");
                }
                left = left.checked_sub(&pool).expect("no more than there is");
            }
            let would_take = |d: &Demand<'_>| (d.takes)(&agent.agent, ResourceClass::Guaranteed, &agent.pool);
            let untouched = made.iter().all(|a| a.agent != agent.agent);
            prop_assert!(!untouched || !demand.iter().any(would_take), "an agent was left though somebody takes it");
        }
    }

    #[test]
    fn no_taker_has_a_smaller_share(held in prop::collection::vec(0u128..9_000, 1..6)) {
        let demand: Vec<_> = held.iter().enumerate().map(|(i, &h)| demand(&i.to_string(), h, 0, 0)).collect();
        let made = Fair.allocate(CLUSTER, &[supply("a", 100, 100, 0)], &demand);
        let least = *held.iter().min().unwrap();
        let winner: FrameworkId = made[0].framework.clone();
        prop_assert_eq!(demand.iter().find(|d| d.framework == winner).unwrap().held.cpu_milli, least);
    }
}
