//! What a process costs, from the kernel's counts of it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use procfs::process::Process;
use serde::Serialize;

/// A process over a window of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ProcessCost {
    /// User and system time in percent of one CPU.
    pub(crate) cpu_percent: f64,
    /// The same from its cgroup, which counts microseconds; where it has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup_cpu_percent: Option<f64>,
    pub(crate) resident_bytes: u64,
    pub(crate) resident_peak_bytes: u64,
    pub(crate) threads: u64,
    pub(crate) open_files: usize,
}

/// CPU time of a process so far.
pub(crate) fn cpu_time(pid: i32) -> Result<Duration> {
    let stat = Process::new(pid).and_then(|process| process.stat());
    let stat = stat.with_context(|| format!("read /proc/{pid}/stat"))?;
    let tick = Duration::from_secs(1) / u32::try_from(procfs::ticks_per_second())?;
    Ok(tick * u32::try_from(stat.utime + stat.stime)?)
}

impl ProcessCost {
    /// The process now, and the CPU time that it took in the window.
    pub(crate) fn read(pid: i32, cpu: Duration, window: Duration) -> Result<Self> {
        let process = Process::new(pid).with_context(|| format!("read /proc/{pid}"))?;
        let status = process.status().with_context(|| format!("read /proc/{pid}/status"))?;
        let bytes = |kib: Option<u64>| kib.unwrap_or(0) * 1024;
        Ok(Self {
            cpu_percent: percent(cpu, window),
            cgroup_cpu_percent: None,
            resident_bytes: bytes(status.vmrss),
            resident_peak_bytes: bytes(status.vmhwm),
            threads: status.threads,
            open_files: process.fd_count().with_context(|| format!("read /proc/{pid}/fd"))?,
        })
    }
}

/// Percent of one CPU, to a thousandth.
pub(crate) fn percent(cpu: Duration, window: Duration) -> f64 {
    (cpu.as_secs_f64() / window.as_secs_f64().max(f64::MIN_POSITIVE) * 1e5).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_from_outside() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let cost = ProcessCost::read(pid, Duration::from_millis(15), Duration::from_secs(2)).unwrap();
        assert!((cost.cpu_percent - 0.75).abs() < 1e-9, "{cost:?}");
        assert!(cost.resident_bytes > 0 && cost.threads > 0 && cost.open_files > 2, "{cost:?}");
        cpu_time(pid).unwrap();
        assert!(cpu_time(-1).unwrap_err().to_string().contains("/proc/-1"));
    }
}
