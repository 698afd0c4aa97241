//! What Prometheus is told. Every name of a metric is here and nowhere else.

use std::time::Duration;

use bulkhead_proto::{
    resources::SCALARS,
    v1::{Event, EventKind, Protocol, ResourceReport, TaskReason, TaskState},
};
use prometheus::{
    Counter, CounterVec, Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::offer::report::News;

mod caches;
mod connections;
mod histograms;
mod locality;
mod measured;
mod qos;
mod traffic;
mod waits;

pub use caches::ReadCache;
pub use connections::ReadConnections;
pub use locality::LocalityMetrics;
pub use measured::SamplerMetrics;
pub use qos::QosMetrics;
pub use traffic::ReadTraffic;
pub use waits::{ReadDiskWaits, ReadWaits};

/// From a tenth of a millisecond to two seconds: a launch takes about one.
const LAUNCH_BUCKETS_SECONDS: [f64; 12] =
    [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0];

/// The agent's metrics and their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    launch_seconds: Histogram,
    tasks_ended: IntCounterVec,
    ports_denied: IntCounterVec,
    limit_hits: IntCounterVec,
    resources: GaugeVec,
    reports: IntCounterVec,
    features: IntGaugeVec,
    journal_works: IntGauge,
    memory_protected: IntGaugeVec,
    cpu_seconds: Counter,
    resident_bytes: Gauge,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Two metrics of one name: a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let launch = HistogramOpts::new(
            "bulkhead_agent_launch_seconds",
            "From the arrival of a launch to the execution of its program.",
        )
        .buckets(LAUNCH_BUCKETS_SECONDS.to_vec());
        let metrics = Self {
            launch_seconds: Histogram::with_opts(launch)?,
            tasks_ended: IntCounterVec::new(
                Opts::new("bulkhead_agent_tasks_ended_total", "Tasks that came to their end."),
                &["state", "reason"],
            )?,
            ports_denied: IntCounterVec::new(
                Opts::new(
                    "bulkhead_agent_port_binds_denied_total",
                    "Binds to ports that were not granted, refused by the kernel.",
                ),
                &["protocol", "ip_version"],
            )?,
            limit_hits: IntCounterVec::new(
                Opts::new(
                    "bulkhead_agent_limit_hits_total",
                    "How often tasks ran into a limit: processes killed for memory, forks refused, full sandboxes, outputs cut.",
                ),
                &["limit"],
            )?,
            resources: GaugeVec::new(
                Opts::new(
                    "bulkhead_agent_resources",
                    "The node's books: capacity = reserve + allocated + free, kind by kind.",
                ),
                &["kind", "part"],
            )?,
            reports: IntCounterVec::new(
                Opts::new(
                    "bulkhead_agent_reports_total",
                    "Reports to the master: whole ones, and those that say in a few bytes that the last one still holds.",
                ),
                &["kind"],
            )?,
            features: IntGaugeVec::new(
                Opts::new("bulkhead_agent_kernel_feature", "1 where this kernel has the feature."),
                &["feature"],
            )?,
            journal_works: IntGauge::new(
                "bulkhead_agent_journal_works",
                "0 while the journal cannot be written; nothing is offered then.",
            )?,
            memory_protected: IntGaugeVec::new(
                Opts::new(
                    "bulkhead_agent_memory_protected_bytes",
                    "What is kept from reclaim for guaranteed tasks together: never taken (min), taken last (low).",
                ),
                &["level"],
            )?,
            cpu_seconds: Counter::new("process_cpu_seconds_total", "CPU time of the agent itself.")?,
            resident_bytes: Gauge::new(
                "process_resident_memory_bytes",
                "Resident memory of the agent itself.",
            )?,
            registry,
        };
        metrics.register()?;
        metrics.journal_works(true);
        Ok(metrics)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        let all: [Box<dyn Collector>; 11] = [
            Box::new(self.reports.clone()),
            Box::new(self.journal_works.clone()),
            Box::new(self.memory_protected.clone()),
            Box::new(self.launch_seconds.clone()),
            Box::new(self.tasks_ended.clone()),
            Box::new(self.ports_denied.clone()),
            Box::new(self.limit_hits.clone()),
            Box::new(self.resources.clone()),
            Box::new(self.features.clone()),
            Box::new(self.cpu_seconds.clone()),
            Box::new(self.resident_bytes.clone()),
        ];
        all.into_iter().try_for_each(|metric| self.registry.register(metric))
    }

    /// A program was executed.
    pub fn launched(&self, took: Duration) {
        self.launch_seconds.observe(took.as_secs_f64());
    }

    /// A task ended.
    pub fn task_ended(&self, state: TaskState, reason: TaskReason) {
        let short = |name: &str, prefix| name.trim_start_matches(prefix).to_ascii_lowercase();
        let state = short(state.as_str_name(), "TASK_STATE_");
        let reason = short(reason.as_str_name(), "TASK_REASON_");
        self.tasks_ended.with_label_values(&[&state, &reason]).inc();
    }

    /// `more` occurrences of an event.
    pub fn event(&self, event: &Event, more: u64) {
        match event.kind() {
            EventKind::PortDenied => {
                let protocol = match event.protocol() {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                    Protocol::Unspecified => "other",
                };
                let version = match event.ip_version {
                    4 => "4",
                    6 => "6",
                    _ => "none",
                };
                self.ports_denied.with_label_values(&[protocol, version]).inc_by(more);
            }
            EventKind::OutOfMemory => self.limit_hit("memory", more),
            EventKind::PidsLimit => self.limit_hit("pids", more),
            EventKind::DeviceDenied => self.limit_hit("devices", more),
            EventKind::PeerDenied => self.limit_hit("peers", more),
            EventKind::DiskFull => self.limit_hit("disk", more),
            EventKind::OutputTruncated => self.limit_hit("output", more),
            EventKind::MemoryStalled => self.limit_hit("memory_stall", more),
            EventKind::Revoked => self.limit_hit("revoked", more),
            EventKind::Unspecified => {}
        }
    }

    fn limit_hit(&self, limit: &str, more: u64) {
        self.limit_hits.with_label_values(&[limit]).inc_by(more);
    }

    /// The node's books changed.
    pub fn resources(&self, report: &ResourceReport) {
        let parts = [
            ("capacity", &report.capacity),
            ("reserve", &report.reserve),
            ("allocated", &report.allocated),
            ("free", &report.free),
        ];
        for (part, amount) in parts {
            let amount = amount.clone().unwrap_or_default();
            for kind in &SCALARS {
                let value = precise((kind.get)(&amount));
                // Prometheus counts CPUs in cores.
                let (name, value) =
                    if kind.name == "cpu_milli" { ("cpu_cores", value / 1000.0) } else { (kind.name, value) };
                self.resources.with_label_values(&[name, part]).set(value);
            }
            let ports = amount.port_set().unwrap_or_default().len();
            self.resources.with_label_values(&["ports", part]).set(precise(ports as u64));
        }
        let revocable = |part, milli| {
            self.resources.with_label_values(&["revocable_cpu_cores", part]).set(precise(milli) / 1000.0)
        };
        revocable("capacity", report.revocable_cpu_milli);
        revocable("allocated", report.revocable_allocated_cpu_milli);
    }

    /// The master is told this.
    pub fn reported(&self, news: &News) {
        let kind = match news {
            News::Report(_) => "whole",
            News::Unchanged { .. } => "unchanged",
        };
        self.reports.with_label_values(&[kind]).inc();
    }

    /// What is kept from reclaim for guaranteed tasks changed.
    pub fn memory_protected(&self, min_bytes: u64, low_bytes: u64) {
        for (level, bytes) in [("min", min_bytes), ("low", low_bytes)] {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.memory_protected.with_label_values(&[level]).set(bytes);
        }
    }

    /// The journal takes records, or does not.
    pub fn journal_works(&self, works: bool) {
        self.journal_works.set(i64::from(works));
    }

    /// Can this agent do its work? What /healthz answers.
    pub fn healthy(&self) -> bool {
        self.journal_works.get() == 1
    }

    /// From now on tells what ran on exclusive cores and was not their task's: `read` counts it, of the kernel's
    /// threads and of everybody else.
    ///
    /// # Errors
    /// When it was told before.
    pub fn foreign_cpu(
        &self,
        read: impl Fn() -> Option<(Duration, Duration)> + Send + Sync + 'static,
    ) -> Result<(), prometheus::Error> {
        let options = Opts::new(
            "bulkhead_agent_exclusive_foreign_cpu_seconds_total",
            "CPU time of others on the exclusive cores of tasks.",
        );
        let counter = CounterVec::new(options, &["by"])?;
        self.registry.register(Box::new(ForeignCpu { counter, read: Box::new(read) }))
    }

    /// What the probe found.
    pub fn feature(&self, name: &str, available: bool) {
        self.features.with_label_values(&[name]).set(i64::from(available));
    }

    /// Everything in Prometheus's text form.
    ///
    /// # Errors
    /// When a metric cannot be written: a mistake in this file.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        if let Ok(stat) = procfs::process::Process::myself().and_then(|me| me.stat()) {
            let ticks = precise(stat.utime + stat.stime);
            let total = ticks / precise(procfs::ticks_per_second());
            self.cpu_seconds.inc_by((total - self.cpu_seconds.get()).max(0.0));
            self.resident_bytes.set(precise(stat.rss * procfs::page_size()));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Reads the kernel's counts when it is asked.
