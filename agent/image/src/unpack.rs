//! A layer becomes a directory that overlayfs takes as a lower one.
//!
//! The agent unpacks as root what a stranger wrote, so nothing here trusts a name: every path is resolved by the
//! kernel within the layer's own directory (openat2(2), Linux 5.6), and everything is bounded.
//!
//! What becomes of what an entry says:
//! - Owners, modes (set-id bits too), modification times and holes are kept. Tasks of the default profile cannot
//!   gain privileges by set-id files, and the store is closed to everybody but root.
//! - A path through a symbolic link that the same layer made is resolved with the layer as root, as container
//!   runtimes do; `..` in a path is refused.
//! - Of extended attributes `user.*` and `security.capability` are kept. Others are the host's matter: above all
//!   `trusted.overlay.*` and `user.overlay.*`, with which overlayfs would be led elsewhere.
//! - Device files are left out; a task gets a /dev of its own. A character device 0:0 is a whiteout.
//! - Whiteouts (`.wh.NAME`, `.wh..wh..opq`) become those of overlayfs. One that would hide the root is refused.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::tarball::{Entry, Kind, Stream, Tarball};

mod error;
mod name;
mod target;

pub use error::LayerError;
use name::{Named, clear, kind_of, set_metadata, set_opaque, set_owner_and_time, symlink, times, whiteout};
use target::Target;

/// Deepest directory. Deeper ones are hard to remove again, and no image has them.
const MAX_DEPTH: usize = 128;
/// What an entry costs in the store besides its bytes.
const ENTRY_BYTES: u64 = 512;
/// What files are rounded up to.
const BLOCK_BYTES: u64 = 4096;
/// Read and written at once.
const CHUNK: usize = 128 << 10;

/// How large a layer may be.
#[derive(Clone, Copy, Debug)]
pub struct LayerBounds {
    /// Bytes of its tar stream, and of its files.
    pub bytes: u64,
    /// Files, directories, links and whiteouts.
    pub entries: u64,
}

/// What a layer has become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files, directories, links and whiteouts.
    pub entries: u64,
    /// Space that it takes, at most.
    pub bytes: u64,
    /// Device files that were left out.
    pub skipped: u64,
}

/// Unpacks a tar stream into the empty directory `root`. `charge` hears of space before it is used, and may
/// refuse it. On an error the caller removes the directory.
pub(crate) fn unpack(
    stream: impl Read,
    root: &Path,
    bounds: LayerBounds,
    charge: &dyn Fn(u64) -> Result<(), LayerError>,
) -> Result<Counts, LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let at = |op| {
        let path = root.to_owned();
        move |e: Errno| LayerError::Directory { op, path, source: e.into() }
    };
    let dir = rustix::fs::open(root, flags, Mode::empty()).map_err(at("open"))?;
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755)).map_err(at("set the mode of"))?;
    let real = fs::read_link(fd_path(&dir)).map_err(|source| LayerError::Directory {
        op: "find",
        path: root.to_owned(),
        source,
    })?;
    let base_depth = real.components().count();
    let mut layer = Layer {
        root: dir,
        base_depth,
        bounds,
        charge,
        counts: Counts::default(),
        times: Vec::new(),
        buffer: vec![0; CHUNK],
    };
    let mut tarball = Tarball::new(Stream(stream));
    while let Some(entry) = tarball.next()? {
        layer.place(&entry, &mut tarball)?;
    }
    layer.set_times();
    Ok(layer.counts)
}

struct Layer<'a> {
    root: OwnedFd,
    /// Components of the root's own path.
    base_depth: usize,
    bounds: LayerBounds,
    charge: &'a dyn Fn(u64) -> Result<(), LayerError>,
    counts: Counts,
    /// Directories get their times last: what is put into one changes them.
    times: Vec<(PathBuf, (i64, u32))>,
    buffer: Vec<u8>,
}

/// Follows links, but never out of the layer.
const WITHIN: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

fn fd_path(fd: &impl AsFd) -> PathBuf {
    Path::new("/proc/self/fd").join(fd.as_fd().as_raw_fd().to_string())
}

