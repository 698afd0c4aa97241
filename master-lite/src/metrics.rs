//! The master's metrics: every name, and how they are written out.

use std::time::{Duration, Instant};

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

use bulkhead_proto::v1::TaskState;

use crate::core::{Amounts, Counters, Gauges, Stopwatch};

/// The names, as they are exported. Times are in seconds and amounts in base units, as Prometheus has it.
pub mod names {
    /// Agents, by `state`: connected, away.
    pub const AGENTS: &str = "bulkhead_master_agents";
    /// Frameworks, by `state`: connected, away.
    pub const FRAMEWORKS: &str = "bulkhead_master_frameworks";
    /// Tasks that have not ended, by `state`.
    pub const TASKS: &str = "bulkhead_master_tasks";
    /// Tasks sent to agents.
    pub const TASKS_LAUNCHED: &str = "bulkhead_master_tasks_launched_total";
    /// Running tasks that were given another grant.
    pub const TASKS_RESIZED: &str = "bulkhead_master_tasks_resized_total";
    /// Tasks that reached their last state, by `state`.
    pub const TASKS_ENDED: &str = "bulkhead_master_tasks_ended_total";
    /// Offers that wait for an answer.
    pub const OFFERS: &str = "bulkhead_master_offers_outstanding";
    /// What became of offers, by `what`: sent, accepted, declined, rescinded.
    pub const OFFERS_TOTAL: &str = "bulkhead_master_offers_total";
    /// Amounts over all agents, by `part` (capacity, reserve, allocated, offered) and `resource`
    /// (cpu_milli, revocable_cpu_milli, mem_bytes, ports).
    pub const RESOURCES: &str = "bulkhead_master_resources";
    /// Time that one event took in the core.
    pub const STEP_SECONDS: &str = "bulkhead_master_step_seconds";
    /// Time that the allocator took, out of the step.
    pub const ALLOCATION_SECONDS: &str = "bulkhead_master_allocation_seconds";
    /// Streams that were cut because their reader did not keep up.
    pub const SLOW_SESSIONS: &str = "bulkhead_master_slow_sessions_total";
}

/// From a microsecond, which is one small event, to a second, which nobody should wait for a master.
const BUCKETS_SECONDS: [f64; 10] = [1e-6, 5e-6, 2.5e-5, 1e-4, 5e-4, 2.5e-3, 1e-2, 5e-2, 0.25, 1.0];

/// A metric that is defined twice, or wrongly: a defect of the master, found at its start.
pub type MetricError = prometheus::Error;

/// What is measured while the master runs; the rest is read from the core when it is asked for.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    step: Histogram,
    allocation: Histogram,
    slow_sessions: IntCounter,
}

