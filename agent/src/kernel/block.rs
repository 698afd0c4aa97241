//! The disk below a directory: what `io.max`, `io.stat` and `io.cost` name by its number.
//!
//! The block layer throttles whole devices that have a request queue, so a partition stands for its disk, while
//! device mapper, md and loop devices are disks of their own. File systems without one device of their own (overlay,
//! tmpfs, 9p, NFS, btrfs) have an anonymous number: nothing can be held there.
//!
//! Source: the kernel's `Documentation/ABI/stable/sysfs-block`.

use std::{
    fmt, fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::libc;
use procfs::process::MountInfo;

/// A device's number, written `MAJOR:MINOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The driver's.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// From what `stat` calls `st_dev`.
    pub fn of(dev: u64) -> Self {
        Self { major: libc::major(dev), minor: libc::minor(dev) }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.trim().split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(|_| ())?, minor: minor.parse().map_err(|_| ())? })
    }
}

/// There is no disk that could be held to anything, or it cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file or directory could not be read.
    #[error("read {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file of sysfs is not as documented.
    #[error("{}: {found:?} is not what the kernel documents", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The file system is not on one block device.
    #[error(
        "{} is on {file_system}, which has no block device of its own: use a directory on ext4 or XFS",
        path.display()
    )]
    Anonymous {
        /// The directory.
        path: PathBuf,
        /// `overlay`, `tmpfs`, ...
        file_system: String,
    },
    /// The mount table could not be read.
    #[error("read the mount table")]
    MountTable(#[source] procfs::ProcError),
    /// Neither a directory nor a block device.
    #[error("{} is neither a directory nor a block device", path.display())]
    Neither {
        /// What was named.
        path: PathBuf,
    },
    /// No file system of the device is mounted.
    #[error(
        "{} is not mounted: mount a file system of it and name the directory; devices are never written to directly",
        path.display()
    )]
    NotMounted {
        /// The device.
        path: PathBuf,
    },
}

/// One block device with a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// As below /sys/block: `vda`, `nvme0n1`, `dm-0`.
    pub name: String,
    /// What cgroup files call it.
    pub number: DeviceNumber,
    /// Its size.
    pub size_bytes: u64,
    /// The I/O scheduler in use; empty where it has none to choose.
    pub scheduler: String,
}

impl Disk {
    /// The disk that holds a file or directory.
    ///
    /// # Errors
    /// [`DiskError::Anonymous`] where there is none.
    pub fn below(path: &Path) -> Result<Self, DiskError> {
        let dev = fs::metadata(path).map_err(|source| failed(path, source))?.dev();
        let number = DeviceNumber::of(dev);
        if number.major == 0 {
            let file_system = mount_table()
                .ok()
                .and_then(|mounts| mounts.into_iter().find(|m| m.majmin == number.to_string()))
                .map_or_else(|| "a file system".to_owned(), |m| m.fs_type);
            return Err(DiskError::Anonymous { path: path.to_owned(), file_system });
        }
        Self::numbered(Path::new("/sys"), number)
    }

    /// The disk of a device number, which may be a partition's; `sys` is where sysfs is mounted.
    ///
    /// # Errors
    /// When sysfs does not know the device.
    pub fn numbered(sys: &Path, number: DeviceNumber) -> Result<Self, DiskError> {
        let link = sys.join("dev/block").join(number.to_string());
        let device = fs::canonicalize(&link).map_err(|source| failed(&link, source))?;
        let whole = match device.parent() {
            Some(disk) if device.join("partition").exists() => disk.to_owned(),
            _ => device,
        };
        let name = whole.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let sectors: u64 = parsed(&whole.join("size"))?;
        let scheduler = fs::read_to_string(whole.join("queue/scheduler")).unwrap_or_default();
        Ok(Self {
            name,
            number: parsed(&whole.join("dev"))?,
            // Sysfs counts in sectors of 512 bytes, whatever the disk's own are.
            size_bytes: sectors.saturating_mul(512),
            scheduler: chosen(&scheduler).to_owned(),
        })
    }
}

