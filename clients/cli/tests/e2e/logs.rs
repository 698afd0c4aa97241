//! `bulkhead logs`.

use crate::{
    fake_agent::FakeAgent,
    fake_master::FakeMaster,
    lists::live,
    process::{bulkhead, output},
};

async fn cluster() -> (FakeMaster, FakeAgent) {
    let (master, agent) = (FakeMaster::start().await, FakeAgent::start().await);
    master.add_agent("a-1", &agent.address);
    master.lists().tasks = vec![live("web-1", "web", "a-1"), live("web-2", "other", "a-gone")];
    agent.set(|s| {
        s.stdout = b"one\ntwo\n".to_vec();
        s.stderr = b"oops\n".to_vec();
    });
    (master, agent)
}

#[tokio::test]
async fn both_streams_go_where_they_belong() {
    let (master, agent) = cluster().await;
    let ended = output(&master.address, &["logs", "web"]).await;
    assert_eq!((ended.code, ended.text(), ended.stderr.as_str()), (0, "one\ntwo\n", "oops\n"));
    assert_eq!((agent.reads()[0].framework_id.as_str(), agent.reads()[0].follow), ("f-1", false));
}

#[tokio::test]
async fn one_stream_alone_goes_to_standard_output() {
    let (master, _agent) = cluster().await;
    assert_eq!(output(&master.address, &["logs", "--stderr", "web"]).await.text(), "oops\n");
    let tail = output(&master.address, &["logs", "--stdout", "--tail", "4", "web-1"]).await;
    assert_eq!((tail.text(), tail.stderr.as_str()), ("two\n", ""));
}

#[tokio::test]
async fn follow_goes_on_until_the_task_has_ended() {
    let (master, agent) = cluster().await;
    let mut cli = bulkhead(&master.address, &["logs", "-f", "--stdout", "web"]);
    assert_eq!(cli.line().await, "one\n");
    assert_eq!(cli.line().await, "two\n");
    agent.set(|s| s.stdout.extend_from_slice(b"three\n"));
    assert_eq!(cli.line().await, "three\n");
    agent.set(|s| {
        s.stdout.extend_from_slice(b"end\n");
        s.ended = true;
    });
    let ended = cli.end().await;
    assert_eq!((ended.code, ended.text()), (0, "end\n"));
}

#[tokio::test]
async fn json_lines_carry_stream_and_offset() {
    let (master, _agent) = cluster().await;
    let lines = output(&master.address, &["logs", "--json", "--tail", "4", "web"]).await.json_lines();
    assert_eq!(lines[0], serde_json::json!({"stream": "stdout", "offset": 4, "text": "two\n"}));
    assert_eq!(lines[1], serde_json::json!({"stream": "stderr", "offset": 1, "text": "ops\n"}));
}

#[tokio::test]
async fn what_cannot_be_found_is_explained() {
    let (master, agent) = cluster().await;
    for (task, says) in [
        ("wbe", "did you mean web"),
        ("web-", "fits 2 tasks: web-1, web-2"),
        ("web-2", "which the master does not know now"),
    ] {
        let ended = output(&master.address, &["logs", task]).await;
        assert_eq!(ended.code, 1, "{task}");
        assert!(ended.stderr.contains(says), "{task}: {}", ended.stderr);
    }
    agent.set(|s| s.unknown = true);
    let ended = output(&master.address, &["logs", "web"]).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("has no sandbox here"), "{}", ended.stderr);
    assert_eq!(output(&master.address, &["logs", "-f", "web"]).await.code, 1);
}
