//! Memory beyond the limit ends the whole task unless it asked otherwise, and nothing else; and says whom it was.

use std::fs;

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{TaskReason, TaskState, TaskStatus};
use bulkhead_testkit::{
    Cluster, Options, Task,
    cluster::{Verdict, until},
    trials,
};
use libtest_mimic::Trial;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{line, read, with_mem};
use crate::CLUSTER;

pub(super) fn tests() -> Vec<Trial> {
    trials![
        a_hog_is_ended_as_a_whole,
        one_process_is_ended_where_that_was_asked_for,
        an_end_while_the_agent_is_away_is_told,
        too_little_to_start_with,
    ]
}

const HOG: &str = "\
kept = []
while True:
    kept.append(b'x' * (1 << 20))
";

/// The process id that a message names, with the size of the process.
fn told_pid(message: &str) -> Result<i32> {
    let (_, rest) = message.split_once("python3 (pid ").with_context(|| message.to_owned())?;
    let (pid, size) = rest.split_once(") with ").with_context(|| message.to_owned())?;
    let anon = size.split_once(" MiB of anonymous memory").with_context(|| message.to_owned())?.0;
    assert!(anon.parse::<f64>()? > 25.0, "{message}");
    Ok(pid.parse()?)
}

async fn a_hog_is_ended_as_a_whole() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("hog").await?;
    framework.start(Task::new("other", ["sleep", "600"])).await?;
    let child = "\
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
";
    let hog = format!("{child}print(os.getpid(), flush=True)\nsys.stdin.read()\n{HOG}");
    let end = framework.run(Task::python("t-hog", &hog).mem_mib(48).cpu_milli(1000)).await?;
    assert_eq!(
        (end.state(), end.reason(), end.signal),
        (TaskState::Failed, TaskReason::OutOfMemory, Some(9))
    );
    assert!(end.message.contains("48.0 MiB") && end.message.contains("2 processes"), "{}", end.message);
    // In its own namespace it is number 1; what is told is its number on the host.
    assert_eq!(cluster.stdout(&framework, "t-hog").await?.trim(), "1");
    assert!(told_pid(&end.message)? > 1, "{}", end.message);
    let usage = end.usage.context("a usage")?;
    // The kernel's own count has its first choice twice.
    assert_eq!(usage.oom_kills, 2, "{usage:?}");
    assert!((40 << 20..=48 << 20).contains(&usage.mem_peak_bytes), "{usage:?}");
    assert!(!cluster.guaranteed(&framework, "t-hog")?.exists());
    let event = oom_event(&cluster, "t-hog").await?.context("an event")?;
    assert_eq!((event["count"].as_u64(), event["message"].as_str()), (Some(2), Some(&*end.message)));
    assert_eq!(framework.statuses("other").len(), 2, "the other task runs on");
    let shown = cluster
        .run_cli(&["run", "--cpus", "1", "--mem", "32MiB", "--", "python3", "-Sc", "b'x' * (1 << 28)"])
        .await?;
    assert_eq!(shown.code, 137, "{}", shown.stderr);
    assert!(shown.stderr.contains("32 MiB") && shown.stderr.contains("--mem"), "{}", shown.stderr);
    framework.teardown().await
}

async fn oom_event(cluster: &Cluster, task: &str) -> Result<Option<serde_json::Value>> {
    let events = cluster.run_cli(&["events", "--json", task]).await?.json_lines()?;
    Ok(events.into_iter().find(|e| e["kind"] == "out_of_memory"))
}

async fn one_process_is_ended_where_that_was_asked_for() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("one").await?;
    let script = format!("python3 -ISc \"{HOG}\"; echo its end was $?; exec sleep 600");
    let task = Task::shell("t-one", &script).mem_mib(48).cpu_milli(1000);
    framework.start(with_mem(task, |mem| mem.oom_one_process = true)).await?;
    cluster.stdout_until(&framework, "t-one", "its end was 137").await?;
    let cgroup = cluster.guaranteed(&framework, "t-one")?;
    assert_eq!(
        (line(&cgroup, "memory.events", "oom_kill")?, read(&cgroup, "memory.oom.group")?),
        (1, "0".into())
    );
    let event = until("the event", || async {
        let event = oom_event(&cluster, "t-one").await.map_err(|e| Verdict::Never(e.to_string()))?;
        event.ok_or_else(|| Verdict::NotYet("none".into()))
    });
    let event = event.await?;
    assert_eq!(event["count"], 1);
    told_pid(event["message"].as_str().unwrap_or_default())?;
    framework.kill("t-one", 0).await?;
    let end = framework.end_of("t-one").await?;
    assert_eq!(end.reason(), TaskReason::KilledByFramework, "{end:?}");
    assert_eq!(end.usage.context("a usage")?.oom_kills, 1);
    framework.teardown().await
}

async fn an_end_while_the_agent_is_away_is_told() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("away").await?;
    let script =
        format!("import signal\nprint('ready', flush=True)\nsignal.sigwait([signal.SIGUSR1])\n{HOG}");
    let script =
        format!("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n{script}");
    framework.start(Task::python("t", &script).mem_mib(48).cpu_milli(1000)).await?;
    cluster.stdout_until(&framework, "t", "ready").await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let pid: i32 = read(&cgroup, "cgroup.procs")?.parse()?;
    cluster.kill_agent_hard().await?;
    kill(Pid::from_raw(pid), Signal::SIGUSR1)?;
    until("the kernel to end the task", || async {
        match fs::read_to_string(cgroup.join("cgroup.events")) {
            Ok(text) if text.contains("populated 0") => Ok(()),
            other => Err(Verdict::NotYet(format!("{other:?}"))),
        }
    })
    .await?;
    cluster.restart_agent().await?;
    let end: TaskStatus = framework.end_of("t").await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::OutOfMemory), "{end:?}");
    assert_eq!(told_pid(&end.message)?, pid, "{}", end.message);
    framework.teardown().await?;
    cluster.finish().await
}

/// Until it is executed, a task's first process shares the agent's memory: its end must not be the agent's.
async fn too_little_to_start_with() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("little").await?;
    let agent = cluster.agent_pid()?;
    let too_little = [TaskReason::OutOfMemory, TaskReason::LaunchFailed, TaskReason::MemoryStalled];
    // The least that is granted is too little for these; less is refused.
    for (kib, program, reasons) in [
        (4, "tail /dev/zero", &[TaskReason::InvalidGrant][..]),
        (1023, "tail /dev/zero", &[TaskReason::InvalidGrant]),
        (1024, "tail /dev/zero", &too_little),
    ] {
        let id = format!("t-{kib}-{}", program.len());
        let task = Task::shell(&id, program).mem_bytes(kib << 10).cpu_milli(1000);
        let end = framework.run(with_mem(task, |mem| mem.stall_ms = 3000)).await?;
        assert_eq!(end.state(), TaskState::Failed, "{kib} KiB, {program}: {end:?}");
        assert!(reasons.contains(&end.reason()), "{kib} KiB, {program}: {end:?}");
        assert!(end.message.contains("memory"), "{kib} KiB, {program}: {end:?}");
    }
    assert_eq!(cluster.agent_pid()?, agent);
    cluster.registered().await?;
    assert_eq!(framework.run(Task::new("afterwards", ["true"])).await?.state(), TaskState::Finished);
    framework.teardown().await
}
