//! An agent that works on the guest's scratch disk, with project quotas on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{Verdict, until},
    harness,
};
use nix::mount::{MntFlags, umount, umount2};

/// `deploy/test` gives each guest one.
pub(crate) const DEVICE: &str = "/dev/vda";
/// For sandboxes of tasks that ask for none; below it lies the block of an output.
pub(crate) const DEFAULT_MIB: u64 = 8;
const RESERVE: &str = "16MiB";
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    fn mkfs(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"],
            Self::Xfs => &["mkfs.xfs", "-q", "-f"],
        }
    }

    /// What a write beyond the quota of a project gets.
    pub(crate) fn refusal(self) -> &'static str {
        match self {
            Self::Ext4 => "EDQUOT",
            Self::Xfs => "ENOSPC",
        }
    }
}

/// A cluster whose agent works on the scratch disk.
pub(crate) struct OnDisk {
    pub(crate) cluster: Cluster,
    mounted: Mounted,
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // The next test makes another file system on the same disk, whatever became of this one.
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.0.display());
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(())
}

impl OnDisk {
    /// With so few project ids that every one is used again, and the sandboxes of so many tasks that have ended.
    pub(crate) async fn keeping(kind: Kind, tasks: usize) -> Result<Self> {
        let settings = format!("disk_projects = \"7000-7003\"\nsandbox_keep_count = {tasks}\n");
        Self::with(kind, &settings, Options::default()).await
    }

    /// With these settings, of which `WORK` stands for the agent's work directory. Root tasks are allowed.
    pub(crate) async fn with(kind: Kind, settings: &str, options: Options) -> Result<Self> {
        if !Path::new(DEVICE).exists() {
            return harness::skip("needs a scratch disk, /dev/vda");
        }
        let file = tempfile::NamedTempFile::with_suffix(".toml")?;
        let config = file.into_temp_path().keep()?;
        fs::write(&config, "")?;
        let agent_args = vec!["--config".to_owned(), config.display().to_string()];
        let agent_args = [agent_args, options.agent_args].concat();
        let options = Options { agent_args, allow_root_tasks: true, ..options };
        let mut cluster = Cluster::start(options).await?;
        cluster.stop_agent().await?;
        let settings = settings.replace("WORK", &cluster.work_dir().display().to_string());
        let disk = format!("default_disk = \"{DEFAULT_MIB}MiB\"\nreserve_disk = \"{RESERVE}\"\n");
        fs::write(&config, disk + &settings)?;
        let (make, flags) = kind.mkfs().split_first().context("a program")?;
        run(make, &[flags, &[DEVICE]].concat())?;
        let dir = cluster.work_dir();
        run("mount", &["-o", "prjquota", DEVICE, &dir.display().to_string()])?;
        let mounted = Mounted(dir);
        cluster.restart_agent().await?;
        Ok(Self { cluster, mounted })
    }

    pub(crate) async fn finish(mut self) -> Result<()> {
        self.cluster.stop_agent().await?;
        // Mounts of tasks that have ended go with the last reference to their namespaces, a little later.
        let dir = self.mounted.0.clone();
        until("the disk to be free", || async {
            umount(&dir).map_err(|error| Verdict::NotYet(format!("unmount {}: {error}", dir.display())))
        })
        .await?;
        std::mem::forget(self.mounted);
        self.cluster.finish().await
    }
}

/// Python: writes blocks of 4 KiB to the file of its name until that is refused, says by what, and waits.
pub(crate) const FILL: &str = "\
import errno, os, sys, time
# The output counts too: its first block must be there before the rest is gone.
print('filled:', end=' ', flush=True)
total = 0
try:
    f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
    while True:
        total += os.write(f, b'x' * 4096)
        if total % (1 << 20) == 0:
            os.fsync(f)
except OSError as e:
    print(errno.errorcode[e.errno], total, flush=True)
if len(sys.argv) > 2:
    time.sleep(600)
";

pub(crate) fn filler(id: &str, more: &[&str]) -> Task {
    Task::new(id, ["python3", "-ISc", FILL, "filled"].iter().chain(more).map(|word| (*word).to_owned()))
}

/// What [`FILL`] printed: the error's name and the bytes before it.
pub(crate) async fn filled(cluster: &Cluster, framework: &Framework, id: &str) -> Result<(String, u64)> {
    let said = cluster.stdout_until(framework, id, "\n").await?;
    let said = said.trim().trim_start_matches("filled: ");
    let (name, total) = said.split_once(' ').with_context(|| format!("of {id}: {said:?}"))?;
    Ok((name.to_owned(), total.parse()?))
}
