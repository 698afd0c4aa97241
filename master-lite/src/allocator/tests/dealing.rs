//! Single cases: order, division, classes, ports, roles, policies, what is looked at again.

use super::*;

#[test]
fn the_smallest_dominant_share_is_served_first() {
    let mut allocator = drf();
    let [cpu_heavy, mem_heavy, even] = ["a", "a", "a"].map(|role| allocator.framework(role));
    let capacity = bundle(100_000, 100 * GIB);
    let full = allocator.add_agent();
    allocator.set_agent(full, &capacity, Pot::default());
    for (framework, held) in
        [(cpu_heavy, bundle(50_000, 0)), (mem_heavy, bundle(0, 40 * GIB)), (even, bundle(30_000, 30 * GIB))]
    {
        allocator.set_held(framework, &Totals::from(&held));
    }
    allocator.agent(bundle(1_000, GIB));
    assert_eq!(cpus(&allocator.allocate(NOW)), [(even, 1_000)]);
}

#[test]
fn equal_shares_take_turns() {
    let mut allocator = drf();
    let frameworks = ["a", "a", "a"].map(|role| allocator.framework(role));
    for _ in 0..3 {
        allocator.agent(bundle(1_000, GIB));
    }
    let mut got: Vec<_> = allocator.allocate(NOW).iter().map(|a| a.framework).collect();
    got.sort_unstable();
    assert_eq!(got, frameworks);
}

#[test]
fn one_agent_is_divided_among_those_who_want_it() {
    let mut allocator = drf();
    let [a, b, c] = ["x", "x", "x"].map(|role| allocator.framework(role));
    allocator.agent(bundle(12_000, 12 * GIB));
    assert_eq!(cpus(&allocator.allocate(NOW)), [(a, 4_000), (b, 4_000), (c, 4_000)]);
}

#[test]
fn an_agent_that_is_small_beside_a_share_goes_whole() {
    let mut allocator = drf();
    let frameworks = ["x", "x"].map(|role| allocator.framework(role));
    for _ in 0..5 {
        allocator.agent(bundle(4_000, GIB));
    }
    let made = allocator.allocate(NOW);
    assert_eq!(made.len(), 5);
    assert_eq!(frameworks.map(|f| allocator.cpu(f)), [12_000, 8_000]);
}

#[test]
fn nobody_gets_less_than_the_minimum_or_less_than_a_whole_cpu() {
    let mut allocator = drf();
    let large = allocator.framework_wanting("x", wants(3_000, GIB));
    let small = ["x", "x", "x"].map(|role| allocator.framework(role));
    allocator.agent(bundle(6_000, 4 * GIB));
    assert_eq!(cpus(&allocator.allocate(NOW)), [(large, 3_000), (small[0], 1_500), (small[1], 1_500)]);
}

#[test]
fn what_nobody_else_takes_goes_to_those_who_took_a_part() {
    let mut allocator = drf();
    let taker = allocator.framework("x");
    allocator.framework_wanting("x", wants(100_000, 0));
    allocator.agent(bundle(8_000, GIB));
    assert_eq!(cpus(&allocator.allocate(NOW)), [(taker, 8_000)]);
}

#[test]
fn roles_share_before_their_frameworks_do() {
    let mut allocator = drf();
    allocator.set_role("b", weight(2.0));
    let a = ["a", "a", "a"].map(|role| allocator.framework(role));
    let b = allocator.framework("b");
    allocator.agent(bundle(90_000, 90 * GIB));
    allocator.allocate(NOW);
    assert_eq!((a.map(|f| allocator.cpu(f)), allocator.cpu(b)), ([10_000; 3], 60_000));
}

#[test]
fn a_role_s_own_frameworks_are_beside_the_roles_below_it() {
    let mut allocator = drf();
    let own = ["a", "a"].map(|role| allocator.framework(role));
    let below = allocator.framework("a/b/c");
    allocator.agent(bundle(8_000, 8 * GIB));
    allocator.allocate(NOW);
    assert_eq!((own.map(|f| allocator.cpu(f)), allocator.cpu(below)), ([2_000; 2], 4_000));
}