impl Metrics {
    /// Metrics of one master.
    ///
    /// # Errors
    /// [`MetricError`] where a definition above is wrong.
    pub fn new() -> Result<Self, MetricError> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS_SECONDS.to_vec()))
        };
        let metrics = Self {
            step: histogram(names::STEP_SECONDS, "Time that one event took in the core.")?,
            allocation: histogram(
                names::ALLOCATION_SECONDS,
                "Time that the allocator took, out of the step.",
            )?,
            slow_sessions: IntCounter::new(
                names::SLOW_SESSIONS,
                "Streams that were cut because their reader did not keep up.",
            )?,
            registry,
        };
        metrics.registry.register(Box::new(metrics.step.clone()))?;
        metrics.registry.register(Box::new(metrics.allocation.clone()))?;
        metrics.registry.register(Box::new(metrics.slow_sessions.clone()))?;
        Ok(metrics)
    }

    /// One step of the core took this long.
    pub fn stepped(&self, took: Duration) {
        self.step.observe(took.as_secs_f64());
    }

    /// One stream was cut.
    pub fn cut_slow_session(&self) {
        self.slow_sessions.inc();
    }

    /// What the core is to measure its allocator with.
    pub fn stopwatch(&self) -> Box<dyn Stopwatch> {
        Box::new(Timed { took: self.allocation.clone() })
    }

    /// Everything, in the text format of Prometheus.
    ///
    /// # Errors
    /// [`MetricError`] where a definition above is wrong.
    pub fn render(&self, gauges: &Gauges, counters: &Counters) -> Result<String, MetricError> {
        let mut families = self.registry.gather();
        for collector in collect(gauges, counters)? {
            families.extend(collector.collect());
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

struct Timed {
    took: Histogram,
}

impl Stopwatch for Timed {
    fn time(&mut self, work: &mut dyn FnMut()) {
        let begun = Instant::now();
        work();
        self.took.observe(begun.elapsed().as_secs_f64());
    }
}

fn collect(gauges: &Gauges, counters: &Counters) -> Result<Vec<Box<dyn Collector>>, MetricError> {
    let offers = IntGauge::new(names::OFFERS, "Offers that wait for an answer.")?;
    offers.set(signed(gauges.offers));
    let launched = IntCounter::new(names::TASKS_LAUNCHED, "Tasks sent to agents.")?;
    launched.inc_by(counters.tasks_launched);
    let resized = IntCounter::new(names::TASKS_RESIZED, "Running tasks that were given another grant.")?;
    resized.inc_by(counters.tasks_resized);
    Ok(vec![
        by_state(
            names::AGENTS,
            "Agents by connection state.",
            [("connected", gauges.agents_connected), ("away", gauges.agents_away)],
        )?,
        by_state(
            names::FRAMEWORKS,
            "Frameworks by connection state.",
            [("connected", gauges.frameworks_connected), ("away", gauges.frameworks_away)],
        )?,
        live_tasks(gauges)?,
        ended_tasks(counters)?,
        Box::new(launched),
        Box::new(resized),
        Box::new(offers),
        offers_total(counters)?,
        resources(gauges)?,
    ])
}

fn by_state<const N: usize>(
    name: &str,
    help: &str,
    states: [(&str, u64); N],
) -> Result<Box<dyn Collector>, MetricError> {
    let vec = IntGaugeVec::new(Opts::new(name, help), &["state"])?;
    for (state, count) in states {
        vec.with_label_values(&[state]).set(signed(count));
    }
    Ok(Box::new(vec))
}

fn live_tasks(gauges: &Gauges) -> Result<Box<dyn Collector>, MetricError> {
    let count = |state| gauges.tasks.get(&state).copied().unwrap_or_default();
    let states = [("staging", count(TaskState::Staging)), ("running", count(TaskState::Running))];
    by_state(names::TASKS, "Tasks that have not ended, by state.", states)
}

fn ended_tasks(counters: &Counters) -> Result<Box<dyn Collector>, MetricError> {
    let vec = IntCounterVec::new(
        Opts::new(names::TASKS_ENDED, "Tasks that reached their last state."),
        &["state"],
    )?;
    let states = [
        ("finished", TaskState::Finished),
        ("failed", TaskState::Failed),
        ("killed", TaskState::Killed),
        ("rejected", TaskState::Rejected),
        ("lost", TaskState::Lost),
    ];
    for (label, state) in states {
        vec.with_label_values(&[label]).inc_by(counters.tasks_ended.get(&state).copied().unwrap_or_default());
    }
    Ok(Box::new(vec))
}

fn offers_total(counters: &Counters) -> Result<Box<dyn Collector>, MetricError> {
    let vec = IntCounterVec::new(Opts::new(names::OFFERS_TOTAL, "What became of offers."), &["what"])?;
    let counts = [
        ("sent", counters.offers_sent),
        ("accepted", counters.offers_accepted),
        ("declined", counters.offers_declined),
        ("rescinded", counters.offers_rescinded),
    ];
    for (what, count) in counts {
        vec.with_label_values(&[what]).inc_by(count);
    }
    Ok(Box::new(vec))
}

fn resources(gauges: &Gauges) -> Result<Box<dyn Collector>, MetricError> {
    let vec =
        IntGaugeVec::new(Opts::new(names::RESOURCES, "Amounts over all agents."), &["part", "resource"])?;
    let parts = [
        ("capacity", gauges.capacity),
        ("reserve", gauges.reserve),
        ("allocated", gauges.allocated),
        ("offered", gauges.offered),
    ];
    for (part, Amounts { cpu_milli, revocable_cpu_milli, mem_bytes, ports }) in parts {
        let amounts = [
            ("cpu_milli", cpu_milli),
            ("revocable_cpu_milli", revocable_cpu_milli),
            ("mem_bytes", mem_bytes),
            ("ports", ports),
        ];
        for (resource, amount) in amounts {
            vec.with_label_values(&[part, resource]).set(signed(amount));
        }
    }
    Ok(Box::new(vec))
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
