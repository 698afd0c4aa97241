//! A directory that nothing written through it can leave.
//!
//! The agent is root and writes into directories that a hostile process may change at the same moment. So a name
//! is never checked first and used later: every path is resolved by the kernel, beneath an open directory, with
//! openat2(2) and `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS` (Linux 5.6). What cannot be
//! resolved so (a link in the way, `..`, an absolute path) is an error and not another file.

use std::{
    ffi::OsStr,
    fmt, fs,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

/// Longest path, as the kernel has it (PATH_MAX, without its NUL).
const MAX_PATH_BYTES: usize = 4095;
/// Deepest path. Directories that are deeper are hard to remove again.
const MAX_DEPTH: usize = 128;

/// A path that stays inside whatever directory it is used in: relative, without `..`, not empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inside(PathBuf);

/// A path that would leave its directory, or that no file can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It names no file.
    #[error("names nothing")]
    Empty,
    /// It starts at the root.
    #[error("is absolute: it would leave the directory")]
    Absolute,
    /// It goes up.
    #[error("has `..` in it: it would leave the directory")]
    Parent,
    /// It has a NUL byte.
    #[error("has a NUL byte in it")]
    Nul,
    /// The kernel takes no such path.
    #[error("is longer than {MAX_PATH_BYTES} bytes or deeper than {MAX_DEPTH} directories")]
    Long,
}

impl Inside {
    /// Checks a path. `.` and doubled slashes are dropped; bytes that are no UTF-8 are fine.
    ///
    /// # Errors
    /// [`BadPath`].
    pub fn new(path: impl AsRef<Path>) -> Result<Self, BadPath> {
        let path = path.as_ref();
        if path.as_os_str().as_bytes().contains(&0) {
            return Err(BadPath::Nul);
        }
        let mut inside = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => inside.push(name),
                Component::CurDir => {}
                Component::ParentDir => return Err(BadPath::Parent),
                Component::RootDir | Component::Prefix(_) => return Err(BadPath::Absolute),
            }
        }
        if inside.as_os_str().is_empty() {
            return Err(BadPath::Empty);
        }
        if inside.as_os_str().len() > MAX_PATH_BYTES || inside.components().count() > MAX_DEPTH {
            return Err(BadPath::Long);
        }
        Ok(Self(inside))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Its last part.
    pub fn name(&self) -> &OsStr {
        self.0.file_name().unwrap_or(self.0.as_os_str())
    }

    /// The directory that it is in; none where that is the directory itself.
    pub fn parent(&self) -> Option<Self> {
        self.0.parent().filter(|p| !p.as_os_str().is_empty()).map(|p| Self(p.to_owned()))
    }

    /// The same path below another. It may be longer than a checked one; the kernel then refuses it.
    pub(crate) fn below(&self, dir: &Self) -> Self {
        Self(dir.0.join(&self.0))
    }

    /// Every directory above it, outermost first.
    fn parents(&self) -> impl Iterator<Item = Self> {
        let mut parents: Vec<Self> = std::iter::successors(self.parent(), Self::parent).collect();
        parents.reverse();
        parents.into_iter()
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A step inside the directory failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}{}", path.display(), advice(source))]
pub struct BeneathError {
    op: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn advice(source: &io::Error) -> &'static str {
    match errno(source) {
        Some(rustix::io::Errno::LOOP) => " (a symbolic link is in the way, and none is followed)",
        Some(rustix::io::Errno::XDEV) => " (it would leave the directory)",
        _ => "",
    }
}

fn errno(error: &io::Error) -> Option<rustix::io::Errno> {
    rustix::io::Errno::from_io_error(error)
}

impl BeneathError {
    /// Did the path lead through a link, or out of the directory?
    pub fn leaves(&self) -> bool {
        matches!(errno(&self.source), Some(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV))
    }

    /// What happened. `StorageFull` and `QuotaExceeded` are a full disk.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl From<BeneathError> for io::Error {
    fn from(error: BeneathError) -> Self {
        error.source
    }
}

/// An open directory. Whatever is done through it stays below it.
///
/// New files belong to whom the calling thread is (see `setfsuid(2)`); nothing here changes owners.
#[derive(Debug)]
pub struct Beneath {
    dir: OwnedFd,
    path: PathBuf,
}

