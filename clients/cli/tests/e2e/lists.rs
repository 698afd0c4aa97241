//! The lists: what they show, as a table and as JSON, and when they are empty.

use bulkhead_proto::v1::{
    AgentEntry, Enforced, FrameworkEntry, Grant, PortRange, ResourceClass, ResourceReport, Resources, Task,
    TaskReason, TaskSpec, TaskState, TaskStatus,
};

use crate::{
    fake_master::{FakeMaster, offer, status},
    process::output,
};

/// A task as the master lists it.
pub(crate) fn task(id: &str, name: &str, agent_id: &str, status: TaskStatus) -> Task {
    let resources = Resources {
        cpu_milli: 500,
        mem_bytes: 128 << 20,
        ports: vec![PortRange { first: 31_000, last: 31_001, ..PortRange::default() }],
        ..Resources::default()
    };
    let grant =
        Grant { resources: Some(resources), class: ResourceClass::Guaranteed.into(), ..Grant::default() };
    Task {
        spec: Some(TaskSpec {
            task_id: id.to_owned(),
            name: name.to_owned(),
            grant: Some(grant),
            ..TaskSpec::default()
        }),
        framework_id: "f-1".to_owned(),
        agent_id: agent_id.to_owned(),
        status: Some(status),
        started_unix_ms: 1,
    }
}

pub(crate) fn live(id: &str, name: &str, agent_id: &str) -> Task {
    task(id, name, agent_id, status(id, TaskState::Running, TaskReason::Unspecified, 1))
}

#[tokio::test]
async fn ps_shows_live_tasks_and_with_a_ended_ones_with_the_reason() {
    let master = FakeMaster::start().await;
    let oom = status("hog-2", TaskState::Failed, TaskReason::OutOfMemory, 2);
    let three =
        TaskStatus { exit_code: Some(3), ..status("bad-3", TaskState::Failed, TaskReason::Exited, 2) };
    master.lists().tasks = vec![
        live("web-1", "web", "a-1"),
        task("hog-2", "hog", "a-1", oom),
        task("bad-3", "bad", "a-1", three),
    ];
    let live = output(&master.address, &["ps"]).await;
    assert_eq!(live.code, 0);
    let rows: Vec<&str> = live.text().lines().collect();
    assert_eq!(rows.len(), 2, "{}", live.text());
    let columns: Vec<&str> = rows[1].split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
    assert_eq!(
        columns[..8],
        ["web-1", "web", "RUNNING", "guaranteed", "0.5", "128 MiB", "31000-31001", "a-1"]
    );
    let all = output(&master.address, &["ps", "-a"]).await;
    assert!(all.text().contains("FAILED (out of memory)"), "{}", all.text());
    assert!(all.text().contains("FAILED (exit code 3)"), "{}", all.text());
    assert!(!all.text().contains('\x1b'), "no colours in a pipe");
    assert!(output(&master.address, &["--color", "always", "ps"]).await.text().contains('\x1b'));
}

#[tokio::test]
async fn a_list_may_be_longer_than_a_message_is_by_default() {
    let master = FakeMaster::start().await;
    let big = |n| {
        let mut task = live(&format!("big-{n}"), "big", "a-1");
        task.spec.as_mut().unwrap().argv = vec!["x".repeat(200 << 10)];
        task
    };
    master.lists().tasks = (0..21).map(big).collect();
    let list = output(&master.address, &["ps"]).await;
    assert_eq!(list.text().lines().count(), 22, "{}", list.text());
}

