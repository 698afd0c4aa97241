//! The agent's launcher next to container runtimes: the same program behind the same fences, in the same run.
//!
//! Each starts the static `busybox true` in a cgroup, with mount, pid, ipc and uts namespaces, no capabilities, no_new_privs and a
//! filter of system calls. Of the launcher three times are taken: to the exec, by the kernel's clock ([`ExecTimes`]);
//! until it knows of it, by when the program has already run for a while; and until the program has ended and its
//! cgroup is gone, which is what `run` of a runtime does. The launcher runs inside this program, so that the memory
//! of this program is that of an agent: a ballast shows what that costs.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_agent::launch::lab::Lab;
use bulkhead_testkit::host;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::json;

use crate::{
    exec_times::ExecTimes,
    latency::{Latencies, Summary},
    launch::count,
};

/// Static, so that it needs nothing else in a container's root directory.
const BUSYBOX: &str = "/bin/busybox";
const ARGUMENTS: [&str; 2] = [BUSYBOX, "true"];
/// Uid and gid of `nobody` on Debian.
const NOBODY: u32 = 65_534;
/// Runtimes that are looked for in PATH.
const RUNTIMES: [&str; 2] = ["crun", "runc"];
/// Launches before the first that counts.
const WARM_UP: usize = 5;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Launches of each kind
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = count)]
    pub(crate) samples: usize,
    /// Resident memory of the launching process, in MiB; sizes that do not fit are left out
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "50,2048", value_parser = count)]
    pub(crate) resident_mib: Vec<usize>,
}

/// Launches from a process of one size, and runtimes beside them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Runtimes {
    pub(crate) resident_mib: usize,
    /// Until exec has succeeded, as the kernel saw it.
    pub(crate) launch_to_exec: Summary,
    /// Until the launcher knew of that.
    pub(crate) launch_to_known: Summary,
    /// Until the program has ended and its cgroup is gone.
    pub(crate) launch_to_gone: Summary,
    pub(crate) runtimes: Vec<Runtime>,
}

/// `NAME run` to its end.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Runtime {
    pub(crate) name: &'static str,
    /// Did it make a cgroup, too? Where it cannot, it is told not to, in its favour.
    pub(crate) cgroup: bool,
    pub(crate) run: Summary,
    /// Time to exec of the launcher over its `run`, both p50.
    pub(crate) launch_ratio_p50: f64,
}

/// Measures every size.
pub(crate) async fn run(settings: &Settings) -> Result<Vec<Runtimes>> {
    let bench = Bench::new()?;
    let mut sizes = Vec::new();
    for &mib in &settings.resident_mib {
        if fits(mib)? {
            sizes.push(bench.size(mib, settings.samples).await?);
        }
    }
    Ok(sizes)
}

/// Half of what is available stays.
fn fits(mib: usize) -> Result<bool> {
    use procfs::Current as _;
    let available = procfs::Meminfo::current().context("read /proc/meminfo")?.mem_available.unwrap_or(0);
    Ok(u64::try_from(mib)? << 21 <= available)
}

/// Of one launch, all from its begin.
struct Launched {
    exec: Duration,
    known: Duration,
    gone: Duration,
}

fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

struct Bench {
    exec_times: ExecTimes,
    dir: tempfile::TempDir,
    lab: Lab,
}

impl Bench {
    fn new() -> Result<Self> {
        ensure!(host::is_root(), "launches need root");
        // Not below /tmp: tasks have one of their own, and would need the way to their directory made in it.
        let base = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::tempdir_in(base).context("make a directory")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let lab = Lab::new(dir.path(), &format!("bulkhead-bench-{}", std::process::id()), Vec::new(), None)?;
        let exec_times = ExecTimes::listen()?;
        Ok(Self { exec_times, dir, lab })
    }

