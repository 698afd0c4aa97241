//! What was measured of tasks and of the machine, and what measuring itself costs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, IntGauge, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::{Metrics, precise};
use crate::{
    measure::{
        pressure::Pressure,
        tasks::{Reading, Stalled, Stalls, Watched},
    },
    offer::ledger::TaskKey,
};

const CPU: (&str, &str) = ("bulkhead_agent_task_cpu_seconds_total", "CPU time of a task.");
const THROTTLED: (&str, &str) = (
    "bulkhead_agent_task_cpu_throttled_seconds_total",
    "For how long a task's CPU cap kept it from running, on all CPUs together.",
);
const STALLED: (&str, &str) = (
    "bulkhead_agent_task_stalled_seconds_total",
    "How long at least one process of a task (some), or all that had anything to do (full), stood still.",
);
const DISK_BYTES: (&str, &str) =
    ("bulkhead_agent_task_disk_bytes_total", "Bytes that a task moved from and to disks.");
const DISK_OPS: (&str, &str) = ("bulkhead_agent_task_disk_ops_total", "Reads and writes of a task.");
const MEMORY: (&str, &str) = (
    "bulkhead_agent_task_memory_bytes",
    "Memory of a task: all that is charged, its kinds (active_file is part of file), and swap on top.",
);
/// With the labels beside framework and task.
const COUNTERS: [(&(&str, &str), &[&str]); 5] = [
    (&CPU, &[]),
    (&THROTTLED, &[]),
    (&STALLED, &["resource", "kind"]),
    (&DISK_BYTES, &["direction"]),
    (&DISK_OPS, &["direction"]),
];
const USEC_PER_SEC: f64 = 1e6;

/// What the sampler tells of itself and of the machine.
#[derive(Clone, Debug)]
pub struct SamplerMetrics {
    cpu_seconds: Counter,
    pause_seconds: Gauge,
    over_budget: IntGauge,
    pressure: GaugeVec,
    predicted_cpu: Gauge,
    predicted_mem: Gauge,
}

impl SamplerMetrics {
    /// Guaranteed tasks are predicted to use so much at their peak within the next hour.
    pub fn predicted(&self, cpu_milli: Option<u64>, mem_bytes: Option<u64>) {
        self.predicted_cpu.set(precise(cpu_milli.unwrap_or(0)) / 1000.0);
        self.predicted_mem.set(precise(mem_bytes.unwrap_or(0)));
    }

    /// Measuring took this much CPU time.
    pub fn spent(&self, cpu: Duration) {
        self.cpu_seconds.inc_by(cpu.as_secs_f64());
    }

    /// From now on it pauses so long; longer than it was told to where it is over its budget.
    pub fn pause(&self, pause: Duration, over_budget: bool) {
        self.pause_seconds.set(pause.as_secs_f64());
        self.over_budget.set(i64::from(over_budget));
    }

    /// The machine's pressure.
    pub fn pressure(&self, pressure: &Pressure) {
        for (over, stalls) in [("mean", pressure.mean), ("worst", pressure.worst)] {
            self.stalls(over, stalls);
        }
    }

    fn stalls(&self, over: &str, stalls: Stalls<Stalled>) {
        for (resource, stalled) in stalls.by_name() {
            let Some(stalled) = stalled else { continue };
            let set = |kind, permille| {
                self.pressure.with_label_values(&[resource, kind, over]).set(precise(permille) / 1000.0);
            };
            set("some", stalled.some_permille);
            set("full", stalled.full_permille);
        }
    }
}

/// Tells what the sampler read last; tasks that are over are no longer told.
struct Tasks {
    families: Mutex<([CounterVec; 5], GaugeVec)>,
    descs: Vec<Desc>,
    watched: Arc<Watched>,
}

