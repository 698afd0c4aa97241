//! What disturbs: each takes as much of one thing as it can get, until it is killed.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::victim::{Aligned, scratch};

/// More than the processors, so that each of them has several.
const THREADS_PER_CPU: usize = 4;
/// More than usual caches hold, for each thread.
const STREAM_BYTES: usize = 32 << 20;
/// What the hog takes at a time.
const HOG_STEP_BYTES: usize = 8 << 20;
/// Of what is available, the hog leaves this part: the machine must live.
const HOG_LEAVES_PERCENT: u64 = 10;
const DISK_THREADS: usize = 8;
const DISK_FILE_BYTES: u64 = 16 << 20;
const DISK_BLOCK_BYTES: usize = 256 << 10;
const DIRTY_FILE_BYTES: u64 = 96 << 20;

/// A kind of disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Antagonist {
    /// Threads that compute
    Cpu,
    /// Threads that stream through memory
    MemoryBandwidth,
    /// Memory taken until hardly any is left, so that the kernel reclaims
    Reclaim,
    /// Large reads and writes past the page cache, from many threads
    Disk,
    /// Processes made as fast as possible
    Fork,
    /// A file written and read through the page cache, again and again
    PageCache,
}

impl Antagonist {
    /// As the command line names it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The command line that is this antagonist.
    pub(crate) fn arguments(self) -> Vec<String> {
        vec!["antagonist".to_owned(), self.name()]
    }

    /// Disturbs from the current directory until it is killed.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Cpu => everywhere(|_| {
                loop {
                    std::hint::black_box((0..u64::from(u16::MAX)).fold(0, u64::wrapping_add));
                }
            }),
            Self::MemoryBandwidth => everywhere(|_| stream()),
            Self::Reclaim => hog(),
            Self::Disk => in_threads(DISK_THREADS, move_blocks),
            Self::Fork => everywhere(|_| forks()),
            Self::PageCache => dirty(),
        }
    }
}

fn everywhere(work: fn(usize) -> Result<()>) -> Result<()> {
    in_threads(thread::available_parallelism()?.get() * THREADS_PER_CPU, work)
}

/// Ends with the first thread that fails.
fn in_threads(count: usize, work: fn(usize) -> Result<()>) -> Result<()> {
    let (failed, failure) = std::sync::mpsc::channel();
    for number in 0..count {
        let failed = failed.clone();
        thread::spawn(move || failed.send(work(number)));
    }
    failure.recv()?
}

fn stream() -> Result<()> {
    let (from, mut to) = (vec![1_u8; STREAM_BYTES / 2], vec![0_u8; STREAM_BYTES / 2]);
    loop {
        to.copy_from_slice(&from);
        std::hint::black_box(&mut to);
    }
}

/// Takes memory, and walks through all of it again and again.
fn hog() -> Result<()> {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        if available_percent()? > HOG_LEAVES_PERCENT {
            taken.push(vec![1; HOG_STEP_BYTES]);
        }
        for piece in &mut taken {
            piece.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
        }
    }
}

fn available_percent() -> Result<u64> {
    use procfs::Current as _;
    let memory = procfs::Meminfo::current()?;
    Ok(memory.mem_available.unwrap_or(0) * 100 / memory.mem_total.max(1))
}

fn move_blocks(number: usize) -> Result<()> {
    let file = scratch(Path::new(&format!("noise-{number}")), DISK_FILE_BYTES, libc::O_DIRECT)?;
    let mut buffer = Aligned::new(DISK_BLOCK_BYTES);
    let blocks = DISK_FILE_BYTES / u64::try_from(DISK_BLOCK_BYTES)?;
    for count in 0.. {
        let at = count % blocks * u64::try_from(DISK_BLOCK_BYTES)?;
        if (count / blocks).is_multiple_of(2) {
            file.write_all_at(buffer.bytes(), at)?;
        } else {
            file.read_exact_at(buffer.bytes(), at)?;
        }
    }
    Ok(())
}

/// A fork that is refused at a limit is tried again: that is what bombs do.
fn forks() -> Result<()> {
    loop {
        let child = Command::new("/bin/true").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        if let Ok(mut child) = child {
            child.wait()?;
        }
    }
}

fn dirty() -> Result<()> {
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open("dirty")?;
    let mut buffer = vec![0x5a; 1 << 20];
    loop {
        file.seek(SeekFrom::Start(0))?;
        for _ in 0..DIRTY_FILE_BYTES >> 20 {
            file.write_all(&buffer)?;
        }
        file.seek(SeekFrom::Start(0))?;
        while file.read(&mut buffer)? > 0 {}
    }
}