struct ForeignCpu {
    counter: CounterVec,
    read: Box<dyn Fn() -> Option<(Duration, Duration)> + Send + Sync>,
}

impl Collector for ForeignCpu {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some((kernel_threads, others)) = (self.read)() {
            for (by, time) in [("kernel_threads", kernel_threads), ("others", others)] {
                let counter = self.counter.with_label_values(&[by]);
                counter.inc_by((time.as_secs_f64() - counter.get()).max(0.0));
            }
        }
        self.counter.collect()
    }
}

/// Exact up to 2^53, which no count of bytes on a machine reaches.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows only floating point")]
fn precise(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_can_be_scraped() {
        let metrics = Metrics::new().unwrap();
        metrics.task_ended(TaskState::Failed, TaskReason::OutOfMemory);
        let (kind, protocol) = (EventKind::PortDenied.into(), Protocol::Tcp.into());
        metrics.event(&Event { kind, protocol, ip_version: 6, ..Default::default() }, 3);
        metrics.foreign_cpu(|| Some((Duration::from_millis(250), Duration::ZERO))).unwrap();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains("foreign_cpu_seconds_total{by=\"kernel_threads\"} 0.25"), "{text}");
        assert!(
            text.contains("bulkhead_agent_tasks_ended_total{reason=\"out_of_memory\",state=\"failed\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("bulkhead_agent_port_binds_denied_total{ip_version=\"6\",protocol=\"tcp\"} 3"),
            "{text}"
        );
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }
}
