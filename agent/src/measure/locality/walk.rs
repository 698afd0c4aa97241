//! Goes through a data set on the node's file systems, within a time bound.
//!
//! Half of the time goes into listing directories, in random order; of the files that are found a fair choice is kept, so
//! that memory is bounded whatever the tree is. In the other half those are looked at. What there was no time for is
//! extrapolated, and the answer says so.

use std::{
    collections::HashSet,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use glob::{MatchOptions, Pattern};
use nix::libc;
use rustix::{
    fs::{AtFlags, Dir, DirEntry, FileType, OFlags, Stat, fstat, statat},
    io::Errno,
};

use super::{
    LookError,
    extent::held,
    name::LocalSet,
    place::{Place, Places},
    roots::{Roots, open_below, reopen},
    sample::{Listed, Reservoir, estimated_tree},
    tally::{Tally, scaled},
};
use crate::kernel::page_cache::PageCache;

/// Files that are kept to be looked at: more than the usual time bound has time for.
const MOST_FILES: usize = 16_384;
/// Directories that may wait to be listed; the others count as unlisted.
const MOST_DIRS: usize = 16_384;
/// Directories that are listed.
const MOST_LISTED: usize = 65_536;
/// Entries between two looks at the clock.
const STRIDE: usize = 32;
/// Directories that are still listed when the time is over, until one has a file.
const MORE_DIRS: usize = 64;
/// As in a shell: a pattern does not match hidden files unless it begins with a dot.
const MATCHING: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    list_until: Instant,
    look_until: Instant,
}

impl Bounds {
    /// Ends after this time.
    pub(super) fn within(time: Duration, now: Instant) -> Self {
        Self { list_until: now + time / 2, look_until: now + time }
    }
}

/// A directory that is to be listed.
struct Waiting {
    /// Below the data set.
    path: Rc<Path>,
    /// How many patterns led to it.
    level: usize,
    /// Place of the one that it is in.
    parent: usize,
    depth: usize,
}
/// A file that may be looked at.
type Found = (Rc<Path>, Box<OsStr>);

/// Looks at a data set.
///
/// # Errors
/// [`LookError`] where nothing can be told.
pub(super) fn look(
    set: &LocalSet,
    roots: &Roots,
    page_cache: PageCache,
    bounds: Bounds,
    seed: u64,
) -> Result<Tally, LookError> {
    let base = roots.open(&set.base)?;
    let stat = fstat(&base).map_err(|e| LookError::Io("look at it", e.into()))?;
    let mut looks = Looks::new(page_cache, bounds.look_until);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        FileType::RegularFile if set.patterns.is_empty() => {
            looks.add(|| Ok(Some(base)));
            return looks.finished(1, false);
        }
        FileType::RegularFile => return Err(LookError::Dangling),
        other => return Err(LookError::Kind(words(other))),
    }
    let mut rng = Rng::with_seed(seed);
    let mut listing = Listing::new(&set.patterns);
    listing.run(base.as_fd(), bounds.list_until, &mut rng);
    if listing.dangling() {
        return Err(LookError::Dangling);
    }
    looks.skip_all(listing.skipped, listing.problem.take());
    let (files, cut) = (listing.estimate(), listing.cut());
    for (dir, name) in listing.files.shuffled(&mut rng) {
        looks.add(|| handle(base.as_fd(), &dir.join(&*name)));
        if Instant::now() >= bounds.look_until {
            break;
        }
    }
    looks.finished(files, cut)
}

