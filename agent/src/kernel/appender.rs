//! One append-only file whose records are on the disk before anybody is told so.
//!
//! A thread of its own runs an io_uring (tokio-uring): it takes every record that is waiting, writes them
//! with one write and one fdatasync, and then answers all of them (group commit). Where io_uring is not
//! available the same thread does the same with pwrite and fdatasync.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
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

enum Job {
    Append { bytes: Vec<u8>, done: Done },
    Replace(Vec<u8>),
}

type Done = oneshot::Sender<Result<(), AppendError>>;

/// The handle: cheap to clone, usable from any task. The thread ends with the last handle.
#[derive(Clone, Debug)]
pub struct Appender {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    through_uring: bool,
}

impl Appender {
    /// Takes over `file`, whose next record goes to offset `end`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(path: &Path, file: File, end: u64) -> Result<Self, AppendError> {
        let (jobs, queue) = mpsc::channel(QUEUE_RECORDS);
        let through_uring = io_uring_works();
        let writer = Writer { path: path.to_owned(), end, queue, replacement: None };
        let run = move || {
            if through_uring {
                tokio_uring::start(writer.run(file));
            } else {
                writer.run_blocking(file);
            }
        };
        match thread::Builder::new().name("journal".into()).spawn(run) {
            Ok(_detached) => Ok(Self { path: path.to_owned(), jobs, through_uring }),
            Err(source) => Err(AppendError { path: path.to_owned(), source: Arc::new(source) }),
        }
    }

    /// Is the file written through io_uring?
    pub fn through_uring(&self) -> bool {
        self.through_uring
    }

    /// Queues a record. The future that is returned is ready when the bytes are on the disk; the order of
    /// the file is the order of the calls.
    ///
    /// # Errors
    /// [`AppendError`]; the record may then be there in part, which a reader's checksum must notice.
    ///
    /// # Cancel safety
    /// A future that is dropped may or may not have appended.
    pub async fn append(
        &self,
        bytes: Vec<u8>,
    ) -> Result<impl Future<Output = Result<(), AppendError>> + use<>, AppendError> {
        let (done, answer) = oneshot::channel();
        self.jobs.send(Job::Append { bytes, done }).await.map_err(|_| gone(&self.path))?;
        let path = self.path.clone();
        Ok(async move { answer.await.map_err(|_| gone(&path))? })
    }

    /// Queues a replacement of the whole file by these bytes. The old file stays where that fails.
    ///
    /// # Errors
    /// [`AppendError`] when the writing thread has ended.
    pub async fn replace(&self, bytes: Vec<u8>) -> Result<(), AppendError> {
        self.jobs.send(Job::Replace(bytes)).await.map_err(|_| gone(&self.path))
    }
}

fn gone(path: &Path) -> AppendError {
    let source = io::Error::other("the writing thread has ended after an earlier error");
    AppendError { path: path.to_owned(), source: Arc::new(source) }
}

/// Puts a new file with these bytes in the place of `path`, durably: after a crash there is the old one or the new one.
///
/// Only root can read it: a journal has the arguments and variables of all tasks.
///
/// # Errors
/// The kernel's; `path` is then as it was.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    if let Err(error) = File::open(directory).and_then(|dir| dir.sync_all()) {
        // The new file is in its place for everybody; only a crash of the host could bring the old one back.
        tracing::warn!(directory = %directory.display(), %error, "sync a directory");
    }
    Ok(file)
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

struct Writer {
    path: PathBuf,
    end: u64,
    queue: mpsc::Receiver<Job>,
    /// A replacement that came while a batch was collected.
    replacement: Option<Vec<u8>>,
}

impl Writer {
    async fn run(mut self, file: File) {
        // For what the ring has no call for.
        let Ok(mut plain) = file.try_clone() else { return };
        let mut file = tokio_uring::fs::File::from_std(file);
        while let Some(job) = self.queue.recv().await {
            let (bytes, waiting) = self.batch(job);
            if !bytes.is_empty() {
                let length = bytes.len() as u64;
                let (written, _) = file.write_all_at(bytes, self.end).await;
                let result = match written {
                    Ok(()) => file.sync_data().await,
                    Err(e) => Err(e),
                };
                if !self.answer(length, result, waiting, &plain) {
                    return;
                }
            }
            if let Some(new) = self.replace() {
                let Ok(copy) = new.try_clone() else { return };
                plain = copy;
                file = tokio_uring::fs::File::from_std(new);
            }
        }
    }

    fn run_blocking(mut self, mut file: File) {
        while let Some(job) = self.queue.blocking_recv() {
            let (bytes, waiting) = self.batch(job);
            let result = file.write_all_at(&bytes, self.end).and_then(|()| file.sync_data());
            if !self.answer(bytes.len() as u64, result, waiting, &file) {
                return;
            }
            if let Some(new) = self.replace() {
                file = new;
            }
        }
    }

    /// The job and the records that are waiting behind it, up to a replacement.
    fn batch(&mut self, first: Job) -> (Vec<u8>, Vec<Done>) {
        let (mut bytes, mut waiting) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Append { bytes: record, done } => {
                    bytes.extend_from_slice(&record);
                    waiting.push(done);
                }
                Job::Replace(new) => {
                    self.replacement = Some(new);
                    break;
                }
            }
            next = if bytes.len() < BATCH_BYTES { self.queue.try_recv().ok() } else { None };
        }
        (bytes, waiting)
    }

    /// Carries a replacement out. Where that fails the old file says the same at greater length.
    fn replace(&mut self) -> Option<File> {
        let bytes = self.replacement.take()?;
        match replace_file(&self.path, &bytes) {
            Ok(file) => {
                self.end = bytes.len() as u64;
                Some(file)
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "compact the journal; it goes on growing");
                None
            }
        }
    }

    /// Tells everybody. After an error the torn record is cut off, so that what follows can be read back:
    /// a full disk may have room again. False where even that fails, and nothing more may be written.
    fn answer(&mut self, length: u64, result: io::Result<()>, waiting: Vec<Done>, file: &File) -> bool {
        let result = result.map_err(|e| AppendError { path: self.path.clone(), source: Arc::new(e) });
        let usable = match &result {
            Ok(()) => {
                self.end += length;
                true
            }
            Err(_) => file.set_len(self.end).is_ok(),
        };
        for done in waiting {
            // A caller that stopped waiting is no reason to stop writing.
            drop(done.send(result.clone()));
        }
        usable
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
        let mut durable = Vec::new();
        for n in 0..100u8 {
            durable.push(appender.append(vec![n; 3]).await.unwrap());
        }
        for result in futures::future::join_all(durable).await {
            result.unwrap();
        }
        let expected: Vec<u8> = (0..100u8).flat_map(|n| [n; 3]).collect();
        assert_eq!(fs::read(&path).unwrap(), expected);

        appender.replace(vec![7; 2]).await.unwrap();
        appender.append(vec![8]).await.unwrap().await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), [7, 7, 8]);
    }

    #[tokio::test]
    async fn a_refusing_disk_is_reported_and_nothing_follows_a_torn_record() {
        let path = Path::new("/dev/full");
        let file = File::options().write(true).open(path).unwrap();
        let appender = Appender::start(path, file, 0).unwrap();
        let first = appender.append(vec![1]).await.unwrap().await.unwrap_err();
        assert!(first.to_string().contains("/dev/full"), "{first}");
        let second = match appender.append(vec![2]).await {
            Ok(durable) => durable.await,
            Err(error) => Err(error),
        };
        assert!(second.is_err());
    }
}
