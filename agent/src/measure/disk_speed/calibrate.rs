//! Measures a disk with a scratch file: direct requests at depth through io_uring, one phase after the other.
//!
//! The scratch file has no name, so nothing has to be removed however this ends: the kernel frees it with the process.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl},
    sys::statvfs::statvfs,
};
use tokio_uring::{
    buf::{BoundedBuf as _, Slice},
    fs::File,
};

use super::{
    figures::Tally,
    model::{
        Direction::{Read, Write},
        DiskModel, How, LARGE_BYTES, Load, Measured,
        Order::{Random, Sequential},
        SMALL_BYTES, both_at_once, cost_lines,
    },
};
use crate::kernel::{
    appender::io_uring_works,
    block::{Disk, DiskError, directory_on},
};

/// Large enough that a disk's own cache does not hold it all, small enough to be written in a few seconds.
const SCRATCH_BYTES: u64 = 1 << 30;
/// Less says more about the disk's cache than about the disk.
const MIN_SCRATCH_BYTES: u64 = 64 << 20;
/// Never more than a quarter of what is free: others may need it meanwhile.
const OF_FREE: u64 = 4;
/// What is measured is at least this much of it, however slow the disk is.
const MIN_FILLED_BYTES: u64 = 16 << 20;
/// The part of the time in which the file is written before anything is measured.
const OF_TIME: u32 = 4;
/// Direct requests have to start at such addresses: pages, which suit every disk.
const ALIGNMENT: usize = 4096;
/// Enough to keep every queue of a disk busy.
const SMALL_DEPTH: u32 = 32;
/// As many bytes under way as the largest caches of disks take at once.
const LARGE_DEPTH: u32 = 16;
/// A shorter measurement shows only noise.
pub const MIN_TIME: Duration = Duration::from_secs(1);

/// One measurement, or several at the same time.
struct Phase {
    name: &'static str,
    loads: &'static [Load],
}

const fn load(
    direction: super::model::Direction,
    order: super::model::Order,
    bytes: u32,
    mixed: bool,
) -> Load {
    Load { direction, order, bytes, mixed }
}

const PHASES: [Phase; 8] = [
    Phase { name: "sequential reads, large", loads: &[load(Read, Sequential, LARGE_BYTES, false)] },
    Phase { name: "sequential writes, large", loads: &[load(Write, Sequential, LARGE_BYTES, false)] },
    Phase { name: "sequential reads, small", loads: &[load(Read, Sequential, SMALL_BYTES, false)] },
    Phase { name: "sequential writes, small", loads: &[load(Write, Sequential, SMALL_BYTES, false)] },
    Phase { name: "random reads", loads: &[load(Read, Random, SMALL_BYTES, false)] },
    Phase { name: "random writes", loads: &[load(Write, Random, SMALL_BYTES, false)] },
    Phase {
        name: "reads and writes, large",
        loads: &[load(Read, Sequential, LARGE_BYTES, true), load(Write, Sequential, LARGE_BYTES, true)],
    },
    Phase {
        name: "random reads and writes",
        loads: &[load(Read, Random, SMALL_BYTES, true), load(Write, Random, SMALL_BYTES, true)],
    },
];

/// How many steps [`calibrate`] tells of.
pub const STEPS: usize = PHASES.len() + 1;

