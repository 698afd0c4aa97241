//! Agents and masters come and go; tasks and their ends do not get lost.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{FrameworkInfo, TaskReason, TaskState};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{Verdict, until},
    programs, trials,
};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        output_goes_on_while_the_agent_is_away,
        a_crashed_agent_finds_its_tasks_running,
        an_end_without_an_agent_is_told_later,
        an_unacknowledged_end_is_repeated_after_a_crash,
        a_new_master_learns_of_tasks_and_their_ends,
        a_master_that_is_not_there_is_waited_for,
        cleanup_ends_everything,
        cleanup_spares_an_agent_with_another_work_directory,
    ]
}

/// Runs until the file `go` is in its directory, then exits with 7.
fn until_go(id: &str) -> Task {
    Task::shell(id, "echo ready; until [ -e go ]; do sleep 0.05; done; echo went; exit 7")
}

/// A framework that may be away for long.
async fn lasting(cluster: &Cluster, framework_id: &str) -> Result<Framework> {
    let info = FrameworkInfo {
        framework_id: framework_id.to_owned(),
        name: "lasting".to_owned(),
        failover_timeout_ms: 600_000,
        ..FrameworkInfo::default()
    };
    Framework::subscribe_as(cluster.master_channel().await?, info, true).await
}

async fn output_goes_on_while_the_agent_is_away() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("output").await?;
    let script = "i=0; until [ -e go ]; do i=$((i+1)); echo $i; sleep 0.02; done; echo last $i";
    framework.start(Task::shell("t", script)).await?;
    cluster.stdout_until(&framework, "t", "5\n").await?;
    cluster.stop_agent().await?;
    let file = cluster.task_dir(&framework, "t").with_file_name("stdout");
    let before = fs::metadata(&file)?.len();
    until("output without an agent", || async {
        let grown = fs::metadata(&file).is_ok_and(|m| m.len() > before);
        if grown { Ok(()) } else { Err(Verdict::NotYet("the file does not grow".into())) }
    })
    .await?;
    cluster.restart_agent().await?;
    fs::write(cluster.task_dir(&framework, "t").join("go"), "")?;
    assert_eq!(framework.end_of("t").await?.state(), TaskState::Finished);
    let output = cluster.stdout(&framework, "t").await?;
    let count = output.lines().count() - 1;
    let expected: String = (1..=count).map(|n| format!("{n}\n")).collect();
    assert_eq!(output, format!("{expected}last {count}\n"));
    framework.teardown().await?;
    cluster.finish().await
}

async fn a_crashed_agent_finds_its_tasks_running() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("crash").await?;
    framework.start(until_go("t").ports(&[cluster.port(1)])).await?;
    let before = cluster.agent_info().await?.report;
    cluster.kill_agent_hard().await?;
    cluster.restart_agent().await?;
    let after = cluster.agent_info().await?.report;
    assert_eq!(before.map(|r| r.allocated), after.map(|r| r.allocated), "what is granted stays granted");
    fs::write(cluster.task_dir(&framework, "t").join("go"), "")?;
    let end = framework.end_of("t").await?;
    assert_eq!((end.state(), end.exit_code, end.sequence), (TaskState::Failed, Some(7), 3));
    assert!(!cluster.guaranteed(&framework, "t")?.exists());
    // A task that was found again can be killed as any other.
    framework.start(Task::new("u", ["sleep", "600"])).await?;
    cluster.kill_agent_hard().await?;
    cluster.restart_agent().await?;
    framework.kill("u", 0).await?;
    assert_eq!(framework.end_of("u").await?.state(), TaskState::Killed);
    framework.teardown().await?;
    cluster.finish().await
}

async fn an_end_without_an_agent_is_told_later() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("away").await?;
    framework.start(until_go("t")).await?;
    let fault = ["until [ -e go ]; do sleep 0.05; done; exec \"$0\" \"$@\""];
    framework.start(Task::new("s", [&["sh", "-c"], &fault[..], &programs::FAULT].concat())).await?;
    cluster.kill_agent_hard().await?;
    for task in ["t", "s"] {
        fs::write(cluster.task_dir(&framework, task).join("go"), "")?;
        let events = cluster.guaranteed(&framework, task)?.join("cgroup.events");
        until("the end of the task's processes", || async {
            let text = fs::read_to_string(&events).map_err(|e| Verdict::Never(e.to_string()))?;
            if text.contains("populated 0") { Ok(()) } else { Err(Verdict::NotYet(text)) }
        })
        .await?;
    }
    cluster.restart_agent().await?;
    let end = framework.end_of("t").await?;
    assert_eq!((end.reason(), end.exit_code), (TaskReason::Exited, Some(7)), "{end:?}");
    let end = framework.end_of("s").await?;
    assert_eq!((end.reason(), end.signal), (TaskReason::Signaled, Some(11)), "{end:?}");
    assert_eq!(cluster.stdout(&framework, "t").await?, "ready\nwent\n");
    framework.teardown().await?;
    cluster.finish().await
}

