//! Settings of which changes of the node the master is told of.

use bulkhead_proto::rate::parse_bits_per_sec;
use bytesize::ByteSize;
use serde::Deserialize;

use super::ConfigError;
use crate::offer::Steps;

/// The section `[report]` of the file: what is measured and has changed by less than a step is no news by itself. A step
/// that is too small wakes the master and its frameworks for noise; one that is too large has them work with what is no
/// longer true, for up to `whole_every_ms`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct ReportConfig {
    /// Of CPU that is held back or lent. A tenth of a CPU: an idle host's services move by that, and no task is placed
    /// by less.
    pub cpu_step_milli: u64,
    /// Of memory that is held back. 64 MiB: kernel and services move by half of that all the time.
    pub mem_step: ByteSize,
    /// Of disk that is held back. 64 MiB: below it is somebody's log.
    pub disk_step: ByteSize,
    /// Of the link that is held back. 10 Mbit/s: below it is somebody's update.
    pub net_step: String,
    /// Of the time in which processes stood still, in percent. A tenth of the time is another node to be on; less may be
    /// one program's start.
    pub pressure_step_percent: u32,
    /// Waits for a CPU have to be this many times as long, or as short. They are known to a factor of two, so two may be
    /// none.
    pub runqueue_factor: u32,
    /// Waits below this count as this: nobody notices them.
    pub runqueue_noticed_usec: u64,
    /// Of a memory node's memory that is free, in percent of it. Tasks use and free memory all the time; where one fits is
    /// seldom decided by a twentieth of a node.
    pub numa_step_percent: u32,
    /// What changed by less than a step is told after this long. Peaks of what others use are looked at over the last half
    /// minute, too, so the picture is no older than that makes it anyway; and of six reports five are a few bytes.
    pub whole_every_ms: u64,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self {
            cpu_step_milli: 100,
            mem_step: ByteSize::mib(64),
            disk_step: ByteSize::mib(64),
            net_step: "10Mbit".into(),
            pressure_step_percent: 10,
            runqueue_factor: 4,
            runqueue_noticed_usec: 1000,
            numa_step_percent: 5,
            whole_every_ms: 30_000,
        }
    }
}

/// Each threshold with the least and the most that make sense: with nothing, noise would be news every second; with more
/// than a machine has, nothing would ever be.
const BOUNDS: [(&str, u64, u64); 8] = [
    ("report.cpu_step_milli", 1, 1_000_000),
    ("report.mem_step", 1, 1 << 42),
    ("report.disk_step", 1, 1 << 50),
    ("report.pressure_step_percent", 1, 100),
    ("report.runqueue_factor", 2, 1 << 20),
    ("report.runqueue_noticed_usec", 1, 60_000_000),
    ("report.numa_step_percent", 1, 100),
    ("report.whole_every_ms", 1, 24 * 3_600_000),
];

impl ReportConfig {
    /// As the reporter takes them.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn steps(&self) -> Result<Steps, ConfigError> {
        let values = [
            self.cpu_step_milli,
            self.mem_step.as_u64(),
            self.disk_step.as_u64(),
            self.pressure_step_percent.into(),
            self.runqueue_factor.into(),
            self.runqueue_noticed_usec,
            self.numa_step_percent.into(),
            self.whole_every_ms,
        ];
        for ((key, least, most), value) in BOUNDS.into_iter().zip(values) {
            if !(least..=most).contains(&value) {
                let why = format!("give {least} to {most}");
                return Err(ConfigError::Value { key, value: value.to_string(), why });
            }
        }
        let net_bits_per_sec = parse_bits_per_sec(&self.net_step).map_err(|e| ConfigError::Value {
            key: "report.net_step",
            value: self.net_step.clone(),
            why: e.to_string(),
        })?;
        Ok(Steps {
            cpu_milli: self.cpu_step_milli,
            mem_bytes: self.mem_step.as_u64(),
            disk_bytes: self.disk_step.as_u64(),
            net_bits_per_sec,
            pressure_permille: u64::from(self.pressure_step_percent) * 10,
            runqueue_factor: self.runqueue_factor.into(),
            runqueue_noticed_usec: self.runqueue_noticed_usec,
            numa_permille: u64::from(self.numa_step_percent) * 10,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_that_make_no_sense_are_named() {
        let base = ReportConfig::default;
        let steps = base().steps().unwrap();
        assert_eq!((steps.net_bits_per_sec, steps.pressure_permille), (10_000_000, 100));
        let cases = [
            (ReportConfig { cpu_step_milli: 0, ..base() }, "report.cpu_step_milli = 0"),
            (ReportConfig { cpu_step_milli: u64::MAX, ..base() }, "give 1 to 1000000"),
            (ReportConfig { mem_step: ByteSize::b(0), ..base() }, "report.mem_step = 0"),
            (ReportConfig { disk_step: ByteSize::b(u64::MAX), ..base() }, "report.disk_step"),
            (ReportConfig { net_step: "10".into(), ..base() }, "report.net_step = 10: write a rate"),
            (ReportConfig { net_step: "0bit".into(), ..base() }, "report.net_step"),
            (ReportConfig { pressure_step_percent: 101, ..base() }, "report.pressure_step_percent"),
            (ReportConfig { runqueue_factor: 1, ..base() }, "report.runqueue_factor = 1"),
            (ReportConfig { runqueue_noticed_usec: 0, ..base() }, "report.runqueue_noticed_usec"),
            (ReportConfig { numa_step_percent: 0, ..base() }, "report.numa_step_percent = 0"),
            (ReportConfig { whole_every_ms: 0, ..base() }, "report.whole_every_ms = 0"),
        ];
        for (config, says) in cases {
            let error = config.steps().unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
