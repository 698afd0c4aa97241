//! The files that a task sees, as the mounts that make them. Pure.
//!
//! Without an image the task keeps the host's root, in a mount namespace of its own:
//!
//! ```text
//! /                      the host's, read-only
//! /proc /dev             its own, with the usual harmless files
//! /tmp                   <sandbox>/private/tmp, so that it counts towards the disk grant
//! <sandbox>/work         the sandbox, under its own path
//! ```
//!
//! With an image the root is an overlay of the image's layers, read-only, with a layer of empty directories on top
//! in which the rest is mounted: `/proc`, `/dev`, `/sys`, `/tmp`, the sandbox at [`SANDBOX_IN_IMAGE`], and volumes.
//! Because that layer is on top, no link in an image leads a mount elsewhere.
//!
//! Everything is mounted first and then made read-only at once; what the task may write to is opened again. That
//! costs two system calls for a whole tree, where one remount each would cost one for every mount.

use std::{
    ffi::CString,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use nix::sys::stat::{SFlag, makedev};

use crate::kernel::spawn::{ChildStep, Layers, Mount};

/// Where a task with an image finds its sandbox.
pub const SANDBOX_IN_IMAGE: &str = "/mnt/sandbox";

/// Directories of this agent that mounts are made of, the same for every task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostParts {
    /// The top layer of every image: empty directories and files to mount on.
    pub skeleton: PathBuf,
    /// Where a task's root is mounted before it becomes the root.
    pub root: PathBuf,
    /// An empty directory.
    pub empty: PathBuf,
    /// Files of the host that every image sees: name resolution.
    pub host_files: Vec<PathBuf>,
    /// Below /proc, what tells of the host or changes it: hidden.
    pub hidden: Vec<Hidden>,
    /// Below /proc, what may be read only.
    pub read_only: Vec<PathBuf>,
    /// The host's cgroup tree, shown read-only to images.
    pub cgroup: PathBuf,
}

/// A path that a task shall not see into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Which.
    pub path: PathBuf,
    /// A directory, or else a file?
    pub directory: bool,
}

/// A mount of the parent's, and where the task finds it.
#[derive(Clone, Debug)]
pub struct Tree<'a> {
    /// From open_tree(2).
    pub fd: BorrowedFd<'a>,
    /// As the task sees it.
    pub target: PathBuf,
    /// May the task write to it?
    pub writable: bool,
}

/// What is to be seen.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Shared directories.
    pub parts: &'a HostParts,
    /// The directories that the root is laid of, the highest first; none is the host's root.
    pub layers: Vec<&'a Path>,
    /// A /tmp, /dev and /proc of its own, and all else read-only? Always with layers.
    pub private: bool,
    /// Then /proc must show its processes.
    pub pid_namespace: bool,
    /// The sandbox and the volumes.
    pub trees: Vec<Tree<'a>>,
    /// Becomes /tmp.
    pub tmp: &'a Path,
    /// Device files of the host, below /dev, besides the usual ones. They are shown and not made: the task, whose cgroup
    /// the child is in already, may use what it was granted and not make files of it.
    pub devices: Vec<Tree<'a>>,
}

/// The task cannot be shown these files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// A path with a NUL byte.
    #[error("{0:?} has a NUL byte in it")]
    Nul(PathBuf),
}

const NOSUID_NODEV: u64 = libc::MS_NOSUID | libc::MS_NODEV;
const HARMLESS: u64 = NOSUID_NODEV | libc::MS_NOEXEC;
/// Nodes of /dev that are only a handful of inodes; what is large in it is /dev/shm, which is memory of the task.
const DEV_OPTIONS: &str = "mode=755";
/// Group 5 is `tty` on every distribution.
const PTS_OPTIONS: &str = "newinstance,ptmxmode=0666,mode=0620,gid=5";

const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

impl View<'_> {
    /// The steps, for a child with a mount namespace of its own that still has every privilege.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn steps(&self) -> Result<Vec<ChildStep<'_>>, ViewError> {
        let mut steps = Steps { prefix: PathBuf::from("/"), list: Vec::with_capacity(64) };
        steps.private_propagation();
        if !self.layers.is_empty() {
            steps.overlay(self)?;
            steps.prefix.clone_from(&self.parts.root);
        }
        if self.private {
            steps.dev(&self.devices)?;
        }
        if self.private || self.pid_namespace {
            steps.mount("proc", Path::new("/proc"), HARMLESS, None)?;
        }
        if !self.layers.is_empty() {
            steps.mount("sysfs", Path::new("/sys"), HARMLESS | libc::MS_RDONLY, None)?;
            steps.bind(&self.parts.cgroup, Path::new("/sys/fs/cgroup"))?;
            for file in &self.parts.host_files {
                steps.bind(file, file)?;
            }
        }
        if self.private {
            steps.masks(self.parts)?;
            steps.bind(self.tmp, Path::new("/tmp"))?;
        }
        for tree in &self.trees {
            steps.tree(tree)?;
        }
        if !self.layers.is_empty() {
            steps.pivot()?;
        }
        if self.private {
            steps.read_only(self)?;
        }
        Ok(steps.list)
    }
}

struct Steps<'a> {
    /// Where the task's root is while it is made.
    prefix: PathBuf,
    list: Vec<ChildStep<'a>>,
}

