//! The host's directories and files that tasks' mounts are made of: made once, when the agent starts.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::view::{Hidden, HostParts, SANDBOX_IN_IMAGE};

/// Mounted in every image; see [`super::view`].
const SKELETON: [&str; 5] = ["proc", "sys", "dev", "tmp", "etc"];
/// What an image cannot know about the network that it shares.
const HOST_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// What container engines hide: they tell of the host's hardware and kernel, and some of it can be written.
const HIDDEN: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];
/// Settings of the whole host, which root could write without any capability.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A directory or file could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make {}, which tasks' files are mounted from", path.display())]
pub struct HostPartsError {
    path: PathBuf,
    source: io::Error,
}

impl HostParts {
    /// Makes them below the agent's work directory; those that are there stay. `cgroup` is the cgroup2 mount.
    ///
    /// # Errors
    /// The directory or file that could not be made.
    pub fn make(work_dir: &Path, cgroup: &Path) -> Result<Self, HostPartsError> {
        let base = work_dir.join("root");
        let (skeleton, root, empty) = (base.join("skeleton"), base.join("mount"), base.join("empty"));
        let inner = SANDBOX_IN_IMAGE.trim_start_matches('/');
        let directories = SKELETON.into_iter().chain([inner]).map(|name| skeleton.join(name));
        for directory in directories.chain([root.clone(), empty.clone()]) {
            make_directory(&directory).map_err(|source| HostPartsError { path: directory, source })?;
        }
        let mut host_files = Vec::new();
        for file in HOST_FILES.map(PathBuf::from).into_iter().filter(|file| file.is_file()) {
            let path = skeleton.join(file.strip_prefix("/").unwrap_or(&file));
            let opened = fs::OpenOptions::new().create(true).append(true).open(&path);
            opened.map_err(|source| HostPartsError { path, source })?;
            host_files.push(file);
        }
        let here = |paths: &[&str]| -> Vec<PathBuf> {
            paths.iter().map(PathBuf::from).filter(|path| path.exists()).collect()
        };
        let hidden =
            here(&HIDDEN).into_iter().map(|path| Hidden { directory: path.is_dir(), path }).collect();
        let (read_only, cgroup) = (here(&READ_ONLY), cgroup.to_owned());
        Ok(Self { skeleton, root, empty, host_files, hidden, read_only, cgroup })
    }
}

/// Open to every task, whatever the agent's own mask is.
fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
