//! The agent and the master when nothing happens: without a task, and with many that sleep; next to the exporters that fleets run
//! to see the same, on the same machine at the same time.

mod peers;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::ResourceClass;
use bulkhead_testkit::{Cluster, Framework, Options, Task, host, http};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::{interval, sleep};

use self::peers::Peer;
use crate::{
    launch::{SLEEP, count, end_all, sum},
    process_cost::{ProcessCost, cpu_time, percent},
};

/// What a start or a launch leaves to be done is done by then.
const SETTLE: Duration = Duration::from_secs(2);
/// The least that can be granted. They may burst: a cap this low would hold up exec.
const CPU_MILLI: u64 = 10;
const MEM_MIB: u64 = 4;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Sleeping tasks: a window for each number
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "100,1000", value_parser = count)]
    pub(crate) tasks: Vec<usize>,
    /// Length of each window, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// Fetch the metrics of everybody so often, as Prometheus would
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) scrape_seconds: u64,
}

/// One window without tasks, and those with them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Overhead {
    pub(crate) window_seconds: u64,
    pub(crate) scrape_seconds: u64,
    pub(crate) windows: Vec<Window>,
}

/// Agent and master over a window.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Window {
    pub(crate) tasks: usize,
    pub(crate) agent: ProcessCost,
    pub(crate) master: ProcessCost,
    /// Exporters, by their names.
    pub(crate) peers: BTreeMap<&'static str, ProcessCost>,
}

/// Measures all windows.
pub(crate) async fn run(settings: &Settings) -> Result<Overhead> {
    let most = settings.tasks.iter().max().copied().unwrap_or_default();
    let agent_args = if host::has_controllers() { Vec::new() } else { enough_for(most) };
    let cluster = Cluster::start(Options { qos: true, agent_args, ..Options::default() }).await?;
    let framework = cluster.framework("bench").await?;
    let mut bench = Bench { cluster, peers: peers::start().await?, settings };
    let mut windows = vec![bench.window(0).await?];
    for &count in &settings.tasks {
        let ids = start_tasks(&framework, count).await?;
        windows.push(bench.window(count).await?);
        end_all(&framework, &ids).await?;
    }
    framework.teardown().await?;
    bench.cluster.finish().await?;
    let Settings { seconds, scrape_seconds, .. } = *settings;
    Ok(Overhead { window_seconds: seconds, scrape_seconds, windows })
}

/// Where nothing holds tasks to their CPU, more of it can be offered than there is: tasks that sleep need none.
fn enough_for(tasks: usize) -> Vec<String> {
    let cpus = (tasks as u64).saturating_mul(CPU_MILLI).div_ceil(1000).saturating_add(1);
    vec!["--cpus".to_owned(), cpus.to_string()]
}

async fn start_tasks(framework: &Framework, count: usize) -> Result<Vec<String>> {
    let task =
        |n| Task::new(&format!("sleep-{count}-{n}"), SLEEP).cpu_milli(CPU_MILLI).cpu_burst().mem_mib(MEM_MIB);
    let tasks: Vec<_> = (0..count).map(task).collect();
    let ids: Vec<_> = tasks.iter().map(|task| task.id().to_owned()).collect();
    let offers = framework.offers_for(ResourceClass::Guaranteed, &sum(&tasks)).await?;
    framework.accept(&offers, tasks).await?;
    for id in &ids {
        framework.running(id).await?;
    }
    Ok(ids)
}

struct Bench<'a> {
    cluster: Cluster,
    peers: Vec<Peer>,
    settings: &'a Settings,
}

impl Bench<'_> {
    async fn window(&mut self, tasks: usize) -> Result<Window> {
        let (agent, master) = (self.cluster.agent_pid()?, self.cluster.master_pid()?);
        let stat = self.cluster.cgroup()?.join("agent/cpu.stat");
        sleep(SETTLE).await;
        let start = Instant::now();
        let before = (cpu_time(agent)?, cpu_time(master)?, cgroup_cpu(&stat)?);
        let peers_before: Vec<_> = self.peers.iter().map(Peer::cpu_time).collect::<Result<_>>()?;
        self.wait(&format!("overhead, {tasks} tasks")).await?;
        let took = start.elapsed();
        let mut agent = ProcessCost::read(agent, cpu_time(agent)?.saturating_sub(before.0), took)?;
        agent.cgroup_cpu_percent = Some(percent(cgroup_cpu(&stat)?.saturating_sub(before.2), took));
        let master = ProcessCost::read(master, cpu_time(master)?.saturating_sub(before.1), took)?;
        let mut peers = BTreeMap::new();
        for (peer, before) in self.peers.iter().zip(peers_before) {
            peers.insert(peer.name, peer.cost(peer.cpu_time()?.saturating_sub(before), took)?);
        }
        Ok(Window { tasks, agent, master, peers })
    }

    /// The window, in which Prometheus comes by.
    async fn wait(&self, what: &str) -> Result<()> {
        let Settings { seconds, scrape_seconds, .. } = *self.settings;
        let agent = self.cluster.agent_address().await?;
        let addresses = || self.peers.iter().map(|peer| &peer.address).chain([&agent]);
        let bar = ProgressBar::new(seconds).with_message(what.to_owned());
        bar.set_style(ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len} s")?);
        let mut ticks = interval(Duration::from_secs(1));
        for second in 0..seconds {
            ticks.tick().await;
            if second % scrape_seconds == 0 {
                for address in addresses() {
                    http::get(address, "/metrics").await?;
                }
            }
            bar.inc(1);
        }
        ticks.tick().await;
        bar.finish_and_clear();
        Ok(())
    }
}

/// CPU time of everything in a cgroup so far.
fn cgroup_cpu(stat: &Path) -> Result<Duration> {
    let text = fs::read_to_string(stat).with_context(|| format!("read {}", stat.display()))?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    let usage = usage.with_context(|| format!("{} has no usage_usec", stat.display()))?;
    Ok(Duration::from_micros(usage.trim().parse()?))
}
