//! Where the service and the batch are brought together.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{FrameworkInfo, ResourceClass};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{Verdict, until},
};
use clap::ValueEnum;
use procfs::{CpuTime, CurrentSI as _, KernelStats};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    Settings,
    batch::{self, Batch},
    onset::protection::Protection,
    point::{Sample, tenths},
    service::{LATE, Measured, Service},
};
use crate::{
    plain::{DEFAULT_WEIGHT, Hierarchy, LARGEST_WEIGHT, ensure_controllers},
    work::Work,
};

/// Of the batch: long next to counting it, short next to a window.
const UNIT: Duration = Duration::from_millis(2);
/// An agent lends when it has watched the machine for a while. Where it lends nothing after this long, the batch gets nothing.
const LENT_WITHIN: Duration = Duration::from_secs(45);
/// What the batch is granted: it may use all that is lent beyond that.
const BATCH_MILLI: u64 = 20;
const MEM_MIB: u64 = 96;
/// The largest weight of a cgroup, and the least.
const WEIGHTS: (u64, u64) = (LARGEST_WEIGHT, 1);

/// Who holds whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Setup {
    /// The service, and nothing else
    Alone,
    /// Plain cgroups, each weighed by what it asks for, as Mesos and Kubernetes do
    Weights,
    /// Plain cgroups, the service with the largest weight, the rest with the least
    LeastWeight,
    /// Tasks of an agent that lends what is idle, and does nothing more (`--qos false`)
    Lent,
    /// Tasks of an agent as it is
    Bulkhead,
}

impl Setup {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::Alone, Self::Weights, Self::LeastWeight, Self::Lent, Self::Bulkhead];

    /// As the command line names it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// What is the same in all set-ups.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) program: PathBuf,
    pub(crate) cpus: u64,
    /// Of the service.
    pub(crate) granted_milli: u64,
    /// With another port each time.
    pub(crate) service: Service,
    unit_rounds: u64,
    warm_up: Duration,
}

impl Plan {
    fn new(settings: &Settings) -> Result<Self> {
        let cpus = u64::try_from(KernelStats::current().context("read /proc/stat")?.cpu_time.len())?.max(1);
        let mut work = Work::new();
        let service = Service {
            port: 0,
            workers: usize::try_from(cpus)?,
            rounds: work.rounds_in(Duration::from_micros(settings.request_us)),
            every_us: (settings.request_us * 100 / (settings.load_percent * cpus)).max(1),
            seed: settings.seed,
        };
        Ok(Self {
            program: std::env::current_exe().context("find this program's own file")?,
            cpus,
            granted_milli: cpus * 10 * settings.granted_percent,
            service,
            unit_rounds: work.rounds_in(UNIT),
            warm_up: Duration::from_secs(settings.warm_up),
        })
    }

    pub(crate) fn requests_per_second(&self) -> f64 {
        1.0 / Duration::from_micros(self.service.every_us).as_secs_f64()
    }

    /// With requests that come so many times less often.
    pub(crate) fn seldom(&self, times: u64) -> Self {
        let every_us = self.service.every_us.saturating_mul(times);
        Self { service: Service { every_us, ..self.service.clone() }, ..self.clone() }
    }

    pub(crate) fn batch(&self, asked_milli: u64) -> Batch {
        let unit_us = u64::try_from(UNIT.as_micros()).unwrap_or(u64::MAX);
        Batch { asked_milli, rounds: self.unit_rounds, unit_us, on_one_cpu: false }
    }

    pub(crate) async fn cluster(&self, qos: bool, mut agent_args: Vec<String>) -> Result<Cluster> {
        // Tasks may execute this program, wherever it is.
        let dir = self.program.parent().context("this program's directory")?;
        agent_args.extend(["--readable-path".to_owned(), dir.display().to_string()]);
        Cluster::start(Options { agent_args, qos, measure_strangers: true, ..Options::default() }).await
    }

    /// The service as a guaranteed task, on this port.
    pub(crate) fn service_task(&self, port: u16) -> Task {
        let service = Service { port, ..self.service.clone() };
        self.task("service", service.arguments()).cpu_milli(self.granted_milli).cpu_burst().ports(&[port])
    }

    pub(crate) fn task(&self, id: &str, arguments: Vec<String>) -> Task {
        let argv = [self.program.display().to_string()].into_iter().chain(arguments);
        Task::new(id, argv).mem_mib(MEM_MIB).grace_ms(1)
    }

