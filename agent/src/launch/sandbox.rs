//! A task's directory: its output, which only the agent can replace, and a working directory of its own.
//!
//! ```text
//! <work_dir>/sandboxes/<framework>/<task>/stdout    written by the task, opened by the agent
//! <work_dir>/sandboxes/<framework>/<task>/stderr
//! <work_dir>/sandboxes/<framework>/<task>/work/     owned by the task's user; where it starts
//! <work_dir>/sandboxes/<framework>/<task>/private/  what only its own mounts show: its /tmp
//! ```
//!
//! The output lies outside `work/`, so a hostile task cannot put a link in its place for the agent to follow.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::removal;

/// A step of making or clearing a sandbox failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}", path.display())]
pub struct SandboxError {
    op: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl SandboxError {
    fn at(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { op, path, source }
    }
}

/// One task's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    dir: PathBuf,
}

/// Ids that were used this often have no more room: something is launching in a loop.
const MAX_RUNS: u32 = 10_000;

impl Sandbox {
    /// Makes the directory of a new run. Directories of earlier runs of the same id stay beside it.
    ///
    /// # Errors
    /// When a directory cannot be made or given to the user.
    pub fn create(
        work_dir: &Path,
        framework_id: &str,
        task_id: &str,
        owner: (u32, u32),
    ) -> Result<Self, SandboxError> {
        let framework = root(work_dir).join(framework_id);
        let dir = match new_run(&framework, task_id) {
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&framework).map_err(SandboxError::at("create", &framework))?;
                new_run(&framework, task_id)?
            }
            other => other?,
        };
        let sandbox = Self { dir };
        match sandbox.fill(owner) {
            Ok(()) => Ok(sandbox),
            Err(error) => {
                // The first error says more than that it could not be removed either.
                drop(sandbox.remove());
                Err(error)
            }
        }
    }

    fn fill(&self, owner: (u32, u32)) -> Result<(), SandboxError> {
        let (work, private, tmp) = (self.work(), self.dir.join("private"), self.tmp());
        let make = |path: &Path, mode| {
            fs::DirBuilder::new().mode(mode).create(path).map_err(SandboxError::at("create", path))
        };
        make(&work, 0o700)?;
        std::os::unix::fs::chown(&work, Some(owner.0), Some(owner.1))
            .map_err(SandboxError::at("chown", &work))?;
        // Nobody else comes through here to the /tmp, which is open to everybody, as programs expect.
        make(&private, 0o700)?;
        make(&tmp, 0o777)?;
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).map_err(SandboxError::at("chmod", &tmp))
    }

    /// Makes an empty directory for each of these paths of an image, for mounts; returns where.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn layer<'a>(&self, paths: impl Iterator<Item = &'a Path>) -> Result<PathBuf, SandboxError> {
        let layer = self.dir.join("private").join("layer");
        for path in paths {
            let directory = layer.join(path.strip_prefix("/").unwrap_or(path));
            let mut builder = fs::DirBuilder::new();
            builder
                .mode(0o755)
                .recursive(true)
                .create(&directory)
                .map_err(SandboxError::at("create", &directory))?;
        }
        Ok(layer)
    }

    /// The sandbox in this directory, made before.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the task starts.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The task's /tmp, where it has one of its own.
    pub fn tmp(&self) -> PathBuf {
        self.dir.join("private").join("tmp")
    }

    /// The task's standard output.
    pub fn stdout(&self) -> PathBuf {
        self.dir.join("stdout")
    }

    /// The task's standard error.
    pub fn stderr(&self) -> PathBuf {
        self.dir.join("stderr")
    }

    /// Opens an output file for the task: what several processes append is never overwritten. It is the task
    /// user's, who may open it again through /dev/stdout, and nobody else's.
    ///
    /// # Errors
    /// When it cannot be made or given to the user.
    pub fn open_output(path: &Path, owner: (u32, u32)) -> Result<File, SandboxError> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path).map_err(SandboxError::at("open", path))?;
        std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1))
            .map_err(SandboxError::at("chown", path))?;
        Ok(file)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// When something cannot be removed; a directory that is gone is no error.
    pub fn remove(&self) -> Result<(), SandboxError> {
        removal::remove_tree(&self.dir).map_err(SandboxError::at("remove", &self.dir))?;
        // The framework's directory goes with its last sandbox.
        if let Some(framework) = self.dir.parent() {
            drop(fs::remove_dir(framework));
        }
        Ok(())
    }
}

/// Where all sandboxes are.
pub fn root(work_dir: &Path) -> PathBuf {
    work_dir.join("sandboxes")
}

fn new_run(framework: &Path, task_id: &str) -> Result<PathBuf, SandboxError> {
    for run in 0..MAX_RUNS {
        // '@' is in no id, so a run is never taken for another task.
        let name = if run == 0 { task_id.to_owned() } else { format!("{task_id}@{run}") };
        let dir = framework.join(name);
        match fs::DirBuilder::new().mode(0o755).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(SandboxError::at("create", &dir)(e)),
        }
    }
    let full = io::Error::other(format!("{MAX_RUNS} earlier runs are kept; remove some"));
    Err(SandboxError::at("create", &framework.join(task_id))(full))
}

/// How long sandboxes of ended tasks are kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Since the last change of the directory.
    pub age: Duration,
    /// The newest ones.
    pub count: usize,
}

/// Which of the ended sandboxes are to go: too old, or too many. Pure.
pub fn expired(mut ended: Vec<(PathBuf, SystemTime)>, keep: Keep, now: SystemTime) -> Vec<PathBuf> {
    ended.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
    let old = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age > keep.age);
    ended
        .into_iter()
        .enumerate()
        .filter(|(i, (_, at))| *i >= keep.count || old(at))
        .map(|(_, (p, _))| p)
        .collect()
}

/// Every sandbox on the disk with the time of its last change. What cannot be read is left out.
pub fn list(work_dir: &Path) -> Vec<(PathBuf, SystemTime)> {
    let dirs = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    dirs(&root(work_dir))
        .flat_map(|framework| dirs(&framework).collect::<Vec<_>>())
        .filter_map(|dir| {
            let output = Sandbox::at(&dir).stdout();
            let at = fs::metadata(output).or_else(|_| fs::metadata(&dir)).ok()?.modified().ok()?;
            Some((dir, at))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> (u32, u32) {
        (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())
    }

    #[test]
    fn a_second_run_does_not_touch_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Sandbox::create(dir.path(), "f", "t", me()).unwrap();
        fs::write(first.stdout(), "one").unwrap();
        let second = Sandbox::create(dir.path(), "f", "t", me()).unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read(first.stdout()).unwrap(), b"one");
        assert_eq!(list(dir.path()).len(), 2);
    }

    #[test]
    fn output_is_never_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::create(dir.path(), "f", "t", me()).unwrap();
        std::os::unix::fs::symlink(dir.path().join("victim"), sandbox.stdout()).unwrap();
        assert!(Sandbox::open_output(&sandbox.stdout(), me()).is_err());
        assert!(!dir.path().join("victim").exists());
    }

    #[test]
    fn old_and_surplus_sandboxes_go() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let ended =
            vec![("a".into(), at(900)), ("b".into(), at(990)), ("c".into(), at(100)), ("d".into(), at(950))];
        let keep = Keep { age: Duration::from_secs(500), count: 2 };
        assert_eq!(expired(ended, keep, now), [PathBuf::from("a"), PathBuf::from("c")]);
    }
}