impl Metrics {
    /// Metrics for the sampler to fill.
    ///
    /// # Errors
    /// When they were asked for before.
    pub fn sampler(&self) -> Result<SamplerMetrics, prometheus::Error> {
        let pressure = Opts::new(
            "bulkhead_agent_pressure_ratio",
            "Part of the last ten seconds in which the machine's processes stood still: on average, and at the worst moment.",
        );
        let metrics = SamplerMetrics {
            cpu_seconds: Counter::new(
                "bulkhead_agent_sampler_cpu_seconds_total",
                "CPU time that measuring took.",
            )?,
            pause_seconds: Gauge::new(
                "bulkhead_agent_sampler_pause_seconds",
                "Time from one measurement to the next.",
            )?,
            over_budget: IntGauge::new(
                "bulkhead_agent_sampler_over_budget",
                "1 while it is measured less often than configured, to stay within sample_budget_milli.",
            )?,
            pressure: GaugeVec::new(pressure, &["resource", "kind", "over"])?,
            predicted_cpu: Gauge::new(
                "bulkhead_agent_predicted_peak_cpu_cores",
                "CPU that guaranteed tasks are predicted to use at their peak within the next hour; 0 in the first minutes.",
            )?,
            predicted_mem: Gauge::new(
                "bulkhead_agent_predicted_peak_mem_bytes",
                "Memory that guaranteed tasks are predicted to use at their peak within the next hour; 0 in the first minutes.",
            )?,
        };
        let all: [Box<dyn Collector>; 6] = [
            Box::new(metrics.cpu_seconds.clone()),
            Box::new(metrics.pause_seconds.clone()),
            Box::new(metrics.over_budget.clone()),
            Box::new(metrics.pressure.clone()),
            Box::new(metrics.predicted_cpu.clone()),
            Box::new(metrics.predicted_mem.clone()),
        ];
        all.into_iter().try_for_each(|metric| self.registry.register(metric))?;
        Ok(metrics)
    }