#[test]
fn roles_that_nobody_needs_are_forgotten_and_their_numbers_used_again() {
    let mut allocator = drf();
    allocator.set_role("kept/by/settings", weight(3.0));
    let kept = allocator.framework("kept/by/settings");
    let first = allocator.framework("a/b/c");
    allocator.remove_framework(first);
    allocator.remove_framework(kept);
    let numbers: Vec<_> = (0..100)
        .map(|round| {
            let framework = allocator.framework(&format!("role-{round}/x"));
            allocator.remove_framework(framework);
            framework
        })
        .collect();
    assert!(numbers.iter().all(|&number| number < 20), "{numbers:?}");
    let kept = allocator.framework("kept/by/settings");
    assert_eq!(allocator.explain(kept).unwrap().path[2].settings, weight(3.0));
}

#[test]
fn a_higher_priority_gets_all_that_it_takes() {
    let mut allocator = Allocator::new(Box::new(Priority), &[]);
    allocator.set_role("high", RoleSettings { priority: 5, ..RoleSettings::default() });
    allocator.set_role("low", RoleSettings { priority: -5, ..RoleSettings::default() });
    let low = allocator.framework("low");
    let high = ["high", "high"].map(|role| allocator.framework(role));
    let usual = allocator.framework("usual");
    for _ in 0..4 {
        allocator.agent(bundle(4_000, 4 * GIB));
    }
    allocator.allocate(NOW);
    assert_eq!(high.map(|f| allocator.cpu(f)), [8_000, 8_000]);
    assert_eq!((allocator.cpu(usual), allocator.cpu(low)), (0, 0));
}

#[test]
fn a_kind_that_does_not_count_makes_nobody_rich() {
    let mut allocator = Allocator::new(Box::new(Drf), &[MEM]);
    let [hoarder, other] = ["a", "a"].map(|role| allocator.framework(role));
    let full = allocator.add_agent();
    allocator.set_agent(full, &bundle(100_000, 100 * GIB), Pot::default());
    allocator.set_held(hoarder, &Totals::from(&bundle(0, 90 * GIB)));
    allocator.set_held(other, &Totals::from(&bundle(1_000, 0)));
    allocator.agent(bundle(1_000, GIB));
    assert_eq!(cpus(&allocator.allocate(NOW)), [(hoarder, 1_000)]);
}

#[test]
fn ports_are_divided_and_those_that_a_minimum_names_come_with_it() {
    let mut allocator = drf();
    let any = allocator.framework("x");
    let minimum = Resources { ports: "80".parse::<PortSet>().unwrap().to_ranges(), ..Resources::default() };
    let web = allocator.framework_wanting("x", Wants::new(&[ResourceClass::Guaranteed], &minimum));
    let agent = allocator.add_agent();
    let capacity = with_ports(bundle(8_000, 8 * GIB), "80-89");
    allocator.set_agent(agent, &capacity.amounts.clone(), capacity);
    // Whoever comes first takes the port; the other one may then be left without.
    let made = allocator.allocate(NOW);
    assert_eq!(made.iter().map(|a| a.framework).collect::<Vec<_>>(), [any]);
    allocator.decline(&made[0], NOW);
    let made = allocator.allocate(NOW);
    assert_eq!(made[0].framework, web);
    assert!(made[0].pot.ports.to_string().starts_with("80"), "{}", made[0].pot.ports);
    let all: usize = made.iter().map(|a| a.pot.ports.len()).sum();
    assert_eq!(all, 10);
}

#[test]
fn guaranteed_and_revocable_never_share_an_offer_and_the_promise_comes_first() {
    let mut allocator = drf();
    let lent =
        allocator.framework_wanting("x", Wants::new(&[ResourceClass::Revocable], &Resources::default()));
    let firm = allocator.framework_wanting("x", wants(1_000, 3 * GIB));
    let mut amounts = bundle(3_000, 4 * GIB);
    amounts.0[REVOCABLE_CPU] = 1_000;
    let agent = allocator.agent(amounts);
    let made = allocator.allocate(NOW);
    let got: Vec<_> = made.iter().map(|a| (a.framework, a.class, a.pot.amounts.0[MEM] / GIB)).collect();
    assert_eq!(got, [(firm, ResourceClass::Guaranteed, 3), (lent, ResourceClass::Revocable, 1)]);
    made.iter().for_each(|a| allocator.give_back(a));

    allocator.set_wants(firm, wants(1_000, 4 * GIB));
    let made = allocator.allocate(NOW);
    let got: Vec<_> = made.iter().map(|a| (a.framework, a.pot.amounts.0[MEM] / GIB)).collect();
    assert_eq!(got, [(firm, 4), (lent, 0)], "a part would not do");
    assert_eq!(allocator.free_of(agent).unwrap().amounts, Bundle::default());
}

