//! Weights, limits and guarantees that change while the master runs.

use std::collections::BTreeMap;

use bulkhead_proto::v1::{Amounts, RoleSettings, SetRoleRequest};

use super::*;
use crate::ids::RequestId;

type Answer = Result<RoleSettings, SetRoleError>;

impl World {
    fn set_role(&mut self, set: SetRoleRequest) -> Answer {
        self.step(Event::SetRole { request: RequestId(1), set });
        let mut answers = self.take(|effect| match effect {
            Effect::RoleAnswer { request: RequestId(1), result } => Some(result.clone()),
            _ => None,
        });
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    fn in_role(&mut self, name: &str, role: &str) -> SessionId {
        self.subscribe(FrameworkInfo {
            framework_id: name.into(),
            role: role.into(),
            ..FrameworkInfo::default()
        })
    }

    fn role(&self, role: &str) -> bulkhead_proto::v1::RoleEntry {
        self.core.list_roles().into_iter().find(|r| r.role == role).unwrap()
    }
}

fn named(role: &str) -> SetRoleRequest {
    SetRoleRequest { role: role.into(), ..SetRoleRequest::default() }
}

fn cpu(cpu_milli: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("cpu_milli".to_owned(), cpu_milli)])
}

fn amounts(kinds: BTreeMap<String, u64>) -> Option<Amounts> {
    Some(Amounts { kinds })
}

#[test]
fn a_limit_that_is_raised_brings_offers_at_once() {
    let mut world = World::new();
    world.set_role(SetRoleRequest { limit: amounts(cpu(1_000)), ..named("a") }).unwrap();
    let framework = world.in_role("f", "a");
    world.agent("n", resources(4_000, 4 * GB));
    let first = world.one_offer(framework);
    assert_eq!(got(&first).cpu_milli, 1_000);
    assert_eq!(
        world.role("a").held,
        BTreeMap::from([("cpu_milli".into(), 1_000), ("mem_bytes".into(), 4 * GB)])
    );
    let mut settings = world
        .set_role(SetRoleRequest { limit: amounts(cpu(3_000)), weight: Some(2.0), ..named("a") })
        .unwrap();
    assert_eq!((settings.weight, settings.limit.remove("cpu_milli")), (2.0, Some(3_000)));
    let all: u64 = world.offers(framework).iter().map(|offer| got(offer).cpu_milli).sum();
    assert_eq!(all, 2_000, "what it may hold besides");
    assert_eq!(world.role("a").held["cpu_milli"], 3_000);
}

#[test]
fn a_guarantee_holds_from_now_on_and_is_taken_back() {
    let mut world = World::new();
    world.set_role(SetRoleRequest { guarantee: amounts(cpu(4_000)), ..named("late/web") }).unwrap();
    let early = world.in_role("early", "early");
    world.agent("n", resources(4_000, 4 * GB));
    assert!(world.offers(early).iter().all(|offer| got(offer).cpu_milli == 0));
    assert_eq!(world.role("late").settings.map(|s| s.weight), Some(1.0));
    world.set_role(SetRoleRequest { clear: true, ..named("late/web") }).unwrap();
    assert_eq!(world.offers(early).iter().map(|offer| got(offer).cpu_milli).sum::<u64>(), 4_000);
    let roles: Vec<_> =
        world.core.list_roles().into_iter().map(|r| (r.role, r.is_set, r.framework_count)).collect();
    assert_eq!(roles, [("early".to_owned(), false, 1)], "what nothing needs any more is gone");
}

#[test]
fn what_is_not_named_stays_and_what_is_cleared_goes() {
    let mut world = World::new();
    let first = SetRoleRequest { weight: Some(3.0), guarantee: amounts(cpu(1_000)), ..named("a") };
    world.set_role(first).unwrap();
    let both = world.set_role(SetRoleRequest { priority: Some(7), ..named("a") }).unwrap();
    assert_eq!((both.weight, both.priority, &both.guarantee), (3.0, 7, &cpu(1_000)));
    let none = SetRoleRequest { guarantee: amounts(BTreeMap::new()), ..named("a") };
    assert!(world.set_role(none).unwrap().guarantee.is_empty());
    let fresh = world.set_role(SetRoleRequest { clear: true, priority: Some(1), ..named("a") }).unwrap();
    assert_eq!((fresh.weight, fresh.priority), (1.0, 1));
    world.set_role(SetRoleRequest { clear: true, ..named("a") }).unwrap();
    assert!(world.core.list_roles().is_empty());
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let mut world = World::new();
    world.set_role(SetRoleRequest { limit: amounts(cpu(2_000)), ..named("a") }).unwrap();
    world.set_role(SetRoleRequest { guarantee: amounts(cpu(1_500)), ..named("a/b") }).unwrap();
    let before = world.core.list_roles();
    for role in ["", "a//b", "../x", "a/b/c/d/e/f/g/h/i", "a b"] {
        let refused = world.set_role(SetRoleRequest { weight: Some(2.0), ..named(role) });
        assert!(matches!(refused, Err(SetRoleError::Name { .. })), "{role:?}: {refused:?}");
    }
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refused = world.set_role(SetRoleRequest { weight: Some(weight), ..named("a") });
        assert!(matches!(refused, Err(SetRoleError::Weight(_))), "{weight}: {refused:?}");
    }
    let odd = SetRoleRequest { limit: amounts(BTreeMap::from([("cores".into(), 1)])), ..named("a") };
    assert!(world.set_role(odd).unwrap_err().to_string().contains("the kinds are cpu_milli"));
    for (role, set) in [
        ("a/c", SetRoleRequest { guarantee: amounts(cpu(501)), ..named("a/c") }),
        ("a", SetRoleRequest { limit: amounts(cpu(1_000)), ..named("a") }),
        ("a/b", SetRoleRequest { clear: true, guarantee: amounts(cpu(9_000)), ..named("a/b") }),
    ] {
        let refused = world.set_role(set);
        assert!(matches!(refused, Err(SetRoleError::Quota(_))), "{role}: {refused:?}");
    }
    assert_eq!(world.core.list_roles(), before);
}
