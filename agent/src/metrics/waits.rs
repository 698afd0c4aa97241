//! How long tasks waited for a CPU and for disks.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use prometheus::{
    IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::{Histogram, Metric, MetricFamily},
};

use super::{
    Metrics,
    histograms::{family, histogram, labelled},
    precise,
};
use crate::{
    kernel::bpf::{BlockIoCounters, RunqueueCounters, latency_bound_ns, preempted_by},
    offer::ledger::TaskKey,
};

const RUNQUEUE: (&str, &str) = (
    "bulkhead_agent_task_runqueue_seconds",
    "How long threads of a task waited for a CPU; of looks at a part of the time.",
);
const DISK: (&str, &str) = (
    "bulkhead_agent_task_disk_seconds",
    "How long requests of a task for disks took, waiting for their turn included.",
);
const THROTTLED: (&str, &str) = (
    "bulkhead_agent_task_throttled_waits_total",
    "Waits in which a task's CPU cap was in the way; of the same looks, and in no histogram.",
);
const PREEMPTED: (&str, &str) = (
    "bulkhead_agent_task_preempted_total",
    "How often a thread of a task had to leave its CPU to somebody; of the same looks.",
);
const LABELS: [&str; 2] = ["framework", "task"];
const BY: [(&str, u32); 4] = [
    ("guaranteed", preempted_by::GUARANTEED),
    ("revocable", preempted_by::REVOCABLE),
    ("strangers", preempted_by::STRANGERS),
    ("kernel_threads", preempted_by::KERNEL),
];
const NS_PER_SEC: f64 = 1e9;

/// Reads the waits of all tasks for a CPU.
pub type ReadWaits = Box<dyn Fn() -> Vec<(TaskKey, RunqueueCounters)> + Send + Sync>;
/// Reads the waits of all tasks for disks.
pub type ReadDiskWaits = Box<dyn Fn() -> Vec<(TaskKey, BlockIoCounters)> + Send + Sync>;

/// Reads the kernel's counts of all tasks when it is asked; tasks that are over are no longer told.
struct Waits {
    counters: Mutex<(IntCounterVec, IntCounterVec)>,
    descs: Vec<Desc>,
    waits: ReadWaits,
    disk_waits: ReadDiskWaits,
}

impl Metrics {
    /// Tells how long tasks wait, read at each scrape.
    ///
    /// # Errors
    /// When it was told before.
    pub fn waits(&self, waits: ReadWaits, disk_waits: ReadDiskWaits) -> Result<(), prometheus::Error> {
        let labels = |more: &[&'static str]| [LABELS.as_slice(), more].concat();
        let counter = |(name, help): (&str, &str), more: &[&'static str]| {
            IntCounterVec::new(Opts::new(name, help), &labels(more))
        };
        let counters = Mutex::new((counter(THROTTLED, &[])?, counter(PREEMPTED, &["by"])?));
        let kinds: [(_, &[&'static str]); 4] =
            [(RUNQUEUE, &[]), (DISK, &["direction"]), (THROTTLED, &[]), (PREEMPTED, &["by"])];
        let desc = |((name, help), more): ((&str, &str), &[&'static str])| {
            let labels = labels(more).into_iter().map(str::to_owned).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())
        };
        let descs = kinds.into_iter().map(desc).collect::<Result<_, _>>()?;
        self.registry.register(Box::new(Waits { counters, descs, waits, disk_waits }))
    }
}

impl Waits {
    fn disk(&self) -> MetricFamily {
        let mut metrics = Vec::new();
        for (task, waits) in (self.disk_waits)() {
            let ways = [("read", &waits.reads, waits.read_ns), ("write", &waits.writes, waits.write_ns)];
            for (direction, counts, sum_ns) in ways {
                let histogram = latency_histogram(counts, sum_ns);
                metrics.extend(histogram.map(|h| of_task(&task, &[("direction", direction)], h)));
            }
        }
        family(DISK, metrics)
    }
}

impl Collector for Waits {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (throttled, preempted) = &*self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        throttled.reset();
        preempted.reset();
        let mut runqueue = Vec::new();
        for (task, waits) in (self.waits)() {
            let histogram = latency_histogram(&waits.waits, waits.wait_ns);
            runqueue.extend(histogram.map(|histogram| of_task(&task, &[], histogram)));
            throttled.with_label_values(&[&task.0, &task.1]).inc_by(waits.throttled_waits);
            for (by, index) in BY {
                let count = waits.preempted_by.get(index as usize).copied().unwrap_or(0);
                preempted.with_label_values(&[task.0.as_str(), &task.1, by]).inc_by(count);
            }
        }
        let counters = [throttled, preempted].into_iter().flat_map(Collector::collect);
        [family(RUNQUEUE, runqueue), self.disk()].into_iter().chain(counters).collect()
    }
}

fn of_task(task: &TaskKey, more: &[(&str, &str)], histogram: Histogram) -> Metric {
    labelled(&[&[(LABELS[0], task.0.as_str()), (LABELS[1], &task.1)], more].concat(), histogram)
}

/// In seconds.
fn latency_histogram(counts: &[u64], sum_ns: u64) -> Option<Histogram> {
    let seconds = |ns| precise(ns) / NS_PER_SEC;
    let counts = (0..).zip(counts).map(|(bucket, count)| (latency_bound_ns(bucket).map(seconds), *count));
    histogram(counts, seconds(sum_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_histograms_of_each_task_that_had_any() {
        let metrics = Metrics::new().unwrap();
        let task = |name: &str| ("f".to_owned(), name.to_owned());
        let mut waits = RunqueueCounters { wait_ns: 1_500_000_000, throttled_waits: 4, ..Default::default() };
        (waits.waits[0], waits.waits[21], waits.preempted_by[1]) = (3, 1, 9);
        let mut disk = BlockIoCounters { write_ns: 5000, ..Default::default() };
        disk.writes[1] = 2;
        let idle = RunqueueCounters::default();
        metrics
            .waits(
                Box::new(move || vec![(task("busy"), waits), (task("idle"), idle)]),
                Box::new(move || vec![(task("busy"), disk)]),
            )
            .unwrap();
        // Each scrape tells what is counted then, and adds nothing to what it told before.
        metrics.render().unwrap();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let busy = "framework=\"f\",task=\"busy\"";
        for line in [
            format!("bulkhead_agent_task_runqueue_seconds_bucket{{{busy},le=\"0.000001024\"}} 3\n"),
            format!("bulkhead_agent_task_runqueue_seconds_count{{{busy}}} 4\n"),
            format!("bulkhead_agent_task_runqueue_seconds_sum{{{busy}}} 1.5\n"),
            format!("bulkhead_agent_task_throttled_waits_total{{{busy}}} 4\n"),
            format!("bulkhead_agent_task_preempted_total{{by=\"revocable\",{busy}}} 9\n"),
            format!("bulkhead_agent_task_disk_seconds_count{{{busy},direction=\"write\"}} 2\n"),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(!text.contains("direction=\"read\""), "{text}");
        assert!(!text.contains("runqueue_seconds_count{framework=\"f\",task=\"idle\"}"), "{text}");
    }
}
