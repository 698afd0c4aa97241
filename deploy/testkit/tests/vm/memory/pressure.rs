//! A task that stands still at its memory limit, and one that may use swap.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{TaskReason, TaskState};
use bulkhead_testkit::{Task, harness, trials};
use libtest_mimic::Trial;

use super::{disk::run, line, number, with_mem};
use crate::CLUSTER;

pub(super) fn tests() -> Vec<Trial> {
    trials![
        a_task_that_stands_still_is_ended,
        who_gets_on_above_its_soft_limit_is_not,
        swap_is_used_where_it_was_granted
    ]
}

/// Takes more and more, without end.
const GROW: &str = "\
kept = []
while len(kept) < 2000:
    kept.append(b'x' * (1 << 18))
";

async fn a_task_that_stands_still_is_ended() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("stalled").await?;
    let task = with_mem(Task::python("t-stall", GROW).mem_mib(256).cpu_milli(1000), |mem| {
        mem.high_bytes = 16 << 20;
        mem.stall_percent = 20;
        mem.stall_ms = 2000;
    });
    let end = framework.run(task).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::MemoryStalled), "{end:?}");
    for part in ["memory.high of 16.0 MiB", "using", "20 % of 2.0 s", "high_bytes"] {
        assert!(end.message.contains(part), "{part}: {}", end.message);
    }
    let usage = end.usage.context("a usage")?;
    assert_eq!(usage.oom_kills, 0, "{usage:?}");
    assert!(usage.mem_stall_usec > 400_000, "{usage:?}");
    let events = cluster.run_cli(&["events", "--json", "t-stall"]).await?.json_lines()?;
    assert!(
        events.iter().any(|e| e["kind"] == "memory_stalled" && e["message"] == end.message),
        "{events:?}"
    );
    framework.teardown().await
}

/// Page cache is taken back without a stall, so a task may read at its limit for ever.
async fn who_gets_on_above_its_soft_limit_is_not() -> Result<()> {
    let files = super::disk::Files::make()?;
    let file = files.file("large", 60 << 20)?;
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("reader").await?;
    let script = format!("for round in 1 2 3 4 5; do cat {} >/dev/null; done", file.display());
    let task = with_mem(Task::shell("t", &script).mem_mib(64).cpu_milli(1000), |mem| {
        mem.high_bytes = 16 << 20;
        mem.stall_percent = 90;
        mem.stall_ms = 2000;
    });
    let end = framework.run(task).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    framework.teardown().await
}

/// Swap in compressed memory, until the test is over.
struct Swap;

impl Swap {
    fn on() -> Result<Self> {
        run(Command::new("modprobe").arg("zram"))?;
        fs::write("/sys/block/zram0/disksize", "128M")?;
        run(Command::new("mkswap").arg("/dev/zram0"))?;
        run(Command::new("swapon").arg("/dev/zram0"))?;
        Ok(Self)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // Later tests have no swap in their grants.
        let _ = run(Command::new("swapoff").arg("/dev/zram0"));
        let _ = fs::write("/sys/block/zram0/reset", "1");
    }
}

async fn swap_is_used_where_it_was_granted() -> Result<()> {
    let swap = match Swap::on() {
        Ok(swap) => swap,
        Err(error) => return harness::skip(&format!("no swap in compressed memory: {error:#}")),
    };
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("swap").await?;
    // Compressible, and never all zeros, which the kernel does not store.
    let large = "\
import time
kept = [b'x' * (1 << 20) for _ in range(60)]
print('has it all', flush=True)
time.sleep(600)
";
    let plain = Task::python("plain", large).mem_mib(32).cpu_milli(1000);
    let end = framework.run(plain.clone()).await?;
    assert_eq!(end.reason(), TaskReason::OutOfMemory, "{end:?}");
    let swapping = with_mem(Task::python("swapping", large).mem_mib(32).cpu_milli(1000), |mem| {
        mem.swap_bytes = 96 << 20;
    });
    framework.start(swapping.clone()).await?;
    cluster.stdout_until(&framework, "swapping", "has it all").await?;
    let cgroup = cluster.guaranteed(&framework, "swapping")?;
    let swapped = number(&cgroup, "memory.swap.current")?;
    assert!(swapped > 20 << 20, "{swapped}");
    assert!(number(&cgroup, "memory.current")? <= 32 << 20);
    let less = with_mem(swapping.clone(), |mem| mem.swap_bytes = 1 << 20);
    let answer = framework.resize(&swapping, &less).await?;
    assert!(answer.refusal.contains("in swap"), "{answer:?}");
    assert_eq!(number(&cgroup, "memory.swap.max")?, 96 << 20);
    assert_eq!(line(&cgroup, "memory.events", "oom_kill")?, 0);
    framework.teardown().await?;
    drop(swap);
    Ok(())
}
