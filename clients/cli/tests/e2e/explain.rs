//! `bulkhead explain`.

use bulkhead_proto::v1::{HeldBackFor, KindOrigin, LendingOrigin, NothingLent, Provenance};

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
