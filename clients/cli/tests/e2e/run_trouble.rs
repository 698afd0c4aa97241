//! `bulkhead run` where the master, the agent, the user or the reader does something else.

use bulkhead_proto::v1::{
    ResourceReport, Resources, TaskReason, TaskState, TaskStatus, scheduler_call::Call,
};
use tonic::Status;

use crate::{
    fake_agent::FakeAgent,
    fake_master::{FakeMaster, offer, status},
    process::{bulkhead, output},
    run::Running,
};

/// A port of this machine that nobody listens on.
async fn closed_port() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn no_master_says_how_to_get_one() {
    let address = closed_port().await;
    let ended = output(&address, &["run", "--", "true"]).await;
    assert_eq!(ended.code, 125);
    let says = format!("no master answers at {address} (connection refused); start one with `make run`");
    assert!(ended.stderr.contains(&says), "{}", ended.stderr);
    assert_eq!(output(&address, &["ps"]).await.code, 1);
}

#[tokio::test]
async fn a_refused_subscription_is_said() {
    let mut master = FakeMaster::start().await;
    let cli = bulkhead(&master.address, &["run", "--", "true"]);
    master.session().await.fail(Status::invalid_argument("role is too long")).await;
    let ended = cli.end().await;
    assert_eq!(ended.code, 125);
    assert!(ended.stderr.contains("role is too long"), "{}", ended.stderr);
}

#[tokio::test]
async fn offers_that_do_not_fit_go_back_and_one_that_was_gone_is_replaced() {
    let agent = FakeAgent::start().await;
    let mut master = FakeMaster::start().await;
    let cli = bulkhead(&master.address, &["run", "--cpus", "2", "--", "true"]);
    let mut session = master.session().await;
    session.subscribed("f-1").await;
    session.offer(vec![offer("small", &agent.address, 1000, 4096)]).await;
    match session.call().await {
        Some(Call::Decline(decline)) => assert_eq!(decline.offer_ids, ["small"]),
        other => panic!("not a decline: {other:?}"),
    }
    session.offer(vec![offer("gone", &agent.address, 2000, 4096)]).await;
    let task_id = session.accept().await.tasks[0].task_id.clone();
    session.status(status(&task_id, TaskState::Rejected, TaskReason::OfferGone, 0)).await;
    assert!(matches!(session.call().await, Some(Call::Revive(_))));
    session.offer(vec![offer("good", &agent.address, 2000, 4096)]).await;
    assert_eq!(session.accept().await.offer_ids, ["good"]);
    agent.set(|s| s.ended = true);
    session.status(status(&task_id, TaskState::Finished, TaskReason::Unspecified, 1)).await;
    session.acknowledged(1).await;
    session.torn_down().await;
    assert_eq!(cli.end().await.code, 0);
}

/// A master with one agent that has 4 CPUs, 1 of them free.
async fn nearly_full() -> FakeMaster {
    let master = FakeMaster::start().await;
    let amount = |cpu_milli| {
        Some(Resources { cpu_milli, mem_bytes: 1 << 30, ports: Vec::new(), ..Resources::default() })
    };
    let report = ResourceReport { capacity: amount(4000), free: amount(1000), ..ResourceReport::default() };
    master.add_agent("a-1", "127.0.0.1:1");
    master.lists().agents[0].report = Some(report);
    master
}

#[tokio::test]
async fn a_wait_says_once_what_it_waits_for() {
    let mut master = nearly_full().await;
    let mut cli = bulkhead(&master.address, &["run", "--cpus", "2", "--mem", "1GiB", "--", "true"]);
    let session = master.session().await;
    session.subscribed("f-1").await;
    let line = cli.until_stderr("waiting for an offer").await;
    assert!(line.contains("with 2 CPUs, 1 GiB; the most that is free is 1 CPU, 1 GiB on host-a-1"), "{line}");
    cli.signal("INT");
    session.torn_down().await;
    let ended = cli.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (130, ""));
}

#[tokio::test]
async fn a_wait_in_vain_says_what_there_is_instead() {
    let mut master = nearly_full().await;
    let cli = bulkhead(&master.address, &["run", "--cpus", "8", "--timeout", "200ms", "--", "true"]);
    let session = master.session().await;
    session.subscribed("f-1").await;
    session.torn_down().await;
    let ended = cli.end().await;
    assert_eq!(ended.code, 125);
    let says =
        "no offer with 8 CPUs, 128 MiB came within 200ms; the largest agent has 4 CPUs and 1 GiB in all";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
}

