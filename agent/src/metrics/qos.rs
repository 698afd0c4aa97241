//! What was taken from revocable tasks for guaranteed ones.

use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, core::Collector};

use super::{Metrics, precise};
use crate::qos::{Held, Reason};

/// What the control loop tells.
#[derive(Clone, Debug)]
pub struct QosMetrics {
    corrections: IntCounterVec,
    cpus: Gauge,
    memory_high_bytes: Gauge,
    frozen: IntGauge,
}

impl QosMetrics {
    /// A correction, or one that is taken back.
    pub fn corrected(&self, reason: &Reason) {
        self.corrections.with_label_values(&[reason.resource.name(), reason.step.name()]).inc();
    }

    /// What is held from now on; infinite where nothing is.
    pub fn held(&self, held: &Held) {
        self.cpus.set(held.cpu_milli.map_or(f64::INFINITY, |milli| precise(milli) / 1000.0));
        self.memory_high_bytes.set(held.mem_high_bytes.map_or(f64::INFINITY, precise));
        self.frozen.set(held.frozen.into());
    }
}

impl Metrics {
    /// For the one control loop.
    ///
    /// # Errors
    /// When they were asked for before.
    pub fn qos(&self) -> Result<QosMetrics, prometheus::Error> {
        let corrections = Opts::new(
            "bulkhead_agent_qos_corrections_total",
            "Steps to protect guaranteed tasks, by what these waited for: squeeze, freeze, kill; ease and absolve give back.",
        );
        let metrics = QosMetrics {
            corrections: IntCounterVec::new(corrections, &["resource", "step"])?,
            cpus: Gauge::new(
                "bulkhead_agent_qos_revocable_cpus",
                "CPUs that guaranteed tasks leave to all revocable ones together; infinite: all that is lent.",
            )?,
            memory_high_bytes: Gauge::new(
                "bulkhead_agent_qos_revocable_memory_high_bytes",
                "Memory above which revocable tasks have theirs taken back; infinite: no such bound.",
            )?,
            frozen: IntGauge::new(
                "bulkhead_agent_qos_revocable_frozen",
                "1 while revocable tasks stand still.",
            )?,
        };
        metrics.held(&Held::default());
        let all: [Box<dyn Collector>; 4] = [
            Box::new(metrics.corrections.clone()),
            Box::new(metrics.cpus.clone()),
            Box::new(metrics.memory_high_bytes.clone()),
            Box::new(metrics.frozen.clone()),
        ];
        all.into_iter().try_for_each(|metric| self.registry.register(metric))?;
        Ok(metrics)
    }
}
