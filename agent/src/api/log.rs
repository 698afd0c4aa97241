//! A task's output as a stream: what is there, and with `follow` what comes, until the task has ended.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use bulkhead_proto::v1::{LogChunk, LogStream, ReadLogRequest};
use futures::{Stream, stream};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{io::Interest, sync::watch};
use tonic::Status;

use crate::{keeper::Located, kernel::ready::Ready, launch::Sandbox};

/// Bytes in one message: large enough to be cheap, small enough that a reader sees progress.
const CHUNK_BYTES: usize = 64 * 1024;

/// One of the two files.
struct Output {
    stream: LogStream,
    file: File,
    offset: u64,
}

/// Where the reading stands.
struct Reader {
    outputs: Vec<Output>,
    follow: Option<Follow>,
    /// The task was over before the last look, so nothing more can come.
    complete: bool,
}

/// Wakes when a file grows or the task ends.
struct Follow {
    changes: Ready,
    inotify: Inotify,
    ended: watch::Receiver<bool>,
}

/// Opens the output that is asked for.
///
/// # Errors
/// NOT_FOUND where the sandbox is gone, INTERNAL where it cannot be read.
pub(super) fn read(
    located: Located,
    request: &ReadLogRequest,
) -> Result<impl Stream<Item = Result<LogChunk, Status>> + use<>, Status> {
    let sandbox = Sandbox::at(located.sandbox);
    let wanted = match request.stream() {
        LogStream::Unspecified => vec![LogStream::Stdout, LogStream::Stderr],
        one => vec![one],
    };
    let mut outputs = Vec::new();
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
        .map_err(|e| Status::internal(format!("inotify_init: {e}")))?;
    for stream in wanted {
        let (path, offset) = match stream {
            LogStream::Stderr => (sandbox.stderr(), request.stderr_offset),
            _ => (sandbox.stdout(), request.stdout_offset),
        };
        // The watch comes before the first read, so that nothing falls between the two.
        let watched = inotify.add_watch(&path, AddWatchFlags::IN_MODIFY);
        let file =
            watched.map_err(io::Error::from).and_then(|_| open(&path)).map_err(|e| unreadable(&path, &e))?;
        let offset = match (request.tail_bytes, file.metadata()) {
            (tail, Ok(meta)) if tail > 0 => offset.max(meta.len().saturating_sub(tail)),
            _ => offset,
        };
        outputs.push(Output { stream, file, offset });
    }
    let follow = if request.follow { Some(Follow::new(inotify, located.ended)?) } else { None };
    Ok(stream::try_unfold(Reader { outputs, follow, complete: false }, next))
}

/// The next piece of output; waits for one while following.
async fn next(mut reader: Reader) -> Result<Option<(LogChunk, Reader)>, Status> {
    loop {
        for output in &mut reader.outputs {
            if let Some(chunk) = output.read()? {
                return Ok(Some((chunk, reader)));
            }
        }
        if reader.complete {
            return Ok(None);
        }
        match &mut reader.follow {
            None => return Ok(None),
            // Once it has ended, one more look takes what it wrote last.
            Some(follow) => reader.complete = follow.wait().await?,
        }
    }
}

impl Output {
    fn read(&mut self) -> Result<Option<LogChunk>, Status> {
        let mut data = vec![0; CHUNK_BYTES];
        let count = self
            .file
            .read_at(&mut data, self.offset)
            .map_err(|e| Status::internal(format!("read the task's output: {e}")))?;
        if count == 0 {
            return Ok(None);
        }
        data.truncate(count);
        let chunk = LogChunk { stream: self.stream.into(), offset: self.offset, data };
        self.offset += count as u64;
        Ok(Some(chunk))
    }
}

impl Follow {
    fn new(inotify: Inotify, ended: watch::Receiver<bool>) -> Result<Self, Status> {
        let copy = inotify.as_fd().try_clone_to_owned();
        let changes = copy
            .and_then(|fd| Ready::watch(fd, Interest::READABLE))
            .map_err(|e| Status::internal(format!("watch the task's output: {e}")))?;
        Ok(Self { changes, inotify, ended })
    }

    /// True when the task has ended, false when a file may have grown.
    async fn wait(&mut self) -> Result<bool, Status> {
        tokio::select! {
            // The keeper going away ends the following too.
            result = self.ended.wait_for(|ended| *ended) => { drop(result); Ok(true) }
            ready = self.changes.wait() => {
                ready.map_err(|e| Status::internal(format!("wait for output: {e}")))?;
                // Which file changed does not matter: both are read.
                while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
                Ok(false)
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn unreadable(path: &Path, error: &io::Error) -> Status {
    if error.kind() == io::ErrorKind::NotFound {
        return Status::not_found(format!(
            "{} is not there: the task did not start, or its sandbox was removed",
            path.display()
        ));
    }
    Status::internal(format!("open {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures::StreamExt as _;

    use super::*;

    fn sandbox() -> (tempfile::TempDir, Sandbox, File) {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::at(dir.path());
        let stdout = Sandbox::open_output(&sandbox.stdout()).unwrap();
        Sandbox::open_output(&sandbox.stderr()).unwrap();
        (dir, sandbox, stdout)
    }

    fn located(sandbox: &Sandbox) -> (watch::Sender<bool>, Located) {
        let (sender, ended) = watch::channel(false);
        (sender, Located { sandbox: sandbox.dir().to_owned(), ended })
    }

    #[tokio::test]
    async fn following_sees_what_comes_and_ends_with_the_task() {
        let (_dir, sandbox, mut stdout) = sandbox();
        stdout.write_all(b"one ").unwrap();
        let (ended, place) = located(&sandbox);
        let request = ReadLogRequest { follow: true, ..Default::default() };
        let mut log = Box::pin(read(place, &request).unwrap());
        assert_eq!(log.next().await.unwrap().unwrap().data, b"one ");
        let more = tokio::spawn(async move { log.next().await.map(|c| (c.unwrap(), log)) });
        stdout.write_all(b"two ").unwrap();
        let (chunk, mut log) = more.await.unwrap().unwrap();
        assert_eq!((chunk.data.as_slice(), chunk.offset), (b"two ".as_slice(), 4));
        stdout.write_all(b"last").unwrap();
        ended.send_replace(true);
        assert_eq!(log.next().await.unwrap().unwrap().data, b"last");
        assert!(log.next().await.is_none());
    }

    #[tokio::test]
    async fn a_tail_starts_near_the_end() {
        let (_dir, sandbox, mut stdout) = sandbox();
        stdout.write_all(b"0123456789").unwrap();
        let (_ended, place) = located(&sandbox);
        let request =
            ReadLogRequest { tail_bytes: 3, stream: LogStream::Stdout.into(), ..Default::default() };
        let chunks: Vec<_> = read(place, &request).unwrap().collect().await;
        assert_eq!(chunks.len(), 1);
        let chunk = chunks[0].as_ref().unwrap();
        assert_eq!((chunk.data.as_slice(), chunk.offset), (b"789".as_slice(), 7));
    }

    #[tokio::test]
    async fn a_link_in_place_of_the_output_is_not_followed() {
        let (_dir, sandbox, _stdout) = sandbox();
        std::fs::remove_file(sandbox.stdout()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", sandbox.stdout()).unwrap();
        let (_ended, place) = located(&sandbox);
        assert!(read(place, &ReadLogRequest::default()).is_err());
    }
}