impl Layer<'_> {
    fn place<R: Read>(&mut self, entry: &Entry, data: &mut Tarball<Stream<R>>) -> Result<(), LayerError> {
        let named = Named(entry);
        let target = Target::of(&entry.path).or_else(|why| named.refuse(why))?;
        self.count(entry)?;
        match (target, &entry.kind) {
            (Target::Metadata, _) => Ok(()),
            (Target::Root, Kind::Directory) => {
                self.times.push((PathBuf::from("."), entry.mtime));
                let root = self.root.try_clone().map_err(|e| named.op("open the root")(from_io(&e)))?;
                set_metadata(&root, named)
            }
            (Target::Root, _) => named.refuse("it would replace the root"),
            (Target::Opaque { dir }, _) => {
                let dir = self.directory(&dir, named)?;
                set_opaque(&dir, OsStr::new("."), named)
            }
            (Target::Whiteout { dir, name }, _) | (Target::Plain { dir, name }, Kind::CharDevice(0, 0)) => {
                let parent = self.directory(&dir, named)?;
                whiteout(&parent, name, named)
            }
            (Target::Plain { .. }, Kind::CharDevice(..) | Kind::BlockDevice) => {
                self.counts.skipped += 1;
                Ok(())
            }
            (Target::Plain { dir, name }, kind) => {
                let parent = self.directory(&dir, named)?;
                self.plain(&parent, name, kind, named, data)
            }
        }
    }

    /// Counts an entry against the bounds.
    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let size = match &entry.kind {
            Kind::Sparse { size, .. } if *size > self.bounds.bytes => {
                return Err(LayerError::TooLarge(format!("a sparse file of {size} bytes")));
            }
            _ => entry.size,
        };
        self.charge(size.saturating_add(BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES)
    }

    /// One more entry, with so many bytes.
    fn charge(&mut self, bytes: u64) -> Result<(), LayerError> {
        let bytes = bytes.saturating_add(ENTRY_BYTES);
        self.counts.entries += 1;
        self.counts.bytes = self.counts.bytes.saturating_add(bytes);
        if self.counts.entries > self.bounds.entries {
            return Err(LayerError::TooLarge(format!("more than {} entries", self.bounds.entries)));
        }
        if self.counts.bytes > self.bounds.bytes {
            return Err(LayerError::TooLarge(format!("more than {} bytes", self.bounds.bytes)));
        }
        (self.charge)(bytes)
    }

    fn plain<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        kind: &Kind,
        named: Named<'_>,
        data: &mut Tarball<Stream<R>>,
    ) -> Result<(), LayerError> {
        if *kind == Kind::Directory {
            return self.make_directory(parent, name, named);
        }
        clear(parent, name, named)?;
        match kind {
            Kind::File => self.file(parent, name, &[(0, named.0.size)], named.0.size, named, data),
            Kind::Sparse { size, pieces } => self.file(parent, name, pieces, *size, named, data),
            Kind::HardLink(target) => self.hard_link(parent, name, target, named),
            Kind::Symlink(target) => symlink(parent, name, target, named),
            Kind::Fifo => {
                let made = rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0);
                made.map_err(named.op("make the pipe"))?;
                let mode = Mode::from_raw_mode(named.0.mode);
                // Nobody else works in this directory: the name is what was just made.
                rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(named.op("chmod"))?;
                set_owner_and_time(parent, name, named)
            }
            Kind::Directory | Kind::CharDevice(..) | Kind::BlockDevice => Ok(()),
        }
    }

    fn make_directory(&mut self, parent: &OwnedFd, name: &OsStr, named: Named<'_>) -> Result<(), LayerError> {
        let before = kind_of(parent, name).map_err(named.op("stat"))?;
        if before != Some(FileType::Directory) {
            clear(parent, name, named)?;
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))
                .map_err(named.op("make the directory"))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(parent, name, flags, Mode::empty());
        let dir = dir.map_err(named.op("open the directory"))?;
        set_metadata(&dir, named)?;
        if before == Some(FileType::CharacterDevice) {
            // Whiteouts hide what lower layers have, never what their own layer has.
            set_opaque(&dir, OsStr::new("."), named)?;
        }
        let path = Target::relative(&named.0.path);
        self.times.push((path, named.0.mtime));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        pieces: &[(u64, u64)],
        size: u64,
        named: Named<'_>,
        data: &mut Tarball<Stream<R>>,
    ) -> Result<(), LayerError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.map_err(named.op("create"))?);
        let failed = |op| move |e: io::Error| LayerError::Write { path: named.path(), op, source: e };
        for (offset, length) in pieces {
            if *offset > 0 {
                file.seek(SeekFrom::Start(*offset)).map_err(failed("seek"))?;
            }
            let mut left = *length;
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                let room = self.buffer.get_mut(..wanted).unwrap_or_default();
                let n = data.read(room).map_err(LayerError::Read)?;
                if n == 0 {
                    return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
                }
                file.write_all(room.get(..n).unwrap_or_default()).map_err(failed("write"))?;
                left -= n as u64;
            }
        }
        if pieces.last().is_none_or(|(offset, length)| offset + length != size) {
            file.set_len(size).map_err(failed("set the length"))?;
        }
        let file = OwnedFd::from(file);
        set_metadata(&file, named)?;
        rustix::fs::futimens(&file, &times(named.0.mtime)).map_err(named.op("set the times"))
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        target: &[u8],
        named: Named<'_>,
    ) -> Result<(), LayerError> {
        let existing = Target::of(target).or_else(|why| named.refuse(why))?;
        let Target::Plain { dir, name: old } = existing else {
            return named.refuse("it is a hard link to what is no file");
        };
        let from = self.directory(&dir, named)?;
        match kind_of(&from, old).map_err(named.op("stat"))? {
            None | Some(FileType::CharacterDevice) => {
                return named.refuse("it is a hard link to a file that is not in the layer");
            }
            Some(FileType::Directory) => return named.refuse("it is a hard link to a directory"),
            Some(_) => {}
        }
        rustix::fs::linkat(&from, old, parent, name, AtFlags::empty()).map_err(named.op("make the hard link"))
    }

    /// The directory of this path, made where it is missing.
    fn directory(&mut self, parts: &[&OsStr], named: Named<'_>) -> Result<OwnedFd, LayerError> {
        let here = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path: PathBuf = std::iter::once(OsStr::new(".")).chain(parts.iter().copied()).collect();
        match open_within(&self.root, &path, here, WITHIN | ResolveFlags::NO_SYMLINKS) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(e) => return Err(named.op("open its directory")(e)),
        }
        let mut path = PathBuf::from(".");
        let mut current = open_within(&self.root, &path, here, WITHIN).map_err(named.op("open the root"))?;
        for part in parts {
            path.push(part);
            let mut opened = open_within(&self.root, &path, here, WITHIN);
            if matches!(opened, Err(Errno::NOENT | Errno::NOTDIR)) {
                self.make_missing(&current, part, named)?;
                opened = open_within(&self.root, &path, here, WITHIN);
            }
            current = opened.map_err(named.op("open its directory"))?;
            self.check_depth(&current, named)?;
        }
        Ok(current)
    }

    /// A directory that the layer uses and does not have.
    fn make_missing(&mut self, parent: &OwnedFd, name: &OsStr, named: Named<'_>) -> Result<(), LayerError> {
        let before = kind_of(parent, name).map_err(named.op("stat"))?;
        match before {
            None => {}
            Some(FileType::CharacterDevice) => clear(parent, name, named)?,
            Some(FileType::Symlink) => return named.refuse("its path leads through a link to nowhere"),
            Some(_) => return named.refuse("its path leads through a file"),
        }
        self.charge(0)?;
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(parent, name, mode).map_err(named.op("make its directory"))?;
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(named.op("chmod its directory"))?;
        if before.is_some() { set_opaque(parent, name, named) } else { Ok(()) }
    }

    /// Links within the layer can lead deeper than the path that names them.
    fn check_depth(&self, dir: &OwnedFd, named: Named<'_>) -> Result<(), LayerError> {
        match fs::read_link(fd_path(dir)) {
            Ok(real) if real.components().count() <= self.base_depth + MAX_DEPTH => Ok(()),
            // ENAMETOOLONG, of a path that is longer than a page.
            _ => named.refuse("it lies too deep"),
        }
    }

    fn set_times(&self) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for (path, mtime) in &self.times {
            // It may have been replaced since, and then has no time to set.
            let dir = open_within(&self.root, path, flags, WITHIN | ResolveFlags::NO_SYMLINKS);
            if let Ok(dir) = dir {
                let _ = rustix::fs::futimens(&dir, &times(*mtime));
            }
        }
    }
}

/// openat2(2), tried again where a rename elsewhere on the host came in between.
fn open_within(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn from_io(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
