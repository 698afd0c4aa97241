//! Settings of how guaranteed tasks are protected from revocable ones.

use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;
use crate::qos::Thresholds;

/// The section `[qos]` of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct QosConfig {
    /// Are revocable tasks held to less while guaranteed ones wait?
    pub enabled: bool,
    /// Guaranteed tasks may wait for a CPU on which others run in this percentage of the time. Threads of the kernel and services
    /// of the system are among the others: they alone take up to a few percent.
    pub cpu_stall_percent: u32,
    /// A quarter of it, once 99 of 100 waits took up to this or more: few waits can be the ones that somebody's customers see. The
    /// kernel's slices are 3 to 4 ms long, so a CPU that is shared fairly has waits of that length.
    pub runqueue_p99_usec: u64,
    /// The same for memory. It is short long before it is noticed: a healthy machine has none of it.
    pub mem_stall_percent: u32,
    /// The same for disks. Whoever reads waits; this is about waiting most of the time.
    pub io_stall_percent: u32,
    /// What a step does shows after about this long: the kernel's own clocks of CPU and memory work in tenths of seconds.
    pub patience_ms: u64,
    /// A little is given back after so long without waiting. Ten times the time to take it, so that nobody swings.
    pub calm_ms: u64,
    /// Where corrections do not help, something else is to blame; they are tried again after this long.
    pub absolved_ms: u64,
}

impl Default for QosConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            cpu_stall_percent: 5,
            runqueue_p99_usec: 8000,
            mem_stall_percent: 2,
            io_stall_percent: 40,
            patience_ms: 1000,
            calm_ms: 1000,
            absolved_ms: 30_000,
        }
    }
}

impl QosConfig {
    /// As the policy takes them.
    ///
    /// # Errors
    /// A percentage outside of 1 to 100.
    pub fn thresholds(&self) -> Result<Thresholds, ConfigError> {
        let permille = |key, percent: u32| match percent {
            1..=100 => Ok(u64::from(percent) * 10),
            _ => Err(ConfigError::Value {
                key,
                value: percent.to_string(),
                why: "a percentage of the time, 1 to 100".to_owned(),
            }),
        };
        Ok(Thresholds {
            cpu_permille: permille("qos.cpu_stall_percent", self.cpu_stall_percent)?,
            runqueue_p99_usec: self.runqueue_p99_usec,
            mem_permille: permille("qos.mem_stall_percent", self.mem_stall_percent)?,
            io_permille: permille("qos.io_stall_percent", self.io_stall_percent)?,
            patience: Duration::from_millis(self.patience_ms),
            calm: Duration::from_millis(self.calm_ms),
            absolved: Duration::from_millis(self.absolved_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_checked_by_name() {
        assert_eq!(QosConfig::default().thresholds().unwrap().io_permille, 400);
        let error = QosConfig { mem_stall_percent: 0, ..QosConfig::default() }.thresholds().unwrap_err();
        assert!(error.to_string().starts_with("qos.mem_stall_percent = 0"), "{error}");
    }
}