/// A directory on the device that `path` names: itself, or where a file system of the device is mounted.
///
/// # Errors
/// [`DiskError::NotMounted`] for a device that is mounted nowhere.
pub fn directory_on(path: &Path) -> Result<PathBuf, DiskError> {
    let metadata = fs::metadata(path).map_err(|source| failed(path, source))?;
    if metadata.is_dir() {
        return Ok(path.to_owned());
    }
    if !metadata.file_type().is_block_device() {
        return Err(DiskError::Neither { path: path.to_owned() });
    }
    let wanted = DeviceNumber::of(metadata.rdev());
    let disk = Disk::numbered(Path::new("/sys"), wanted)?;
    let of_mount = |mount: &MountInfo| mount.majmin.parse::<DeviceNumber>().ok();
    let mounts: Vec<_> = mount_table()?.into_iter().filter(|m| m.root == "/").collect();
    let exact = mounts.iter().find(|m| of_mount(m) == Some(wanted));
    // The disk as a whole was named, and one of its partitions is mounted.
    let partition = || {
        let on_disk = |n| Disk::numbered(Path::new("/sys"), n).is_ok_and(|d| d.number == wanted);
        mounts.iter().find(|m| of_mount(m).is_some_and(on_disk))
    };
    let found = exact.or_else(|| if disk.number == wanted { partition() } else { None });
    found.map(|m| m.mount_point.clone()).ok_or_else(|| DiskError::NotMounted { path: path.to_owned() })
}

fn mount_table() -> Result<Vec<MountInfo>, DiskError> {
    let mounts = procfs::process::Process::myself().and_then(|me| me.mountinfo());
    Ok(mounts.map_err(DiskError::MountTable)?.into_iter().collect())
}

fn failed(path: &Path, source: io::Error) -> DiskError {
    DiskError::Io { path: path.to_owned(), source }
}

fn parsed<T: FromStr>(path: &Path) -> Result<T, DiskError> {
    let text = fs::read_to_string(path).map_err(|source| failed(path, source))?;
    text.trim().parse().map_err(|_| DiskError::Malformed { path: path.to_owned(), found: text.clone() })
}

/// `[none] mq-deadline` names all, and the one in use in brackets.
fn chosen(scheduler: &str) -> &str {
    let inside = scheduler.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or("", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/pci/block/nvme0n1");
        fs::create_dir_all(disk.join("nvme0n1p2")).unwrap();
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        for (file, text) in [
            ("dev", "259:0\n"),
            ("size", "2048\n"),
            ("queue/scheduler", "none [bfq] kyber\n"),
            ("nvme0n1p2/dev", "259:2\n"),
            ("nvme0n1p2/partition", "2\n"),
            ("nvme0n1p2/size", "8\n"),
        ] {
            fs::write(disk.join(file), text).unwrap();
        }
        for (number, to) in [("259:0", "nvme0n1"), ("259:2", "nvme0n1/nvme0n1p2")] {
            let link = sys.path().join("dev/block").join(number);
            std::os::unix::fs::symlink(format!("../../devices/pci/block/{to}"), link).unwrap();
        }
        sys
    }

    #[test]
    fn a_partition_stands_for_its_disk() {
        let sys = sysfs();
        let disk = Disk {
            name: "nvme0n1".into(),
            number: DeviceNumber { major: 259, minor: 0 },
            size_bytes: 1 << 20,
            scheduler: "bfq".into(),
        };
        for minor in [0, 2] {
            assert_eq!(Disk::numbered(sys.path(), DeviceNumber { major: 259, minor }).unwrap(), disk);
        }
        let unknown = Disk::numbered(sys.path(), DeviceNumber { major: 7, minor: 9 }).unwrap_err();
        assert!(unknown.to_string().contains("7:9"), "{unknown}");
    }

    #[test]
    fn what_is_on_no_disk_is_named() {
        let error = Disk::below(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("proc") && error.contains("ext4"), "{error}");
        let error = directory_on(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("neither"), "{error}");
        assert!(matches!(directory_on(Path::new("/no/such")), Err(DiskError::Io { .. })));
        assert_eq!(directory_on(Path::new("/")).unwrap(), Path::new("/"));
    }

    #[test]
    fn the_scheduler_in_use_is_in_brackets() {
        assert_eq!(
            ["none [mq-deadline] bfq\n", "[none]\n", "none\n", ""].map(chosen),
            ["mq-deadline", "none", "", ""]
        );
    }
}
