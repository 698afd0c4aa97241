//! One append-only file whose records are on the disk before anybody is told so.
//!
//! A thread of its own runs an io_uring (tokio-uring): it takes every record that is waiting, writes them
//! with one write and one fdatasync, and then answers all of them (group commit). Where io_uring is not
//! available the same thread does the same with pwrite and fdatasync.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use tokio::sync::{mpsc, oneshot};

/// The thread that writes is gone, or the disk refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("append to {}", path.display())]
pub struct AppendError {
    path: PathBuf,
    #[source]
    source: Arc<io::Error>,
}

/// Records that may wait for the disk; beyond it appending waits too.
const QUEUE_RECORDS: usize = 4096;
/// A batch stops growing here, so that the first record of a burst is not kept waiting for the last.
const BATCH_BYTES: usize = 1 << 20;

struct Record {
    bytes: Vec<u8>,
    done: oneshot::Sender<Result<(), AppendError>>,
}

/// The handle: cheap to clone, usable from any task. The thread ends with the last handle.
#[derive(Clone, Debug)]
pub struct Appender {
    path: PathBuf,
    records: mpsc::Sender<Record>,
    through_uring: bool,
}

impl Appender {
    /// Takes over `file`, whose next record goes to offset `end`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(path: &Path, file: File, end: u64) -> Result<Self, AppendError> {
        let (records, queue) = mpsc::channel(QUEUE_RECORDS);
        let through_uring = io_uring_works();
        let writer = Writer { path: path.to_owned(), end, queue };
        let run = move || {
            if through_uring {
                tokio_uring::start(writer.run(UringFile(tokio_uring::fs::File::from_std(file))));
            } else {
                writer.run_blocking(&file);
            }
        };
        match thread::Builder::new().name("journal".into()).spawn(run) {
            Ok(_detached) => Ok(Self { path: path.to_owned(), records, through_uring }),
            Err(source) => Err(AppendError { path: path.to_owned(), source: Arc::new(source) }),
        }
    }

    /// Is the file written through io_uring?
    pub fn through_uring(&self) -> bool {
        self.through_uring
    }

    /// Appends; returns when the bytes are on the disk.
    ///
    /// # Errors
    /// [`AppendError`]; the record may then be there in part, which a reader's checksum must notice.
    ///
    /// # Cancel safety
    /// A dropped future may or may not have appended.
    pub async fn append(&self, bytes: Vec<u8>) -> Result<(), AppendError> {
        let (done, answer) = oneshot::channel();
        let gone = || AppendError {
            path: self.path.clone(),
            source: Arc::new(io::Error::other("the writing thread has ended after an earlier error")),
        };
        self.records.send(Record { bytes, done }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Can a ring be made here? Seccomp, sysctl or an old kernel may forbid it.
pub fn io_uring_works() -> bool {
    // tokio-uring panics where its runtime cannot get a ring, so it is asked beforehand.
    let mut params = [0u64; 15];
    // SAFETY: io_uring_setup writes a struct io_uring_params (120 bytes) into `params`, which is that large,
    // and returns a descriptor or minus one.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2u32, params.as_mut_ptr()) };
    if fd < 0 {
        return false;
    }
    // SAFETY: a descriptor that was just made and is used nowhere else.
    unsafe { libc::syscall(libc::SYS_close, fd) };
    true
}

struct UringFile(tokio_uring::fs::File);

struct Writer {
    path: PathBuf,
    end: u64,
    queue: mpsc::Receiver<Record>,
}

impl Writer {
    async fn run(mut self, file: UringFile) {
        while let Some(first) = self.queue.recv().await {
            let (bytes, waiting) = self.batch(first);
            let length = bytes.len() as u64;
            let (written, _) = file.0.write_all_at(bytes, self.end).await;
            let result = match written {
                Ok(()) => file.0.sync_data().await,
                Err(e) => Err(e),
            };
            if !self.answer(length, result, waiting) {
                return;
            }
        }
    }

    fn run_blocking(mut self, file: &File) {
        while let Some(first) = self.queue.blocking_recv() {
            let (bytes, waiting) = self.batch(first);
            let result = file.write_all_at(&bytes, self.end).and_then(|()| file.sync_data());
            if !self.answer(bytes.len() as u64, result, waiting) {
                return;
            }
        }
    }

    /// The record, and all that are waiting behind it.
    fn batch(&mut self, first: Record) -> (Vec<u8>, Vec<oneshot::Sender<Result<(), AppendError>>>) {
        let mut bytes = first.bytes;
        let mut waiting = vec![first.done];
        while bytes.len() < BATCH_BYTES {
            let Ok(next) = self.queue.try_recv() else { break };
            bytes.extend_from_slice(&next.bytes);
            waiting.push(next.done);
        }
        (bytes, waiting)
    }

    /// Tells everybody. False after an error: what follows a torn record could not be read back, so
    /// nothing more is written.
    fn answer(
        &mut self,
        length: u64,
        result: io::Result<()>,
        waiting: Vec<oneshot::Sender<Result<(), AppendError>>>,
    ) -> bool {
        let result = result.map_err(|e| AppendError { path: self.path.clone(), source: Arc::new(e) });
        let fine = result.is_ok();
        if fine {
            self.end += length;
        }
        for done in waiting {
            // A caller that stopped waiting is no reason to stop writing.
            drop(done.send(result.clone()));
        }
        fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_are_there_in_order_when_append_returns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let appender = Appender::start(&path, File::create(&path).unwrap(), 0).unwrap();
        let many: Vec<_> = (0..100u8).map(|n| appender.append(vec![n; 3])).collect();
        for result in futures::future::join_all(many).await {
            result.unwrap();
        }
        let expected: Vec<u8> = (0..100u8).flat_map(|n| [n; 3]).collect();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }

    #[tokio::test]
    async fn a_refusing_disk_is_reported_and_nothing_follows_a_torn_record() {
        let path = Path::new("/dev/full");
        let file = File::options().write(true).open(path).unwrap();
        let appender = Appender::start(path, file, 0).unwrap();
        let first = appender.append(vec![1]).await.unwrap_err();
        assert!(first.to_string().contains("/dev/full"), "{first}");
        assert!(appender.append(vec![2]).await.is_err());
    }
}
