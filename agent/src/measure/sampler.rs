//! Measures the node every period, and tells the keeper the peaks.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::resources::PortSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::{
    DiskUse, NetSampler,
    budget::Budget,
    network::NetUse,
    node::{MeasureError, NodeSampler},
    numa::NumaMemory,
    ports,
    predictions::Predictions,
    pressure::{self, Pressure, PressureSampler},
    runqueue::{LatestWaits, RecentWaits},
    tasks::TaskSampler,
};
use crate::{
    estimate::WindowPeak,
    isolate::{cores::Cores, disk_space::DiskSpace},
    keeper::{Message, Sender},
    kernel::{bpf::RunqueueCounts, cpu_clock},
    launch::blocking,
    metrics::SamplerMetrics,
    offer::Observation,
};

/// How long a peak counts. Strangers that worked half a minute ago may do so again at any moment.
const WINDOW: Duration = Duration::from_secs(30);
/// Nothing is lent before guaranteed tasks were watched for this long.
const WATCH_BEFORE_LENDING: Duration = Duration::from_secs(3);
/// Amounts are rounded up to these steps, so that noise does not become news.
const CPU_STEP_MILLI: u64 = 50;
const MEM_STEP_BYTES: u64 = 32 << 20;
const NET_STEP_BITS_PER_SEC: u64 = 1_000_000;

/// Peaks over the last [`WINDOW`].
struct Peaks {
    waits: RecentWaits,
    strangers_cpu: WindowPeak,
    strangers_mem: WindowPeak,
    guaranteed_cpu: WindowPeak,
    strangers_sent: WindowPeak,
    strangers_received: WindowPeak,
    /// It could not be read the last time.
    disk_is_gone: bool,
}

impl Peaks {
    fn new() -> Self {
        let new = || WindowPeak::new(WINDOW);
        Self {
            waits: RecentWaits::default(),
            strangers_cpu: new(),
            strangers_mem: new(),
            guaranteed_cpu: new(),
            strangers_sent: new(),
            strangers_received: new(),
            disk_is_gone: false,
        }
    }
}

/// What is measured.
pub struct Sampling {
    /// CPU and memory.
    pub node: NodeSampler,
    /// The same of each task, and more.
    pub tasks: TaskSampler,
    /// How long tasks wait for a CPU, where that is counted.
    pub waits: Option<Arc<RunqueueCounts>>,
    /// Where it says how long guaranteed tasks wait.
    pub latest_waits: LatestWaits,
    /// On the disk that tasks fill.
    pub work_dir: PathBuf,
    /// What tasks use of it, where that is counted; else it counts as strangers' use.
    pub disk: Option<Arc<DiskSpace>>,
    /// On the link, where bandwidth is held.
    pub net: Option<NetSampler>,
    /// The memory nodes.
    pub numa: NumaMemory,
    /// Their cores, and whose they are.
    pub cores: Arc<Cores>,
    /// What comes of the tasks' samples.
    pub predictions: Predictions,
    /// Of these it is measured which are in use.
    pub ports: PortSet,
    /// Off, only ports and lending are measured.
    pub measure_strangers: bool,
}

/// How often, and at which cost.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Everything, unless that is over the budget.
    pub every: Duration,
    /// The machine's pressure, while a guaranteed task runs.
    pub pressure_every: Duration,
    /// What measuring may use of one CPU, in thousandths.
    pub budget_milli: u32,
}

