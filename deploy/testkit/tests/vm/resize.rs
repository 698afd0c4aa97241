//! Running tasks get other grants, and the kernel holds them to these.

use std::fs;

use anyhow::Result;
use bulkhead_proto::v1::CpuOptions;
use bulkhead_testkit::{Task, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![a_running_task_is_resized_up_and_down, a_resize_that_does_not_fit_changes_nothing]
}

async fn a_running_task_is_resized_up_and_down() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("resize").await?;
    let small = Task::shell("t", "sleep 1000").cpu_milli(200).mem_mib(64);
    framework.start(small.clone()).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let files = ["cpu.max", "memory.max", "pids.max"].map(|file| cgroup.join(file));
    let limits = || files.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>();
    let before = limits()?;
    let large = Task::shell("t", "").cpu_milli(400).mem_mib(128).pids_max(7);
    assert_eq!(framework.resize(&small, &large).await?.refusal, "");
    assert_eq!(limits()?, ["40000 100000\n", "134217728\n", "7\n"]);
    let report = cluster.agent_info().await?.report.unwrap_or_default();
    assert_eq!(report.allocated.unwrap_or_default().cpu_milli, 400);
    assert_eq!(framework.resize(&large, &small).await?.refusal, "");
    assert_eq!(limits()?, before);
    framework.teardown().await
}

async fn a_resize_that_does_not_fit_changes_nothing() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("refused").await?;
    let task = Task::shell("t", "sleep 1000").cpu_milli(200);
    framework.start(task.clone()).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let before = fs::read_to_string(cgroup.join("cpu.max"))?;
    let period = CpuOptions { period_usec: 1, ..CpuOptions::default() };
    let impossible = task.clone().granted(|g| g.cpu = Some(period));
    let answer = framework.resize(&task, &impossible).await?;
    assert!(answer.refusal.contains("a period of 1 us"), "{answer:?}");
    assert_eq!(fs::read_to_string(cgroup.join("cpu.max"))?, before);
    framework.teardown().await
}
