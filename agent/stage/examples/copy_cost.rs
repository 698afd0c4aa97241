//! What copying a file of 256 MiB costs, by copy_file_range(2) and by reads and writes through io_uring.
//!
//! `cargo run --release -p bulkhead-stage --example copy_cost [DIRECTORY]`: both files are made in the directory
//! (the current one), which must have 512 MiB free. Wall time and CPU time of the best of five copies, from the
//! page cache and to it: what the disk does is the same for both.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::copy_file_range,
    time::{ClockId, clock_gettime},
};

const FILE_BYTES: usize = 256 << 20;
const ROUNDS: usize = 5;
/// Of one read or write, and how many of each are under way at once.
const PIECE_BYTES: usize = 1 << 20;
const DEPTH: usize = 8;

fn main() -> io::Result<()> {
    let dir = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let source = tempfile::NamedTempFile::new_in(&dir)?;
    let mut file = source.as_file();
    let piece: Vec<u8> = (0..PIECE_BYTES).map(|i| u8::try_from(i % 251).unwrap_or_default()).collect();
    for _ in 0..FILE_BYTES / PIECE_BYTES {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let mut out = io::stdout().lock();
    for (name, copy) in [("copy_file_range", by_range as Copy), ("io_uring", by_ring)] {
        let mut best = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            let target = tempfile::NamedTempFile::new_in(&dir)?;
            let (started, cpu) = (Instant::now(), cpu_time());
            copy(source.path(), target.path())?;
            best = best.min((started.elapsed(), cpu_time() - cpu));
            assert_eq!(target.as_file().metadata()?.len(), FILE_BYTES as u64, "{name} copied everything");
        }
        writeln!(out, "{name:<16} {:>7.1} ms   {:>7.1} ms CPU", millis(best.0), millis(best.1))?;
    }
    Ok(())
}

type Copy = fn(&Path, &Path) -> io::Result<()>;

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Of the process, the kernel's workers for io_uring included: they are its threads.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn by_range(source: &Path, target: &Path) -> io::Result<()> {
    let (source, target) = (File::open(source)?, File::options().write(true).open(target)?);
    while copy_file_range(&source, None, &target, None, 4 << 20)? > 0 {}
    Ok(())
}

fn by_ring(source: &Path, target: &Path) -> io::Result<()> {
    tokio_uring::start(async {
        let source = std::rc::Rc::new(tokio_uring::fs::File::open(source).await?);
        let target = tokio_uring::fs::OpenOptions::new().write(true).open(target).await?;
        let target = std::rc::Rc::new(target);
        let lanes = (0..DEPTH).map(|lane| {
            let (source, target) = (source.clone(), target.clone());
            tokio_uring::spawn(async move {
                let mut buffer = vec![0; PIECE_BYTES];
                for piece in (lane..FILE_BYTES / PIECE_BYTES).step_by(DEPTH) {
                    let at = (piece * PIECE_BYTES) as u64;
                    let (read, full) = source.read_at(buffer, at).await;
                    if read? != PIECE_BYTES {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let (written, back) = target.write_at(full, at).submit().await;
                    if written? != PIECE_BYTES {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    buffer = back;
                }
                Ok::<(), io::Error>(())
            })
        });
        for lane in lanes.collect::<Vec<_>>() {
            lane.await.map_err(io::Error::other)??;
        }
        Ok(())
    })
}
