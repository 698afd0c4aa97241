//! Output: stdout and stderr keep a bounded piece of their end, whatever a task writes.
//!
//! The task writes straight into its files. When one has grown enough beyond its bound, its head is cut off by
//! punching a hole (fallocate with PUNCH_HOLE and KEEP_SIZE: ext4, XFS, btrfs, tmpfs): the blocks are free again, and
//! every offset stays what it was, so that readers and `tail -f` notice nothing.
//!
//! # How growth is noticed
//! By one inotify instance for all outputs. A write adds an event only where the last event that waits is not of the
//! same file; and after each look the agent rests for as long as the fastest writer would need to fill what is left
//! until the next cut ([`rest`]). So a task that chats costs a few looks a second at most, one that floods a hundred.
//!
//! # How much there can be at once
//! The bound, a quarter of it on top ([`Bound::slack_bytes`]), and what is written in [`SHORTEST_REST`] beyond
//! [`FASTEST_BYTES_PER_SEC`]. Both outputs together begin to be cut when they hold five eighths of the sandbox, so a
//! task that only writes output does not come to its quota; one that does is refused by it like for any other file.
//!
//! fallocate runs on a blocking thread and not on an io_uring: the kernel has no way to punch holes without waiting and
//! would hand each to a worker thread of the ring, which is the same at the cost of a ring.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bulkhead_proto::v1::{self, EventKind};
use futures::future::BoxFuture;
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::io::Interest;

use super::{Grants, IsolateError, Isolator, TaskPlace, Violation};
use crate::{
    event::{EventKey, EventLog},
    grant::{DiskGrant, Grant},
    kernel::ready::Ready,
    launch::{Sandbox, blocking},
    offer::ledger::TaskKey,
    unix_time_ms,
};

/// Holes begin and end at multiples of this: the largest block of the usual file systems.
const BLOCK_BYTES: u64 = 64 * 1024;
/// How fast a task is taken to write at most when the next look is planned.
const FASTEST_BYTES_PER_SEC: u64 = 1 << 30;
/// Between two looks, however fast somebody writes.
const SHORTEST_REST: Duration = Duration::from_millis(10);
/// And however slowly.
const LONGEST_REST: Duration = Duration::from_millis(250);

/// How much an output keeps of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    keep_bytes: u64,
}

impl Bound {
    /// What the grant says, and at most a quarter of the sandbox: there are two outputs, and the task has files.
    fn of(disk: &DiskGrant) -> Self {
        let most = if disk.bytes > 0 { disk.bytes / 4 } else { u64::MAX };
        Self { keep_bytes: disk.output_bytes.min(most) }
    }

    /// How far an output grows beyond what it keeps before it is cut: so each cut is worth its cost.
    fn slack_bytes(self) -> u64 {
        self.keep_bytes / 4
    }

    /// Up to where an output of this length is to be a hole, which it is up to `hole_end` already.
    fn cut(self, length: u64, hole_end: u64) -> Option<u64> {
        let limit = self.keep_bytes.saturating_add(self.slack_bytes());
        // It was truncated since.
        let held = length.saturating_sub(if hole_end > length { 0 } else { hole_end });
        let end = length.saturating_sub(self.keep_bytes) / BLOCK_BYTES * BLOCK_BYTES;
        (held > limit && end > 0).then_some(end)
    }

    /// What may still be written before a cut.
    fn room(self, length: u64, hole_end: u64) -> u64 {
        let held = length.saturating_sub(hole_end.min(length));
        self.keep_bytes.saturating_add(self.slack_bytes()).saturating_sub(held)
    }
}

/// For how long nobody has to look at an output with this much room.
fn rest(room_bytes: u64) -> Duration {
    let usec = room_bytes.saturating_mul(1_000_000) / FASTEST_BYTES_PER_SEC;
    Duration::from_micros(usec).clamp(SHORTEST_REST, LONGEST_REST)
}

/// One output that is looked after.
struct Output {
    cgroup_id: u64,
    path: PathBuf,
    bound: Bound,
    hole_end: u64,
}

