//! How tasks ended while nobody waited for them.

use std::path::Path;

use bulkhead_abi::{ExitRecord, names};
use nix::unistd::Pid;

use super::{BpfError, table::Table};
use crate::kernel::pidfd::Exit;

/// Records that the kernel completes when the main process of a task exits, keyed by the id of the
/// task's cgroup. They are for agents that restarted: while an agent waits for its child itself, it
/// learns the same from wait(2).
pub struct ExitRecords {
    exits: Table<u64, ExitRecord>,
}

impl ExitRecords {
    /// Opens the map in [`Loaded::exits`](super::Loaded::exits).
    ///
    /// # Errors
    /// The map is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self { exits: Table::open(dir, names::EXITS)? })
    }

    /// Has the end of a task's main process recorded. To be called while the caller has not waited
    /// for the process, so that its id means no other.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer.
    pub fn watch(&self, cgroup_id: u64, main: Pid) -> Result<(), BpfError> {
        // Process ids are positive.
        let main_tgid = main.as_raw().unsigned_abs();
        self.exits.set(cgroup_id, ExitRecord { main_tgid, ..ExitRecord::default() })
    }

    /// How the main process ended. The record goes with it. `None`, and nothing changes, where the
    /// process lives or was never watched.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn take(&self, cgroup_id: u64) -> Result<Option<Exit>, BpfError> {
        let exit = self.exits.get(&cgroup_id)?.and_then(|record| decode(&record));
        if exit.is_some() {
            self.forget(cgroup_id)?;
        }
        Ok(exit)
    }

    /// Drops the record of a task. Harmless where there is none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn forget(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.exits.delete(&cgroup_id)
    }
}

/// `None` while the process lives.
fn decode(record: &ExitRecord) -> Option<Exit> {
    let status = record.status.cast_signed();
    (record.exited_ns != 0).then(|| {
        if libc::WIFEXITED(status) {
            Exit::Code(libc::WEXITSTATUS(status))
        } else {
            Exit::Signal(libc::WTERMSIG(status))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_wait() {
        let decoded = |status, exited_ns| decode(&ExitRecord { main_tgid: 1, status, exited_ns });
        assert_eq!(decoded(0, 0), None, "still running");
        assert_eq!(decoded(0, 1), Some(Exit::Code(0)));
        assert_eq!(decoded(0x0700, 1), Some(Exit::Code(7)));
        assert_eq!(decoded(9, 1), Some(Exit::Signal(9)));
        assert_eq!(decoded(0x8b, 1), Some(Exit::Signal(11)), "with a core dump");
    }
}
