//! Memory beyond the grant ends the whole task, and nothing else.

use std::fs;

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{TaskReason, TaskState};
use bulkhead_testkit::{Task, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![the_limit_is_set_to_the_page, a_hog_is_ended_as_a_whole, too_little_to_start_with]
}

async fn the_limit_is_set_to_the_page() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("page").await?;
    let asked = 50_000_001;
    framework.start(Task::new("t", ["sleep", "600"]).mem_bytes(asked)).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).map(|text| text.trim().to_owned());
    assert_eq!(read("memory.max")?.parse::<u64>()?, asked / procfs::page_size() * procfs::page_size());
    assert_eq!(read("memory.oom.group")?, "1");
    if cgroup.join("memory.swap.max").exists() {
        assert_eq!(read("memory.swap.max")?, "0");
    }
    framework.teardown().await
}

async fn a_hog_is_ended_as_a_whole() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("hog").await?;
    framework.start(Task::new("other", ["sleep", "600"])).await?;
    let hog = "\
import os, signal, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
kept = []
while True:
    kept.append(b'x' * (1 << 20))
";
    let end = framework.run(Task::python("t-hog", hog).mem_mib(48).cpu_milli(1000)).await?;
    assert_eq!(
        (end.state(), end.reason(), end.signal),
        (TaskState::Failed, TaskReason::OutOfMemory, Some(9))
    );
    assert!(end.message.contains("48.0 MiB"), "{}", end.message);
    let usage = end.usage.context("a usage")?;
    // Killed alone, the hog would count once; the kernel counts each of its group, and its first choice twice.
    assert!(usage.oom_kills >= 2, "{usage:?}");
    assert!((40 << 20..=48 << 20).contains(&usage.mem_peak_bytes), "{usage:?}");
    assert!(!cluster.guaranteed(&framework, "t-hog")?.exists());
    let events = cluster.run_cli(&["events", "--json", "t-hog"]).await?.json_lines()?;
    assert!(
        events.iter().any(|e| e["kind"] == "out_of_memory" && e["count"] == usage.oom_kills),
        "{events:?}"
    );
    assert_eq!(framework.statuses("other").len(), 2, "the other task runs on");
    let shown = cluster
        .run_cli(&["run", "--cpus", "1", "--mem", "32MiB", "--", "python3", "-Sc", "b'x' * (1 << 28)"])
        .await?;
    assert_eq!(shown.code, 137, "{}", shown.stderr);
    assert!(shown.stderr.contains("32 MiB") && shown.stderr.contains("--mem"), "{}", shown.stderr);
    framework.teardown().await
}

/// Until it is executed, a task's first process shares the agent's memory: its end must not be the agent's.
async fn too_little_to_start_with() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("little").await?;
    let agent = cluster.agent_pid()?;
    // The least that is granted is too little for this one; less is refused.
    for (kib, reasons) in [
        (4, &[TaskReason::InvalidGrant][..]),
        (64, &[TaskReason::InvalidGrant]),
        (512, &[TaskReason::OutOfMemory, TaskReason::LaunchFailed]),
    ] {
        let id = format!("t-{kib}");
        let end = framework.run(Task::new(&id, ["tail", "/dev/zero"]).mem_bytes(kib << 10)).await?;
        assert_eq!(end.state(), TaskState::Failed, "{kib} KiB: {end:?}");
        assert!(reasons.contains(&end.reason()), "{kib} KiB: {end:?}");
        assert!(end.message.contains("memory"), "{kib} KiB: {end:?}");
    }
    assert_eq!(cluster.agent_pid()?, agent);
    cluster.registered().await?;
    assert_eq!(framework.run(Task::new("afterwards", ["true"])).await?.state(), TaskState::Finished);
    framework.teardown().await
}
