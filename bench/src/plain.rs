//! Plain cgroups with plain processes in them: what a machine does without Bulkhead.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_agent::kernel::cgroupfs::Cgroup;
use bulkhead_testkit::host;
use tokio::process::{Child, Command};

/// The kernel's default weight; in the agent's tree it stands for one CPU.
pub(crate) const DEFAULT_WEIGHT: u64 = 100;
pub(crate) const LARGEST_WEIGHT: u64 = 10_000;
/// Until killed processes are gone.
const GONE: Duration = Duration::from_secs(10);
/// Between two looks at whether they are.
const LOOK: Duration = Duration::from_millis(5);

/// A directory of cgroups that is taken away with everything in it.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    root: Cgroup,
}

impl Hierarchy {
    /// Below the mount, with this weight next to the agent's tree and everything else there.
    ///
    /// # Errors
    /// Where there are no controllers of CPU and memory.
    pub(crate) fn new(name: &str, weight: u64) -> Result<Self> {
        ensure_controllers()?;
        let mount = Cgroup::at(host::cgroup2_mount()?);
        mount.enable(&["cpu", "memory"])?;
        let root = Cgroup::create(mount.path().join(format!("{name}-{}", std::process::id())))?;
        let hierarchy = Self { root };
        hierarchy.root.enable(&["cpu", "memory"])?;
        hierarchy.root.write("cpu.weight", &weight.to_string())?;
        Ok(hierarchy)
    }

    /// A cgroup of this name and weight.
    pub(crate) fn group(&self, name: &str, weight: u64) -> Result<Group> {
        let cgroup = Cgroup::create(self.root.path().join(name))?;
        let group = Group { cgroup };
        group.cgroup.write("cpu.weight", &weight.to_string())?;
        Ok(group)
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        clear(&self.root);
    }
}

/// A cgroup; what is in it is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) cgroup: Cgroup,
}

impl Group {
    /// Starts a program in it, in this directory.
    pub(crate) fn spawn(&self, program: &Path, arguments: &[String], dir: &Path) -> Result<Child> {
        let procs: PathBuf = self.cgroup.path().join("cgroup.procs");
        // A shell goes first, so that the program is in its cgroup from its first instruction.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"echo $$ >"$0" && exec "$@""#]).arg(procs).arg(program).args(arguments);
        command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command.spawn().with_context(|| format!("start {}", program.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        clear(&self.cgroup);
    }
}

/// Plain words where the figures could not be what they say.
///
/// # Errors
/// Where cgroup v2 has no controllers of CPU and memory.
pub(crate) fn ensure_controllers() -> Result<()> {
    ensure!(
        host::has_controllers(),
        "cgroup v2 has no cpu, memory and pids controllers here, so nothing can be held to anything: boot with \
         systemd.unified_cgroup_hierarchy=1, or measure in a guest (deploy/vm/run -t 0 -m 2048 -- bulkhead-bench ...)"
    );
    Ok(())
}

/// As far as that is possible: this is also done when everything has gone wrong.
fn clear(cgroup: &Cgroup) {
    if !cgroup.exists() {
        return;
    }
    let _ = cgroup.thaw();
    let _ = cgroup.kill();
    let mut waited = Duration::ZERO;
    while waited < GONE && cgroup.populated().unwrap_or(false) {
        std::thread::sleep(LOOK);
        waited += LOOK;
    }
    let _ = cgroup.remove();
}
