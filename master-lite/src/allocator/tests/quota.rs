//! Limits and guarantees.

use proptest::prelude::*;

use super::*;

#[test]
fn a_limit_holds_for_all_below_it() {
    let mut allocator = drf();
    allocator.set_role("a", limit(5_000, u64::MAX));
    let limited = ["a", "a/b", "a/b/c"].map(|role| allocator.framework(role));
    allocator.agent(bundle(20_000, 20 * GIB));
    allocator.allocate(NOW);
    assert_eq!(limited.map(|f| allocator.cpu(f)).iter().sum::<u128>(), 5_000);
}

#[test]
fn who_was_held_back_by_a_limit_is_offered_more_when_it_is_used_less() {
    let mut allocator = drf();
    allocator.set_role("a", limit(2_000, GIB));
    let [first, second] = ["a", "a"].map(|role| allocator.framework(role));
    for _ in 0..4 {
        allocator.agent(bundle(1_000, GIB / 2));
    }
    let made = allocator.allocate(NOW);
    assert_eq!(made.len(), 2);
    assert!(allocator.allocate(NOW).is_empty());
    let mut held = *allocator.held_by(first).unwrap();
    held.remove(&bundle(1_000, GIB / 2));
    // A task of the first ended; what it had is not even free yet.
    allocator.set_held(first, &held);
    assert!(!allocator.is_settled());
    assert_eq!(allocator.allocate(NOW).len(), 1);
    assert_eq!(allocator.cpu(first) + allocator.cpu(second), 2_000);

    allocator.set_role("a", limit(3_000, 4 * GIB));
    assert_eq!(allocator.allocate(NOW).len(), 1);
}

#[test]
fn a_guarantee_is_kept_free_until_its_role_comes() {
    let mut allocator = drf();
    allocator.set_role("promised", guarantee(6_000, 6 * GIB));
    let greedy = allocator.framework("greedy");
    for _ in 0..10 {
        allocator.agent(bundle(1_000, GIB));
    }
    allocator.allocate(NOW);
    assert_eq!(allocator.cpu(greedy), 4_000);
    let promised = allocator.framework("promised/below");
    allocator.allocate(NOW);
    assert_eq!((allocator.cpu(promised), allocator.cpu(greedy)), (6_000, 4_000));

    // More agents are nobody's but everybody's.
    for _ in 0..4 {
        allocator.agent(bundle(1_000, GIB));
    }
    allocator.allocate(NOW);
    assert_eq!(allocator.cpu(promised) + allocator.cpu(greedy), 14_000);
}

#[test]
fn the_guarantee_of_a_role_covers_those_below_it_and_is_not_counted_twice() {
    let mut allocator = drf();
    allocator.set_role("a", guarantee(5_000, 0));
    allocator.set_role("a/b", guarantee(3_000, 0));
    allocator.set_role("a/c", guarantee(1_000, 0));
    let greedy = allocator.framework("greedy");
    for _ in 0..10 {
        allocator.agent(bundle(1_000, 0));
    }
    allocator.allocate(NOW);
    assert_eq!(allocator.cpu(greedy), 5_000);
    let c = allocator.framework("a/c");
    allocator.allocate(NOW);
    // Its own and what belongs to the whole of a, but not what is b's.
    assert_eq!(allocator.cpu(c), 2_000);
    let b = allocator.framework("a/b");
    allocator.allocate(NOW);
    assert_eq!(allocator.cpu(b), 3_000);
}

/// Everything that is said of the framework's place, but for whose turn it is among equals.
fn place(allocator: &Allocator, framework: u32) -> (f64, Option<Bundle>, Vec<(String, f64, RoleSettings)>) {
    let why = allocator.explain(framework).unwrap();
    let path = why.path.into_iter().map(|p| (p.role, p.part_of_parent, p.settings)).collect();
    (why.entitled, why.room, path)
}