    async fn size(&self, resident_mib: usize, samples: usize) -> Result<Runtimes> {
        let ballast = vec![1_u8; resident_mib << 20];
        let bar = ProgressBar::new(u64::try_from(samples)?);
        bar.set_style(ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len}, {eta} left")?);
        bar.set_message(format!("launch from {resident_mib} MiB"));
        let mut peers = Vec::new();
        for name in RUNTIMES {
            if let Some(peer) = Peer::find(name, self.dir.path())? {
                peers.push((peer, Latencies::new()?));
            }
        }
        let (mut to_exec, mut to_known, mut to_gone) =
            (Latencies::new()?, Latencies::new()?, Latencies::new()?);
        for sample in 0..samples + WARM_UP {
            let launched = self.launch().await?;
            // Between launches, so that all meet the same machine.
            let runs: Vec<Duration> = peers.iter().map(|(peer, _)| peer.run()).collect::<Result<_>>()?;
            if sample >= WARM_UP {
                to_exec.add(launched.exec);
                to_known.add(launched.known);
                to_gone.add(launched.gone);
                peers.iter_mut().zip(runs).for_each(|((_, latencies), took)| latencies.add(took));
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        drop(std::hint::black_box(ballast));
        let launch_to_exec = to_exec.summary();
        let runtimes = peers.into_iter().map(|(peer, latencies)| {
            let run = latencies.summary();
            let launch_ratio_p50 = ratio(launch_to_exec.p50_us, run.p50_us);
            Runtime { name: peer.name, cgroup: peer.cgroup, run, launch_ratio_p50 }
        });
        let runtimes = runtimes.collect();
        Ok(Runtimes {
            resident_mib,
            launch_to_exec,
            launch_to_known: to_known.summary(),
            launch_to_gone: to_gone.summary(),
            runtimes,
        })
    }

    /// One task from its plan to exec, and until nothing of it is left but its sandbox, which goes with the lab.
    async fn launch(&self) -> Result<Launched> {
        let plan = self.lab.plan(&ARGUMENTS, |_| {}).context("plan a launch")?;
        self.exec_times.clear()?;
        let (begun, begun_ns) = (Instant::now(), monotonic_ns()?);
        let launched = self.lab.launch(plan).await;
        let (running, known) = launched.map_err(|e| anyhow::anyhow!("{}", e.explain()))?;
        running.process.ended().await.context("wait for the program")?;
        self.lab.clear(&running).await?;
        // The sandbox stays, as an agent lets it.
        let gone = begun.elapsed();
        let exec_ns = self.exec_times.of(running.process.pid().as_raw().cast_unsigned())?;
        let exec = Duration::from_nanos(exec_ns.saturating_sub(begun_ns));
        Ok(Launched { exec, known: known.duration_since(begun), gone })
    }
}

/// A container runtime with a bundle for it.
struct Peer {
    name: &'static str,
    cgroup: bool,
    bundle: std::path::PathBuf,
    state: std::path::PathBuf,
}

impl Peer {
    /// `None` where the runtime is not installed.
    fn find(name: &'static str, dir: &Path) -> Result<Option<Self>> {
        let there = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let (bundle, state) = (dir.join(format!("{name}-bundle")), dir.join(format!("{name}-state")));
        fs::create_dir_all(&bundle).context("make a bundle")?;
        make_root(&bundle.join("rootfs")).context("make a root directory")?;
        // Not every mount of the hierarchies suits every runtime: one that cannot make a cgroup here goes without,
        // and one that then does not work is left out.
        for cgroup in [true, false] {
            fs::write(bundle.join("config.json"), serde_json::to_vec(&bundle_config(cgroup))?)?;
            let peer = Self { name, cgroup, bundle: bundle.clone(), state: state.clone() };
            if peer.run().is_ok() {
                return Ok(Some(peer));
            }
        }
        Ok(None)
    }

    fn run(&self) -> Result<Duration> {
        let mut command = Command::new(self.name);
        command.arg("--root").arg(&self.state);
        if self.name == "crun" {
            command.args(["--cgroup-manager", if self.cgroup { "cgroupfs" } else { "disabled" }]);
        }
        command.arg("run").arg("--bundle").arg(&self.bundle).arg(format!("bench-{}", std::process::id()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        let status = command.status().with_context(|| format!("start {}", self.name))?;
        ensure!(status.success(), "{} run: {status}", self.name);
        Ok(begun.elapsed())
    }
}

/// The smallest one that there is, which is in the runtimes' favour: the launcher shows its task the host's.
fn make_root(root: &Path) -> std::io::Result<()> {
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(BUSYBOX, root.join(BUSYBOX.trim_start_matches('/'))).map(drop)
}

/// What a container engine asks for. The filter of system calls is a short one, which is in the runtime's favour.
fn bundle_config(cgroup: bool) -> serde_json::Value {
    let none: [&str; 0] = [];
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    let denied = ["bpf", "kexec_load", "mount", "umount2", "ptrace", "init_module", "finit_module", "keyctl"];
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": NOBODY, "gid": NOBODY },
            "args": ARGUMENTS,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": { "bounding": none, "effective": none, "permitted": none },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": denied, "action": "SCMP_ACT_ERRNO" }],
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if cgroup {
        config["linux"]["cgroupsPath"] = json!(format!("/bulkhead-bench-peer-{}", std::process::id()));
    }
    config
}

fn ratio(of: u64, to: u64) -> f64 {
    let hundredths = of.saturating_mul(100) / to.max(1);
    f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_has_the_launchers_fences() {
        let config = bundle_config(true);
        assert_eq!(config["process"]["noNewPrivileges"], true);
        assert_eq!(config["linux"]["namespaces"].as_array().map(Vec::len), Some(4));
        assert!(config["linux"]["cgroupsPath"].is_string());
        assert!(bundle_config(false)["linux"].get("cgroupsPath").is_none());
    }

    #[test]
    fn ratios_have_two_digits() {
        assert_eq!((ratio(25, 100), ratio(1, 0)), (0.25, 1.0));
    }
}
