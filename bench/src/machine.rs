//! What the figures were measured on, without saying whose machine it is.

use anyhow::{Context as _, Result};
use bulkhead_testkit::host;
use nix::sys::utsname::uname;
use procfs::{CpuInfo, Current as _, Meminfo};
use serde::Serialize;

/// The machine and the build.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Machine {
    /// The version in what `uname -r` prints.
    pub(crate) kernel: String,
    /// As `uname -m` prints it.
    pub(crate) architecture: String,
    /// As the kernel sees it; in a virtual machine it is what that shows.
    pub(crate) cpu_model: String,
    /// Processors that are online.
    pub(crate) cpus: usize,
    pub(crate) mem_bytes: u64,
    /// Do the processors say that a hypervisor is below them?
    pub(crate) virtualised: bool,
    /// Runnable processes over the last minute, before the first benchmark.
    pub(crate) load_average: f32,
    /// Were limits set? Without the controllers the agent starts tasks with port rules only.
    pub(crate) cgroup_controllers: bool,
    /// `release` or `debug`.
    pub(crate) build: &'static str,
    pub(crate) version: &'static str,
}

impl Machine {
    /// Asks the kernel.
    pub(crate) fn read() -> Result<Self> {
        let names = uname().context("uname")?;
        let cpus = CpuInfo::current().context("read /proc/cpuinfo")?;
        let memory = Meminfo::current().context("read /proc/meminfo")?;
        let load = procfs::LoadAverage::current().context("read /proc/loadavg")?;
        Ok(Self {
            kernel: version(&names.release().to_string_lossy()),
            architecture: names.machine().to_string_lossy().into_owned(),
            cpu_model: cpus.model_name(0).unwrap_or("unknown").to_owned(),
            cpus: cpus.num_cores(),
            mem_bytes: memory.mem_total,
            virtualised: cpus.flags(0).is_some_and(|flags| flags.contains(&"hypervisor")),
            load_average: load.one,
            cgroup_controllers: host::has_controllers(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            version: env!("CARGO_PKG_VERSION"),
        })
    }
}

/// The numbers of a release: what a distribution or a site appends says nothing about speed.
fn version(release: &str) -> String {
    release.split(['-', '+']).next().unwrap_or_default().to_owned()
}
