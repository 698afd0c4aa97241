//! Opens what frameworks name, below the directories that the operator allows and nowhere else.
//!
//! The path has no `..` and begins with the root, word by word. From there the kernel resolves it with `RESOLVE_BENEATH`
//! (Linux 5.6): a relative link may lead to another place below the root, as `current -> v7` does; one that is absolute
//! or leads out ends with an error, also while somebody renames directories. Below the data set no link is followed.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, open, openat, openat2},
    io::Errno,
};

use super::LookError;

/// A rename in the way makes the kernel give up; it is asked again.
const TRIES: u32 = 4;

/// What the operator allows.
#[derive(Debug)]
pub(super) struct Roots {
    paths: Vec<PathBuf>,
}

impl Roots {
    /// Absolute paths without `..`.
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths }
    }

    /// A handle on what is at this path, good for `fstat` and for opening what is below it; nothing is opened for
    /// reading.
    ///
    /// # Errors
    /// Where the path is outside of every root, leads out, or there is nothing.
    pub(super) fn open(&self, path: &Path) -> Result<OwnedFd, LookError> {
        if self.paths.is_empty() {
            return Err(LookError::NoRoots);
        }
        let roots = self.paths.iter().filter(|root| path.starts_with(root));
        let root = roots.max_by_key(|root| root.components().count()).ok_or(LookError::Outside)?;
        // The root is the operator's word: links in it are followed.
        let handle = OFlags::PATH | OFlags::CLOEXEC;
        let dir = openat(CWD, root, handle | OFlags::DIRECTORY, Mode::empty()).map_err(refused)?;
        let below = path.strip_prefix(root).unwrap_or_else(|_| Path::new(""));
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        beneath(dir.as_fd(), below, handle, ResolveFlags::empty()).map_err(refused)
    }
}

fn refused(errno: Errno) -> LookError {
    match errno {
        Errno::XDEV | Errno::LOOP => LookError::Link,
        Errno::NOENT | Errno::NOTDIR => LookError::Missing,
        other => LookError::Io("open it", other.into()),
    }
}

/// Opens a path below a directory without following any link.
///
/// # Errors
/// The kernel's.
pub(super) fn open_below(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    beneath(dir, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)
}

fn beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        result = openat2(dir, path, flags, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN)) {
            break;
        }
    }
    result
}

/// Opens for reading what a handle is on, which is known to be a regular file: whatever takes its name meanwhile, it is
/// not opened. Never waits, not even for a lease to be given up.
///
/// # Errors
/// The kernel's.
pub(super) fn reopen(handle: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(open(link, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn nothing_outside_of_the_roots_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("data/v7")).unwrap();
        fs::create_dir(at("data2")).unwrap();
        fs::write(at("secret"), "x").unwrap();
        symlink("v7", at("data/current")).unwrap();
        symlink("../secret", at("data/up")).unwrap();
        symlink(at("data/v7"), at("data/absolute")).unwrap();
        symlink("/proc/self/root/etc", at("data/magic")).unwrap();
        let roots = Roots::new(vec![at("data")]);
        let open = |name: &str| roots.open(&at(name)).map(drop);
        for inside in ["data", "data/v7", "data/current"] {
            open(inside).unwrap();
        }
        for (name, expected) in [
            ("data2", "locality.roots"),
            ("secret", "locality.roots"),
            ("data/up", "symbolic link"),
            ("data/absolute", "symbolic link"),
            ("data/magic", "symbolic link"),
            ("data/none", "no such file"),
            ("data/v7/x/y", "no such file"),
        ] {
            let error = open(name).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        let none = Roots::new(Vec::new()).open(&at("data")).unwrap_err();
        assert!(matches!(none, LookError::NoRoots));
    }

    #[test]
    fn below_the_data_set_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let base = Roots::new(vec![dir.path().to_owned()]).open(dir.path()).unwrap();
        let open = |name: &str| open_below(base.as_fd(), Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY);
        open("a").unwrap();
        open("").unwrap();
        assert!(open("b").is_err() && open("b/.").is_err());
    }
}
