//! Measures the node every period, and tells the keeper the peaks.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::resources::PortSet;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    DiskUse, NetSampler,
    network::NetUse,
    node::{MeasureError, NodeSampler},
    ports,
};
use crate::{
    estimate::WindowPeak,
    isolate::disk_space::DiskSpace,
    keeper::{Message, Observation, Sender},
    launch::blocking,
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
    strangers_cpu: WindowPeak,
    strangers_mem: WindowPeak,
    guaranteed_cpu: WindowPeak,
    strangers_sent: WindowPeak,
    strangers_received: WindowPeak,
}

/// What is measured.
pub struct Sampling {
    /// CPU and memory.
    pub node: NodeSampler,
    /// On the disk that tasks fill.
    pub work_dir: PathBuf,
    /// What tasks use of it, where that is counted; else it counts as strangers' use.
    pub disk: Option<Arc<DiskSpace>>,
    /// On the link, where bandwidth is held.
    pub net: Option<NetSampler>,
    /// Of these it is measured which are in use.
    pub ports: PortSet,
    /// Off, only ports and lending are measured.
    pub measure_strangers: bool,
}

/// Samples until the keeper is gone.
pub async fn run(mut sampling: Sampling, every: Duration, keeper: Sender) {
    let new = || WindowPeak::new(WINDOW);
    let mut peaks = Peaks {
        strangers_cpu: new(),
        strangers_mem: new(),
        guaranteed_cpu: new(),
        strangers_sent: new(),
        strangers_received: new(),
    };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once, when there is nothing to compare with yet.
    ticks.tick().await;
    let mut told = false;
    loop {
        ticks.tick().await;
        let (result, back) = blocking(move || {
            let result = observe(&mut sampling, &mut peaks, Instant::now());
            (result, (sampling, peaks))
        })
        .await;
        (sampling, peaks) = back;
        match result {
            Ok(observation) => {
                told = false;
                if keeper.send(Message::Observed(observation)).await.is_err() {
                    return;
                }
            }
            Err(error) if !told => {
                told = true;
                tracing::error!(
                    error = crate::error_chain(&error),
                    "measure the node; offers stay as they are"
                );
            }
            Err(_) => {}
        }
    }
}

fn observe(sampling: &mut Sampling, peaks: &mut Peaks, now: Instant) -> Result<Observation, MeasureError> {
    let sample = sampling.node.sample(now)?;
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
    let watched = peaks.guaranteed_cpu.watched_for(WATCH_BEFORE_LENDING, now);
    Ok(Observation {
        strangers_cpu_milli: strangers(&peaks.strangers_cpu, CPU_STEP_MILLI),
        strangers_mem_bytes: strangers(&peaks.strangers_mem, MEM_STEP_BYTES),
        guaranteed_cpu_milli: peaks.guaranteed_cpu.peak().filter(|_| watched),
        ports_in_use: ports::in_use(&sampling.ports)?,
        strangers_net: NetUse {
            sent_bits_per_sec: strangers(&peaks.strangers_sent, NET_STEP_BITS_PER_SEC),
            received_bits_per_sec: strangers(&peaks.strangers_received, NET_STEP_BITS_PER_SEC),
        },
        link_bits_per_sec: sampling.net.as_ref().map_or(0, NetSampler::link_bits_per_sec),
        strangers_disk_bytes: if sampling.measure_strangers { strangers_disk(sampling)? } else { 0 },
    })
}

/// Files of everything that is no running task: of the host, and those that ended tasks have left.
fn strangers_disk(sampling: &Sampling) -> Result<u64, MeasureError> {
    let used_bytes = DiskUse::read(&sampling.work_dir)?.used_bytes;
    let tasks = sampling.disk.as_ref().map_or(0, |disk| disk.used_bytes());
    Ok(used_bytes.saturating_sub(tasks))
}