/// A disk could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// There is no disk, or nothing of it is mounted.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The scratch file does not fit.
    #[error(
        "{} has {free_bytes} bytes free, and the scratch file takes a quarter of it, at least {MIN_SCRATCH_BYTES}: \
         free {} or name another directory of the disk",
        directory.display(),
        OF_FREE * MIN_SCRATCH_BYTES
    )]
    NoSpace {
        /// Where it would be.
        directory: PathBuf,
        /// What is left there.
        free_bytes: u64,
    },
    /// The kernel or its configuration refuses io_uring.
    #[error(
        "this kernel allows no io_uring here (see sysctl kernel.io_uring_disabled), which the disk is measured through"
    )]
    NoUring,
    /// Something about the scratch file.
    #[error("{op} a scratch file in {}", directory.display())]
    Scratch {
        /// What was tried.
        op: &'static str,
        /// Where it is.
        directory: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A request failed.
    #[error("{phase} of a scratch file in {}", directory.display())]
    Request {
        /// What was being measured.
        phase: &'static str,
        /// Where the file is.
        directory: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Measures the disk of a directory, or a device by a directory where it is mounted, in about `time`. Calls `step`
/// with the name of each of the [`STEPS`].
///
/// Blocks this thread, which must not be one of a runtime.
///
/// # Errors
/// [`CalibrateError`]; nothing is left behind.
pub fn calibrate(target: &Path, time: Duration, step: impl Fn(&str)) -> Result<DiskModel, CalibrateError> {
    let started = Instant::now();
    let directory = directory_on(target)?;
    let disk = Disk::below(&directory)?;
    if !io_uring_works() {
        return Err(CalibrateError::NoUring);
    }
    let bytes = scratch_bytes(&directory)?;
    let scratch = scratch(&directory, bytes)?;
    let run = Run { directory, started, time, step };
    let (scratch_bytes, measured) = tokio_uring::start(run.all(scratch, bytes))?;
    Ok(DiskModel {
        disk: disk.name,
        size_bytes: disk.size_bytes,
        how: Some(How {
            at: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            directory: run.directory,
            scratch_bytes,
            scheduler: disk.scheduler,
            seconds: started.elapsed().as_secs(),
        }),
        both_at_once: both_at_once(&measured),
        io_cost: Some(cost_lines(&measured)),
        measured,
    })
}

/// The size of the scratch file, out of what is free: whole large requests.
fn scratch_bytes(directory: &Path) -> Result<u64, CalibrateError> {
    let free = statvfs(directory).map_err(|errno| failed("find room for", directory)(errno.into()))?;
    let free_bytes = free.blocks_available().saturating_mul(free.fragment_size());
    size_for(free_bytes)
        .ok_or_else(|| CalibrateError::NoSpace { directory: directory.to_owned(), free_bytes })
}

fn size_for(free_bytes: u64) -> Option<u64> {
    let large = u64::from(LARGE_BYTES);
    let size = (free_bytes / OF_FREE).min(SCRATCH_BYTES) / large * large;
    Some(size).filter(|size| *size >= MIN_SCRATCH_BYTES)
}

/// A file without a name, with all of its space, which bypasses the page cache.
fn scratch(directory: &Path, bytes: u64) -> Result<std::fs::File, CalibrateError> {
    let file = tempfile::tempfile_in(directory).map_err(failed("make", directory))?;
    fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_DIRECT))
        .map_err(|errno| failed("bypass the page cache (O_DIRECT) for", directory)(errno.into()))?;
    let length = i64::try_from(bytes).unwrap_or(i64::MAX);
    fallocate(file.as_fd(), FallocateFlags::empty(), 0, length)
        .map_err(|errno| failed("take the space for", directory)(errno.into()))?;
    Ok(file)
}

fn failed(op: &'static str, directory: &Path) -> impl FnOnce(io::Error) -> CalibrateError + use<> {
    let directory = directory.to_owned();
    move |source| CalibrateError::Scratch { op, directory, source }
}

struct Run<S> {
    directory: PathBuf,
    started: Instant,
    time: Duration,
    step: S,
}

impl<S: Fn(&str)> Run<S> {
    /// How much of the file was used, and the figures of all phases.
    async fn all(&self, scratch: std::fs::File, bytes: u64) -> Result<(u64, Vec<Measured>), CalibrateError> {
        let file = Rc::new(File::from_std(scratch));
        (self.step)("writing the scratch file");
        // Space that was never written reads as zeros, without the disk.
        let fill = Lane::new(load(Write, Sequential, LARGE_BYTES, false), bytes, self.time / OF_TIME);
        let fill = Rc::new(Lane { least_bytes: MIN_FILLED_BYTES, once: true, ..fill });
        self.run("writing", &file, &[(Rc::clone(&fill), LARGE_DEPTH)]).await?;
        file.sync_data().await.map_err(failed("write", &self.directory))?;
        let filled = fill.next.get().min(bytes);
        let mut measured = Vec::new();
        for (done, phase) in PHASES.iter().enumerate() {
            (self.step)(phase.name);
            let left = self.time.saturating_sub(self.started.elapsed());
            let part = left / u32::try_from(PHASES.len() - done).unwrap_or(1);
            measured.extend(self.phase(phase, &file, filled, part).await?);
        }
        Ok((filled, measured))
    }

    async fn phase(
        &self,
        phase: &Phase,
        file: &Rc<File>,
        size: u64,
        time: Duration,
    ) -> Result<Vec<Measured>, CalibrateError> {
        let sharing = u32::try_from(phase.loads.len()).unwrap_or(1);
        let lanes: Vec<_> = phase
            .loads
            .iter()
            .map(|load| {
                let depth = if load.bytes == SMALL_BYTES { SMALL_DEPTH } else { LARGE_DEPTH };
                (Rc::new(Lane::new(*load, size, time)), depth / sharing)
            })
            .collect();
        self.run(phase.name, file, &lanes).await?;
        let figures = |(lane, depth): &(Rc<Lane>, u32)| Measured {
            load: lane.load,
            depth: *depth,
            figures: lane.tally.borrow().figures(),
        };
        Ok(lanes.iter().map(figures).collect())
    }

