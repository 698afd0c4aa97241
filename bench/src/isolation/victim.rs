//! What is disturbed: each does small pieces of work for a while and prints how long they took, as JSON.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::latency::Latencies;

/// Between two requests of the service's client.
const THINK: Duration = Duration::from_millis(1);
/// Rounds of arithmetic for one request: some tens of microseconds.
const REQUEST_ROUNDS: u64 = 20_000;
/// What the memory victim walks through: more than usual caches hold, less than it is granted.
const WORKING_SET_BYTES: usize = 48 << 20;
const WALK_STEPS: usize = 2_000;
/// What the page cache victim reads again and again.
const CACHED_BYTES: usize = 48 << 20;
const CACHED_READ_BYTES: usize = 256 << 10;
const DISK_FILE_BYTES: u64 = 32 << 20;
const BLOCK_BYTES: usize = 4096;
/// Of the disk victim's operations, one in this many is a write.
const WRITE_ONE_IN: u64 = 4;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Victim {
    /// A service that answers requests over loopback
    Service,
    /// A walk through memory, each step dependent on the one before
    Memory,
    /// Reads of a file that is in the page cache
    PageCache,
    /// Random reads and writes of 4 KiB, past the page cache
    Disk,
}

/// What a victim measured of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
    pub(crate) per_second: f64,
}

impl Victim {
    /// As the command line names it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The command line that is this victim.
    pub(crate) fn arguments(self, seconds: u64) -> Vec<String> {
        vec!["victim".to_owned(), self.name(), seconds.to_string()]
    }

    /// Works in the current directory until the time is over.
    pub(crate) fn run(self, seconds: u64) -> Result<Measured> {
        let time = Duration::from_secs(seconds);
        match self {
            Self::Service => service(time),
            Self::Memory => memory(time),
            Self::PageCache => page_cache(time),
            Self::Disk => disk(time),
        }
    }
}

/// Repeats the work and takes the time of each piece.
fn measure(time: Duration, pause: Duration, mut work: impl FnMut(u64) -> Result<()>) -> Result<Measured> {
    let mut latencies = Latencies::new()?;
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        let begun = Instant::now();
        work(count)?;
        latencies.add(begun.elapsed());
        count += 1;
        thread::sleep(pause);
    }
    let summary = latencies.summary();
    let per_second = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / start.elapsed().as_secs_f64();
    let (p50_us, p99_us, max_us) = (summary.p50_us, summary.p99_us, summary.max_us);
    Ok(Measured { p50_us, p99_us, max_us, per_second })
}

/// Numbers that no compiler foresees: Knuth's linear congruential generator.
fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

fn index(state: u64, below: usize) -> usize {
    usize::try_from(state >> 33).unwrap_or(0) % below
}

fn service(time: Duration) -> Result<Measured> {
    // A port of the kernel's choice needs no grant inside the same process: a socket pair would not pass the stack.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, granted_port()))?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || answer(&listener));
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let measured = measure(time, THINK, |count| {
        stream.write_all(&count.to_le_bytes())?;
        stream.read_exact(&mut [0; 8])?;
        Ok(())
    });
    drop(stream);
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    measured
}

/// A task binds what it was granted; a plain process, anything.
fn granted_port() -> u16 {
    std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(0)
}

fn answer(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut request = [0; 8];
    while stream.read_exact(&mut request).is_ok() {
        let result = (0..REQUEST_ROUNDS).fold(u64::from_le_bytes(request), |state, _| next(state));
        stream.write_all(&result.to_le_bytes())?;
    }
    Ok(())
}

fn memory(time: Duration) -> Result<Measured> {
    let mut state = 1;
    let cells = WORKING_SET_BYTES / size_of::<usize>();
    let walk: Vec<usize> = (0..cells)
        .map(|_| {
            state = next(state);
            index(state, cells)
        })
        .collect();
    let mut at = 0;
    measure(time, Duration::ZERO, |count| {
        at = index(next(count), cells);
        for _ in 0..WALK_STEPS {
            at = walk[at];
        }
        std::hint::black_box(at);
        Ok(())
    })
}

fn page_cache(time: Duration) -> Result<Measured> {
    let path = Path::new("cached");
    let file = scratch(path, u64::try_from(CACHED_BYTES)?, 0)?;
    let mut buffer = vec![0; CACHED_READ_BYTES];
    let pieces = CACHED_BYTES / CACHED_READ_BYTES;
    measure(time, Duration::ZERO, |count| {
        let piece = index(next(count), pieces) * CACHED_READ_BYTES;
        Ok(file.read_exact_at(&mut buffer, u64::try_from(piece)?)?)
    })
}

fn disk(time: Duration) -> Result<Measured> {
    let file = scratch(Path::new("blocks"), DISK_FILE_BYTES, libc::O_DIRECT)?;
    let blocks = usize::try_from(DISK_FILE_BYTES)? / BLOCK_BYTES;
    let mut buffer = Aligned::new(BLOCK_BYTES);
    measure(time, Duration::ZERO, |count| {
        let at = u64::try_from(index(next(count), blocks) * BLOCK_BYTES)?;
        if count % WRITE_ONE_IN == 0 {
            file.write_all_at(buffer.bytes(), at)?;
        } else {
            file.read_exact_at(buffer.bytes(), at)?;
        }
        Ok(())
    })
}

/// A file that is really there, opened once more with these flags.
pub(super) fn scratch(path: &Path, bytes: u64, flags: i32) -> Result<File> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    io::copy(&mut io::repeat(0x5a).take(bytes), &mut file)?;
    file.sync_all()?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options.open(path).with_context(|| format!("open {} past the page cache", path.display()))
}

/// Memory that direct I/O takes.
pub(super) struct Aligned {
    memory: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Aligned {
    /// This many bytes, at a multiple of a block.
    pub(super) fn new(len: usize) -> Self {
        let memory = vec![0x5a; len + BLOCK_BYTES];
        let begin = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, begin, len }
    }

    /// The bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_work_is_counted() {
        let measured = measure(Duration::from_millis(20), Duration::from_millis(1), |_| Ok(())).unwrap();
        assert!(measured.per_second > 0.0 && measured.p50_us <= measured.p99_us, "{measured:?}");
        assert!(measured.p99_us <= measured.max_us, "{measured:?}");
    }

    #[test]
    fn direct_memory_begins_at_a_block() {
        let mut memory = Aligned::new(BLOCK_BYTES);
        assert_eq!(memory.bytes().as_ptr().align_offset(BLOCK_BYTES), 0);
        assert_eq!(memory.bytes().len(), BLOCK_BYTES);
    }
}
