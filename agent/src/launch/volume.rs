//! Directories that outlive tasks: which a task may have, and how one is opened so that nobody can redirect it.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use bulkhead_proto::v1;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::{stat::Mode, statvfs::FsFlags, statvfs::fstatvfs},
};

use super::confine::{ConfineError, Rules, plain_absolute};
use crate::{isolate::disk_space::Bound, kernel::mounts};

/// A volume that the agent's settings allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Of `volume_dirs`: the operator's, and so trusted.
    pub allowed: PathBuf,
    /// From there; empty is the directory itself. Tasks may have made any part of it.
    pub below: PathBuf,
    /// Where the task finds it.
    pub target: PathBuf,
    /// May the task only read?
    pub read_only: bool,
    /// Of everything in it, whoever uses it.
    pub bound: Bound,
}

/// A volume cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("open the volume {}: {why}", path.display())]
pub struct VolumeError {
    path: PathBuf,
    why: &'static str,
    source: io::Error,
}

/// Where a volume would take something away that the agent put there.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

impl Volume {
    /// Checks a volume against what the operator allows.
    ///
    /// # Errors
    /// [`ConfineError`] where it is malformed, or lies elsewhere.
    pub fn check(asked: &v1::Volume, rules: &Rules) -> Result<Self, ConfineError> {
        let plain = |what, value: &String| {
            let why = "write an absolute path without ..";
            plain_absolute(Path::new(value)).ok_or_else(|| ConfineError::Value {
                what,
                value: value.clone(),
                why,
            })
        };
        let source = plain("volume source", &asked.source)?;
        let target = plain("volume target", &asked.target)?;
        if target == Path::new("/") || RESERVED.iter().any(|r| target.starts_with(r)) {
            let why = "/, /proc, /sys and /dev are the agent's to make";
            return Err(ConfineError::Value { what: "volume target", value: asked.target.clone(), why });
        }
        let allowed = rules.volume_dirs.iter().find(|dir| source.starts_with(dir));
        let allowed = allowed.ok_or_else(|| ConfineError::VolumeNotAllowed(asked.source.clone()))?.clone();
        let below = source.strip_prefix(&allowed).unwrap_or_else(|_| Path::new("")).to_owned();
        let bound = Bound { max_bytes: asked.max_bytes, max_inodes: asked.max_inodes };
        Ok(Self { allowed, below, target, read_only: asked.read_only, bound })
    }

    /// The directory on the host.
    pub fn source(&self) -> PathBuf {
        self.allowed.join(&self.below)
    }

    /// Finds the directory.
    ///
    /// No link is followed below the allowed directory: a task that had the volume before could have made one.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn directory(&self) -> Result<OwnedFd, VolumeError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let allowed = open(&self.allowed, flags, Mode::empty())
            .map_err(self.failed("one of the agent's volume_dirs must be there"))?;
        if self.below.as_os_str().is_empty() {
            return Ok(allowed);
        }
        let stay = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags).resolve(stay);
        openat2(allowed.as_fd(), &self.below, how)
            .map_err(self.failed("it must be a directory that is there, reached without links"))
    }

    fn failed(&self, why: &'static str) -> impl FnOnce(Errno) -> VolumeError {
        let path = self.source();
        move |e| VolumeError { path, why, source: e.into() }
    }

    /// Finds it, and makes a mount of it that no device and no setuid program works on.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn open(&self) -> Result<OpenVolume, VolumeError> {
        let directory = self.directory()?;
        let of_host = fstatvfs(&directory).map_err(self.failed("its file system does not answer"))?;
        let writable = !self.read_only && !of_host.flags().contains(FsFlags::ST_RDONLY);
        let attributes = libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | if writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
        let path = self.source();
        let tree = mounts::clone_tree(directory.as_fd())
            .and_then(|tree| mounts::set_attributes(tree.as_fd(), attributes).map(|()| tree))
            .map_err(|source| VolumeError { path, why: "the kernel makes no mount of it", source })?;
        Ok(OpenVolume { directory, tree, writable })
    }
}

/// A volume, ready to be given to a task.
#[derive(Debug)]
pub struct OpenVolume {
    directory: OwnedFd,
    /// A mount that is attached nowhere.
    pub tree: OwnedFd,
    /// May the task write to it?
    pub writable: bool,
}

impl OpenVolume {
    /// The directory itself, opened with O_PATH.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// A name of exactly this directory, as long as it is open.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.directory.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn asked(source: &str, target: &str) -> v1::Volume {
        v1::Volume { source: source.into(), target: target.into(), ..v1::Volume::default() }
    }

    fn rules(dir: &Path) -> Rules {
        Rules { volume_dirs: vec![dir.to_owned()], ..Rules::default() }
    }

    #[test]
    fn only_what_the_operator_named_can_be_a_volume() {
        let rules = rules(Path::new("/srv/data"));
        let volume = Volume::check(&asked("/srv/data/a/b", "/data"), &rules).unwrap();
        assert_eq!(
            (volume.allowed.as_path(), volume.below.as_path()),
            (Path::new("/srv/data"), Path::new("a/b"))
        );
        Volume::check(&asked("/srv/data", "/data"), &rules).unwrap();
        for source in ["/srv", "/srv/database", "/etc", "/"] {
            let refused = Volume::check(&asked(source, "/data"), &rules).unwrap_err();
            assert!(matches!(refused, ConfineError::VolumeNotAllowed(_)), "{source}: {refused}");
        }
        for (source, target) in [
            ("/srv/data/../x", "/data"),
            ("srv/data", "/data"),
            ("/srv/data", "data"),
            ("/srv/data", "/"),
            ("/srv/data", "/proc/1"),
            ("/srv/data", "/dev"),
        ] {
            let refused = Volume::check(&asked(source, target), &rules).unwrap_err();
            assert!(matches!(refused, ConfineError::Value { .. }), "{source} {target}: {refused}");
        }
    }

    #[test]
    fn a_link_that_a_task_made_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("/etc", dir.path().join("link")).unwrap();
        symlink("real", dir.path().join("inside")).unwrap();
        let open = |below: &str| {
            let source = dir.path().join(below).display().to_string();
            Volume::check(&asked(&source, "/data"), &rules(dir.path())).unwrap().open()
        };
        for link in ["link", "inside", "link/ssl", "missing"] {
            let refused = open(link).unwrap_err().to_string();
            assert!(refused.contains(link), "{refused}");
        }
    }
}