    /// Keeps as many requests under way as the lanes are deep, until their time is over.
    async fn run(
        &self,
        phase: &'static str,
        file: &Rc<File>,
        lanes: &[(Rc<Lane>, u32)],
    ) -> Result<(), CalibrateError> {
        let work = lanes.iter().flat_map(|(lane, depth)| (0..*depth).map(move |_| lane));
        let workers: Vec<_> =
            work.map(|lane| tokio_uring::spawn(Rc::clone(lane).work(Rc::clone(file)))).collect();
        let mut result = Ok(());
        for worker in workers {
            let ended = worker.await.map_err(io::Error::other).and_then(|ended| ended);
            result = result.and(ended);
        }
        let directory = &self.directory;
        result.map_err(|source| CalibrateError::Request { phase, directory: directory.clone(), source })
    }
}

/// One kind of request, by several workers at once.
struct Lane {
    load: Load,
    size: u64,
    started: Instant,
    time: Duration,
    /// Goes on until so much is done, also beyond the time.
    least_bytes: u64,
    /// Ends with the file.
    once: bool,
    /// Where the next request goes; for random ones, the state of the numbers.
    next: Cell<u64>,
    tally: RefCell<Tally>,
}

impl Lane {
    fn new(load: Load, size: u64, time: Duration) -> Self {
        let (next, tally) = (Cell::new(0), RefCell::new(Tally::new()));
        Self { load, size, started: Instant::now(), time, least_bytes: 0, once: false, next, tally }
    }

    /// Where the next request starts; `None` when there is none.
    fn offset(&self) -> Option<u64> {
        let next = self.next.get();
        let bytes = u64::from(self.load.bytes);
        match self.load.order {
            Sequential if self.once && next >= self.size => None,
            Sequential => {
                self.next.set(next + bytes);
                Some(next % self.size)
            }
            Random => {
                let (state, number) = scramble(next);
                self.next.set(state);
                Some(number % (self.size / bytes).max(1) * bytes)
            }
        }
    }

    async fn work(self: Rc<Self>, file: Rc<File>) -> io::Result<()> {
        let length = self.load.bytes as usize;
        let mut buffer = aligned(length);
        loop {
            let Some(offset) = self.offset() else { return Ok(()) };
            let sent = Instant::now();
            let (result, back) = match self.load.direction {
                Read => file.read_at(buffer, offset).await,
                Write => file.write_at(buffer, offset).submit().await,
            };
            let (latency, moved) = (sent.elapsed(), result?);
            if moved != length {
                return Err(io::Error::other(format!("{moved} bytes of {length} at {offset}")));
            }
            buffer = back;
            self.tally.borrow_mut().complete(u64::from(self.load.bytes), latency, self.started.elapsed());
            // At least one request each, so that there is a figure.
            if self.started.elapsed() >= self.time && self.next.get() >= self.least_bytes {
                return Ok(());
            }
        }
    }
}

/// Bytes that no disk can compress or find twice, at an address that direct requests can have.
fn aligned(length: usize) -> Slice<Vec<u8>> {
    let mut state = std::process::id().into();
    let mut bytes = Vec::with_capacity(length + ALIGNMENT + 8);
    while bytes.len() < length + ALIGNMENT {
        let (next, number) = scramble(state);
        state = next;
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    bytes.slice(start..start + length)
}

/// The next state and a number from it (SplitMix64): every number once before one comes again.
fn scramble(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, mixed ^ (mixed >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_file_leaves_others_their_space() {
        assert_eq!(size_for(0), None);
        assert_eq!(size_for((256 << 20) - 1), None);
        assert_eq!(size_for(256 << 20), Some(64 << 20));
        assert_eq!(size_for((256 << 20) + 5), Some(64 << 20));
        assert_eq!(size_for(u64::MAX), Some(SCRATCH_BYTES));
    }

    #[test]
    fn requests_stay_in_the_file_and_on_its_blocks() {
        let size = 5 << 20;
        for order in [Sequential, Random] {
            let lane = Lane::new(load(Read, order, SMALL_BYTES, false), size, Duration::ZERO);
            for _ in 0..5000 {
                let offset = lane.offset().unwrap();
                assert!(
                    offset + u64::from(SMALL_BYTES) <= size && offset.is_multiple_of(u64::from(SMALL_BYTES))
                );
            }
        }
        let fill = Lane::new(load(Write, Sequential, LARGE_BYTES, false), size, Duration::ZERO);
        let fill = Lane { once: true, ..fill };
        assert_eq!(std::iter::from_fn(|| fill.offset()).count(), 5);
    }

    #[test]
    fn buffers_are_aligned_and_differ_within() {
        let buffer = aligned(SMALL_BYTES as usize);
        assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!(buffer.len(), SMALL_BYTES as usize);
        assert_ne!(buffer[..8], buffer[8..16]);
    }
}
