//! `bulkhead events`.

use bulkhead_proto::v1::{Event, EventKind, Protocol};

use crate::{
    fake_agent::FakeAgent,
    fake_master::FakeMaster,
    lists::live,
    process::{bulkhead, output},
};

fn denied(task_id: &str, port: u32, count: u64, last_unix_ms: u64) -> Event {
    Event {
        kind: EventKind::PortDenied.into(),
        task_id: task_id.to_owned(),
        count,
        last_unix_ms,
        protocol: Protocol::Tcp.into(),
        ip_version: 4,
        port,
        ..Event::default()
    }
}

async fn cluster() -> (FakeMaster, FakeAgent, FakeAgent) {
    let (master, one, two) = (FakeMaster::start().await, FakeAgent::start().await, FakeAgent::start().await);
    master.add_agent("a-1", &one.address);
    master.add_agent("a-2", &two.address);
    master.lists().tasks = vec![live("web-1", "web", "a-1"), live("api-2", "api", "a-2")];
    one.set(|s| s.events = vec![denied("web-1", 80, 2, 1_000), denied("web-1", 443, 1, 3_000)]);
    two.set(|s| s.events = vec![denied("api-2", 53, 1, 2_000)]);
    (master, one, two)
}

fn ports(lines: &[serde_json::Value]) -> Vec<u64> {
    lines.iter().map(|e| e["port"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn events_of_all_agents_are_in_order() {
    let (master, _one, _two) = cluster().await;
    let ended = output(&master.address, &["events", "--json"]).await;
    let lines = ended.json_lines();
    assert_eq!(ports(&lines), [80, 53, 443]);
    assert_eq!((&lines[0]["kind"], &lines[0]["agent_id"]), (&"port_denied".into(), &"a-1".into()));
    let table = output(&master.address, &["events"]).await;
    assert!(table.text().contains("port 80 refused (TCP, IPv4)"), "{}", table.text());
}

#[tokio::test]
async fn one_task_has_its_own_agent_asked() {
    let (master, _one, _two) = cluster().await;
    let lines = output(&master.address, &["events", "--json", "web"]).await.json_lines();
    assert_eq!(ports(&lines), [80, 443]);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_named_and_left_out() {
    let (master, _one, _two) = cluster().await;
    master.add_agent("a-3", "127.0.0.1:1");
    let ended = output(&master.address, &["events", "--json"]).await;
    assert_eq!((ended.code, ports(&ended.json_lines())), (0, vec![80, 53, 443]));
    assert!(ended.stderr.contains("no events from host-a-3"), "{}", ended.stderr);
    master.lists().agents.drain(..2);
    assert_eq!(output(&master.address, &["events"]).await.code, 1, "nobody answered");
}

#[tokio::test]
async fn follow_shows_them_as_they_happen() {
    let (master, one, _two) = cluster().await;
    let mut cli = bulkhead(&master.address, &["events", "-f"]);
    let backlog = [cli.line().await, cli.line().await, cli.line().await].concat();
    for port in [80, 53, 443] {
        assert!(backlog.contains(&format!("port {port} refused")), "{backlog}");
    }
    one.set(|s| s.events.push(denied("web-1", 80, 5, 4_000)));
    let line = cli.line().await;
    assert!(line.contains("port 80 refused") && line.contains("x5"), "{line}");
}

#[tokio::test]
async fn no_events_and_no_agents_are_no_failure() {
    let master = FakeMaster::start().await;
    assert!(output(&master.address, &["events"]).await.stderr.contains("no agents to ask"));
    let agent = FakeAgent::start().await;
    master.add_agent("a-1", &agent.address);
    let ended = output(&master.address, &["events"]).await;
    assert_eq!((ended.code, ended.text()), (0, ""));
    assert!(ended.stderr.contains("refused nothing"), "{}", ended.stderr);
}
