//! What this machine can do for tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Controllers that the agent enforces CPU, memory and process limits with.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Where cgroup v2 is mounted.
///
/// # Errors
/// Where it is not.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = procfs::process::Process::myself().and_then(|me| me.mountinfo());
    let mounts = mounts.context("read /proc/self/mountinfo")?;
    let found = mounts.into_iter().find(|m| m.fs_type == "cgroup2").map(|m| m.mount_point);
    found.context("no cgroup2 is mounted")
}

/// Where BPF programs are pinned. The agent mounts it where nobody did.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Is there a BPF file system?
pub fn has_bpffs() -> bool {
    let mounts = procfs::process::Process::myself().and_then(|me| me.mountinfo());
    let at =
        |m: procfs::process::MountInfo| m.fs_type == "bpf" && m.mount_point.as_path() == Path::new(BPFFS);
    mounts.is_ok_and(|mounts| mounts.into_iter().any(at))
}

/// Takes the BPF file system away again, unless somebody has pinned something meanwhile.
pub fn unmount_unused_bpffs() {
    // The kernel's own files have this ending.
    let pinned = |entry: fs::DirEntry| !entry.file_name().to_string_lossy().ends_with(".debug");
    let unused = || fs::read_dir(BPFFS).is_ok_and(|entries| !entries.flatten().any(pinned));
    if has_bpffs() && unused() {
        // Where it is in use after all, it stays.
        let _ = nix::mount::umount(BPFFS);
    }
}

/// Does cgroup v2 have the controllers that enforcement of CPU, memory and processes needs?
pub fn has_controllers() -> bool {
    let listed = cgroup2_mount().and_then(|m| Ok(fs::read_to_string(m.join("cgroup.controllers"))?));
    let listed = listed.unwrap_or_default();
    CONTROLLERS.iter().all(|wanted| listed.split_whitespace().any(|has| has == *wanted))
}

/// Does this process run as root?
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