#[tokio::test]
async fn a_broken_stream_is_opened_again_under_the_same_id() {
    let Running { mut master, agent, session, mut cli, task } = Running::start(&["run", "--", "prog"]).await;
    session.fail(Status::unavailable("master restarts")).await;
    cli.until_stderr("lost the master (master restarts)").await;
    let mut session = master.session().await;
    assert_eq!(session.framework.framework_id, "f-1");
    session.subscribed("f-1").await;
    match session.call().await {
        Some(Call::Reconcile(reconcile)) => assert_eq!(reconcile.task_ids.join(" "), task.task_id),
        other => panic!("not a reconciliation: {other:?}"),
    }
    // A master that has just started has not heard of the task yet.
    session.status(status(&task.task_id, TaskState::Lost, TaskReason::UnknownTask, 0)).await;
    assert!(matches!(session.call().await, Some(Call::Reconcile(_))));
    session.status(status(&task.task_id, TaskState::Running, TaskReason::Unspecified, 0)).await;
    agent.set(|s| {
        s.stdout = b"still here\n".to_vec();
        s.ended = true;
    });
    session.status(status(&task.task_id, TaskState::Finished, TaskReason::Unspecified, 2)).await;
    session.acknowledged(2).await;
    session.torn_down().await;
    let ended = cli.end().await;
    assert_eq!((ended.code, ended.text()), (0, "still here\n"));
}

#[tokio::test]
async fn ctrl_c_stops_the_task_and_waits_for_it() {
    let Running { agent, mut session, cli, task, .. } =
        Running::start(&["run", "--grace", "3s", "--", "prog"]).await;
    cli.signal("INT");
    match session.call().await {
        Some(Call::Kill(kill)) => assert_eq!((kill.task_id, kill.grace_ms), (task.task_id.clone(), 3000)),
        other => panic!("not a kill: {other:?}"),
    }
    agent.set(|s| {
        s.stdout = b"last words\n".to_vec();
        s.ended = true;
    });
    let killed = status(&task.task_id, TaskState::Killed, TaskReason::KilledByFramework, 2);
    session.status(TaskStatus { signal: Some(15), ..killed }).await;
    session.acknowledged(2).await;
    session.torn_down().await;
    let ended = cli.end().await;
    assert_eq!((ended.code, ended.text()), (143, "last words\n"));
    assert!(ended.stderr.contains("once more leaves at once"), "{}", ended.stderr);
}

#[tokio::test]
async fn the_second_ctrl_c_leaves_at_once() {
    let Running { mut session, mut cli, .. } = Running::start(&["run", "--", "prog"]).await;
    cli.signal("INT");
    assert!(matches!(session.call().await, Some(Call::Kill(_))));
    cli.until_stderr("stopping").await;
    cli.signal("TERM");
    session.torn_down().await;
    assert_eq!(cli.end().await.code, 130);
}

#[tokio::test]
async fn ctrl_c_before_an_offer_leaves_nothing() {
    let mut master = FakeMaster::start().await;
    let cli = bulkhead(&master.address, &["run", "--", "true"]);
    let session = master.session().await;
    session.subscribed("f-1").await;
    cli.signal("INT");
    session.torn_down().await;
    assert_eq!(cli.end().await.code, 130);
}

#[tokio::test]
async fn a_reader_that_leaves_stops_the_task() {
    let Running { agent, mut session, mut cli, task, .. } = Running::start(&["run", "--", "yes"]).await;
    agent.set(|s| s.stdout = b"y\n".to_vec());
    assert_eq!(cli.line().await, "y\n");
    cli.close_stdout();
    agent.set(|s| s.stdout.extend_from_slice(b"y\ny\n"));
    assert!(matches!(session.call().await, Some(Call::Kill(_))));
    session.status(status(&task.task_id, TaskState::Killed, TaskReason::KilledByFramework, 2)).await;
    session.acknowledged(2).await;
    session.torn_down().await;
    let ended = cli.end().await;
    assert_eq!((ended.code, ended.stderr.contains("panicked")), (141, false));
}

#[tokio::test]
async fn output_that_cannot_be_read_is_said_and_the_exit_code_stays() {
    let mut master = FakeMaster::start().await;
    let cli = bulkhead(&master.address, &["run", "--", "true"]);
    let mut session = master.session().await;
    session.subscribed("f-1").await;
    session.offer(vec![offer("o-1", &closed_port().await, 4000, 4096)]).await;
    let task_id = session.accept().await.tasks[0].task_id.clone();
    let failed = status(&task_id, TaskState::Failed, TaskReason::Exited, 1);
    session.status(TaskStatus { exit_code: Some(7), ..failed }).await;
    session.acknowledged(1).await;
    session.torn_down().await;
    let ended = cli.end().await;
    assert_eq!(ended.code, 7);
    assert!(ended.stderr.contains("could not be read to its end: no agent answers"), "{}", ended.stderr);
}
