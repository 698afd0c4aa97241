//! `bulkhead kill`.

use bulkhead_proto::v1::{TaskReason, TaskState};

use crate::{
    fake_master::{FakeMaster, status},
    lists::{live, task},
    process::output,
};

async fn cluster() -> FakeMaster {
    let master = FakeMaster::start().await;
    let ended = status("old-9", TaskState::Finished, TaskReason::Unspecified, 2);
    master.lists().tasks =
        vec![live("web-1", "web", "a-1"), live("web-2", "api", "a-1"), task("old-9", "old", "a-1", ended)];
    master
}

#[tokio::test]
async fn each_task_is_stopped_by_its_full_id() {
    let master = cluster().await;
    let ended = output(&master.address, &["kill", "--grace", "2s", "web", "web-2"]).await;
    assert_eq!((ended.code, ended.text()), (0, "web-1\nweb-2\n"));
    let stops = master.lists().stops.clone();
    assert_eq!(stops.iter().map(|s| s.task_id.as_str()).collect::<Vec<_>>(), ["web-1", "web-2"]);
    assert!(stops.iter().all(|s| s.framework_id == "f-1" && s.grace_ms == 2000));
}

#[tokio::test]
async fn one_that_is_unclear_does_not_hold_back_the_others() {
    let master = cluster().await;
    let ended = output(&master.address, &["kill", "nope", "web-", "api"]).await;
    assert_eq!((ended.code, ended.text()), (1, "web-2\n"));
    for says in ["no task is called \"nope\"", "fits 2 tasks: web-1, web-2", "2 of 3 orders to stop failed"] {
        assert!(ended.stderr.contains(says), "{says}: {}", ended.stderr);
    }
    assert_eq!(master.lists().stops.len(), 1);
}

#[tokio::test]
async fn a_task_that_has_ended_needs_no_order() {
    let master = cluster().await;
    let ended = output(&master.address, &["kill", "--json", "old", "web"]).await;
    assert_eq!(ended.code, 0);
    let stopped = ended.json();
    assert_eq!((&stopped[0]["task_id"], &stopped[0]["stopping"]), (&"old-9".into(), &false.into()));
    assert_eq!((&stopped[1]["task_id"], &stopped[1]["stopping"]), (&"web-1".into(), &true.into()));
    assert_eq!(master.lists().stops.len(), 1);
}
