//! Other memory limits for a running task: what it does not need is taken back, and it is never ended for it.

use std::path::Path;

use anyhow::Result;
use bulkhead_testkit::{Task, trials};
use libtest_mimic::Trial;

use super::{disk, line, number, read, with_mem};
use crate::CLUSTER;

pub(super) fn tests() -> Vec<Trial> {
    trials![
        a_lower_limit_takes_back_what_is_not_needed,
        a_lower_limit_holds_for_a_task_that_goes_on_reading,
        a_limit_below_what_is_needed_is_refused,
        a_growing_task_is_not_ended_by_a_lower_limit,
    ]
}

fn all_limits(cgroup: &Path) -> Result<Vec<String>> {
    [
        "memory.max",
        "memory.high",
        "memory.low",
        "memory.min",
        "memory.swap.max",
        "memory.oom.group",
        "cgroup.freeze",
    ]
    .map(|file| read(cgroup, file))
    .into_iter()
    .collect()
}

async fn a_lower_limit_takes_back_what_is_not_needed() -> Result<()> {
    let files = disk::Files::make()?;
    let file = files.file("large", 80 << 20)?;
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("back").await?;
    let script = format!("cat {} >/dev/null; echo read; exec sleep 600", file.display());
    let large = Task::shell("t", &script).mem_mib(128).cpu_milli(1000);
    framework.start(large.clone()).await?;
    cluster.stdout_until(&framework, "t", "read").await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    assert!(number(&cgroup, "memory.current")? > 70 << 20);
    let small = large.clone().mem_mib(24);
    assert_eq!(framework.resize(&large, &small).await?.refusal, "");
    assert!(number(&cgroup, "memory.current")? <= 24 << 20);
    let mib = |n: u64| (n << 20).to_string();
    assert_eq!(all_limits(&cgroup)?, [&mib(24), "max", &mib(24), &mib(24), "0", "1", "0"]);
    // Up again, with a burst and a soft limit, and back.
    let bursting = with_mem(large.clone(), |mem| {
        mem.limit_bytes = 160 << 20;
        mem.high_bytes = 140 << 20;
    });
    assert_eq!(framework.resize(&small, &bursting).await?.refusal, "");
    assert_eq!(all_limits(&cgroup)?, [&mib(160), &mib(140), &mib(128), &mib(128), "0", "1", "0"]);
    assert_eq!(framework.resize(&bursting, &small).await?.refusal, "");
    assert_eq!(all_limits(&cgroup)?, [&mib(24), "max", &mib(24), &mib(24), "0", "1", "0"]);
    assert_eq!(line(&cgroup, "memory.events", "oom_kill")?, 0);
    framework.teardown().await
}

async fn a_lower_limit_holds_for_a_task_that_goes_on_reading() -> Result<()> {
    let files = disk::Files::make()?;
    let file = files.file("large", 60 << 20)?;
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("reads").await?;
    let script = format!("while :; do cat {} >/dev/null; echo round; done", file.display());
    let large = Task::shell("t", &script).mem_mib(128).cpu_milli(1000);
    framework.start(large.clone()).await?;
    cluster.stdout_until(&framework, "t", "round").await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let small = large.clone().mem_mib(24);
    let answer = framework.resize(&large, &small).await?;
    // A busy task may be refused; what counts is that it lives, and that limits and books agree.
    let limit = if answer.refusal.is_empty() { 24_u64 << 20 } else { 128 << 20 };
    assert_eq!(number(&cgroup, "memory.max")?, limit, "{answer:?}");
    assert_eq!(
        (read(&cgroup, "memory.high")?.as_str(), read(&cgroup, "cgroup.freeze")?.as_str()),
        ("max", "0")
    );
    let rounds = cluster.stdout_until(&framework, "t", "round").await?.lines().count();
    cluster.stdout_until(&framework, "t", &"round\n".repeat(rounds + 2)).await?;
    assert_eq!(line(&cgroup, "memory.events", "oom_kill")?, 0);
    framework.teardown().await
}

async fn a_limit_below_what_is_needed_is_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("needed").await?;
    let script = "\
import time
kept = b'x' * (48 << 20)
print('has it', flush=True)
time.sleep(600)
";
    let large = Task::python("t", script).mem_mib(96).cpu_milli(1000);
    framework.start(large.clone()).await?;
    cluster.stdout_until(&framework, "t", "has it").await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let before = all_limits(&cgroup)?;
    let answer = framework.resize(&large, &large.clone().mem_mib(24)).await?;
    for part in ["memory limit", "the task uses", "anonymous memory", "24.0 MiB"] {
        assert!(answer.refusal.contains(part), "{part}: {answer:?}");
    }
    assert_eq!(all_limits(&cgroup)?, before);
    assert_eq!(line(&cgroup, "memory.events", "oom_kill")?, 0);
    // What is needed fits: a little above it, the same task is resized.
    assert_eq!(framework.resize(&large, &large.clone().mem_mib(72)).await?.refusal, "");
    assert_eq!(number(&cgroup, "memory.max")?, 72 << 20);
    assert_eq!(framework.statuses("t").len(), 2, "it runs on");
    framework.teardown().await
}

/// It takes what it can get while the limit comes down, up to what it had to begin with.
async fn a_growing_task_is_not_ended_by_a_lower_limit() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("grows").await?;
    let script = "\
import time
print('starts', flush=True)
while True:
    kept = []
    for _ in range(70):
        kept.append(b'x' * (1 << 20))
    print('had it all', flush=True)
";
    let large = Task::python("t", script).mem_mib(96).cpu_milli(1000);
    framework.start(large.clone()).await?;
    cluster.stdout_until(&framework, "t", "had it all").await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    // At some moments of its cycle it would fit; the limit is lowered only if it is caught in one.
    let answer = framework.resize(&large, &large.clone().mem_mib(80)).await?;
    let limit = if answer.refusal.is_empty() { 80_u64 << 20 } else { 96 << 20 };
    assert_eq!(number(&cgroup, "memory.max")?, limit, "{answer:?}");
    cluster.stdout_until(&framework, "t", "had it all\nhad it all").await?;
    assert_eq!(line(&cgroup, "memory.events", "oom_kill")?, 0);
    framework.teardown().await
}
