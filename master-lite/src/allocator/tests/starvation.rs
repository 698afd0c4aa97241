//! No starvation: whoever waits for an agent sees it, however often others pass on it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// With `n` frameworks that decline everything, for as long or as short as they like, and whatever they hold
    /// elsewhere, each is offered every agent within `n` offers of that agent.
    #[test]
    fn no_starvation(
        held in prop::collection::vec((0u64..9_000, 0usize..3), 2..9),
        agents in 1usize..4,
        refuse_ms in 0u64..40,
    ) {
        let mut allocator = drf();
        let full = allocator.add_agent();
        allocator.set_agent(full, &bundle(1_000_000, 1_000 * GIB), Pot::default());
        let frameworks: Vec<_> = held.iter().map(|&(cpu, role)| {
            let framework = allocator.framework(["a", "a/b", "c"][role]);
            allocator.set_held(framework, &Totals::from(&bundle(cpu, 0)));
            framework
        }).collect();
        // Too small to be divided.
        let agents: Vec<_> = (0..agents).map(|_| allocator.agent(bundle(1_000, GIB))).collect();
        let mut offers = BTreeMap::<u32, Vec<u32>>::new();
        let mut now = NOW;
        for _ in 0..20 * frameworks.len() {
            for made in allocator.allocate(now) {
                offers.entry(made.agent).or_default().push(made.framework);
                allocator.decline(&made, now.after_ms(refuse_ms));
            }
            now = now.after_ms(7);
            agents.iter().for_each(|&agent| allocator.refusals_may_be_over(agent, now));
        }
        for agent in agents {
            let seen = &offers[&agent];
            prop_assert!(seen.len() >= frameworks.len(), "{seen:?}");
            for framework in &frameworks {
                let round = &seen[..frameworks.len()];
                prop_assert!(round.contains(framework), "{framework} did not see {agent}: {seen:?}");
            }
        }
    }
}

/// The known defect of the order alone: those with small shares decline for five seconds, and have the agent back before
/// those behind them have seen it.
#[test]
fn a_large_share_is_offered_what_small_ones_decline_again_and_again() {
    let mut allocator = drf();
    let full = allocator.add_agent();
    allocator.set_agent(full, &bundle(1_000_000, 1_000 * GIB), Pot::default());
    let small: Vec<_> = (0..10).map(|_| allocator.framework("x")).collect();
    let large = allocator.framework("x");
    allocator.set_held(large, &Totals::from(&bundle(500_000, 0)));
    let agent = allocator.agent(bundle(1_000, GIB));
    let mut now = NOW;
    for _ in 0..small.len() {
        let made = allocator.allocate(now);
        assert!(small.contains(&made[0].framework));
        allocator.decline(&made[0], now.after_ms(5_000));
        // Slower to answer than its refusal lasts.
        now = now.after_ms(6_000);
        allocator.refusals_may_be_over(agent, now);
    }
    assert_eq!(allocator.allocate(now)[0].framework, large);
}