    /// Tells what was measured of these tasks.
    ///
    /// # Errors
    /// When it was told before.
    pub fn tasks(&self, watched: Arc<Watched>) -> Result<(), prometheus::Error> {
        let labels = |more: &[&'static str]| [&["framework", "task"], more].concat();
        let counter = |((name, help), more): (&(&str, &str), &[&'static str])| {
            CounterVec::new(Opts::new(*name, *help), &labels(more))
        };
        let [cpu, throttled, stalled, bytes, ops] = COUNTERS.map(counter);
        let memory = GaugeVec::new(Opts::new(MEMORY.0, MEMORY.1), &labels(&["kind"]))?;
        let counters = [cpu?, throttled?, stalled?, bytes?, ops?];
        let kinds: &[&str] = &["kind"];
        let descs = COUNTERS.into_iter().chain([(&MEMORY, kinds)]).map(|((name, help), more)| {
            let labels = labels(more).into_iter().map(str::to_owned).collect();
            Desc::new((*name).to_owned(), (*help).to_owned(), labels, HashMap::new())
        });
        let descs = descs.collect::<Result<_, _>>()?;
        let families = Mutex::new((counters, memory));
        self.registry.register(Box::new(Tasks { families, descs, watched }))
    }
}

impl Collector for Tasks {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (counters, memory) = &*self.families.lock().unwrap_or_else(PoisonError::into_inner);
        counters.iter().for_each(CounterVec::reset);
        memory.reset();
        for (task, _, reading, _) in self.watched.latest() {
            count(counters, &task, &reading);
            let Some(mem) = reading.mem else { continue };
            let kinds = [
                ("all", mem.all_bytes),
                ("anon", mem.anon_bytes),
                ("file", mem.file_bytes),
                ("active_file", mem.active_file_bytes),
                ("kernel", mem.kernel_bytes),
                ("swap", mem.swap_bytes),
            ];
            for (kind, bytes) in kinds {
                memory.with_label_values(&[&task.0, &task.1, kind]).set(precise(bytes));
            }
        }
        counters.iter().flat_map(Collector::collect).chain(memory.collect()).collect()
    }
}

fn count(counters: &[CounterVec; 5], task: &TaskKey, reading: &Reading) {
    let [cpu, throttled, stalled, bytes, ops] = counters;
    let labels = [task.0.as_str(), task.1.as_str()];
    let seconds = |usec| precise(usec) / USEC_PER_SEC;
    cpu.with_label_values(&labels).inc_by(seconds(reading.cpu.used_usec));
    throttled.with_label_values(&labels).inc_by(seconds(reading.cpu.throttled_usec));
    for (resource, stall) in reading.stalls.by_name() {
        let Some(stall) = stall else { continue };
        for (kind, usec) in [("some", stall.some_usec), ("full", stall.full_usec)] {
            stalled.with_label_values(&[labels[0], labels[1], resource, kind]).inc_by(seconds(usec));
        }
    }
    let Some(disk) = reading.disk else { return };
    let ways = [("read", disk.read_bytes, disk.read_ops), ("write", disk.written_bytes, disk.write_ops)];
    for (direction, moved, times) in ways {
        bytes.with_label_values(&[labels[0], labels[1], direction]).inc_by(precise(moved));
        ops.with_label_values(&[labels[0], labels[1], direction]).inc_by(precise(times));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;
    use crate::{grant::Class, kernel::cgroupfs::Cgroup, measure::tasks::TaskSampler};

    #[test]
    fn tasks_are_told_as_they_were_read_last() {
        let (metrics, watched, dir) = (Metrics::new().unwrap(), Arc::default(), tempfile::tempdir().unwrap());
        for (file, text) in [
            ("cpu.stat", "usage_usec 1500000\nthrottled_usec 250000\n"),
            ("io.stat", "8:0 rbytes=7 wbytes=8 rios=1 wios=2\n"),
            ("io.pressure", "some total=2000000\nfull total=1000000\n"),
            ("memory.current", "90\n"),
            ("memory.stat", "anon 60\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        metrics.tasks(Arc::clone(&watched)).unwrap();
        let task = ("f".to_owned(), "t".to_owned());
        watched.insert(1, task, Class::Guaranteed, &Cgroup::at(dir.path())).unwrap();
        TaskSampler::new(Arc::clone(&watched), 1).sample(Instant::now);
        // Each scrape tells the same, and adds nothing to what it told before.
        metrics.render().unwrap();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let of = "framework=\"f\"";
        for line in [
            format!("bulkhead_agent_task_cpu_seconds_total{{{of},task=\"t\"}} 1.5\n"),
            format!("bulkhead_agent_task_cpu_throttled_seconds_total{{{of},task=\"t\"}} 0.25\n"),
            format!("bulkhead_agent_task_disk_bytes_total{{direction=\"write\",{of},task=\"t\"}} 8\n"),
            format!("bulkhead_agent_task_disk_ops_total{{direction=\"read\",{of},task=\"t\"}} 1\n"),
            format!("stalled_seconds_total{{{of},kind=\"full\",resource=\"io\",task=\"t\"}} 1\n"),
            format!("bulkhead_agent_task_memory_bytes{{{of},kind=\"all\",task=\"t\"}} 90\n"),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
        watched.remove(1);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(!text.contains("task=\"t\""), "{text}");
    }

    #[test]
    fn the_sampler_tells_what_it_costs_and_what_it_saw() {
        let metrics = Metrics::new().unwrap();
        let sampler = metrics.sampler().unwrap();
        sampler.spent(Duration::from_millis(500));
        sampler.pause(Duration::from_secs(3), true);
        let mem = Some(Stalled { some_permille: 250, full_permille: 1 });
        sampler.pressure(&Pressure { mean: Stalls { mem, ..Stalls::default() }, worst: Stalls::default() });
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for line in [
            "bulkhead_agent_sampler_cpu_seconds_total 0.5\n",
            "bulkhead_agent_sampler_pause_seconds 3\n",
            "bulkhead_agent_sampler_over_budget 1\n",
            "bulkhead_agent_pressure_ratio{kind=\"some\",over=\"mean\",resource=\"memory\"} 0.25\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
