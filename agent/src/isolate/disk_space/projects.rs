//! Which project id a new sandbox gets.
//!
//! The file system itself is the registry: an id is in use exactly as long as some file belongs to it, which the
//! quota record counts. So nothing has to be written down that a crash could tear, nothing is scanned at a start,
//! and an id is free again in the moment in which the last file of its sandbox is removed, whoever removed it.

use std::{
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

use crate::kernel::quota::{ProjectDir, QuotaError, Record};

/// An id could not be given out.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// A call failed.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// Every id of the range has files.
    #[error(
        "all project ids from {first} to {last} have files: widen disk_projects, or remove old sandboxes"
    )]
    Exhausted {
        /// The first of the range.
        first: u32,
        /// The last.
        last: u32,
    },
}

/// A fresh directory that is to have a project of its own. Behind a trait for the tests.
pub(super) trait Fresh {
    /// What the file system counts for a project.
    fn record(&self, project: u32) -> Result<Record, QuotaError>;
    /// Moves the directory to a project.
    fn assign(&self, project: u32) -> Result<(), QuotaError>;
}

impl Fresh for ProjectDir {
    fn record(&self, project: u32) -> Result<Record, QuotaError> {
        self.record(project)
    }

    fn assign(&self, project: u32) -> Result<(), QuotaError> {
        self.set_project(project)
    }
}

/// Gives out the ids of a range, round and round, so that one that was freed is used again as late as possible.
#[derive(Debug)]
pub(super) struct Projects {
    range: RangeInclusive<u32>,
    /// Held while an id is chosen and taken, so that two launches never choose the same.
    next: Mutex<u32>,
}

impl Projects {
    /// Gives out these.
    pub(super) fn new(range: RangeInclusive<u32>) -> Self {
        Self { next: Mutex::new(*range.start()), range }
    }

    /// Is the id one of ours?
    pub(super) fn owns(&self, project: u32) -> bool {
        self.range.contains(&project)
    }

    /// Moves the directory, which is empty so far, to an id that no other file has.
    ///
    /// Another agent may use the same range on the same file system. What counts is what the file system says after
    /// the directory has the id: where more than the directory has it, somebody else chose it at the same time, and
    /// the next one is tried.
    pub(super) fn take(&self, directory: &impl Fresh) -> Result<u32, ProjectError> {
        // The number is valid whatever panicked.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in self.range.clone() {
            let project = *next;
            *next = if project == *self.range.end() { *self.range.start() } else { project + 1 };
            if !directory.record(project)?.is_unused() {
                continue;
            }
            directory.assign(project)?;
            if directory.record(project)?.inodes == 1 {
                return Ok(project);
            }
            directory.assign(0)?;
        }
        Err(ProjectError::Exhausted { first: *self.range.start(), last: *self.range.end() })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeMap,
    };

    use proptest::prelude::*;

    use super::*;

    /// A file system: which directory has which project.
    #[derive(Default)]
    struct Disk {
        projects: RefCell<BTreeMap<u32, u32>>,
        /// Before the next assignment, somebody else gives this id to a directory of its own.
        intruder: Cell<bool>,
    }

    /// Directories of somebody else begin here.
    const STRANGERS: u32 = 1_000_000;

    struct Directory<'a> {
        disk: &'a Disk,
        number: u32,
    }

    impl Fresh for Directory<'_> {
        fn record(&self, project: u32) -> Result<Record, QuotaError> {
            let inodes = self.disk.projects.borrow().values().filter(|p| **p == project).count() as u64;
            Ok(Record { inodes, bytes: inodes * 4096, ..Record::default() })
        }

        fn assign(&self, project: u32) -> Result<(), QuotaError> {
            let mut projects = self.disk.projects.borrow_mut();
            if project != 0 && self.disk.intruder.take() {
                let stranger = STRANGERS + u32::try_from(projects.len()).unwrap();
                projects.insert(stranger, project);
            }
            projects.insert(self.number, project);
            Ok(())
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Launch,
        LaunchWithIntruder,
        Remove(prop::sample::Index),
        /// The agent goes away and another one starts, with no memory.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Launch),
            1 => Just(Step::LaunchWithIntruder),
            3 => any::<prop::sample::Index>().prop_map(Step::Remove),
            1 => Just(Step::Restart),
        ]
    }

    const RANGE: RangeInclusive<u32> = 50..=59;

    fn in_use(disk: &Disk) -> Vec<u32> {
        disk.projects.borrow().values().copied().filter(|p| *p != 0).collect()
    }

    proptest! {
        #[test]
        fn no_two_directories_ever_share_an_id(steps in prop::collection::vec(step(), 1..120)) {
            let disk = Disk::default();
            let mut projects = Projects::new(RANGE);
            for (number, step) in (0u32..).zip(steps) {
                match step {
                    Step::Launch | Step::LaunchWithIntruder => {
                        let full = in_use(&disk).len() == RANGE.count();
                        // One intruder takes one id more; with a single one left nobody gets it.
                        let intruder = matches!(step, Step::LaunchWithIntruder) && in_use(&disk).len() + 2 <= RANGE.count();
                        disk.intruder.set(intruder);
                        match projects.take(&Directory { disk: &disk, number }) {
                            Ok(project) => prop_assert!(RANGE.contains(&project)),
                            Err(error) => prop_assert!(full, "{error}"),
                        }
                        disk.intruder.set(false);
                    }
                    Step::Remove(index) => {
                        let mut all = disk.projects.borrow_mut();
                        if !all.is_empty() {
                            let gone = *index.get(&all.keys().copied().collect::<Vec<_>>());
                            all.remove(&gone);
                        }
                    }
                    Step::Restart => projects = Projects::new(RANGE),
                }
                let mut ids = in_use(&disk);
                let count = ids.len();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len(), count, "an id was given out twice");
            }
        }
    }

    #[test]
    fn a_freed_id_is_used_again_after_all_others() {
        let disk = Disk::default();
        let projects = Projects::new(7..=9);
        let take = |number| projects.take(&Directory { disk: &disk, number });
        assert_eq!([take(1), take(2)].map(Result::unwrap), [7, 8]);
        disk.projects.borrow_mut().remove(&1);
        assert_eq!([take(3), take(4)].map(Result::unwrap), [9, 7]);
        let error = take(5).unwrap_err();
        assert!(matches!(error, ProjectError::Exhausted { .. }), "{error}");
    }
}