/// What is told of a task.
#[derive(Default)]
struct Told {
    task: TaskKey,
    cuts: u64,
    hole_bytes: u64,
}

#[derive(Default)]
struct Watched {
    outputs: HashMap<WatchDescriptor, Output>,
    /// Files that inotify did not take (fs.inotify.max_user_watches): looked at with every rest of the longest kind.
    unwatched: Vec<Output>,
    told: BTreeMap<u64, Told>,
}

/// Bounds the outputs of all tasks. Needs a file system that punches holes; elsewhere outputs grow.
pub struct Outputs {
    inotify: Inotify,
    watched: Mutex<Watched>,
    events: Arc<EventLog>,
}

impl Outputs {
    /// None are watched so far. [`Outputs::run`] does the work.
    ///
    /// # Errors
    /// EMFILE where root's inotify instances are used up (fs.inotify.max_user_instances).
    pub fn new(events: Arc<EventLog>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { inotify, watched: Mutex::default(), events })
    }

    /// Cuts what has grown, as long as the agent lives. Must be called within a tokio runtime.
    pub async fn run(self: Arc<Self>) {
        if let Err(error) = self.follow().await {
            tracing::error!(%error, "follow outputs: they are not bounded any more");
        }
    }

    async fn follow(self: Arc<Self>) -> io::Result<()> {
        let grown = Ready::watch(self.inotify.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        loop {
            let unwatched = !self.lock().unwatched.is_empty();
            tokio::select! {
                woken = grown.wait() => woken?,
                () = tokio::time::sleep(LONGEST_REST), if unwatched => {}
            }
            let outputs = Arc::clone(&self);
            tokio::time::sleep(blocking(move || outputs.look()).await).await;
        }
    }

    /// Looks at every output that was written to, and says how long the next look can wait.
    fn look(&self) -> Duration {
        let mut grown: Vec<WatchDescriptor> = Vec::new();
        while let Ok(events) = self.inotify.read_events() {
            if events.is_empty() {
                break;
            }
            // After an overflow nobody knows which ones grew.
            if events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)) {
                grown = self.lock().outputs.keys().copied().collect();
                break;
            }
            grown.extend(events.into_iter().map(|event| event.wd));
        }
        grown.sort_unstable();
        grown.dedup();
        let mut watched = self.lock();
        let Watched { outputs, unwatched, told } = &mut *watched;
        let mut least_room = u64::MAX;
        for output in grown.iter().filter_map(|wd| outputs.remove_entry(wd)).collect::<Vec<_>>() {
            let (wd, mut output) = output;
            least_room = least_room.min(self.bound(&mut output, told));
            outputs.insert(wd, output);
        }
        for output in unwatched {
            least_room = least_room.min(self.bound(output, told));
        }
        rest(least_room)
    }

    /// Cuts an output where it is due; how much may be written before the next cut.
    fn bound(&self, output: &mut Output, told: &mut BTreeMap<u64, Told>) -> u64 {
        let before = output.hole_end;
        match cut(output) {
            Ok(false) => {}
            Ok(true) => {
                let Some(told) = told.get_mut(&output.cgroup_id) else { return u64::MAX };
                told.cuts += 1;
                told.hole_bytes += output.hole_end.saturating_sub(before);
                // As for refused ports: at each doubling, and at the end.
                if told.cuts.is_power_of_two() {
                    self.tell(output.cgroup_id, told);
                }
            }
            // The sandbox was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return u64::MAX,
            Err(error) => {
                tracing::warn!(path = %output.path.display(), %error, "cut the head of an output off");
                return u64::MAX;
            }
        }
        std::fs::metadata(&output.path).map_or(u64::MAX, |m| output.bound.room(m.len(), output.hole_end))
    }

    fn tell(&self, cgroup_id: u64, told: &Told) {
        if told.cuts == 0 {
            return;
        }
        let key = EventKey::of_run(&told.task, cgroup_id, EventKind::OutputTruncated);
        let dropped = bytesize::ByteSize::b(told.hole_bytes);
        let message = format!("{dropped} from the beginning of its output were dropped: raise output_bytes");
        self.events.record(key, told.cuts, message, unix_time_ms());
    }

    /// Looks after both outputs of a task from now on.
    fn add(&self, task: &TaskPlace, bound: Bound) {
        let sandbox = Sandbox::at(&task.sandbox);
        let mut watched = self.lock();
        watched.told.insert(task.id, Told { task: task.task.clone(), ..Told::default() });
        for path in [sandbox.stdout(), sandbox.stderr()] {
            let hole_end = open(&path).and_then(|file| data_from(&file, 0)).ok().flatten().unwrap_or(0);
            let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DONT_FOLLOW;
            let added = self.inotify.add_watch(&path, flags);
            let mut output = Output { cgroup_id: task.id, path, bound, hole_end };
            // What it wrote before it was watched.
            self.bound(&mut output, &mut watched.told);
            match added {
                Ok(wd) => drop(watched.outputs.insert(wd, output)),
                // The task's first program never wrote anything, and its output was removed by somebody.
                Err(Errno::ENOENT) => {}
                Err(error) => {
                    tracing::warn!(path = %output.path.display(), %error, "watch an output: it is looked at now and then");
                    watched.unwatched.push(output);
                }
            }
        }
    }

    /// The task's grant has changed.
    fn rebound(&self, cgroup_id: u64, bound: Bound) {
        let mut watched = self.lock();
        let Watched { outputs, unwatched, told } = &mut *watched;
        for output in outputs.values_mut().chain(unwatched).filter(|o| o.cgroup_id == cgroup_id) {
            output.bound = bound;
            self.bound(output, told);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        // A panic in between could only lose an output, which then grows up to its quota.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts the head off where the output has grown enough.
fn cut(output: &mut Output) -> io::Result<bool> {
    let file = open(&output.path)?;
    let metadata = file.metadata()?;
    let length = metadata.size();
    if output.hole_end > length {
        output.hole_end = 0;
    }
    let Some(end) = output.bound.cut(length, output.hole_end) else { return Ok(false) };
    let length = i64::try_from(end).unwrap_or(i64::MAX);
    // From 0: the task may have written into the hole, and what is a hole already costs nothing.
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, flags, 0, length)?;
    output.hole_end = end;
    Ok(true)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Where a file has data from this offset on: behind a hole. `None` where there is none any more.
///
/// # Errors
/// The kernel's. File systems that cannot tell call everything data.
pub fn data_from(file: &File, offset: u64) -> io::Result<Option<u64>> {
    use nix::unistd::{Whence, lseek};
    let from = i64::try_from(offset).map_err(io::Error::other)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => Ok(u64::try_from(data).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Does the file system of this directory punch holes?
///
/// # Errors
/// Why not, in words.
pub fn probe(dir: &Path) -> Result<String, String> {
    let there = dir.ancestors().find(|d| d.is_dir()).unwrap_or_else(|| Path::new("/"));
    let at = there.display();
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(there);
    let file = file.map_err(|e| format!("make a file in {at}: {e}"))?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(&file, flags, 0, i64::try_from(BLOCK_BYTES).unwrap_or(i64::MAX)) {
        Ok(()) => Ok(format!("fallocate with PUNCH_HOLE in {at}")),
        Err(error) => Err(format!("fallocate with PUNCH_HOLE in {at}: {error}")),
    }
}

impl Isolator for Arc<Outputs> {
    fn part(&self) -> &'static str {
        "output"
    }

    fn features(&self) -> &'static [&'static str] {
        &["punch_hole"]
    }

    fn prepare(&self, _task: &TaskPlace, _grant: &Grant) -> Result<(), IsolateError> {
        // The files are there once the program is.
        Ok(())
    }

    fn update(&self, _task: &TaskPlace, _before: &Grant, _after: &Grant) -> Result<(), IsolateError> {
        // Seen by `watch`.
        Ok(())
    }

    /// Only here are both files there for certain, with a restarted agent too. Nothing is ever broken.
    fn watch<'a>(&'a self, task: &'a TaskPlace, mut grants: Grants) -> Option<BoxFuture<'a, Violation>> {
        Some(Box::pin(async move {
            let bound = Bound::of(&grants.borrow_and_update().disk);
            let (outputs, place) = (Arc::clone(self), task.clone());
            blocking(move || outputs.add(&place, bound)).await;
            while grants.changed().await.is_ok() {
                let bound = Bound::of(&grants.borrow_and_update().disk);
                let (outputs, cgroup_id) = (Arc::clone(self), task.id);
                blocking(move || outputs.rebound(cgroup_id, bound)).await;
            }
            std::future::pending().await
        }))
    }

    fn measure(&self, _task: &TaskPlace, _usage: &mut v1::TaskUsage) {}

    /// The outputs of a task that is over are bounded a last time.
    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        let mut watched = self.lock();
        let Watched { outputs, unwatched, told } = &mut *watched;
        let over: Vec<_> =
            outputs.iter().filter(|(_, o)| o.cgroup_id == task.id).map(|(wd, _)| *wd).collect();
        for wd in over {
            if let Some(mut output) = outputs.remove(&wd) {
                self.bound(&mut output, told);
            }
            // It is gone where the file is.
            let _gone = self.inotify.rm_watch(wd);
        }
        unwatched.retain(|output| output.cgroup_id != task.id);
        if let Some(told) = told.remove(&task.id) {
            self.tell(task.id, &told);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rest_shrinks_with_the_room() {
        assert_eq!(rest(0), SHORTEST_REST);
        assert_eq!(rest(FASTEST_BYTES_PER_SEC / 16), Duration::from_micros(62_500));
        assert_eq!(rest(u64::MAX), LONGEST_REST);
    }

    #[test]
    fn a_small_sandbox_keeps_less_output() {
        let mut disk = crate::grant::plain(crate::grant::Class::Guaranteed, 100, 1 << 20).disk;
        (disk.bytes, disk.output_bytes) = (8 << 20, 64 << 20);
        assert_eq!(Bound::of(&disk).keep_bytes, 2 << 20);
        disk.bytes = 0;
        assert_eq!(Bound::of(&disk).keep_bytes, 64 << 20);
    }

    proptest! {
        #[test]
        fn what_was_asked_for_is_always_kept(keep in 0u64..1 << 40, writes in prop::collection::vec(0u64..1 << 40, 1..50)) {
            let bound = Bound { keep_bytes: keep };
            let (mut length, mut hole_end) = (0, 0);
            for written in writes {
                length += written;
                if let Some(end) = bound.cut(length, hole_end) {
                    prop_assert!(end >= hole_end && length - end >= keep.min(length));
                    hole_end = end;
                }
                let most = keep + bound.slack_bytes() + BLOCK_BYTES;
                prop_assert!(length - hole_end <= most, "{} kept of {length}", length - hole_end);
            }
        }
    }

    #[test]
    fn the_head_goes_and_offsets_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let total = 40 * BLOCK_BYTES;
        std::fs::write(&path, vec![b'x'; usize::try_from(total).unwrap()]).unwrap();
        let bound = Bound { keep_bytes: 8 * BLOCK_BYTES };
        let mut output = Output { cgroup_id: 1, path: path.clone(), bound, hole_end: 0 };
        assert!(cut(&mut output).unwrap());
        assert!(!cut(&mut output).unwrap(), "nothing more to cut");
        let file = File::open(&path).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), data_from(&file, 0).unwrap()), (total, Some(32 * BLOCK_BYTES)));
        assert!(metadata.blocks() * 512 <= 9 * BLOCK_BYTES, "{} blocks", metadata.blocks());
        let mut byte = [0];
        file.read_exact_at(&mut byte, 32 * BLOCK_BYTES).unwrap();
        assert_eq!(byte, [b'x']);
        // A task that empties its output begins anew.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        assert!(!cut(&mut output).unwrap());
        assert_eq!(output.hole_end, 0);
    }
}