async fn an_unacknowledged_end_is_repeated_after_a_crash() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let info = FrameworkInfo { name: "silent".into(), ..FrameworkInfo::default() };
    let framework = Framework::subscribe_as(cluster.master_channel().await?, info, false).await?;
    let first = framework.run(Task::shell("t", "exit 3")).await?;
    cluster.kill_agent_hard().await?;
    cluster.restart_agent().await?;
    let ends =
        || framework.statuses("t").into_iter().map(|s| s.status).filter(bulkhead_testkit::framework::is_last);
    until("the end to be repeated", || async {
        let ends: Vec<_> = ends().collect();
        if ends.len() > 1 { Ok(()) } else { Err(Verdict::NotYet(format!("{ends:?}"))) }
    })
    .await?;
    assert!(ends().all(|end| end == first), "the same status: {:?}", ends().collect::<Vec<_>>());
    framework.acknowledge(&first).await?;
    framework.teardown().await?;
    cluster.finish().await
}

async fn a_new_master_learns_of_tasks_and_their_ends() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = lasting(&cluster, "").await?;
    framework.start(until_go("runs")).await?;
    framework.start(until_go("ends")).await?;
    cluster.stop_master().await?;
    framework.wait_closed().await?;
    fs::write(cluster.task_dir(&framework, "ends").join("go"), "")?;
    cluster.start_master().await?;
    cluster.registered().await?;
    let framework = lasting(&cluster, framework.id()).await?;
    assert_eq!(framework.end_of("ends").await?.exit_code, Some(7));
    fs::write(cluster.task_dir(&framework, "runs").join("go"), "")?;
    let end = framework.end_of("runs").await?;
    assert_eq!((end.exit_code, end.framework_id.as_str()), (Some(7), framework.id()));
    framework.teardown().await?;
    cluster.finish().await
}

async fn a_master_that_is_not_there_is_waited_for() -> Result<()> {
    let mut cluster = Cluster::start(Options { without_master: true, ..Options::default() }).await?;
    // Who listens here counts the attempts and is no master.
    let listener = tokio::net::TcpListener::bind(cluster.master_address()).await?;
    let attempts = AtomicUsize::new(0);
    let counting = async {
        while attempts.load(Ordering::Relaxed) < 3 {
            drop(listener.accept().await);
            attempts.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::time::timeout(bulkhead_testkit::HANG, counting).await?;
    drop(listener);
    cluster.start_master().await?;
    cluster.registered().await?;
    let log = cluster.agent_log();
    assert_eq!(log.matches("no session with the master").count(), 1, "said once: {log}");
    assert!(log.contains(&cluster.master_address()), "{log}");
    cluster.finish().await
}

async fn cleanup_ends_everything() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("cleanup").await?;
    framework.start(Task::shell("t", "trap '' TERM; setsid sleep 600 & sleep 600")).await?;
    let refused =
        cluster.run_agent(&[vec!["cleanup".to_owned()], cluster.agent_arguments()].concat()).await?;
    assert_eq!(refused.code, 1, "an agent is at work: {}", refused.stderr);
    assert!(refused.stderr.contains(&cluster.agent_pid()?.to_string()), "{}", refused.stderr);
    cluster.kill_agent_hard().await?;
    // Checks that cgroups and pins are gone.
    cluster.finish().await
}

async fn cleanup_spares_an_agent_with_another_work_directory() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("spared").await?;
    framework.start(Task::new("t", ["sleep", "600"])).await?;
    let elsewhere = tempfile::tempdir()?;
    let mut arguments = cluster.agent_arguments();
    let value = arguments.iter().position(|a| a == "--work-dir").context("a work directory")? + 1;
    arguments[value] = elsewhere.path().display().to_string();
    let refused = cluster.run_agent(&[vec!["cleanup".to_owned()], arguments].concat()).await?;
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("another agent"), "{}", refused.stderr);
    framework.kill("t", 0).await?;
    assert_eq!(framework.end_of("t").await?.state(), TaskState::Killed);
    framework.teardown().await?;
    cluster.finish().await
}