#[test]
fn what_has_not_changed_is_not_looked_at() {
    let mut allocator = drf();
    let framework = allocator.framework("x");
    let agents: Vec<_> = (0..10).map(|_| allocator.agent(bundle(1_000, GIB))).collect();
    let made = allocator.allocate(NOW);
    made.iter().for_each(|a| allocator.decline(a, UnixMs(2_000)));
    assert!(allocator.allocate(NOW).is_empty() && allocator.is_settled());

    // The same word twice changes nothing, and less of an agent is no news.
    allocator.set_agent(agents[0], &bundle(1_000, GIB), pot(bundle(1_000, GIB)));
    allocator.set_agent(agents[1], &bundle(1_000, GIB), pot(bundle(500, GIB)));
    allocator.set_connected(framework, true);
    assert!(allocator.is_settled());

    allocator.refusals_may_be_over(agents[3], UnixMs(2_000));
    assert_eq!(allocator.allocate(UnixMs(2_000)).iter().map(|a| a.agent).collect::<Vec<_>>(), [agents[3]]);
    allocator.revive(framework);
    assert_eq!(allocator.allocate(UnixMs(2_000)).len(), 9);
}

#[test]
fn the_explanation_has_the_allocator_s_own_numbers() {
    let mut allocator = drf();
    allocator.set_role("a", limit(4_000, u64::MAX));
    allocator.set_role("b", RoleSettings { guarantee: bundle(2_000, 0), ..weight(3.0) });
    let asked = allocator.framework_wanting("a/x", wants(2_000, 0));
    let refused = allocator.agent(bundle(4_000, GIB));
    let small = allocator.agent(bundle(1_000, GIB));
    let empty = allocator.add_agent();
    let made = allocator.allocate(NOW);
    allocator.decline(&made[0], UnixMs(2_000));
    assert_eq!(made[0].agent, refused);
    let why = allocator.explain(asked).unwrap();
    assert_eq!(why.policy, "drf");
    let roles: Vec<_> = why.path.iter().map(|p| (p.role.as_str(), p.is_leaf, p.is_framework)).collect();
    assert_eq!(
        roles,
        [("a", false, false), ("a/x", false, false), ("a/x", true, false), ("a/x", false, true)]
    );
    assert_eq!(why.room.unwrap().0[CPU], 3_000, "5 CPUs are free, and 2 of them kept");
    let cpu = [why.kept_free, why.free, why.capacity].map(|sum| sum.0[CPU]);
    assert_eq!(cpu, [2_000, 5_000, 5_000]);
    for (agent, expected) in
        [(empty, Obstacle::NothingFree), (small, Obstacle::BelowMinimum), (refused, Obstacle::Refused)]
    {
        assert_eq!(allocator.obstacle(asked, agent, NOW), Some(expected));
    }
    assert_eq!(allocator.refused_until(asked, refused, NOW), Some(UnixMs(2_000)));
    assert_eq!(allocator.refused_until(asked, refused, UnixMs(2_000)), None);

    allocator.set_held(asked, &Totals::from(&bundle(3_000, 0)));
    assert_eq!(allocator.obstacle(asked, refused, UnixMs(2_000)), Some(Obstacle::Limit));
    allocator.set_held(asked, &Totals::default());
    allocator.set_role("b", guarantee(4_000, 0));
    assert_eq!(allocator.obstacle(asked, refused, UnixMs(2_000)), Some(Obstacle::KeptFree));
    allocator.set_role("b", RoleSettings::default());
    assert_eq!(allocator.obstacle(asked, refused, UnixMs(2_000)), None);
}
