//! Notices at once what is written to the cgroup above all revocable tasks.

use std::{
    fs,
    os::fd::AsFd as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bulkhead_agent::kernel::priority;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::sync::mpsc;

/// What they can be held by. A controller that is not there has no file.
const FILES: [&str; 4] = ["cpu.max", "cgroup.freeze", "memory.high", "io.weight"];
/// So soon the thread sees that nobody listens any more.
const LISTENING: Duration = Duration::from_millis(200);

/// Something was written.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) at: Instant,
    pub(super) file: &'static str,
    /// How much it leaves, in the unit of the file.
    pub(super) leaves: u64,
}

/// Watches from a thread that comes before ordinary ones, until it is dropped.
pub(super) struct Watch {
    dir: PathBuf,
    written: mpsc::UnboundedReceiver<Written>,
}

impl Watch {
    /// Of this cgroup.
    pub(super) fn begin(dir: PathBuf) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("inotify")?;
        let mut files = Vec::new();
        for file in FILES.into_iter().filter(|file| dir.join(file).exists()) {
            let watched = inotify.add_watch(&dir.join(file), AddWatchFlags::IN_MODIFY);
            files.push((watched.with_context(|| format!("watch {file}"))?, file));
        }
        let (tell, written) = mpsc::unbounded_channel();
        let from = dir.clone();
        thread::spawn(move || watch(&inotify, &files, &from, &tell));
        Ok(Self { dir, written })
    }

    /// The next.
    pub(super) async fn next(&mut self) -> Result<Written> {
        self.written.recv().await.context("the files are no longer watched")
    }

    /// Forgets what was written so far. What all files leave now.
    pub(super) fn now(&mut self) -> Vec<(&'static str, u64)> {
        while self.written.try_recv().is_ok() {}
        let leave =
            |file: &'static str| Some((file, leaves(&fs::read_to_string(self.dir.join(file)).ok()?, file)));
        FILES.into_iter().filter_map(leave).collect()
    }
}

fn watch(
    inotify: &Inotify,
    files: &[(WatchDescriptor, &'static str)],
    dir: &std::path::Path,
    tell: &mpsc::UnboundedSender<Written>,
) {
    // An ordinary thread only notices later.
    let _ = priority::first_of_all();
    let wake = PollTimeout::try_from(LISTENING).unwrap_or(PollTimeout::MAX);
    while !tell.is_closed() {
        match poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], wake) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        let at = Instant::now();
        let Ok(events) = inotify.read_events() else { continue };
        for event in events {
            let Some((_, file)) = files.iter().find(|(watched, _)| *watched == event.wd) else { continue };
            let Ok(text) = fs::read_to_string(dir.join(file)) else { continue };
            if tell.send(Written { at, file, leaves: leaves(&text, file) }).is_err() {
                return;
            }
        }
    }
}

/// More is more. What cannot be read leaves everything.
fn leaves(text: &str, file: &str) -> u64 {
    let line = text.lines().next().unwrap_or_default();
    let word = if file == "io.weight" { line.split(' ').nth(1) } else { line.split(' ').next() };
    let number = word.and_then(|word| word.parse::<u64>().ok()).unwrap_or(u64::MAX);
    if file == "cgroup.freeze" { 1_u64.saturating_sub(number) } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_is_left_by_a_lower_number_and_by_standing_still() {
        assert_eq!(leaves("max 100000\n", "cpu.max"), u64::MAX);
        assert_eq!(leaves("40000 100000\n", "cpu.max"), 40_000);
        assert_eq!((leaves("0\n", "cgroup.freeze"), leaves("1\n", "cgroup.freeze")), (1, 0));
        assert_eq!(leaves("default 1\n8:0 50\n", "io.weight"), 1);
        assert_eq!(leaves("1048576\n", "memory.high"), 1 << 20);
    }

    #[tokio::test]
    async fn what_is_written_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cpu.max"), "max 100000\n").unwrap();
        let mut watch = Watch::begin(dir.path().to_owned()).unwrap();
        assert_eq!(watch.now(), [("cpu.max", u64::MAX)]);
        let begun = Instant::now();
        let mut file = fs::OpenOptions::new().write(true).open(dir.path().join("cpu.max")).unwrap();
        std::io::Write::write_all(&mut file, b"500 100000\n").unwrap();
        let written = watch.next().await.unwrap();
        assert_eq!((written.file, written.leaves), ("cpu.max", 500));
        assert!(written.at >= begun);
    }
}