/// Samples until the keeper is gone.
pub async fn run(sampling: Sampling, pace: Pace, metrics: SamplerMetrics, keeper: Sender) {
    let watched = Arc::clone(sampling.tasks.watched());
    let mut sampler = Sampler {
        pressure: PressureSampler::open(Path::new(pressure::PROC)),
        budget: Budget::new(pace.every, pace.budget_milli),
        since_round: Duration::ZERO,
        told: false,
        metrics,
    };
    sampler.metrics.pause(sampler.budget.pause(), false);
    let mut parts = (sampling, Peaks::new());
    let mut looks = interval(pace.pressure_every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = Instant::now() + sampler.budget.pause();
    loop {
        tokio::select! {
            () = sleep_until(next.into()) => {}
            // Shorter than a change of threads would take.
            _ = looks.tick(), if watched.any_guaranteed() => {
                sampler.look();
                continue;
            }
        }
        next = Instant::now() + sampler.budget.pause();
        sampler.look();
        let (result, cpu);
        (result, cpu, parts) = blocking(move || round(parts)).await;
        sampler.account(cpu);
        let Some(mut observation) = sampler.checked(result) else { continue };
        observation.pressure = sampler.pressure.pressure();
        sampler.metrics.pressure(&observation.pressure);
        sampler.metrics.predicted(observation.predicted_cpu_milli, observation.predicted_mem_bytes);
        if keeper.send(Message::Observed(observation)).await.is_err() {
            return;
        }
    }
}

/// What is kept from round to round, and is not moved to the thread that reads.
struct Sampler {
    pressure: PressureSampler,
    budget: Budget,
    /// CPU time of looks since the last round.
    since_round: Duration,
    /// An error was logged, and since then nothing went well.
    told: bool,
    metrics: SamplerMetrics,
}

impl Sampler {
    fn look(&mut self) {
        let before = cpu_clock::of_this_thread();
        self.pressure.look(Instant::now());
        self.since_round += cpu_clock::of_this_thread().saturating_sub(before);
    }

    /// Takes in what a round cost, with the looks before it.
    fn account(&mut self, round: Duration) {
        let cpu = round + std::mem::take(&mut self.since_round);
        self.metrics.spent(cpu);
        let was_over = self.budget.is_over();
        if !self.budget.spent(cpu) {
            return;
        }
        let (pause_ms, is_over) = (self.budget.pause().as_millis(), self.budget.is_over());
        self.metrics.pause(self.budget.pause(), is_over);
        match (was_over, is_over) {
            (_, true) => tracing::warn!(
                pause_ms,
                cpu_usec = cpu.as_micros(),
                "measuring is over its budget (sample_budget_milli), and is done less often"
            ),
            (true, false) => tracing::info!(pause_ms, "measuring is within its budget again"),
            (false, false) => {}
        }
    }

    /// The first of several errors is logged.
    fn checked(&mut self, result: Result<Observation, MeasureError>) -> Option<Observation> {
        if let Err(error) = &result
            && !self.told
        {
            tracing::error!(error = crate::error_chain(error), "measure the node; offers stay as they are");
        }
        self.told = result.is_err();
        result.ok()
    }
}

type Parts = (Sampling, Peaks);

/// One round, with the CPU time that it took.
fn round(mut parts: Parts) -> (Result<Observation, MeasureError>, Duration, Parts) {
    let before = cpu_clock::of_this_thread();
    let result = observe(&mut parts.0, &mut parts.1, Instant::now());
    (result, cpu_clock::of_this_thread().saturating_sub(before), parts)
}

fn observe(sampling: &mut Sampling, peaks: &mut Peaks, now: Instant) -> Result<Observation, MeasureError> {
    let sample = sampling.node.sample(now)?;
    // They are kept for whoever asks: the agent's API, and metrics.
    let tasks = sampling.tasks.sample(Instant::now);
    sampling.predictions.add(&tasks, now);
    peaks.strangers_cpu.add(sample.strangers_cpu_milli, now);
    peaks.strangers_mem.add(sample.strangers_mem_bytes, now);
    peaks.guaranteed_cpu.add(sample.guaranteed_cpu_milli, now);
    if let Some(used) = sampling.net.as_mut().and_then(|net| net.sample(now)) {
        peaks.strangers_sent.add(used.sent_bits_per_sec, now);
        peaks.strangers_received.add(used.received_bits_per_sec, now);
    }
    let strangers = |peak: &WindowPeak, step: u64| {
        if sampling.measure_strangers { peak.peak().unwrap_or(0).next_multiple_of(step) } else { 0 }
    };
    let mut numa = sampling.cores.by_node();
    sampling.numa.add_to(&mut numa);
    let runqueue_p99_usec = p99_usec(sampling, peaks, now);
    sampling.latest_waits.set(runqueue_p99_usec);
    let (strangers_disk_bytes, disk_usable_bytes) = disk(sampling, peaks);
    let watched = peaks.guaranteed_cpu.watched_for(WATCH_BEFORE_LENDING, now);
    Ok(Observation {
        strangers_cpu_milli: strangers(&peaks.strangers_cpu, CPU_STEP_MILLI),
        strangers_mem_bytes: strangers(&peaks.strangers_mem, MEM_STEP_BYTES),
        guaranteed_peak_cpu_milli: peaks.guaranteed_cpu.peak(),
        watched,
        predicted_cpu_milli: sampling.predictions.cpu_milli(),
        predicted_mem_bytes: sampling.predictions.mem_bytes(),
        ports_in_use: ports::in_use(&sampling.ports)?,
        strangers_net: NetUse {
            sent_bits_per_sec: strangers(&peaks.strangers_sent, NET_STEP_BITS_PER_SEC),
            received_bits_per_sec: strangers(&peaks.strangers_received, NET_STEP_BITS_PER_SEC),
        },
        link_bits_per_sec: sampling.net.as_ref().map_or(0, NetSampler::link_bits_per_sec),
        strangers_disk_bytes,
        disk_usable_bytes,
        pressure: Pressure::default(),
        numa,
        runqueue_p99_usec,
    })
}

/// What cannot be read now is read the next time.
fn p99_usec(sampling: &Sampling, peaks: &mut Peaks, now: Instant) -> Option<u64> {
    peaks.waits.add(now, sampling.waits.as_ref()?.all().ok()?);
    peaks.waits.p99_usec()
}

/// Files of everything that is no running task, of the host and those that ended tasks have left, and the size of the disk.
/// Of one that cannot be read nothing can be offered; all else goes on.
fn disk(sampling: &Sampling, peaks: &mut Peaks) -> (u64, Option<u64>) {
    if !sampling.measure_strangers {
        return (0, None);
    }
    let read = DiskUse::read(&sampling.work_dir);
    if let Err(error) = &read
        && !peaks.disk_is_gone
    {
        tracing::error!(error = crate::error_chain(error), "measure the disk; none of it is offered");
    }
    peaks.disk_is_gone = read.is_err();
    let Ok(disk) = read else { return (0, Some(0)) };
    let tasks = sampling.disk.as_ref().map_or(0, |disk| disk.used_bytes());
    (disk.used_bytes.saturating_sub(tasks), Some(disk.usable_bytes))
}
