//! Archives become files below a directory, and nothing else.
//!
//! An archive is hostile input. Every name in it is resolved by [`Beneath`]; names that lead out, devices, pipes,
//! links to what is not in the archive, and an archive that unpacks to more than the task's budget end it with an
//! error. Set-user-id bits are dropped. What was made is remembered, so that all of it can be removed again.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Mode, Timespec, Timestamps};

use crate::{
    beneath::{BadPath, Beneath, BeneathError, Inside},
    budget::{Budget, Spent},
    copy::BUFFER_BYTES,
    error::is_full,
};

mod format;
pub mod gate;

/// Permissions that an archive may give: no set-user-id, set-group-id or sticky bit.
const MODE_MASK: u32 = 0o777;
/// Of directories that an archive does not mention.
const DIR_MODE: u32 = 0o755;
/// Longest target of a symbolic link.
const MAX_LINK_BYTES: u64 = 4095;

/// An archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not one of the formats, or damaged.
    #[error("it is no tar, tar.gz, tar.zst or zip archive, or damaged: {0}")]
    Format(String),
    /// An entry that leads out.
    #[error("the archive's entry {name:?} {problem}")]
    Name {
        /// As the archive has it.
        name: String,
        /// What is wrong with it.
        #[source]
        problem: BadPath,
    },
    /// A link that leads out, or to what the archive does not have.
    #[error("the archive's link {name:?} -> {target:?} leads to a place outside of the archive")]
    Link {
        /// The link.
        name: String,
        /// What it points to.
        target: String,
    },
    /// Neither file, directory nor link.
    #[error(
        "the archive's entry {name:?} is a {kind}: only files, directories and links inside of the archive are unpacked"
    )]
    Kind {
        /// As the archive has it.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// Something of that name is there, and not from this archive.
    #[error("the archive's entry {0:?} is there already: unpack it to another path")]
    Exists(PathBuf),
    /// More than granted, or not wanted any more.
    #[error(transparent)]
    Spent(#[from] Spent),
    /// No room.
    #[error("no room for the archive's entry {name:?}: ask for more disk")]
    Full {
        /// As the archive has it.
        name: String,
        /// As the kernel said it.
        source: io::Error,
    },
    /// A file could not be made.
    #[error(transparent)]
    Place(#[from] BeneathError),
    /// A file could not be written.
    #[error("unpack the archive's entry {name:?}")]
    Write {
        /// As the archive has it.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Hears of bytes before they are written, and may end it.
pub(crate) type Piece<'a> = &'a mut dyn FnMut(u64) -> Result<(), Spent>;

/// What one entry of an archive is.
enum Kind<'a> {
    Dir,
    File(&'a mut dyn Read),
    Symlink(&'a OsStr),
    HardLink(&'a OsStr),
}

/// An archive on its way below a directory.
pub(crate) struct Unpacker<'a> {
    into: &'a Beneath,
    budget: &'a Budget,
    piece: Piece<'a>,
    /// Files and links of this archive: a second entry of the name replaces the first.
    files: BTreeSet<Inside>,
    /// Directories that this archive made, in the order of making.
    dirs: Vec<Inside>,
    /// Modes of directories, set last: one that cannot be written would be in the way of its content.
    dir_modes: Vec<(Inside, u32)>,
}

/// What was made, to be removed again when the launch fails.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) files: Vec<Inside>,
    pub(crate) dirs: Vec<Inside>,
}

impl Made {
    /// Removes it. What somebody else put into the directories stays, and they with it.
    pub(crate) fn remove(&self, from: &Beneath) {
        for path in self.files.iter().chain(self.dirs.iter().rev()) {
            match from.remove(path) {
                Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                    tracing::warn!(error = %e, "remove what was staged for a launch that failed");
                }
                _ => {}
            }
        }
    }
}

impl<'a> Unpacker<'a> {
    pub(crate) fn new(into: &'a Beneath, budget: &'a Budget, piece: Piece<'a>) -> Self {
        Self { into, budget, piece, files: BTreeSet::new(), dirs: Vec::new(), dir_modes: Vec::new() }
    }

    /// Unpacks everything. What was made is told in either case.
    pub(crate) fn run(mut self, archive: File) -> (Made, Result<(), UnpackError>) {
        let result = format::entries(archive, &mut self).and_then(|()| self.set_dir_modes());
        (Made { files: self.files.into_iter().collect(), dirs: self.dirs }, result)
    }

    /// One entry. `mode` and `mtime` are as the archive has them.
    fn entry(
        &mut self,
        name: &OsStr,
        mode: u32,
        mtime: Option<i64>,
        kind: Kind<'_>,
    ) -> Result<(), UnpackError> {
        let at = match Inside::new(Path::new(name)) {
            Ok(at) => at,
            // "./": the directory itself.
            Err(BadPath::Empty) if matches!(kind, Kind::Dir) => return Ok(()),
            Err(problem) => return Err(UnpackError::Name { name: text(name), problem }),
        };
        if let Some(parent) = at.parent() {
            self.make_dirs(&parent)?;
        }
        match kind {
            Kind::Dir => {
                self.make_dirs(&at)?;
                self.dir_modes.push((at, mode & MODE_MASK));
                Ok(())
            }
            Kind::File(content) => self.file(at, mode & MODE_MASK, mtime, content),
            Kind::Symlink(target) => self.symlink(at, target),
            Kind::HardLink(target) => self.hard_link(at, target),
        }
    }

    fn make_dirs(&mut self, at: &Inside) -> Result<(), UnpackError> {
        let mut spent = Ok(());
        let made = self.into.make_dirs(at, DIR_MODE, |dir| {
            self.dirs.push(dir.clone());
            spent = spent.and_then(|()| self.budget.entry());
        });
        made.map_err(place)?;
        Ok(spent?)
    }

    /// Counts an entry, and makes room where this archive had one of the name.
    fn claim(&mut self, at: &Inside) -> Result<(), UnpackError> {
        (self.piece)(0)?;
        self.budget.entry()?;
        if self.files.remove(at) {
            self.into.remove(at)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        at: Inside,
        mode: u32,
        mtime: Option<i64>,
        content: &mut dyn Read,
    ) -> Result<(), UnpackError> {
        self.claim(&at)?;
        let mut file = self.into.create(&at, 0o600).map_err(place)?;
        self.files.insert(at.clone());
        let name = || at.to_string();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(UnpackError::Format(format!("{}: {e}", name()))),
            };
            self.budget.bytes(read as u64)?;
            (self.piece)(read as u64)?;
            file.write_all(&buffer[..read]).map_err(|source| match is_full(source.kind()) {
                true => UnpackError::Full { name: name(), source },
                false => UnpackError::Write { name: name(), source },
            })?;
        }
        let write = |source: rustix::io::Errno| UnpackError::Write { name: name(), source: source.into() };
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(write)?;
        if let Some(tv_sec) = mtime {
            let time = Timespec { tv_sec, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(&file, &times).map_err(write)?;
        }
        Ok(())
    }

    fn symlink(&mut self, at: Inside, target: &OsStr) -> Result<(), UnpackError> {
        if !stays_inside(&at, Path::new(target)) {
            return Err(UnpackError::Link { name: at.to_string(), target: text(target) });
        }
        self.claim(&at)?;
        self.into.symlink(target, &at).map_err(place)?;
        self.files.insert(at);
        Ok(())
    }

    /// Only of what this archive made: anything else may be somebody else's.
    fn hard_link(&mut self, at: Inside, target: &OsStr) -> Result<(), UnpackError> {
        let existing = Inside::new(Path::new(target)).ok().filter(|existing| self.files.contains(existing));
        let Some(existing) = existing else {
            return Err(UnpackError::Link { name: at.to_string(), target: text(target) });
        };
        if existing == at {
            return Ok(());
        }
        self.claim(&at)?;
        self.into.hard_link(&existing, &at).map_err(place)?;
        self.files.insert(at);
        Ok(())
    }

    /// Always with rights for the owner, who is to remove it again.
    fn set_dir_modes(&self) -> Result<(), UnpackError> {
        for (at, mode) in &self.dir_modes {
            let dir = self.into.dir(at)?;
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode | 0o700))
                .map_err(|e| UnpackError::Write { name: at.to_string(), source: e.into() })?;
        }
        Ok(())
    }
}

/// Does a link at `at` to `target` stay below the directory, by the words alone? What other links make of it when
/// the task follows it is the task's own affair: it does so with its own rights.
fn stays_inside(at: &Inside, target: &Path) -> bool {
    let mut depth = at.as_path().components().count() - 1;
    for component in target.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => match depth.checked_sub(1) {
                Some(up) => depth = up,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    !target.as_os_str().is_empty() && !target.as_os_str().as_bytes().contains(&0)
}

fn place(error: BeneathError) -> UnpackError {
    match error.kind() {
        io::ErrorKind::AlreadyExists => UnpackError::Exists(error.path().to_owned()),
        kind if is_full(kind) => {
            UnpackError::Full { name: error.path().display().to_string(), source: error.into() }
        }
        _ => UnpackError::Place(error),
    }
}

fn text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "unpack/tests.rs"]
mod tests;
