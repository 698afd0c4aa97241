//! One directory of the cgroup v2 tree, and the files in it that cgroups-rs has no call for.
//!
//! Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::Pid,
};
use tokio::io::Interest;

use super::ready::Ready;

/// A file or directory of a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// An operation on a file or directory below the mount failed.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried: `create`, `write "max" to`, `read`, ...
        op: String,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No cgroup2 file system is mounted.
    #[error("no cgroup2 file system is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup`")]
    NotMounted,
    /// The mount table could not be read.
    #[error("read the mount table")]
    MountTable(#[source] procfs::ProcError),
    /// A file does not have the form that the kernel documents.
    #[error("{}: expected {expected}, found {found:?}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
        /// What was there.
        found: String,
    },
}

/// Where the cgroup2 file system is mounted: `/sys/fs/cgroup`, or beside a v1 tree.
///
/// # Errors
/// [`CgroupError::NotMounted`] where there is none.
pub fn cgroup2_mount() -> Result<PathBuf, CgroupError> {
    procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(CgroupError::MountTable)?
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2")
        .map(|mount| mount.mount_point)
        .ok_or(CgroupError::NotMounted)
}

/// One cgroup, by its directory. Dropping it changes nothing in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Names a cgroup that may or may not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes the directory; one that is there already is taken as it is.
    ///
    /// # Errors
    /// Whatever mkdir(2) answers: `ENOENT` for a missing parent, `EAGAIN` at `cgroup.max.descendants`.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, CgroupError> {
        let cgroup = Self::at(path);
        match fs::create_dir(&cgroup.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(cgroup.failed("create", None, e)),
            _ => Ok(cgroup),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup below this one.
    pub fn child(&self, name: &str) -> Self {
        Self::at(self.path.join(name))
    }

    /// Is the directory there?
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Has this cgroup the file, and so the controller behind it?
    pub fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    /// The cgroup's id, as BPF helpers return it: the inode of the directory (64-bit kernels).
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn id(&self) -> Result<u64, CgroupError> {
        fs::metadata(&self.path).map(|m| m.ino()).map_err(|e| self.failed("stat", None, e))
    }

    /// The directory opened, for clone3 with `CLONE_INTO_CGROUP` and for attaching BPF programs.
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn open_dir(&self) -> Result<OwnedFd, CgroupError> {
        fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&self.path)
            .map(OwnedFd::from)
            .map_err(|e| self.failed("open", None, e))
    }

    /// Writes a value to a file, in one write(2) as the kernel wants it.
    ///
    /// # Errors
    /// The kernel's refusal, with the file and the value.
    pub fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        // Not fs::write: a missing file must stay ENOENT, never be created.
        let opened = fs::OpenOptions::new().write(true).open(self.path.join(file));
        opened
            .and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()))
            .map_err(|e| self.failed(&format!("write {value:?} to"), Some(file), e))
    }

    /// The text of a file.
    ///
    /// # Errors
    /// When it cannot be read; `ENODEV` after the cgroup was removed.
    pub fn read(&self, file: &str) -> Result<String, CgroupError> {
        fs::read_to_string(self.path.join(file)).map_err(|e| self.failed("read", Some(file), e))
    }

    /// The number in a single-value file; `None` for `max`.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn read_number(&self, file: &str) -> Result<Option<u64>, CgroupError> {
        let text = self.read(file)?;
        match text.trim() {
            "max" => Ok(None),
            number => number.parse().map(Some).map_err(|_| CgroupError::Malformed {
                path: self.path.join(file),
                expected: "a number or max",
                found: text.clone(),
            }),
        }
    }

    /// The value of a key in a flat-keyed file such as `cpu.stat`; `None` where the kernel has no such key.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_key(&self, file: &str, key: &str) -> Result<Option<u64>, CgroupError> {
        Ok(flat_key(&self.read(file)?, key))
    }

    /// The controllers that this cgroup can hand to its children.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn controllers(&self) -> Result<Vec<String>, CgroupError> {
        Ok(self.read("cgroup.controllers")?.split_whitespace().map(str::to_owned).collect())
    }

    /// Hands the controllers to this cgroup's children. Those that are on already cost nothing.
    ///
    /// # Errors
    /// `EBUSY` when the cgroup itself holds processes, `ENOENT` for a controller it does not have.
    pub fn enable(&self, controllers: &[&str]) -> Result<(), CgroupError> {
        let on = self.read("cgroup.subtree_control")?;
        let missing: Vec<String> = controllers
            .iter()
            .filter(|c| !on.split_whitespace().any(|o| o == **c))
            .map(|c| format!("+{c}"))
            .collect();
        if missing.is_empty() { Ok(()) } else { self.write("cgroup.subtree_control", &missing.join(" ")) }
    }

    /// Moves a process here.
    ///
    /// # Errors
    /// `ESRCH` when it has ended, `EBUSY` where children have controllers.
    pub fn add_process(&self, pid: Pid) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Ends every process in this cgroup and below it, whatever it forks meanwhile.
    ///
    /// A process ends only when the disk has answered its last request, which may wait long for its turn under
    /// `io.max`. So those caps are lifted: no request is added to them any more.
    ///
    /// # Errors
    /// When the cgroup is gone, or `cgroup.kill` (Linux 5.14) is missing.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")?;
        self.lift_io_caps();
        Ok(())
    }

    fn lift_io_caps(&self) {
        // Neither file nor directory need be there: this only speeds up an end that comes anyway.
        let lines = self.read("io.max").unwrap_or_default();
        for disk in lines.lines().filter_map(|line| line.split(' ').next()) {
            let lift = format!("{disk} rbps=max wbps=max riops=max wiops=max");
            if let Err(error) = self.write("io.max", &lift) {
                tracing::debug!(error = crate::error_chain(&error), "lift the caps of a task that is killed");
            }
        }
        for child in self.children().unwrap_or_default() {
            child.lift_io_caps();
        }
    }

    /// Is any process in this cgroup or below it?
    ///
    /// # Errors
    /// When `cgroup.events` cannot be read.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        Ok(self.read_key("cgroup.events", "populated")? == Some(1))
    }

    /// Waits until no process is left here or below. The kernel wakes it; nothing is polled.
    ///
    /// # Errors
    /// When `cgroup.events` cannot be read; a cgroup that is gone counts as empty.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn wait_empty(&self) -> Result<(), CgroupError> {
        let file = match fs::File::open(self.path.join("cgroup.events")) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.failed("open", Some("cgroup.events"), e)),
        };
        let failed = |e| self.failed("wait on", Some("cgroup.events"), e);
        let events = Ready::watch(file.into(), Interest::PRIORITY).map_err(failed)?;
        // The kernel signals a change since the last read, so reading comes first.
        while self.populated()? {
            events.wait().await.map_err(failed)?;
        }
        Ok(())
    }

    /// Stops every process in this cgroup and below it, and waits until none runs. Blocks. False, and all run again,
    /// where one did not stop within this time: it sleeps in the kernel.
    ///
    /// # Errors
    /// When the cgroup is gone, or `cgroup.freeze` (Linux 5.2) is missing.
    pub fn freeze(&self, within: Duration) -> Result<bool, CgroupError> {
        let path = self.path.join("cgroup.events");
        let events = fs::File::open(&path).map_err(|e| self.failed("open", Some("cgroup.events"), e))?;
        let deadline = Instant::now() + within;
        self.write("cgroup.freeze", "1")?;
        // The kernel signals a change since the last read, so reading comes first.
        while self.read_key("cgroup.events", "frozen")? != Some(1) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.thaw()?;
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let wait = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
            wait.or_else(|e| if e == Errno::EINTR { Ok(0) } else { Err(e) })
                .map_err(|e| self.failed("wait on", Some("cgroup.events"), e.into()))?;
        }
        Ok(true)
    }

    /// Lets what was frozen run again. Harmless where nothing is.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")
    }

    /// Removes this cgroup and every one that was made below it. No process may be left in any.
    ///
    /// # Errors
    /// `EBUSY` when one still holds a process. A cgroup that is gone already is no error.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for child in self.children()? {
            child.remove()?;
        }
        match fs::remove_dir(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", None, e)),
            _ => Ok(()),
        }
    }

    /// The cgroups directly below.
    ///
    /// # Errors
    /// When the directory cannot be read; one that is gone has no children.
    pub fn children(&self) -> Result<Vec<Cgroup>, CgroupError> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(self.failed("list", None, e)),
        };
        let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        Ok(dirs.map(|e| Self::at(e.path())).collect())
    }

    fn failed(&self, op: &str, file: Option<&str>, source: io::Error) -> CgroupError {
        let path = file.map_or_else(|| self.path.clone(), |f| self.path.join(f));
        CgroupError::Io { op: op.to_owned(), path, source }
    }
}

/// The value of a key in `key value` lines.
pub fn flat_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_matched_whole() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(flat_key(text, "oom_kill"), Some(2));
        assert_eq!(flat_key(text, "oom"), Some(3));
        assert_eq!(flat_key(text, "kill"), None);
        assert_eq!(flat_key("max x\n", "max"), None);
    }

    #[test]
    fn a_missing_file_is_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cgroup::at(dir.path()).write("cpu.max", "max").unwrap_err();
        assert!(
            matches!(error, CgroupError::Io { ref source, .. } if source.kind() == io::ErrorKind::NotFound)
        );
        assert!(!dir.path().join("cpu.max").exists());
    }

    #[test]
    fn max_is_no_number() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::at(dir.path());
        fs::write(dir.path().join("a"), "max\n").unwrap();
        fs::write(dir.path().join("b"), "12\n").unwrap();
        fs::write(dir.path().join("c"), "twelve\n").unwrap();
        assert_eq!(cgroup.read_number("a").unwrap(), None);
        assert_eq!(cgroup.read_number("b").unwrap(), Some(12));
        assert!(matches!(cgroup.read_number("c"), Err(CgroupError::Malformed { .. })));
    }
}