    /// The batch as a task that uses what is lent.
    pub(crate) fn batch_task(&self, asked_milli: u64) -> Task {
        let task = self.task("batch", self.batch(asked_milli).arguments());
        task.cpu_milli(BATCH_MILLI).cpu_burst().revocable()
    }
}

/// What the batch asks for, so that all together is this part of the machine.
fn asked_milli(ratio: f64, cpus: u64, granted_milli: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ratios are 0 to 100")]
    let permille = (ratio * 1000.0).round() as u64;
    (permille * cpus).saturating_sub(granted_milli)
}

/// Weights of the service and the batch.
fn weights(setup: Setup, granted_milli: u64, asked_milli: u64) -> (u64, u64) {
    let (most, least) = WEIGHTS;
    let of = |milli: u64| (milli * most / granted_milli.max(asked_milli).max(1)).clamp(least, most);
    match setup {
        Setup::Weights => (of(granted_milli), of(asked_milli)),
        _ => WEIGHTS,
    }
}

/// Everything that was started for the measurement.
pub(crate) struct Lab {
    plan: Plan,
    /// With and without the loop that protects.
    bulkhead: Option<Cluster>,
    lent: Option<Cluster>,
}

impl Lab {
    pub(crate) async fn new(settings: &Settings) -> Result<Self> {
        ensure_controllers()?;
        let plan = Plan::new(settings)?;
        let wanted = |setup| settings.setups.contains(&setup);
        let bulkhead = match wanted(Setup::Bulkhead) {
            true => Some(plan.cluster(true, Vec::new()).await?),
            false => None,
        };
        let lent = match wanted(Setup::Lent) {
            true => Some(plan.cluster(false, Vec::new()).await?),
            false => None,
        };
        Ok(Self { plan, bulkhead, lent })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) async fn finish(self) -> Result<()> {
        for cluster in [self.bulkhead, self.lent].into_iter().flatten() {
            cluster.finish().await?;
        }
        Ok(())
    }

    /// One window of this length.
    pub(crate) async fn measure(&self, setup: Setup, ratio: f64, window: Duration) -> Result<Sample> {
        let asked_milli = match setup {
            Setup::Alone => 0,
            _ => asked_milli(ratio, self.plan.cpus, self.plan.granted_milli),
        };
        let cluster = match setup {
            Setup::Bulkhead => self.bulkhead.as_ref(),
            Setup::Lent => self.lent.as_ref(),
            _ => None,
        };
        match cluster {
            Some(cluster) => self.tasks(cluster, asked_milli, window).await,
            None => self.plain(setup, asked_milli, window).await,
        }
    }

    async fn plain(&self, setup: Setup, asked_milli: u64, window: Duration) -> Result<Sample> {
        let hierarchy =
            Hierarchy::new("bulkhead-bench", (self.plan.cpus * DEFAULT_WEIGHT).min(LARGEST_WEIGHT))?;
        let (mine, others) = weights(setup, self.plan.granted_milli, asked_milli);
        let port = free_port()?;
        let (service, batch) = (hierarchy.group("service", mine)?, hierarchy.group("batch", others)?);
        let dir = tempfile::tempdir().context("make a directory")?;
        let arguments = Service { port, ..self.plan.service.clone() }.arguments();
        let _service = service.spawn(&self.plan.program, &arguments, dir.path())?;
        let _batch = match asked_milli {
            0 => None,
            asked => {
                Some(batch.spawn(&self.plan.program, &self.plan.batch(asked).arguments(), dir.path())?)
            }
        };
        self.window(port, dir.path(), None, window).await
    }

    async fn tasks(&self, cluster: &Cluster, asked_milli: u64, window: Duration) -> Result<Sample> {
        let framework = framework(cluster).await?;
        let port = cluster.port(0);
        framework.start(self.plan.service_task(port)).await?;
        let mut running = vec!["service"];
        if asked_milli > 0 {
            let batch = framework.start(self.plan.batch_task(asked_milli));
            if let Ok(started) = timeout(LENT_WITHIN, batch).await {
                started?;
                running.push("batch");
            }
        }
        let dir = cluster.task_dir(&framework, "batch");
        let sample = self.window(port, &dir, Some(cluster), window).await?;
        end(&framework, &running).await?;
        framework.teardown().await?;
        Ok(sample)
    }

    async fn window(
        &self,
        port: u16,
        counts: &Path,
        cluster: Option<&Cluster>,
        window: Duration,
    ) -> Result<Sample> {
        let mut service = Control::connect(port).await?;
        sleep(self.plan.warm_up).await;
        let before = Counters::read(counts, cluster).await?;
        let until_end = async {
            sleep(window).await;
            Counters::read(counts, cluster).await
        };
        let (measured, after) = tokio::join!(service.measure(window), until_end);
        Ok(before.until(&after?, measured?))
    }
}

