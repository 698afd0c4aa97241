//! What dominant resource fairness promises, on clusters of any shape.

use proptest::prelude::*;

use super::*;

/// CPU in thousandths and memory in GiB of each agent.
fn agents() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((1_000u64..9_000, 1u64..9), 1..30)
}

fn alike() -> impl Strategy<Value = Vec<(u64, u64)>> {
    (1usize..40, 1_000u64..9_000, 1u64..9).prop_map(|(n, cpu, mem)| vec![(cpu, mem); n])
}

fn cluster(agents: &[(u64, u64)]) -> (Allocator, Vec<u32>) {
    let mut allocator = drf();
    let numbers = agents.iter().map(|&(cpu, mem)| allocator.agent(bundle(cpu, mem * GIB))).collect();
    (allocator, numbers)
}

/// The largest agent, as a share of the cluster.
fn one_agent(agents: &[(u64, u64)]) -> f64 {
    let (cpu, mem) = agents.iter().fold((0, 0), |sum, a| (sum.0 + a.0, sum.1 + a.1));
    agents.iter().map(|a| (a.0 as f64 / cpu as f64).max(a.1 as f64 / mem as f64)).fold(0.0, f64::max)
}

/// Nothing is written beside the sources.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

const TINY: f64 = 1e-9;

proptest! {
    #![proptest_config(config())]

    /// What is given of an agent was free there, and is free no more.
    #[test]
    fn conservation(
        agents in prop::collection::vec((0u64..9_000, 0u64..9, 0u64..4_000, 0u16..30), 0..10),
        frameworks in prop::collection::vec((0usize..4, 0u64..3_000, 0u64..3), 0..8),
        quota in prop::option::of((0u64..9_000, 0u64..4_000)),
    ) {
        let classes: [&[ResourceClass]; 4] = [
            &[],
            &[ResourceClass::Guaranteed],
            &[ResourceClass::Revocable],
            &[ResourceClass::Guaranteed, ResourceClass::Revocable],
        ];
        let mut allocator = drf();
        if let Some((most, promised)) = quota {
            allocator.set_role("a", limit(most, 4 * GIB));
            allocator.set_role("b", guarantee(promised, 0));
        }
        for &(class, cpu_milli, mem) in &frameworks {
            let minimum = Resources { cpu_milli, mem_bytes: mem * GIB, ..Resources::default() };
            let role = ["a", "a/x", "b"][class % 3];
            allocator.framework_wanting(role, Wants::new(classes[class], &minimum));
        }
        let before: Vec<_> = agents.iter().map(|&(cpu, mem, lent, ports)| {
            let agent = allocator.add_agent();
            let mut amounts = bundle(cpu, mem * GIB);
            amounts.0[REVOCABLE_CPU] = lent;
            let ports = PortSet::from_ports((1..=ports).map(|p| p * 2));
            let free = Pot::new(amounts, Arc::new(ports));
            allocator.set_agent(agent, &free.amounts, free.clone());
            (agent, free)
        }).collect();
        let made = allocator.allocate(NOW);
        for (agent, free) in before {
            let mut left = free;
            for one in made.iter().filter(|a| a.agent == agent) {
                prop_assert!(left.contains(&one.pot), "{one:?} of {left:?}");
                prop_assert!(one.pot.amounts.is_worth_offering(one.class));
                let minimum = allocator.wants(one.framework).unwrap().minimum(one.class);
                prop_assert!(minimum.is_some_and(|minimum| one.pot.contains(minimum)));
                prop_assert_eq!(one.pot.ports.len_by_protocol() as u64, one.pot.amounts.0[PORTS]);
                left = left.without(&one.pot);
            }
            prop_assert_eq!(allocator.free_of(agent), Some(&left));
        }
        let mut held = Totals::default();
        made.iter().for_each(|a| held.add(&a.pot.amounts));
        let mut counted = Totals::default();
        allocator.frameworks.iter().enumerate().filter(|(_, f)| f.is_some()).for_each(|(n, _)| {
            counted.exchange(&Totals::default(), allocator.held_by(u32::try_from(n).unwrap()).unwrap());
        });
        prop_assert_eq!(held, counted);
        let free = allocator.agents.iter().flatten().fold(Totals::default(), |mut sum, agent| {
            sum.add(&agent.free.amounts);
            sum
        });
        prop_assert_eq!(free, allocator.free);
    }

    /// Of `n` frameworks that take all, each gets at least one part in `n`, less one agent: no worse than with a
    /// cluster of its own that is `n` times smaller.
    #[test]
    fn sharing_incentive(agents in agents(), n in 1usize..9) {
        let (mut allocator, _) = cluster(&agents);
        let frameworks: Vec<_> = (0..n).map(|_| allocator.framework("x")).collect();
        allocator.allocate(NOW);
        let least = frameworks.iter().map(|&f| allocator.dominant_share(f).unwrap()).fold(1.0, f64::min);
        let floor = 1.0 / n as f64 - one_agent(&agents);
        prop_assert!(least + TINY >= floor, "{least} of {floor}");
    }

    /// The same with weights, over the roles that have them.
    #[test]
    fn sharing_incentive_by_weight(agents in agents(), weights in prop::collection::vec(1u32..6, 2..6)) {
        let (mut allocator, _) = cluster(&agents);
        let sum: u32 = weights.iter().sum();
        let frameworks: Vec<_> = weights.iter().enumerate().map(|(i, &w)| {
            allocator.set_role(&format!("r{i}"), weight(w.into()));
            (w, allocator.framework(&format!("r{i}/sub")))
        }).collect();
        allocator.allocate(NOW);
        for (w, framework) in frameworks {
            let share = allocator.dominant_share(framework).unwrap();
            let floor = f64::from(w) / f64::from(sum) - one_agent(&agents);
            prop_assert!(share + TINY >= floor, "weight {w} of {sum}: {share}");
        }
    }

    /// Nobody holds more than another of its role by more than one agent, so nobody would rather be somebody else.
    #[test]
    fn envy_freeness(agents in agents(), n in 2usize..9) {
        let (mut allocator, _) = cluster(&agents);
        let frameworks: Vec<_> = (0..n).map(|_| allocator.framework("x")).collect();
        allocator.allocate(NOW);
        let shares: Vec<_> = frameworks.iter().map(|&f| allocator.dominant_share(f).unwrap()).collect();
        let (least, most) = shares.iter().fold((1.0, 0.0), |(a, b), &s| (f64::min(a, s), f64::max(b, s)));
        prop_assert!(most - least <= one_agent(&agents) + TINY, "{shares:?}");
    }

    /// Nothing is left that somebody would take.
    #[test]
    fn pareto_efficiency(
        agents in agents(),
        frameworks in prop::collection::vec((0usize..3, 0u64..9_000, 0u64..6), 1..8),
        most in prop::option::of(0u64..40_000),
        promised in prop::option::of(0u64..20_000),
        declined in prop::collection::vec(0usize..40, 0..20),
    ) {
        let (mut allocator, numbers) = cluster(&agents);
        if let Some(most) = most {
            allocator.set_role("a", limit(most, u64::MAX));
        }
        if let Some(promised) = promised {
            allocator.set_role("a/b", guarantee(promised.min(most.unwrap_or(u64::MAX)), 0));
        }
        let frameworks: Vec<_> = frameworks.iter()
            .map(|&(role, cpu, mem)| allocator.framework_wanting(["a", "a/b", "c"][role], wants(cpu, mem * GIB)))
            .collect();
        let mut out = allocator.allocate(NOW);
        for pick in declined {
            if pick < out.len() {
                let made = out.swap_remove(pick);
                allocator.decline(&made, UnixMs(9_999));
                out.extend(allocator.allocate(NOW));
            }
        }
        for &framework in &frameworks {
            for &agent in &numbers {
                prop_assert!(allocator.obstacle(framework, agent, NOW).is_some(), "{framework} takes {agent}");
            }
        }
    }

    /// Who says that it needs more at least than it does, does not get more for it. On agents that are alike a minimum
    /// that is met by any agent changes nothing but how one is divided; one that is not met gets nothing.
    #[test]
    fn strategy_proofness(agents in alike(), n in 2usize..7, liar in 0usize..7, claim in 0u64..12_000) {
        let share = |claim: u64| {
            let (mut allocator, _) = cluster(&agents);
            let frameworks: Vec<_> = (0..n).map(|i| {
                let cpu = if i == liar % n { claim } else { 0 };
                allocator.framework_wanting("x", wants(cpu, 0))
            }).collect();
            allocator.allocate(NOW);
            allocator.dominant_share(frameworks[liar % n]).unwrap()
        };
        prop_assert!(share(claim) <= share(0) + one_agent(&agents) + TINY);
    }

    /// The same updates give the same allocations.
    #[test]
    fn deterministic(agents in agents(), n in 1usize..6) {
        let run = || {
            let (mut allocator, _) = cluster(&agents);
            for i in 0..n {
                allocator.framework(["a", "b", "a/c"][i % 3]);
            }
            let made = allocator.allocate(NOW);
            made.iter().for_each(|a| allocator.decline(a, UnixMs(5_000)));
            [made, allocator.allocate(NOW)]
        };
        prop_assert_eq!(run(), run());
    }
}