impl<'a> Steps<'a> {
    /// The path of something in the task's root, from the root of now.
    fn at(&self, path: &Path) -> Result<CString, ViewError> {
        cstring(&self.prefix.join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// What is mounted from here on is seen by nobody else, and nothing comes in from outside.
    fn private_propagation(&mut self) {
        let (source, target) = (c"none".to_owned(), c"/".to_owned());
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        self.list.push(ChildStep::Mount(Mount { source, target, fstype: None, flags, data: None }));
    }

    fn mount(&mut self, fstype: &str, at: &Path, flags: u64, data: Option<&str>) -> Result<(), ViewError> {
        let word = cstring(Path::new(fstype))?;
        let data = data.map(|data| cstring(Path::new(data))).transpose()?;
        let target = self.at(at)?;
        let mount = Mount { source: word.clone(), target, fstype: Some(word), flags, data };
        self.list.push(ChildStep::Mount(mount));
        Ok(())
    }

    /// A host path at a place in the task's root.
    fn bind(&mut self, source: &Path, at: &Path) -> Result<(), ViewError> {
        let step = ChildStep::bind(cstring(source)?, self.at(at)?);
        self.list.push(step);
        Ok(())
    }

    fn overlay(&mut self, view: &View<'_>) -> Result<(), ViewError> {
        let mut layers = Layers::default();
        for path in &view.layers {
            layers.push(&cstring(path)?);
        }
        self.list.push(ChildStep::Overlay { layers, target: cstring(&view.parts.root)? });
        Ok(())
    }

    /// A memory file system with the usual files; /dev/shm is part of it.
    fn dev(&mut self, devices: &[Tree<'a>]) -> Result<(), ViewError> {
        let dev = Path::new("/dev");
        // Permissions as they are given below; the task's own mask comes later.
        self.list.push(ChildStep::Umask(0));
        self.mount("tmpfs", dev, libc::MS_NOSUID, Some(DEV_OPTIONS))?;
        for (name, major, minor) in NODES {
            self.node(&dev.join(name), SFlag::S_IFCHR, makedev(major, minor))?;
        }
        for (name, to) in LINKS {
            let (to, path) = (cstring(Path::new(to))?, self.at(&dev.join(name))?);
            self.list.push(ChildStep::Symlink { to, path });
        }
        for (name, mode) in [("pts", 0o755), ("shm", 0o1777)] {
            let path = self.at(&dev.join(name))?;
            self.list.push(ChildStep::MakeDir { path, mode });
        }
        self.mount("devpts", &dev.join("pts"), libc::MS_NOSUID | libc::MS_NOEXEC, Some(PTS_OPTIONS))?;
        for device in devices {
            self.directories_between(dev, &device.target)?;
            self.node(&device.target, SFlag::S_IFREG, 0)?;
            let target = self.at(&device.target)?;
            self.list.push(ChildStep::MoveMount { tree: device.fd, target });
        }
        Ok(())
    }

    fn node(&mut self, path: &Path, kind: SFlag, device: u64) -> Result<(), ViewError> {
        let path = self.at(path)?;
        self.list.push(ChildStep::MakeNode { path, mode: kind.bits() | 0o666, device });
        Ok(())
    }

    fn masks(&mut self, parts: &HostParts) -> Result<(), ViewError> {
        for path in &parts.read_only {
            // A mount of its own, which becomes read-only with the rest, and stays so.
            let path = self.at(path)?;
            self.list.push(ChildStep::bind(path.clone(), path));
        }
        for hidden in &parts.hidden {
            let path = self.at(&hidden.path)?;
            let with =
                if hidden.directory { cstring(&parts.empty)? } else { self.at(Path::new("/dev/null"))? };
            self.list.push(ChildStep::bind(with, path));
        }
        Ok(())
    }

    fn tree(&mut self, tree: &Tree<'a>) -> Result<(), ViewError> {
        // The private /tmp is empty; a sandbox or a volume may lie in it.
        if tree.target.starts_with("/tmp") {
            self.directories_between(Path::new("/tmp"), &tree.target)?;
            let path = self.at(&tree.target)?;
            self.list.push(ChildStep::MakeDir { path, mode: 0o755 });
        }
        let target = self.at(&tree.target)?;
        self.list.push(ChildStep::MoveMount { tree: tree.fd, target });
        Ok(())
    }

    /// The directories above `path` that are below `root`.
    fn directories_between(&mut self, root: &Path, path: &Path) -> Result<(), ViewError> {
        let mut between: Vec<&Path> = path.ancestors().skip(1).take_while(|p| *p != root).collect();
        between.reverse();
        for directory in between {
            let path = self.at(directory)?;
            self.list.push(ChildStep::MakeDir { path, mode: 0o755 });
        }
        Ok(())
    }

    fn pivot(&mut self) -> Result<(), ViewError> {
        self.list.push(ChildStep::PivotRoot(cstring(&self.prefix)?));
        self.prefix = PathBuf::from("/");
        Ok(())
    }

    /// All of it, and then not what is the task's own.
    fn read_only(&mut self, view: &View<'_>) -> Result<(), ViewError> {
        let everything = c"/".to_owned();
        self.attributes(everything, true, libc::MOUNT_ATTR_RDONLY, 0);
        let trees = view.trees.iter().filter(|tree| tree.writable).map(|tree| tree.target.as_path());
        for path in ["/dev", "/dev/pts", "/proc"] {
            self.attributes(cstring(Path::new(path))?, false, 0, libc::MOUNT_ATTR_RDONLY);
        }
        for path in [Path::new("/tmp")].into_iter().chain(trees) {
            let safe = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
            self.attributes(cstring(path)?, false, safe, libc::MOUNT_ATTR_RDONLY);
        }
        Ok(())
    }

    fn attributes(&mut self, path: CString, recursive: bool, set: u64, clear: u64) {
        self.list.push(ChildStep::MountAttributes { path, recursive, set, clear });
    }
}

fn cstring(path: &Path) -> Result<CString, ViewError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| ViewError::Nul(path.to_owned()))
}

#[cfg(test)]
mod tests;
