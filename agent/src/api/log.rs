//! A task's output as a stream: what is there, and with `follow` what comes, until the task has ended.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
    time::Duration,
};

use bulkhead_proto::v1::{LogChunk, LogStream, ReadLogRequest};
use futures::{Stream, stream};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::Interest,
    sync::watch,
    time::{Interval, interval},
};
use tonic::Status;

use crate::{isolate::output::data_from, keeper::Located, kernel::ready::Ready, launch::Sandbox};

/// Bytes in one message: large enough to be cheap, small enough that a reader sees progress.
const CHUNK_BYTES: usize = 64 * 1024;
/// Between two looks where the kernel cannot tell of growth: people do not notice it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One of the two files.
struct Output {
    stream: LogStream,
    file: File,
    offset: u64,
    /// Where a reading ends that does not follow, so that a busy writer cannot make it endless.
    end: u64,
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
    changes: Changes,
    ended: watch::Receiver<bool>,
}

/// How growth is noticed.
enum Changes {
    Inotify(Ready, Inotify),
    /// The user's inotify instances are used up (fs.inotify.max_user_instances): look now and then.
    Clock(Interval),
}

/// Opens the output that is asked for.
///
/// # Errors
/// NOT_FOUND where the sandbox is gone, INTERNAL where it cannot be read.
pub(super) fn read(
    located: Located,
    request: &ReadLogRequest,
) -> Result<impl Stream<Item = Result<LogChunk, Status>> + use<>, Status> {
    if located.sandbox.as_os_str().is_empty() {
        return Err(Status::not_found("the task has no output: its program was not started"));
    }
    let sandbox = Sandbox::at(located.sandbox);
    let wanted = match request.stream() {
        LogStream::Unspecified => vec![LogStream::Stdout, LogStream::Stderr],
        one => vec![one],
    };
    // The watch comes before the first read, so that nothing falls between the two.
    let follow = if request.follow { Some(Follow::new(&sandbox, located.ended)?) } else { None };
    let outputs =
        wanted.into_iter().map(|stream| Output::open(&sandbox, stream, request)).collect::<Result<_, _>>()?;
    Ok(stream::try_unfold(Reader { outputs, follow, complete: false }, next))
}

