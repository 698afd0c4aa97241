//! Bytes from one file to another.
//!
//! A reflink where the file system has it (XFS, btrfs), else copy_file_range(2), which leaves the copy to the
//! kernel. Not io_uring: for 256 MiB in the page cache, to ext4, both took as long (0.7 s on a busy machine with two
//! CPUs and Linux 6.18), but reads and writes through a ring took 102 ms of CPU time, and copy_file_range 77 ms.
//! `cargo run --release -p bulkhead-stage --example copy_cost` measures it again.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
};

use rustix::{
    fs::{copy_file_range, ioctl_ficlone},
    io::Errno,
};

use crate::digest::{Algorithm, Digest, Hasher};

/// Copied at a time: whoever watches hears of it this often.
const PIECE_BYTES: usize = 4 << 20;
/// Read at a time where the bytes pass through here.
pub(crate) const BUFFER_BYTES: usize = 128 << 10;

/// A copy did not come to its end.
#[derive(Debug)]
pub(crate) enum CopyError<E> {
    /// Reading or writing failed.
    Io(io::Error),
    /// `piece` said no.
    Refused(E),
}

/// Copies everything from the start of `source` to the empty file `target`; `piece` hears of every byte once,
/// beforehand, and may end it.
pub(crate) fn copy<E>(
    source: &File,
    target: &File,
    piece: impl FnMut(u64) -> Result<(), E>,
) -> Result<(), CopyError<E>> {
    let bytes = source.metadata().map_err(CopyError::Io)?.len();
    let mut announced = Announced { piece, bytes: 0 };
    if bytes == 0 {
        return Ok(());
    }
    if ioctl_ficlone(target, source).is_ok() {
        return announced.up_to(bytes);
    }
    let (mut from, mut to) = (0, 0);
    loop {
        let wanted = usize::try_from(bytes.saturating_sub(from)).map_or(PIECE_BYTES, |b| b.min(PIECE_BYTES));
        if wanted == 0 {
            return Ok(());
        }
        announced.up_to(from + wanted as u64)?;
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            // Shorter than it was a moment ago.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // Different file systems, or one that cannot: nothing was copied so far.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) if from == 0 => {
                return by_hand(source, target, None, &mut announced).map(|_| ());
            }
            Err(e) => return Err(CopyError::Io(e.into())),
        }
    }
}

/// The same through memory, with the digest of what was copied.
pub(crate) fn copy_hashed<E>(
    source: &File,
    target: &File,
    algorithm: Algorithm,
    piece: impl FnMut(u64) -> Result<(), E>,
) -> Result<(u64, Digest), CopyError<E>> {
    let mut announced = Announced { piece, bytes: 0 };
    let (bytes, hasher) = by_hand(source, target, Some(Hasher::new(algorithm)), &mut announced)?;
    let hasher = hasher.unwrap_or_else(|| Hasher::new(algorithm));
    Ok((bytes, hasher.finish()))
}

/// Tells of bytes once, however often the kernel is asked for them.
struct Announced<F> {
    piece: F,
    bytes: u64,
}

impl<E, F: FnMut(u64) -> Result<(), E>> Announced<F> {
    /// What lies before `end` and was not told of is about to be copied.
    fn up_to(&mut self, end: u64) -> Result<(), CopyError<E>> {
        let more = end.saturating_sub(self.bytes);
        if more > 0 {
            (self.piece)(more).map_err(CopyError::Refused)?;
            self.bytes = end;
        }
        Ok(())
    }
}

fn by_hand<E>(
    mut source: &File,
    mut target: &File,
    mut hasher: Option<Hasher>,
    announced: &mut Announced<impl FnMut(u64) -> Result<(), E>>,
) -> Result<(u64, Option<Hasher>), CopyError<E>> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total = 0;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => return Ok((total, hasher)),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(CopyError::Io(e)),
        };
        announced.up_to(total + read as u64)?;
        target.write_all(&buffer[..read]).map_err(CopyError::Io)?;
        total += read as u64;
        if let Some(hasher) = &mut hasher {
            hasher.update(&buffer[..read]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Seek as _};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn files(content: &[u8]) -> (File, File) {
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(content).unwrap();
        source.rewind().unwrap();
        (source, tempfile::tempfile().unwrap())
    }

    fn content(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn every_way_copies_everything() {
        for len in [0, 1, BUFFER_BYTES, PIECE_BYTES + 1] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let (source, target) = files(&bytes);
            copy::<()>(&source, &target, |_| Ok(())).unwrap();
            assert_eq!(content(target), bytes);
            let (source, target) = files(&bytes);
            let (copied, digest) =
                copy_hashed::<()>(&source, &target, Algorithm::Sha256, |_| Ok(())).unwrap();
            assert_eq!((copied, digest), (len as u64, Digest::of(Algorithm::Sha256, &bytes)));
            assert_eq!(content(target), bytes);
        }
    }

    /// A file of memory is on another file system, where the copy begins anew by hand.
    #[test]
    fn every_byte_is_told_of_once() {
        let memory = File::from(memfd_create("source", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(PIECE_BYTES as u64 + 3).unwrap();
        for source in [files(&vec![0; PIECE_BYTES + 3]).0, memory] {
            let (target, mut told) = (tempfile::tempfile().unwrap(), 0);
            let count = |bytes| {
                told += bytes;
                Ok::<_, ()>(())
            };
            copy(&source, &target, count).unwrap();
            assert_eq!(told, PIECE_BYTES as u64 + 3);
            assert_eq!(target.metadata().unwrap().len(), told);
        }
    }

    #[test]
    fn what_is_refused_is_not_copied() {
        let (source, target) = files(&[7; 100]);
        assert!(matches!(copy(&source, &target, |_| Err("no")), Err(CopyError::Refused("no"))));
        assert!(matches!(
            copy_hashed(&source, &target, Algorithm::Sha256, |_| Err("no")),
            Err(CopyError::Refused("no"))
        ));
        assert_eq!(content(target), b"");
    }

    #[test]
    fn another_file_system_is_no_obstacle() {
        let Ok(target) = tempfile::tempfile_in("/dev/shm") else {
            println!("skipped: no /dev/shm");
            return;
        };
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(&path, "across").unwrap();
        copy::<()>(&File::open(&path).unwrap(), &target, |_| Ok(())).unwrap();
        assert_eq!(content(target), b"across");
    }
}
