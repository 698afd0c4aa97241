//! The agent and the master when nothing happens: without a task, and with many that sleep.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::ResourceClass;
use bulkhead_testkit::{Cluster, Options};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    launch::{count, end_all, sum, tasks},
    process_cost::{ProcessCost, cpu_time, percent},
};

/// What a start or a launch leaves to be done is done by then.
const SETTLE: Duration = Duration::from_secs(2);

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Sleeping tasks
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = count)]
    pub(crate) tasks: usize,
    /// Length of each window, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
}

/// One window without tasks and one with them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Overhead {
    pub(crate) window_seconds: u64,
    pub(crate) windows: Vec<Window>,
}

/// Agent and master over a window.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Window {
    pub(crate) tasks: usize,
    pub(crate) agent: ProcessCost,
    pub(crate) master: ProcessCost,
}

/// Measures both windows.
pub(crate) async fn run(settings: &Settings) -> Result<Overhead> {
    let cluster = Cluster::start(Options::default()).await?;
    let idle = window(&cluster, 0, settings.seconds).await?;
    let framework = cluster.framework("bench").await?;
    let sleeping = tasks(settings.tasks);
    let ids: Vec<String> = sleeping.iter().map(|task| task.id().to_owned()).collect();
    let offers = framework.offers_for(ResourceClass::Guaranteed, &sum(&sleeping)).await?;
    framework.accept(&offers, sleeping).await?;
    for id in &ids {
        framework.running(id).await?;
    }
    let busy = window(&cluster, settings.tasks, settings.seconds).await?;
    end_all(&framework, &ids).await?;
    framework.teardown().await?;
    cluster.finish().await?;
    Ok(Overhead { window_seconds: settings.seconds, windows: vec![idle, busy] })
}

async fn window(cluster: &Cluster, tasks: usize, seconds: u64) -> Result<Window> {
    let (agent, master) = (cluster.agent_pid()?, cluster.master_pid()?);
    let stat = cluster.cgroup()?.join("agent/cpu.stat");
    sleep(SETTLE).await;
    let start = Instant::now();
    let before = (cpu_time(agent)?, cpu_time(master)?, cgroup_cpu(&stat)?);
    wait(seconds, &format!("overhead, {tasks} tasks")).await?;
    let took = start.elapsed();
    let mut agent = ProcessCost::read(agent, cpu_time(agent)?.saturating_sub(before.0), took)?;
    agent.cgroup_cpu_percent = Some(percent(cgroup_cpu(&stat)?.saturating_sub(before.2), took));
    let master = ProcessCost::read(master, cpu_time(master)?.saturating_sub(before.1), took)?;
    Ok(Window { tasks, agent, master })
}

async fn wait(seconds: u64, what: &str) -> Result<()> {
    let bar = ProgressBar::new(seconds).with_message(what.to_owned());
    bar.set_style(ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len} s")?);
    for _ in 0..seconds {
        sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// CPU time of everything in a cgroup so far.
fn cgroup_cpu(stat: &Path) -> Result<Duration> {
    let text = fs::read_to_string(stat).with_context(|| format!("read {}", stat.display()))?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    let usage = usage.with_context(|| format!("{} has no usage_usec", stat.display()))?;
    Ok(Duration::from_micros(usage.trim().parse()?))
}