const ROLES: [&str; 6] = ["a", "a/b", "a/b/c", "a/d", "e", "f"];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is given, taken back and declined, no role ever holds more than its limit.
    #[test]
    fn quota_never_exceeded(
        limits in prop::array::uniform6(prop::option::of((0u64..9_000, 0u64..9))),
        guarantees in prop::array::uniform6(0u64..2_000),
        frameworks in prop::collection::vec((0usize..6, 0u64..2_000), 1..8),
        agents in prop::collection::vec((0u64..12_000, 0u64..12), 1..8),
        acts in prop::collection::vec((0usize..40, prop::bool::ANY), 0..30),
    ) {
        let mut allocator = drf();
        for ((role, limited), promised) in ROLES.iter().zip(limits).zip(guarantees) {
            let (cpu, mem) = limited.map_or((u64::MAX, u64::MAX), |(cpu, mem)| (cpu, mem * GIB));
            let guarantee = bundle(promised.min(cpu), 0);
            allocator.set_role(role, RoleSettings { guarantee, ..limit(cpu, mem) });
        }
        let frameworks: Vec<_> = frameworks.iter()
            .map(|&(role, cpu)| (ROLES[role], allocator.framework_wanting(ROLES[role], wants(cpu, 0))))
            .collect();
        for (cpu, mem) in agents {
            allocator.agent(bundle(cpu, mem * GIB));
        }
        let mut out = Vec::new();
        for act in std::iter::once(None).chain(acts.into_iter().map(Some)) {
            if let Some((pick, declines)) = act && pick < out.len() {
                let made: Allocation = out.swap_remove(pick);
                if declines { allocator.decline(&made, UnixMs(u64::MAX)) } else { allocator.give_back(&made) }
            }
            out.extend(allocator.allocate(NOW));
            for (above, limited) in ROLES.iter().zip(limits) {
                let Some((cpu, mem)) = limited else { continue };
                let below = frameworks.iter().filter(|(role, _)| role == above || role.starts_with(&format!("{above}/")));
                let mut sum = Totals::default();
                below.for_each(|&(_, f)| sum.exchange(&Totals::default(), allocator.held_by(f).unwrap()));
                prop_assert!(sum.0[CPU] <= cpu.into() && sum.0[MEM] <= u128::from(mem * GIB), "{above}: {sum:?}");
            }
        }
    }

    /// What is set and cleared on the way leaves no trace: only what is said last counts.
    #[test]
    fn settings_that_were_changed_are_as_if_they_had_been_so_from_the_start(
        said in prop::collection::vec((0usize..6, prop::option::of((1u32..9, 0u64..9_000, 0u64..2_000))), 1..20),
        frameworks in prop::collection::vec(0usize..6, 1..6),
        come_after in 0usize..20,
    ) {
        let settings = |(parts, cpu, promised): (u32, u64, u64)| RoleSettings {
            guarantee: bundle(promised.min(cpu), 0),
            ..RoleSettings { weight: weight(parts.into()).weight, ..limit(cpu, u64::MAX) }
        };
        let (mut changed, mut last, mut those) = (drf(), [None; 6], Vec::new());
        let come = |allocator: &mut Allocator| -> Vec<u32> {
            frameworks.iter().map(|&role| allocator.framework(ROLES[role])).collect()
        };
        for (at, &(role, ref now)) in said.iter().enumerate() {
            if at == come_after {
                those = come(&mut changed);
            }
            last[role] = now.map(settings);
            match last[role] {
                Some(settings) => changed.set_role(ROLES[role], settings),
                None => changed.clear_role(ROLES[role]),
            }
        }
        if those.is_empty() {
            those = come(&mut changed);
        }
        let mut fresh = drf();
        for (role, settings) in ROLES.iter().zip(last) {
            settings.into_iter().for_each(|settings| fresh.set_role(role, settings));
        }
        let same = come(&mut fresh);
        for (&one, &other) in those.iter().zip(&same) {
            prop_assert_eq!(place(&changed, one), place(&fresh, other));
        }
        prop_assert_eq!(changed.settings(), fresh.settings());
        let names = |allocator: &Allocator| allocator.roles().into_iter().map(|r| r.role).collect::<Vec<_>>();
        prop_assert_eq!(names(&changed), names(&fresh));
    }

    /// Where there is enough of everything, a role that comes late has its guarantee, whoever came before it.
    #[test]
    fn guarantee_met_when_feasible(
        more in 1u64..8,
        promised in prop::array::uniform3(0u64..5),
        greedy in 1usize..4,
    ) {
        let roles = ["a/b", "a/c", "d"];
        let mut allocator = drf();
        for (role, cpus) in roles.iter().zip(promised) {
            allocator.set_role(role, guarantee(cpus * 1_000, cpus * GIB));
        }
        for _ in 0..greedy {
            allocator.framework("greedy");
        }
        for _ in 0..promised.iter().sum::<u64>() + more {
            allocator.agent(bundle(1_000, GIB));
        }
        allocator.allocate(NOW);
        for (role, cpus) in roles.iter().zip(promised) {
            let late = allocator.framework(role);
            allocator.allocate(NOW);
            prop_assert!(allocator.cpu(late) >= u128::from(cpus * 1_000), "{role}");
        }
    }
}
