//! What one task's files may take in its sandbox, counted while they are written.
//!
//! The sandbox's project quota, where there is one, holds too. The budget ends an archive that would unpack to
//! terabytes before it has filled what was granted, and is the only bound where there is no quota.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// For all artifacts of a task together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes written.
    pub bytes: u64,
    /// Files, directories and links made.
    pub entries: u64,
}

/// Why nothing more is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Spent {
    /// More bytes than granted.
    #[error(
        "the artifacts take more than the {0} bytes of disk that the task was granted: ask for more disk"
    )]
    Bytes(u64),
    /// More files than granted.
    #[error(
        "the artifacts have more than the {0} files and directories that the task was granted: ask for more inodes"
    )]
    Entries(u64),
    /// Another artifact failed before, or nobody wants the task any more.
    #[error("given up, because the launch was")]
    Stopped,
}

/// What is left of the limits, shared by the artifacts of a task.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Budget {
    /// Nothing is spent.
    pub fn new(limits: Limits) -> Self {
        Self { limits, bytes: AtomicU64::new(limits.bytes), entries: AtomicU64::new(limits.entries) }
    }

    /// Takes `bytes` out.
    ///
    /// # Errors
    /// [`Spent::Bytes`] where fewer are left; then nothing is taken.
    pub fn bytes(&self, bytes: u64) -> Result<(), Spent> {
        take(&self.bytes, bytes).ok_or(Spent::Bytes(self.limits.bytes))
    }

    /// Takes one file, directory or link out.
    ///
    /// # Errors
    /// [`Spent::Entries`] where none is left.
    pub fn entry(&self) -> Result<(), Spent> {
        take(&self.entries, 1).ok_or(Spent::Entries(self.limits.entries))
    }
}

fn take(left: &AtomicU64, amount: u64) -> Option<()> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(amount)).ok().map(drop)
}

/// Tells the artifacts of a task when to stop: the later ones when one fails, all when the task is not wanted.
///
/// The earlier ones go on, so that always the first of several bad artifacts is the one that is reported.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    first_stopped: watch::Sender<usize>,
}

impl Stop {
    pub(crate) fn new() -> Self {
        Self { first_stopped: watch::Sender::new(usize::MAX) }
    }

    /// Stops `artifact` and those after it.
    pub(crate) fn from(&self, artifact: usize) {
        self.first_stopped.send_if_modified(|first| {
            let earlier = artifact < *first;
            *first = (*first).min(artifact);
            earlier
        });
    }

    /// # Errors
    /// [`Spent::Stopped`] when `artifact` is to end.
    pub(crate) fn check(&self, artifact: usize) -> Result<(), Spent> {
        if artifact < *self.first_stopped.borrow() { Ok(()) } else { Err(Spent::Stopped) }
    }

    /// Waits until `artifact` is to end.
    pub(crate) async fn wait(&self, artifact: usize) {
        // Never closed: this holds the sender.
        drop(self.first_stopped.subscribe().wait_for(|first| *first <= artifact).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_takes_nothing() {
        let budget = Budget::new(Limits { bytes: 10, entries: 1 });
        budget.bytes(4).unwrap();
        assert_eq!(budget.bytes(7), Err(Spent::Bytes(10)));
        budget.bytes(6).unwrap();
        assert_eq!(budget.bytes(1), Err(Spent::Bytes(10)));
        budget.entry().unwrap();
        assert_eq!(budget.entry(), Err(Spent::Entries(1)));
    }

    #[test]
    fn a_failure_stops_what_comes_after_it_and_a_kill_everything() {
        let stop = Stop::new();
        stop.from(3);
        stop.from(5);
        assert_eq!((stop.check(2), stop.check(3)), (Ok(()), Err(Spent::Stopped)));
        stop.from(0);
        assert_eq!(stop.check(0), Err(Spent::Stopped));
    }
}