/// Wants both classes.
pub(crate) async fn framework(cluster: &Cluster) -> Result<Framework> {
    let info = FrameworkInfo {
        name: "oversub".into(),
        classes: vec![ResourceClass::Guaranteed.into(), ResourceClass::Revocable.into()],
        ..FrameworkInfo::default()
    };
    Framework::subscribe_as(cluster.master_channel().await?, info, true).await
}

/// Ends tasks, and waits until they have: what comes next shall not meet them.
pub(crate) async fn end(framework: &Framework, tasks: &[&str]) -> Result<()> {
    for task in tasks {
        framework.kill(task, 1).await?;
        framework.end_of(task).await?;
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The line to a running service.
struct Control(BufReader<TcpStream>);

impl Control {
    async fn connect(port: u16) -> Result<Self> {
        let connect = || async {
            TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| Verdict::NotYet(e.to_string()))
        };
        Ok(Self(BufReader::new(until("the service to listen", connect).await?)))
    }

    async fn measure(&mut self, window: Duration) -> Result<Measured> {
        let order = format!("{}\n", window.as_secs_f64());
        self.0.get_mut().write_all(order.as_bytes()).await.context("tell the service to measure")?;
        let mut line = String::new();
        let answer = timeout(window + LATE * 4, self.0.read_line(&mut line)).await;
        answer.context("the service does not answer")?.context("what the service measured")?;
        serde_json::from_str(&line).with_context(|| format!("what the service measured: {line:?}"))
    }
}

/// What is counted at both ends of a window.
struct Counters {
    at: Instant,
    cpu: CpuTime,
    units: u64,
    corrections: u64,
}

impl Counters {
    async fn read(counts: &Path, cluster: Option<&Cluster>) -> Result<Self> {
        let at = Instant::now();
        let (cpu, units) = (KernelStats::current().context("read /proc/stat")?.total, batch::units(counts));
        let corrections = match cluster {
            Some(cluster) => Protection::read(cluster).await?.corrections,
            None => 0,
        };
        Ok(Self { at, cpu, units, corrections })
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody does 2^53 units")]
    fn until(&self, after: &Self, service: Measured) -> Sample {
        let seconds = after.at.saturating_duration_since(self.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let units = after.units.saturating_sub(self.units) as f64;
        Sample {
            service,
            batch_units_per_second: tenths(units / seconds),
            busy_percent: tenths(busy_percent(&self.cpu, &after.cpu)),
            corrections: after.corrections.saturating_sub(self.corrections),
        }
    }
}

/// Of the time that the machine had between two readings: what a hypervisor took is not part of it.
#[expect(clippy::cast_precision_loss, reason = "2^53 ticks are a million years")]
fn busy_percent(before: &CpuTime, after: &CpuTime) -> f64 {
    let busy = |t: &CpuTime| t.user + t.nice + t.system + t.irq.unwrap_or(0) + t.softirq.unwrap_or(0);
    let idle = |t: &CpuTime| t.idle + t.iowait.unwrap_or(0);
    let busy = busy(after).saturating_sub(busy(before)) as f64;
    let idle = idle(after).saturating_sub(idle(before)) as f64;
    if busy + idle > 0.0 { busy * 100.0 / (busy + idle) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_asks_for_the_rest_of_the_ratio() {
        assert_eq!([0.5, 1.0, 3.0].map(|ratio| asked_milli(ratio, 2, 800)), [200, 1200, 5200]);
        assert_eq!(asked_milli(0.2, 2, 800), 0);
    }

    #[test]
    fn weights_are_in_proportion_to_what_is_asked_for() {
        assert_eq!(weights(Setup::Weights, 800, 200), (10_000, 2500));
        assert_eq!(weights(Setup::Weights, 800, 5200), (1538, 10_000));
        assert_eq!(weights(Setup::LeastWeight, 800, 5200), (10_000, 1));
        assert_eq!(weights(Setup::Weights, 800, 0), (10_000, 1));
    }

    #[test]
    fn busy_is_what_is_not_idle() {
        let before = KernelStats::current().unwrap().total;
        let mut after = before.clone();
        (after.user, after.idle) = (after.user + 30, after.idle + 10);
        assert!((busy_percent(&before, &after) - 75.0).abs() < 1e-9);
        assert!(busy_percent(&after, &before).abs() < 1e-9, "counters that went backwards");
    }
}
