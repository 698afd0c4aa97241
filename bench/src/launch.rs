//! From a framework's accept to the status RUNNING, in bursts, next to plain fork and exec.

use std::time::Instant;

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{ResourceClass, Resources, TaskState};
use bulkhead_testkit::{Cluster, Framework, Options, Task};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    agent_metrics::{AgentLaunches, Buckets},
    fork_exec,
    latency::{Latencies, Summary},
};

/// By its path: how often a search through PATH fails is not what is measured.
pub(crate) const SLEEP: [&str; 2] = ["/bin/sleep", "infinity"];
/// The least that there is: a hundred tasks fit on two CPUs. They may burst: a cap this low would hold up exec.
const CPU_MILLI: u64 = 10;
const MEM_MIB: u64 = 4;
/// Bursts of a size, however large they are.
const FEWEST_BURSTS: usize = 5;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Sizes of the bursts
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "1,10,100", value_parser = count)]
    pub(crate) tasks: Vec<usize>,
    /// Tasks to measure at least, for each size; five bursts at least
    #[arg(long, value_name = "COUNT", default_value = "200", value_parser = count)]
    pub(crate) samples: usize,
}

/// A number of things, of which there is at least one.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("write a number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// The bursts of one size.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Burst {
    pub(crate) tasks: usize,
    pub(crate) bursts: usize,
    pub(crate) accept_to_running: Summary,
    /// The same program by posix_spawn.
    pub(crate) fork_exec: Summary,
    pub(crate) ratio_p50: f64,
    pub(crate) ratio_p99: f64,
    /// The agent's part of `accept_to_running`, by its own histogram.
    pub(crate) agent_launch: AgentLaunches,
}

/// Measures every size.
pub(crate) async fn run(settings: &Settings) -> Result<Vec<Burst>> {
    let cluster = Cluster::start(Options::default()).await?;
    let mut measured = Vec::new();
    for &tasks in &settings.tasks {
        measured.push(size(&cluster, tasks, settings.samples).await?);
    }
    cluster.finish().await?;
    Ok(measured)
}

async fn size(cluster: &Cluster, tasks: usize, samples: usize) -> Result<Burst> {
    let bursts = samples.div_ceil(tasks).max(FEWEST_BURSTS);
    let bar = ProgressBar::new(u64::try_from(bursts)?).with_message(format!("launch, {tasks} at a time"));
    bar.set_style(ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len}, {eta} left")?);
    let (mut launches, mut forks) = (Latencies::new()?, Latencies::new()?);
    // Pages, connections and the agent's threads are there after this one.
    burst(cluster, tasks, &mut Latencies::new()?).await?;
    fork_exec::burst(&SLEEP, tasks, &mut Latencies::new()?)?;
    let before = Buckets::read(cluster).await?;
    for _ in 0..bursts {
        burst(cluster, tasks, &mut launches).await?;
        // Between launches, so that both meet the same machine.
        tokio::task::block_in_place(|| fork_exec::burst(&SLEEP, tasks, &mut forks))?;
        bar.inc(1);
    }
    let agent_launch = Buckets::read(cluster).await?.since(&before);
    bar.finish_and_clear();
    let (launched, forked) = (launches.summary(), forks.summary());
    Ok(Burst {
        tasks,
        bursts,
        ratio_p50: ratio(launched.p50_us, forked.p50_us),
        ratio_p99: ratio(launched.p99_us, forked.p99_us),
        accept_to_running: launched,
        fork_exec: forked,
        agent_launch,
    })
}

/// One accept with this many tasks, by a framework of its own, which is gone with them afterwards.
async fn burst(cluster: &Cluster, count: usize, latencies: &mut Latencies) -> Result<()> {
    let framework = cluster.framework("bench").await?;
    let tasks = tasks(count);
    let offers = framework.offers_for(ResourceClass::Guaranteed, &sum(&tasks)).await?;
    let ids: Vec<String> = tasks.iter().map(|task| task.id().to_owned()).collect();
    let accepted = Instant::now();
    framework.accept(&offers, tasks).await?;
    for id in &ids {
        framework.running(id).await?;
        latencies.add(when_running(&framework, id)?.duration_since(accepted));
    }
    end_all(&framework, &ids).await?;
    framework.teardown().await
}

/// Tasks that sleep, of a size that many of them fit.
pub(crate) fn tasks(count: usize) -> Vec<Task> {
    let task = |n| Task::new(&format!("sleep-{n}"), SLEEP).cpu_milli(CPU_MILLI).cpu_burst().mem_mib(MEM_MIB);
    (0..count).map(task).collect()
}

/// What they need together.
pub(crate) fn sum(tasks: &[Task]) -> Resources {
    let grants = tasks.iter().filter_map(|task| task.spec().grant.as_ref()?.resources.as_ref());
    grants.fold(Resources::default(), |sum, more| sum.plus(more))
}

/// Kills the tasks and waits until all have ended.
pub(crate) async fn end_all(framework: &Framework, ids: &[String]) -> Result<()> {
    for id in ids {
        framework.kill(id, 0).await?;
    }
    for id in ids {
        framework.end_of(id).await?;
    }
    Ok(())
}

fn when_running(framework: &Framework, id: &str) -> Result<Instant> {
    let statuses = framework.statuses(id);
    let running = statuses.iter().find(|seen| seen.status.state() == TaskState::Running);
    Ok(running.with_context(|| format!("{id} never ran"))?.at)
}

fn ratio(of: u64, to: u64) -> f64 {
    let tenths = of.saturating_mul(10) / to.max(1);
    f64::from(u32::try_from(tenths).unwrap_or(u32::MAX)) / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_asks_for_what_its_tasks_need() {
        let wanted = sum(&tasks(100));
        assert_eq!((wanted.cpu_milli, wanted.mem_bytes), (1000, 400 << 20));
        assert_eq!((ratio(1000, 300), ratio(5, 0)), (3.3, 5.0));
    }
}