/// A handle on a file; `None` where it is something else by now. Nothing is opened for reading.
fn handle(base: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    match open_below(base, path, OFlags::PATH) {
        Ok(handle) => Ok(Some(handle)),
        // A link took its place.
        Err(Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn words(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "no regular file",
    }
}

/// Directories and what was found in them.
struct Listing<'a> {
    patterns: &'a [Pattern],
    waiting: Vec<Waiting>,
    files: Reservoir<Found>,
    listed: Vec<Listed>,
    /// Some were found and dropped for want of room, or listed in part.
    torn: bool,
    skipped: u64,
    problem: Option<Errno>,
    /// Something matched all patterns.
    matched: bool,
}

impl<'a> Listing<'a> {
    fn new(patterns: &'a [Pattern]) -> Self {
        Self {
            patterns,
            waiting: vec![Waiting { path: Path::new("").into(), level: 0, parent: 0, depth: 0 }],
            files: Reservoir::new(MOST_FILES),
            listed: Vec::new(),
            torn: false,
            skipped: 0,
            problem: None,
            matched: false,
        }
    }

    /// Lists until that moment; then, where no file was found so far, a few directories more.
    fn run(&mut self, base: BorrowedFd<'_>, until: Instant, rng: &mut Rng) {
        let mut more = MORE_DIRS;
        while !self.waiting.is_empty() && self.listed.len() < MOST_LISTED {
            let next = self.waiting.swap_remove(rng.usize(..self.waiting.len()));
            if let Some(parent) = self.listed.get_mut(next.parent) {
                parent.unlisted = parent.unlisted.saturating_sub(1);
            }
            if let Err(errno) = self.list(base, &next, until, rng) {
                self.skipped += 1;
                self.problem.get_or_insert(errno);
            }
            if Instant::now() >= until {
                more -= 1;
                if more == 0 || self.files.shown() > 0 {
                    return;
                }
            }
        }
    }

    fn list(
        &mut self,
        base: BorrowedFd<'_>,
        at: &Waiting,
        until: Instant,
        rng: &mut Rng,
    ) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let mut dir = Dir::new(open_below(base, &at.path, flags)?)?;
        let mut here = Listed { parent: at.parent, depth: at.depth, files: 0, unlisted: 0 };
        let mut result = Ok(());
        let mut count = 0;
        while let Some(entry) = dir.read() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    result = Err(errno);
                    break;
                }
            };
            self.take(&dir, at, &entry, &mut here, rng);
            count += 1;
            if count % STRIDE == 0 && Instant::now() >= until {
                self.torn = true;
                if let Some((part, whole)) = listed_part(&dir, entry.offset()) {
                    here.files = scaled(here.files, whole, part);
                    here.unlisted = scaled(here.unlisted, whole, part);
                }
                break;
            }
        }
        self.listed.push(here);
        result
    }

    fn take(&mut self, dir: &Dir, at: &Waiting, entry: &DirEntry, here: &mut Listed, rng: &mut Rng) {
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            return;
        }
        let level = match self.patterns.get(at.level) {
            Some(pattern) if !pattern.matches_with(&name.to_string_lossy(), MATCHING) => return,
            Some(_) => at.level + 1,
            None => at.level,
        };
        let kind = match entry.file_type() {
            FileType::Unknown => kind_of(dir, entry),
            known => known,
        };
        let complete = level == self.patterns.len();
        match kind {
            FileType::RegularFile if complete => {
                self.matched = true;
                here.files += 1;
                self.files.show(rng, || (Rc::clone(&at.path), name.into()));
            }
            FileType::Directory => {
                self.matched |= complete;
                here.unlisted += 1;
                if self.waiting.len() < MOST_DIRS {
                    let (parent, depth) = (self.listed.len(), at.depth + 1);
                    self.waiting.push(Waiting { path: at.path.join(name).into(), level, parent, depth });
                } else {
                    self.torn = true;
                }
            }
            // Links, devices, FIFOs and sockets are no data; what a link leads to is counted where it is.
            _ => {}
        }
    }

    /// Was there no time to list everything?
    fn cut(&self) -> bool {
        self.torn || !self.waiting.is_empty()
    }

    fn dangling(&self) -> bool {
        !self.patterns.is_empty() && !self.matched && !self.cut() && self.skipped == 0
    }

    fn estimate(&self) -> u64 {
        estimated_tree(&self.listed).max(self.files.shown())
    }
}

/// How much of a directory is before this offset, of how much; `None` where its file system does not tell.
fn listed_part(dir: &Dir, offset: i64) -> Option<(u64, u64)> {
    let size = u64::try_from(dir.stat().ok()?.st_size).ok()?;
    part_of(dir.statfs().ok()?.f_type, u64::try_from(offset).ok()?, size)
}

