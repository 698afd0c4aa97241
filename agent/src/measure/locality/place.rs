//! What a file system keeps its files in: memory, a disk of this node, or somebody else's.
//!
//! One with the number of a block device is on that disk. Of those that make up a number of their own, a few are known to
//! be local (btrfs, overlay) or memory (tmpfs), and some hold no data (proc); everything else is elsewhere: NFS, CIFS,
//! Ceph, Lustre, and FUSE, which mostly stands for a network.

use std::{
    collections::HashMap,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use nix::libc;
use rustix::fs::fstatfs;

use super::tally::Home;
use crate::kernel::{
    block::{DeviceNumber, Disk},
    page_cache::PageCache,
};

/// Not in the libc crate; from the sources of OpenZFS and bcachefs.
const ZFS: libc::c_long = 0x2fc1_2fc1;
const BCACHEFS: libc::c_long = 0xca45_1a4e;
const RAMFS: libc::c_long = 0x8584_58f6;

/// Where the files of one file system are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// They have a home, and part of them may be in memory.
    Home {
        /// Where what is not in memory is.
        home: Home,
        /// How to ask what is.
        page_cache: PageCache,
    },
    /// They are made up when they are read.
    NoData,
}

/// Remembers file systems by their number.
#[derive(Debug)]
pub(super) struct Places {
    page_cache: PageCache,
    known: HashMap<u64, Place>,
    sys: PathBuf,
}

impl Places {
    /// With this way to ask the page cache.
    pub(super) fn new(page_cache: PageCache) -> Self {
        Self { page_cache, known: HashMap::new(), sys: "/sys".into() }
    }

    /// The place of an open file on the device `dev` (`st_dev`).
    pub(super) fn of(&mut self, dev: u64, file: BorrowedFd<'_>) -> Place {
        if let Some(place) = self.known.get(&dev) {
            return place.clone();
        }
        // What does not even tell its kind is far away.
        let kind = fstatfs(file).map_or(0, |stat| stat.f_type);
        let place = place(&self.sys, DeviceNumber::of(dev), kind, self.page_cache);
        self.known.insert(dev, place.clone());
        place
    }
}

fn place(sys: &Path, number: DeviceNumber, kind: libc::c_long, page_cache: PageCache) -> Place {
    let some_disk = Home::Disk(String::new());
    if number.major != 0 {
        let disk = Disk::numbered(sys, number).map_or(some_disk, |disk| Home::Disk(disk.name));
        return Place::Home { home: disk, page_cache };
    }
    match kind {
        // Its pages belong to the file below, which only a mapping leads to.
        libc::OVERLAYFS_SUPER_MAGIC => Place::Home { home: some_disk, page_cache: PageCache::Mapped },
        // What tmpfs does not have in memory is in swap.
        libc::BTRFS_SUPER_MAGIC | libc::TMPFS_MAGIC | libc::HUGETLBFS_MAGIC | RAMFS | ZFS | BCACHEFS => {
            Place::Home { home: some_disk, page_cache }
        }
        libc::PROC_SUPER_MAGIC
        | libc::SYSFS_MAGIC
        | libc::CGROUP_SUPER_MAGIC
        | libc::CGROUP2_SUPER_MAGIC
        | libc::DEBUGFS_MAGIC
        | libc::TRACEFS_MAGIC
        | libc::SECURITYFS_MAGIC
        | libc::BPF_FS_MAGIC => Place::NoData,
        _ => Place::Home { home: Home::Elsewhere, page_cache },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd as _, os::unix::fs::MetadataExt as _};

    use super::*;

    fn of(major: u32, kind: libc::c_long) -> Place {
        place(Path::new("/no/sys"), DeviceNumber { major, minor: 9 }, kind, PageCache::Counted)
    }

    #[test]
    fn each_kind_of_file_system_has_its_answer() {
        let home = |home, page_cache| Place::Home { home, page_cache };
        let disk = || Home::Disk(String::new());
        assert_eq!(of(0, libc::TMPFS_MAGIC), home(disk(), PageCache::Counted));
        assert_eq!(of(0, libc::OVERLAYFS_SUPER_MAGIC), home(disk(), PageCache::Mapped));
        assert_eq!(of(0, libc::NFS_SUPER_MAGIC), home(Home::Elsewhere, PageCache::Counted));
        assert_eq!(of(0, libc::FUSE_SUPER_MAGIC), home(Home::Elsewhere, PageCache::Counted));
        assert_eq!(of(0, 0), home(Home::Elsewhere, PageCache::Counted), "unknown");
        assert_eq!(of(0, libc::PROC_SUPER_MAGIC), Place::NoData);
        assert_eq!(of(254, libc::EXT4_SUPER_MAGIC), home(disk(), PageCache::Counted), "no sysfs");
    }

    #[test]
    fn files_of_this_machine_have_a_place() {
        let mut places = Places::new(PageCache::probe());
        let mut at = |path: &str| {
            let file = File::open(path).unwrap();
            places.of(file.metadata().unwrap().dev(), file.as_fd())
        };
        assert_eq!(at("/proc/self/stat"), Place::NoData);
        assert!(matches!(at("/etc/hostname"), Place::Home { .. }));
    }
}
