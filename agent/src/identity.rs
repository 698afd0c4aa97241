//! Which agent this is, and that it is the only one: the lock and the id in the work directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// The work directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file operation failed.
    #[error("{op} {}: choose a directory that root can write with --work-dir", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another agent is at work.
    #[error("another agent{holder} uses {}: stop it, or give this one its own --work-dir and --cgroup-root", path.display())]
    Taken {
        /// What both want.
        path: PathBuf,
        /// ` (process N)` where it is known.
        holder: String,
    },
}

/// Held for the life of the agent; the kernel lets go of it even after a crash.
#[derive(Debug)]
pub struct Held {
    _locks: Vec<Flock<File>>,
}

/// Makes the work directory and locks it.
///
/// # Errors
/// [`IdentityError::Taken`] where another agent holds it.
pub fn lock_work_dir(work_dir: &Path) -> Result<Held, IdentityError> {
    let fail = |op, path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::Io { op, path, source }
    };
    fs::create_dir_all(work_dir).map_err(fail("create", work_dir))?;
    let path = work_dir.join("lock");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(&path);
    let mut lock = lock(file.map_err(fail("open", &path))?, work_dir)?;
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| write!(lock, "{}", std::process::id()))
        .map_err(fail("write", &path))?;
    Ok(Held { _locks: vec![lock] })
}

impl Held {
    /// Locks another thing that only one agent can have: its cgroup.
    ///
    /// # Errors
    /// [`IdentityError::Taken`] where another agent holds it.
    pub fn also(&mut self, dir: &Path) -> Result<(), IdentityError> {
        let open = File::open(dir);
        let file = open.map_err(|source| IdentityError::Io { op: "open", path: dir.to_owned(), source })?;
        self._locks.push(lock(file, dir)?);
        Ok(())
    }
}

fn lock(file: File, what: &Path) -> Result<Flock<File>, IdentityError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(mut file, errno)| {
        if errno != nix::errno::Errno::EWOULDBLOCK {
            return IdentityError::Io { op: "lock", path: what.to_owned(), source: errno.into() };
        }
        let mut pid = String::new();
        let known = file.read_to_string(&mut pid).is_ok() && pid.trim().parse::<u32>().is_ok();
        let holder = if known { format!(" (process {})", pid.trim()) } else { String::new() };
        IdentityError::Taken { path: what.to_owned(), holder }
    })
}

/// The agent's id: made at its first start, and the same as long as the work directory is.
///
/// # Errors
/// When the file cannot be read or written.
pub fn agent_id(work_dir: &Path) -> Result<String, IdentityError> {
    let path = work_dir.join("agent-id");
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(IdentityError::Io { op: "read", path, source: e });
        }
        _ => {}
    }
    let id = uuid::Uuid::new_v4().to_string();
    let written =
        File::create(&path).and_then(|mut f| f.write_all(id.as_bytes()).and_then(|()| f.sync_all()));
    written.map_err(|source| IdentityError::Io { op: "write", path, source })?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_a_work_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_work_dir(dir.path()).unwrap();
        let error = lock_work_dir(dir.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
        drop(first);
        lock_work_dir(dir.path()).unwrap();
    }

    #[test]
    fn a_work_directory_that_cannot_be_made_is_named() {
        let error = lock_work_dir(Path::new("/proc/no/such")).unwrap_err();
        assert!(error.to_string().starts_with("create /proc/no/such"), "{error}");
    }

    #[test]
    fn the_id_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(agent_id(dir.path()).unwrap(), agent_id(dir.path()).unwrap());
    }
}