/// ext4 lists by hash, and its offsets are hashes of 63 bits (without `dir_index`, bytes); those of XFS count eight bytes.
fn part_of(file_system: libc::c_long, offset: u64, size: u64) -> Option<(u64, u64)> {
    let (part, whole) = match file_system {
        libc::EXT4_SUPER_MAGIC if offset > u32::MAX.into() => (offset, i64::MAX.unsigned_abs()),
        libc::EXT4_SUPER_MAGIC => (offset, size),
        libc::XFS_SUPER_MAGIC => (offset.saturating_mul(8), size),
        _ => return None,
    };
    (0 < part && part < whole).then_some((part, whole))
}

/// On file systems that do not tell kinds with names.
fn kind_of(dir: &Dir, entry: &DirEntry) -> FileType {
    let stat = dir.fd().and_then(|fd| statat(fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW));
    stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}

/// Files that were looked at.
struct Looks {
    tally: Tally,
    places: Places,
    /// Of files with several names.
    linked: HashSet<(u64, u64)>,
    until: Instant,
    /// Files that were looked at, whatever came of it.
    examined: u64,
    problem: Option<io::Error>,
}

impl Looks {
    fn new(page_cache: PageCache, until: Instant) -> Self {
        let (tally, linked) = (Tally::default(), HashSet::new());
        Self { tally, places: Places::new(page_cache), linked, until, examined: 0, problem: None }
    }

    fn skip_all(&mut self, skipped: u64, problem: Option<Errno>) {
        self.tally.skipped += skipped;
        if let Some(errno) = problem {
            self.problem.get_or_insert_with(|| errno.into());
        }
    }

    fn add(&mut self, open: impl FnOnce() -> Result<Option<OwnedFd>, Errno>) {
        self.examined += 1;
        let looked = match open() {
            Ok(None) => return,
            Ok(Some(handle)) => self.look(handle.as_fd()),
            Err(errno) => Err(errno.into()),
        };
        if let Err(error) = looked {
            self.tally.skipped += 1;
            self.problem.get_or_insert(error);
        }
    }

    fn look(&mut self, handle: BorrowedFd<'_>) -> io::Result<()> {
        let stat = fstat(handle)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let Place::Home { home, page_cache } = self.places.of(stat.st_dev, handle) else { return Ok(()) };
        let counted = stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino));
        let (size, allocated) = sizes(&stat);
        if counted || size == 0 {
            self.tally.add(0, 0, &home);
            return Ok(());
        }
        let file = reopen(handle)?;
        let held = held(file.as_fd(), (size, allocated), page_cache, self.until)?;
        self.tally.sampled |= held.sampled;
        self.tally.add(held.cached_bytes, held.data_bytes - held.cached_bytes, &home);
        Ok(())
    }

    /// All that was seen stands for so many files.
    fn finished(self, files: u64, cut: bool) -> Result<Tally, LookError> {
        let Self { mut tally, problem, examined, .. } = self;
        if let Some(problem) = problem.filter(|_| tally.seen == 0) {
            return Err(LookError::AllSkipped(tally.skipped, problem));
        }
        if cut && tally.seen == 0 && files == 0 {
            return Err(LookError::NoTime);
        }
        tally.sampled |= cut;
        // Of the others, as large a part is no data or closed.
        let total = if files > examined { scaled(files, tally.seen, examined) } else { tally.seen };
        Ok(tally.extrapolated(total))
    }
}

/// Bytes from the first to the last, and bytes of blocks.
fn sizes(stat: &Stat) -> (u64, u64) {
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    (positive(stat.st_size), positive(stat.st_blocks).saturating_mul(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_where_offsets_mean_something() {
        let half = 1 << 62;
        assert_eq!(part_of(libc::EXT4_SUPER_MAGIC, half, 4096), Some((half, i64::MAX.unsigned_abs())));
        assert_eq!(part_of(libc::EXT4_SUPER_MAGIC, 1024, 4096), Some((1024, 4096)));
        assert_eq!(part_of(libc::XFS_SUPER_MAGIC, 128, 4096), Some((1024, 4096)));
        assert_eq!(part_of(libc::XFS_SUPER_MAGIC, 512, 4096), None, "all of it");
        assert_eq!(part_of(libc::EXT4_SUPER_MAGIC, 0, 4096), None);
        assert_eq!(part_of(libc::TMPFS_MAGIC, 7, 4096), None);
    }
}
