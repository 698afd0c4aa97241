//! Why a framework is offered what it is.

use bulkhead_proto::v1::{
    Amounts, ExplainFrameworkRequest, ExplainFrameworkResponse, PlaceKind, SetRoleRequest, WhyNotOffered,
};

use super::*;
use crate::ids::RequestId;

impl World {
    fn explain(&self, framework: &str, agent: &str) -> ExplainFrameworkResponse {
        let request = ExplainFrameworkRequest { framework_id: framework.into(), agent_id: agent.into() };
        self.core.explain_framework(&request).unwrap()
    }

    fn why_not(&self, framework: &str, agent: &str) -> WhyNotOffered {
        self.explain(framework, agent).agent.unwrap().why()
    }

    fn wanting(&mut self, name: &str, minimum_cpu_milli: u64) -> SessionId {
        self.subscribe(FrameworkInfo {
            framework_id: name.into(),
            role: format!("team/{name}"),
            failover_timeout_ms: 60_000,
            minimum: Some(resources(minimum_cpu_milli, 0)),
            ..FrameworkInfo::default()
        })
    }

    fn set_team(&mut self, set: SetRoleRequest) {
        self.step(Event::SetRole {
            request: RequestId(1),
            set: SetRoleRequest { role: "team".into(), ..set },
        });
    }
}

fn cpu(cpu_milli: u64) -> Option<Amounts> {
    Some(Amounts { kinds: [("cpu_milli".to_owned(), cpu_milli)].into() })
}

#[test]
fn every_agent_is_counted_under_one_reason_and_few_are_named() {
    let mut world = World::new();
    let greedy = world.wanting("greedy", 2_000);
    for n in 0..7 {
        world.agent(&format!("small-{n}"), resources(1_000, GB));
    }
    world.agent("offered", resources(4_000, GB));
    let gone = world.agent("away", resources(4_000, GB));
    world.step(Event::SessionEnded { session: gone });
    world.agent("full", Resources::default());
    let why = world.explain("greedy", "");
    let counts: Vec<_> = why.not_offered.iter().map(|r| (r.why(), r.agent_count, r.examples.len())).collect();
    assert_eq!(counts[0], (WhyNotOffered::BelowMinimum, 7, EXAMPLES));
    let mut others = counts[1..].to_vec();
    others.sort();
    let one = |why| (why, 1, 1);
    assert_eq!(
        others,
        [WhyNotOffered::AgentAway, WhyNotOffered::HasOffer, WhyNotOffered::NothingFree].map(one)
    );
    assert_eq!(why.takes_agents + why.not_offered.iter().map(|r| r.agent_count).sum::<u64>(), 10);
    assert_eq!((why.offer_count, why.connected, why.agent), (1, true, None));
    let names: Vec<_> = why.not_offered[0].examples.iter().map(|e| e.hostname.as_str()).collect();
    assert_eq!(names, ["host-small-0", "host-small-1", "host-small-2"]);

    let offers = world.offers(greedy);
    let offer = offers.iter().find(|o| o.agent.as_ref().is_some_and(|a| a.agent_id == "offered")).unwrap();
    world.decline(greedy, offer, 10_000);
    let agent = world.explain("greedy", "offered").agent.unwrap();
    assert_eq!(
        (agent.why(), agent.refused_ms, agent.free["cpu_milli"]),
        (WhyNotOffered::Refused, 10_000, 4_000)
    );
    world.step(Event::SessionEnded { session: greedy });
    assert_eq!(world.why_not("greedy", "offered"), WhyNotOffered::NotConnected);
}

#[test]
fn shares_quotas_and_places_are_the_allocator_s() {
    let mut world = World::new();
    world.set_team(SetRoleRequest { weight: Some(3.0), limit: cpu(6_000), ..SetRoleRequest::default() });
    world.wanting("x", 1_000);
    world.framework("other");
    world.agent("n", resources(8_000, 8 * GB));
    let why = world.explain("x", "");
    let path: Vec<_> = why.path.iter().map(|p| (p.role.as_str(), p.kind())).collect();
    let (role, leaf, own) = (PlaceKind::Role, PlaceKind::FrameworksOfRole, PlaceKind::Framework);
    assert_eq!(path, [("team", role), ("team/x", role), ("team/x", leaf), ("team/x", own)]);
    assert_eq!((why.path[0].part_of_parent, why.path[3].part_of_parent), (0.75, 1.0));
    assert_eq!((why.entitled_share, why.policy.as_str()), (0.75, "drf"));
    let most = &why.path[0];
    let part = most.held[&most.dominant_kind] as f64 / why.capacity[&most.dominant_kind] as f64;
    assert_eq!((most.dominant_share, part), (0.75, 0.75));
    assert_eq!(why.capacity["cpu_milli"], 8_000);
    let held = why.path[3].held["cpu_milli"];
    assert_eq!(why.room["cpu_milli"], 6_000 - held);
    assert!(why.path[0].settings.is_some() && why.path[3].settings.is_none());
    assert_eq!(world.why_not("x", "n"), WhyNotOffered::HasOffer);
}

#[test]
fn limits_and_guarantees_are_named_as_what_stands_between() {
    let mut world = World::new();
    world.set_team(SetRoleRequest { limit: cpu(0), ..SetRoleRequest::default() });
    world.wanting("x", 1_000);
    world.agent("n", resources(4_000, 4 * GB));
    assert_eq!(world.why_not("x", "n"), WhyNotOffered::Limit);
    world.step(Event::SetRole {
        request: RequestId(2),
        set: SetRoleRequest { role: "promised".into(), guarantee: cpu(4_000), ..SetRoleRequest::default() },
    });
    world.set_team(SetRoleRequest { clear: true, ..SetRoleRequest::default() });
    let why = world.explain("x", "n");
    assert_eq!(why.agent.map(|a| a.why()), Some(WhyNotOffered::KeptFree));
    assert_eq!((why.kept_free["cpu_milli"], why.room["cpu_milli"]), (4_000, 0));
    world.framework("other");
    world.step(Event::SetRole {
        request: RequestId(3),
        set: SetRoleRequest { role: "promised".into(), clear: true, ..SetRoleRequest::default() },
    });
    let both = ["x", "other"].map(|f| world.explain(f, "n").agent.unwrap().why());
    assert!(both.contains(&WhyNotOffered::HasOffer), "{both:?}");
}

#[test]
fn nobody_is_explained_who_is_not_there() {
    let mut world = World::new();
    world.framework("f");
    let ask = |framework: &str, agent: &str| {
        let request = ExplainFrameworkRequest { framework_id: framework.into(), agent_id: agent.into() };
        world.core.explain_framework(&request)
    };
    assert_eq!(ask("g", ""), Err(ExplainError::NoFramework("g".into())));
    assert_eq!(ask("", ""), Err(ExplainError::NoFramework(String::new())));
    assert_eq!(ask("f", "n"), Err(ExplainError::NoAgent("n".into())));
    let why = ask("f", "").unwrap();
    assert_eq!((why.entitled_share, why.not_offered.len()), (1.0, 0));
}
