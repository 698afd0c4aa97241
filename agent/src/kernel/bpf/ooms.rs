//! Whom the kernel's out-of-memory killer chose in a task.

use std::path::Path;

use bulkhead_abi::{OomRecord, names};

use super::{BpfError, table::Table};

/// The largest process of a task that was ended for memory, as it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomVictim {
    /// Its id, in the initial PID namespace.
    pub pid: u32,
    /// The name of its command, as the kernel cuts it: at most 15 bytes.
    pub command: String,
    /// Anonymous memory.
    pub anon_bytes: u64,
    /// Files that it had mapped.
    pub file_bytes: u64,
    /// Shared memory that it had mapped.
    pub shmem_bytes: u64,
    /// What it had in swap.
    pub swap_bytes: u64,
    /// How many processes of the task were chosen, itself included. Some of them may have been ending anyway.
    pub victims: u64,
}

/// Records that the kernel fills whoever waits for them, keyed by the id of the task's cgroup.
pub struct OomRecords {
    ooms: Table<u64, OomRecord>,
}

impl OomRecords {
    /// Opens the map in [`Loaded::ooms`](super::Loaded::ooms).
    ///
    /// # Errors
    /// The map is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self { ooms: Table::open(dir, names::OOMS)? })
    }

    /// Has the victims of a task recorded. What was recorded of it stays.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer.
    pub fn watch(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.ooms.make(cgroup_id, OomRecord::default())
    }

    /// What was recorded; `None` where nobody was chosen, or the task is not watched.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn victim(&self, cgroup_id: u64) -> Result<Option<OomVictim>, BpfError> {
        Ok(self.ooms.get(&cgroup_id)?.and_then(|record| decode(&record, procfs::page_size())))
    }

    /// Drops the record of a task. Harmless where there is none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn forget(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.ooms.delete(&cgroup_id)
    }
}

fn decode(record: &OomRecord, page_bytes: u64) -> Option<OomVictim> {
    let bytes = |pages: u64| pages.saturating_mul(page_bytes);
    let name = record.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    // A process names itself as it likes; what is shown on a terminal must not steer it.
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    (record.victims > 0).then(|| OomVictim {
        pid: record.tgid,
        command: String::from_utf8_lossy(name).chars().map(shown).collect(),
        anon_bytes: bytes(record.anon_pages),
        file_bytes: bytes(record.file_pages),
        shmem_bytes: bytes(record.shmem_pages),
        swap_bytes: bytes(record.swap_pages),
        victims: record.victims,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_bytes_and_names_end_at_their_zero() {
        assert_eq!(decode(&OomRecord::default(), 4096), None);
        let mut comm = [0; 16];
        comm[..5].copy_from_slice(b"hog\xff\x1b");
        let record =
            OomRecord { victims: 2, anon_pages: 3, file_pages: 1, tgid: 7, comm, ..OomRecord::default() };
        let victim = decode(&record, 4096).unwrap();
        assert_eq!((victim.pid, victim.command.as_str(), victim.victims), (7, "hog\u{fffd}\u{fffd}", 2));
        assert_eq!((victim.anon_bytes, victim.file_bytes, victim.swap_bytes), (12_288, 4096, 0));
    }
}