/// The next piece of output; waits for one while following.
async fn next(mut reader: Reader) -> Result<Option<(LogChunk, Reader)>, Status> {
    loop {
        for _ in 0..reader.outputs.len() {
            let chunk = reader.outputs[0].read()?;
            // The other one is next, or a flood on one would hide the other.
            reader.outputs.rotate_left(1);
            if let Some(chunk) = chunk {
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
    fn open(sandbox: &Sandbox, stream: LogStream, request: &ReadLogRequest) -> Result<Self, Status> {
        let (path, offset) = match stream {
            LogStream::Stderr => (sandbox.stderr(), request.stderr_offset),
            _ => (sandbox.stdout(), request.stdout_offset),
        };
        let file = open(&path).map_err(|e| unreadable(&path, &e))?;
        let length = file.metadata().map_err(|e| unreadable(&path, &e))?.len();
        let tail = if request.tail_bytes > 0 { length.saturating_sub(request.tail_bytes) } else { 0 };
        let end = if request.follow { u64::MAX } else { length };
        Ok(Self { stream, file, offset: offset.max(tail), end })
    }

    fn read(&mut self) -> Result<Option<LogChunk>, Status> {
        let failed = |e| Status::internal(format!("read the task's output: {e}"));
        let data = loop {
            // Where its head was cut off, it begins behind the hole; the offset of the chunk tells.
            let Some(offset) = data_from(&self.file, self.offset).map_err(failed)? else { return Ok(None) };
            if offset >= self.end {
                return Ok(None);
            }
            let left = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
            let mut data = vec![0; CHUNK_BYTES.min(left)];
            let count = self.file.read_at(&mut data, offset).map_err(failed)?;
            self.offset = offset;
            // What was cut off while it was read reads as zeros.
            if count > 0 && data_from(&self.file, offset).map_err(failed)? != Some(offset) {
                continue;
            }
            data.truncate(count);
            break data;
        };
        if data.is_empty() {
            return Ok(None);
        }
        let count = data.len();
        let chunk = LogChunk { stream: self.stream.into(), offset: self.offset, data };
        self.offset += count as u64;
        Ok(Some(chunk))
    }
}

impl Follow {
    fn new(sandbox: &Sandbox, ended: watch::Receiver<bool>) -> Result<Self, Status> {
        let changes = match Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC) {
            Ok(inotify) => Self::watch(sandbox, inotify)?,
            Err(_) => Changes::Clock(interval(LOOK_EVERY)),
        };
        Ok(Self { changes, ended })
    }

    fn watch(sandbox: &Sandbox, inotify: Inotify) -> Result<Changes, Status> {
        for path in [sandbox.stdout(), sandbox.stderr()] {
            let added = inotify.add_watch(&path, AddWatchFlags::IN_MODIFY);
            added.map_err(|e| unreadable(&path, &e.into()))?;
        }
        let copy = inotify.as_fd().try_clone_to_owned();
        let ready = copy
            .and_then(|fd| Ready::watch(fd, Interest::READABLE))
            .map_err(|e| Status::internal(format!("watch the task's output: {e}")))?;
        Ok(Changes::Inotify(ready, inotify))
    }

    /// True when the task has ended, false when a file may have grown.
    async fn wait(&mut self) -> Result<bool, Status> {
        tokio::select! {
            // The keeper going away ends the following too.
            result = self.ended.wait_for(|ended| *ended) => { drop(result); Ok(true) }
            changed = self.changes.wait() => changed.map(|()| false),
        }
    }
}

impl Changes {
    async fn wait(&mut self) -> Result<(), Status> {
        match self {
            Self::Inotify(ready, inotify) => {
                ready.wait().await.map_err(|e| Status::internal(format!("wait for output: {e}")))?;
                // Which file changed does not matter: both are read.
                while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
            }
            Self::Clock(ticks) => drop(ticks.tick().await),
        }
        Ok(())
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
        let me = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let stdout = Sandbox::open_output(&sandbox.stdout(), me).unwrap();
        Sandbox::open_output(&sandbox.stderr(), me).unwrap();
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
    async fn reading_begins_behind_the_hole() {
        let (_dir, sandbox, mut stdout) = sandbox();
        let hole = 4 * CHUNK_BYTES;
        stdout.set_len(hole as u64).unwrap();
        stdout.write_all(b"behind").unwrap();
        let (_ended, place) = located(&sandbox);
        let request = ReadLogRequest {
            tail_bytes: hole as u64,
            stream: LogStream::Stdout.into(),
            ..Default::default()
        };
        let chunks: Vec<_> = read(place, &request).unwrap().collect().await;
        let seen: Vec<_> =
            chunks.iter().map(|c| c.as_ref().unwrap()).map(|c| (c.offset, c.data.len())).collect();
        assert_eq!(seen, [(hole as u64, 6)]);
    }

    #[tokio::test]
    async fn a_flood_on_one_stream_does_not_hide_the_other() {
        let (_dir, sandbox, mut stdout) = sandbox();
        stdout.write_all(&vec![b'x'; 3 * CHUNK_BYTES]).unwrap();
        std::fs::write(sandbox.stderr(), "error").unwrap();
        let (_ended, place) = located(&sandbox);
        let chunks: Vec<_> = read(place, &ReadLogRequest::default()).unwrap().collect().await;
        let streams: Vec<_> = chunks.iter().map(|c| c.as_ref().unwrap().stream()).collect();
        assert_eq!(streams, [LogStream::Stdout, LogStream::Stderr, LogStream::Stdout, LogStream::Stdout]);
    }

    #[test]
    fn a_task_without_a_sandbox_has_no_output() {
        let located = Located { sandbox: Default::default(), ended: watch::channel(true).1 };
        let refused = read(located, &ReadLogRequest::default()).map(drop).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound);
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