const HERE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Beneath {
    /// The directory at `path`, which is the caller's to vouch for; only its last part may be no link.
    ///
    /// # Errors
    /// When it is not there or no directory.
    pub fn open(path: &Path) -> Result<Self, BeneathError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| BeneathError {
            op: "open the directory",
            path: path.to_owned(),
            source: e.into(),
        })?;
        Ok(Self { dir, path: path.to_owned() })
    }

    /// Where it was when it was opened. For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another handle of the same directory.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { dir: self.dir.try_clone()?, path: self.path.clone() })
    }

    /// The directory `at`.
    ///
    /// # Errors
    /// When it is not there, or no directory.
    pub fn dir(&self, at: &Inside) -> Result<Self, BeneathError> {
        let dir = self.open_at(at, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        Ok(Self {
            dir: dir.map_err(self.error("open the directory", at))?,
            path: self.path.join(at.as_path()),
        })
    }

    /// Makes the directory `at` and those above it that are missing; `made` hears of each new one.
    ///
    /// The mode is what the process's umask leaves of `mode`.
    ///
    /// # Errors
    /// When one cannot be made, or is there and no directory.
    pub fn make_dirs(
        &self,
        at: &Inside,
        mode: u32,
        mut made: impl FnMut(&Inside),
    ) -> Result<Self, BeneathError> {
        match self.dir(at) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        for dir in at.parents().chain([at.clone()]) {
            if self.make_dir(&dir, mode)? {
                made(&dir);
            }
        }
        self.dir(at)
    }

    /// Makes the directory `at`; false where there is something of that name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_dir(&self, at: &Inside, mode: u32) -> Result<bool, BeneathError> {
        let parent = self.parent(at)?;
        match rustix::fs::mkdirat(&parent, at.name(), Mode::from_raw_mode(mode)) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(e) => Err(self.error("make the directory", at)(e)),
        }
    }

    /// A new file, open for reading and writing. Its mode is what the process's umask leaves of `mode`.
    ///
    /// # Errors
    /// When something of that name is there, or it cannot be made.
    pub fn create(&self, at: &Inside, mode: u32) -> Result<File, BeneathError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = self.open_at(at, flags, Mode::from_raw_mode(mode));
        Ok(file.map_err(self.error("create", at))?.into())
    }

    /// A file that is there, for reading.
    ///
    /// # Errors
    /// When it is not there, or no ordinary file.
    pub fn read(&self, at: &Inside) -> Result<File, BeneathError> {
        // A pipe would make the open wait for its other end.
        let file = self.open_at(at, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty());
        let file = file.map_err(self.error("open", at))?;
        let stat = rustix::fs::fstat(&file).map_err(self.error("stat", at))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file");
            return Err(BeneathError { op: "open", path: self.path.join(at.as_path()), source });
        }
        Ok(file.into())
    }

    /// A symbolic link. Its target is not looked at: the caller decides what may be in it.
    ///
    /// # Errors
    /// When something of that name is there, or it cannot be made.
    pub fn symlink(&self, target: &OsStr, at: &Inside) -> Result<(), BeneathError> {
        let parent = self.parent(at)?;
        rustix::fs::symlinkat(target, &parent, at.name()).map_err(self.error("make the link", at))
    }

    /// Another name for the ordinary file `existing`.
    ///
    /// # Errors
    /// When that is no ordinary file, or something is there already.
    pub fn hard_link(&self, existing: &Inside, at: &Inside) -> Result<(), BeneathError> {
        // The link is made from the descriptor of the file that was looked at, and not from its name again.
        let file = self.read(existing)?;
        let parent = self.parent(at)?;
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(rustix::fs::CWD, &*name, &parent, at.name(), AtFlags::SYMLINK_FOLLOW)
            .map_err(self.error("make the hard link", at))
    }

    /// What is at `at`, itself if it is a link.
    ///
    /// # Errors
    /// `NotFound` where nothing is.
    pub fn stat(&self, at: &Inside) -> Result<Stat, BeneathError> {
        let parent = self.parent(at)?;
        rustix::fs::statat(&parent, at.name(), AtFlags::SYMLINK_NOFOLLOW).map_err(self.error("stat", at))
    }

    /// Removes a file or link, or an empty directory.
    ///
    /// # Errors
    /// `NotFound` where nothing is; `DirectoryNotEmpty`.
    pub fn remove(&self, at: &Inside) -> Result<(), BeneathError> {
        let parent = self.parent(at)?;
        match rustix::fs::unlinkat(&parent, at.name(), AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => rustix::fs::unlinkat(&parent, at.name(), AtFlags::REMOVEDIR),
            other => other,
        }
        .map_err(self.error("remove", at))
    }

    /// Removes `at` and everything in it. No link is followed.
    ///
    /// # Errors
    /// When something stays; what is not there is no error.
    pub fn remove_all(&self, at: &Inside) -> Result<(), BeneathError> {
        match self.remove(at) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            done => return done,
        }
        let parent = self.parent(at)?;
        // The standard library removes by descriptors and follows nothing below the directory that it is given.
        let dir = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(at.name());
        match fs::remove_dir_all(dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(BeneathError { op: "remove", path: self.path.join(at.as_path()), source })
            }
            _ => Ok(()),
        }
    }

    /// The directory that `at` is in, for the *at(2) calls that are not here: with [`Inside::name`] as the name,
    /// and without following links, they stay inside.
    ///
    /// # Errors
    /// When it is not there, or no directory.
    pub fn parent(&self, at: &Inside) -> Result<OwnedFd, BeneathError> {
        let opened = match at.parent() {
            Some(parent) => self.open_at(&parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()),
            None => rustix::io::fcntl_dupfd_cloexec(&self.dir, 0),
        };
        opened.map_err(self.error("open the directory of", at))
    }

    fn open_at(&self, at: &Inside, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        // No O_NOFOLLOW: with O_PATH it would open a link at the end, where NO_SYMLINKS alone refuses it.
        let flags = flags | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(&self.dir, at.as_path(), flags, mode, HERE) {
                // A rename elsewhere came in between; or a signal.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn error(&self, op: &'static str, at: &Inside) -> impl FnOnce(rustix::io::Errno) -> BeneathError {
        let path = self.path.join(at.as_path());
        move |errno| BeneathError { op, path, source: errno.into() }
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
#[path = "beneath/tests.rs"]
mod tests;
