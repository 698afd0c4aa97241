//! Many short tasks, as fast as one agent takes them, and what they leave behind.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{ResourceClass, TaskState};
use bulkhead_testkit::{Cluster, Options, Task, traces::Traces};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    latency::{Latencies, Summary},
    launch::{count, sum},
};

const TRUE: [&str; 1] = ["/bin/true"];
const CPU_MILLI: u64 = 10;
const MEM_MIB: u64 = 4;
/// What ended tasks leave is cleared in the background; a leak stays.
const SETTLE: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Tasks in all
    #[arg(long, value_name = "COUNT", default_value = "1000", value_parser = count)]
    pub(crate) tasks: usize,
    /// Tasks at once
    #[arg(long, value_name = "COUNT", default_value = "50", value_parser = count)]
    pub(crate) at_once: usize,
}

/// What they took, and what is left.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Churn {
    pub(crate) tasks: usize,
    pub(crate) at_once: usize,
    pub(crate) tasks_per_second: f64,
    /// From a framework's accept to the last status.
    pub(crate) accept_to_end: Summary,
    pub(crate) before: Leavings,
    pub(crate) after: Leavings,
}

/// What a leak would add to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Leavings {
    pub(crate) task_cgroups: usize,
    pub(crate) mounts: usize,
    pub(crate) agent_descriptors: usize,
    pub(crate) agent_zombies: usize,
    /// Entries of the agent's pinned BPF maps.
    pub(crate) bpf_map_entries: usize,
}

impl Leavings {
    fn count(cluster: &Cluster) -> Result<Self> {
        let Traces { cgroups, mounts, map_entries, zombies, descriptors } = Traces::count(cluster)?;
        Ok(Self {
            task_cgroups: cgroups,
            mounts,
            agent_descriptors: descriptors,
            agent_zombies: zombies,
            bpf_map_entries: map_entries.iter().map(|(_, entries)| entries).sum(),
        })
    }
}

/// Runs them.
pub(crate) async fn run(settings: &Settings) -> Result<Churn> {
    let cluster = Cluster::start(Options::default()).await?;
    // Threads, connections and descriptors that stay are there after this one.
    wave(&cluster, settings.at_once, &mut Latencies::new()?).await?;
    tokio::time::sleep(SETTLE).await;
    let before = Leavings::count(&cluster)?;
    let bar = ProgressBar::new(u64::try_from(settings.tasks)?);
    bar.set_style(ProgressStyle::with_template("short tasks {wide_bar} {pos}/{len}, {eta} left")?);
    let (mut latencies, mut left, mut took) = (Latencies::new()?, settings.tasks, Duration::ZERO);
    while left > 0 {
        let now = left.min(settings.at_once);
        took += wave(&cluster, now, &mut latencies).await?;
        left -= now;
        bar.inc(u64::try_from(now)?);
    }
    bar.finish_and_clear();
    tokio::time::sleep(SETTLE).await;
    let after = Leavings::count(&cluster)?;
    cluster.finish().await?;
    Ok(Churn {
        tasks: settings.tasks,
        at_once: settings.at_once,
        tasks_per_second: f64::from(u32::try_from(settings.tasks)?) / took.as_secs_f64(),
        accept_to_end: latencies.summary(),
        before,
        after,
    })
}

/// Launches this many at once and waits for all of them; how long that took.
async fn wave(cluster: &Cluster, count: usize, latencies: &mut Latencies) -> Result<Duration> {
    let framework = cluster.framework("churn").await?;
    let task = |n| Task::new(&format!("true-{n}"), TRUE).cpu_milli(CPU_MILLI).cpu_burst().mem_mib(MEM_MIB);
    let tasks: Vec<Task> = (0..count).map(task).collect();
    let ids: Vec<String> = tasks.iter().map(|task| task.id().to_owned()).collect();
    let offers = framework.offers_for(ResourceClass::Guaranteed, &sum(&tasks)).await?;
    let accepted = Instant::now();
    framework.accept(&offers, tasks).await?;
    let mut last = accepted;
    for id in &ids {
        let end = framework.end_of(id).await?;
        ensure!(end.state() == TaskState::Finished, "{id}: {end:?}");
        let statuses = framework.statuses(id);
        let seen = statuses.iter().find(|seen| seen.status.sequence == end.sequence);
        let at = seen.with_context(|| format!("the end of {id}"))?.at;
        latencies.add(at.duration_since(accepted));
        last = last.max(at);
    }
    framework.teardown().await?;
    Ok(last.duration_since(accepted))
}