#[tokio::test]
async fn ps_follows_pages_and_tells_a_task_once() {
    let master = FakeMaster::start().await;
    let ended = status("t-0", TaskState::Finished, TaskReason::Exited, 2);
    {
        let mut lists = master.lists();
        lists.page_tasks = 3;
        lists.tasks = (0..7).map(|n| live(&format!("t-{n}"), "web", "a-1")).collect();
        // Ended after its page was told.
        lists.tasks.push(task("t-0", "web", "a-1", ended));
    }
    let listed = output(&master.address, &["ps", "-a", "--json"]).await.json();
    let told = |t: &serde_json::Value| format!("{} {}", t["spec"]["task_id"], t["status"]["state"]);
    let mut told: Vec<String> = listed.as_array().unwrap().iter().map(told).collect();
    told.sort();
    assert_eq!(told.len(), 7, "{told:?}");
    assert_eq!(told[0], r#""t-0" "finished""#);
}

#[tokio::test]
async fn json_lists_are_one_document_with_units_in_the_names() {
    let master = FakeMaster::start().await;
    master.lists().tasks = vec![live("web-1", "web", "a-1")];
    let tasks = output(&master.address, &["ps", "--json"]).await.json();
    assert_eq!(tasks[0]["spec"]["grant"]["resources"]["mem_bytes"], 128 << 20);
    assert_eq!(tasks[0]["spec"]["grant"]["class"], "guaranteed");
    assert_eq!(tasks[0]["status"]["state"], "running");
    assert_eq!(tasks[0]["spec"]["grant"]["resources"]["ports"][0]["first"], 31_000);
}

#[tokio::test]
async fn agents_show_what_is_free_of_what_there_is() {
    let master = FakeMaster::start().await;
    master.add_agent("a-1", "127.0.0.1:5051");
    let amount = |cpu_milli, gib: u64| {
        Some(Resources { cpu_milli, mem_bytes: gib << 30, ports: Vec::new(), ..Resources::default() })
    };
    let report = ResourceReport {
        capacity: amount(8000, 16),
        free: amount(6500, 8),
        enforced: Some(Enforced { cpu: true, ..Enforced::default() }),
        ..ResourceReport::default()
    };
    let entry = AgentEntry { report: Some(report), task_count: 3, ..master.lists().agents.remove(0) };
    master.lists().agents.push(entry);
    let table = output(&master.address, &["agents"]).await;
    for part in ["host-a-1", "connected", "6.5/8", "8 GiB/16 GiB (not enforced)", "127.0.0.1:5051"] {
        assert!(table.text().contains(part), "{part}: {}", table.text());
    }
    let json = output(&master.address, &["agents", "--json"]).await.json();
    assert_eq!(json[0]["report"]["free"]["cpu_milli"], 6500);
    assert_eq!(json[0]["agent"]["api_address"], "127.0.0.1:5051");
}

#[tokio::test]
async fn offers_and_frameworks_have_their_tables() {
    let master = FakeMaster::start().await;
    master.lists().offers = vec![offer("o-7", "h:1", 1500, 512)];
    master.lists().frameworks = vec![
        FrameworkEntry {
            framework_id: "f-1".into(),
            name: "run web".into(),
            role: "default".into(),
            connected: true,
            ..FrameworkEntry::default()
        },
        FrameworkEntry { framework_id: "f-2".into(), detached: true, ..FrameworkEntry::default() },
    ];
    let offers = output(&master.address, &["offers"]).await;
    for part in ["o-7", "1.5", "512 MiB", "31000-31009", "not cpu, mem, ports"] {
        assert!(offers.text().contains(part), "{part}: {}", offers.text());
    }
    let frameworks = output(&master.address, &["frameworks"]).await;
    for part in ["run web", "connected", "detached"] {
        assert!(frameworks.text().contains(part), "{part}: {}", frameworks.text());
    }
    let json = output(&master.address, &["frameworks", "--json"]).await.json();
    assert_eq!(json[1]["detached"], true);
    assert_eq!(output(&master.address, &["offers", "--json"]).await.json()[0]["class"], "guaranteed");
}

#[tokio::test]
async fn an_empty_list_says_so_and_is_no_failure() {
    let master = FakeMaster::start().await;
    for (command, says) in [
        ("ps", "no live tasks"),
        ("agents", "no agents"),
        ("offers", "no offers"),
        ("frameworks", "no frameworks"),
    ] {
        let ended = output(&master.address, &[command]).await;
        assert_eq!((ended.code, ended.text()), (0, ""), "{command}");
        assert!(ended.stderr.contains(says), "{command}: {}", ended.stderr);
        let json = output(&master.address, &[command, "--json"]).await;
        assert_eq!((json.text().trim(), json.stderr.as_str()), ("[]", ""), "{command}");
    }
}

#[tokio::test]
async fn a_bad_address_and_an_unknown_command_are_usage_errors() {
    for args in [vec!["ps"], vec!["frobnicate"], vec!["logs", "--stdout", "--stderr", "x"]] {
        let address = if args == ["ps"] { "nowhere" } else { "127.0.0.1:1" };
        let ended = output(address, &args).await;
        assert_eq!(ended.code, 2, "{args:?}: {}", ended.stderr);
    }
}
