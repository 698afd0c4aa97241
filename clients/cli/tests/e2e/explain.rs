//! `bulkhead explain`.

use bulkhead_proto::v1::{
    AgentForFramework, AgentName, AgentsNotOffered, ExplainFrameworkRequest, ExplainFrameworkResponse,
    FrameworkEntry, HeldBackFor, KindOrigin, LendingOrigin, NothingLent, PlaceKind, Provenance, RoleSettings,
    SharePlace, WhyNotOffered,
};

use crate::{fake_agent::FakeAgent, fake_master::FakeMaster, process::output};

fn provenance() -> Provenance {
    let cpu = KindOrigin {
        kind: "cpu_milli".into(),
        capacity: 4000,
        allocated: 1000,
        reserve: 450,
        free: 2550,
        floor: 100,
        strangers: 450,
        reserve_for: HeldBackFor::Strangers.into(),
        short: 0,
    };
    let lending = LendingOrigin { nothing_lent: NothingLent::NotWatched.into(), ..LendingOrigin::default() };
    Provenance {
        kinds: vec![cpu],
        revocable_cpu: Some(lending),
        measured_ms_ago: Some(1200),
        ..Provenance::default()
    }
}

#[tokio::test]
async fn an_agent_says_why_it_offers_what_it_does() {
    let (master, agent) = (FakeMaster::start().await, FakeAgent::start().await);
    master.add_agent("a-1", &agent.address);
    agent.set(|s| s.provenance = Some(provenance()));
    for wanted in ["a-1", "host-a-1", "a"] {
        let told = output(&master.address, &["explain", "--agent", wanted]).await;
        assert_eq!(told.code, 0, "{}", told.stderr);
        for expected in
            ["CPU", "2.55", "which is more than 0.1 as set (reserve_cpu_milli)", "not watched for long"]
        {
            assert!(told.text().contains(expected), "{expected}: {}", told.text());
        }
        assert!(told.stderr.contains("measured 1 s ago"), "{}", told.stderr);
    }
    let json = output(&master.address, &["--json", "explain", "--agent", "a-1"]).await.json();
    let (cpu, lending) = (&json["provenance"]["kinds"][0], &json["provenance"]["revocable_cpu"]);
    assert_eq!((&cpu["free"], &cpu["reserve_for"]), (&2550.into(), &"strangers".into()));
    assert_eq!(lending["nothing_lent"], "not_watched");
}

#[tokio::test]
async fn agents_that_cannot_say_are_named() {
    let (master, agent) = (FakeMaster::start().await, FakeAgent::start().await);
    master.add_agent("old", &agent.address);
    master.add_agent("gone", "127.0.0.1:1");
    for (wanted, says) in [
        ("old", "agent host-old answered Explain with an error: this call is not known there"),
        ("gone", "no agent answers at 127.0.0.1:1"),
        ("nobody", "no agent is called \"nobody\""),
    ] {
        let refused = output(&master.address, &["explain", "--agent", wanted]).await;
        assert_eq!(refused.code, 1, "{wanted}: {}", refused.stderr);
        assert!(refused.stderr.contains(says), "{wanted}: {}", refused.stderr);
    }
}

/// A framework of this id and name, and what the master says of it.
fn explained(master: &FakeMaster) {
    let role = SharePlace {
        role: "team".into(),
        kind: PlaceKind::Role.into(),
        settings: Some(RoleSettings { weight: 2.0, ..RoleSettings::default() }),
        served_before: 1,
        siblings: 2,
        part_of_parent: 0.5,
        ..SharePlace::default()
    };
    let refused = AgentsNotOffered {
        why: WhyNotOffered::Refused.into(),
        agent_count: 50_000,
        examples: vec![AgentName { agent_id: "a-1".into(), hostname: "host-a-1".into() }],
    };
    let framework = FrameworkEntry {
        framework_id: "f-1".into(),
        name: "batch".into(),
        connected: true,
        ..FrameworkEntry::default()
    };
    let mut lists = master.lists();
    lists.frameworks.push(framework);
    lists.explanation = Some(ExplainFrameworkResponse {
        framework_id: "f-1".into(),
        connected: true,
        path: vec![role],
        entitled_share: 0.5,
        not_offered: vec![refused],
        ..ExplainFrameworkResponse::default()
    });
}

#[tokio::test]
async fn a_framework_is_told_in_the_allocator_s_numbers() {
    let master = FakeMaster::start().await;
    explained(&master);
    for wanted in ["f-1", "batch", "f"] {
        let told = output(&master.address, &["explain", "--framework", wanted]).await;
        assert_eq!(told.code, 0, "{}", told.stderr);
        for expected in
            ["role team", "weight 2", "1 of 2 that wait", "it refused them", "host-a-1 and 49999 more"]
        {
            assert!(told.text().contains(expected), "{expected}: {}", told.text());
        }
    }
    let json = output(&master.address, &["--json", "explain", "--framework", "f-1"]).await.json();
    assert_eq!((&json["entitled_share"], &json["path"][0]["kind"]), (&0.5.into(), &"role".into()));
    assert_eq!(json["not_offered"][0]["why"], "refused");
    let unknown = output(&master.address, &["explain", "--framework", "nobody"]).await;
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("no framework is called \"nobody\""), "{}", unknown.stderr);
    assert_eq!(output(&master.address, &["explain"]).await.code, 2);
}

#[tokio::test]
async fn a_framework_and_an_agent_are_told_together() {
    let master = FakeMaster::start().await;
    explained(&master);
    master.add_agent("a-1", "127.0.0.1:1");
    let agent = AgentForFramework {
        agent: Some(AgentName { agent_id: "a-1".into(), hostname: "host-a-1".into() }),
        why: WhyNotOffered::KeptFree.into(),
        ..AgentForFramework::default()
    };
    if let Some(explanation) = &mut master.lists().explanation {
        explanation.agent = Some(agent);
    }
    let args = ["explain", "--framework", "batch", "--agent", "host-a-1"];
    let told = output(&master.address, &args).await;
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert!(told.text().contains("kept for guarantees of other roles"), "{}", told.text());
    let asked = ExplainFrameworkRequest { framework_id: "f-1".into(), agent_id: "a-1".into() };
    assert_eq!(master.lists().explained, [asked]);
}
