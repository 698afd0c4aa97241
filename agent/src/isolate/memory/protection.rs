//! What of the node's memory is protected for guaranteed tasks: sums along the tree.
//!
//! Protection is hierarchical: a cgroup keeps no more than those above it keep. So the cgroups above the tasks are
//! given at least the sum of what is below them, and never so much that the host could not live beside them.
//!
//! `memory.min` is never taken away, not even where the host then has to kill somebody; `memory.low` is taken last.
//! A task has both, at its grant. Above the tasks, `low` is bounded by what the agent offers at most, and `min` by a
//! little less, so that the last part of the page cache of tasks goes before a process of the host does.

use std::{collections::HashMap, path::PathBuf};

use super::super::{
    IsolateError,
    tree::{Branch, Tree},
};
use crate::{kernel::cgroupfs::Cgroup, metrics::Metrics};

/// For the agent itself: it fits with a thousand tasks, and is a small price for one that answers under pressure.
const AGENT_BYTES: u64 = 32 << 20;

/// Sums are rounded up to this, so that most launches change nothing above their own cgroup. What is protected above
/// and claimed by no task protects nobody's memory but theirs.
const STEP_BYTES: u64 = 256 << 20;

/// One part in this many of the machine is never held by `memory.min`.
const LOOSE_PART: u64 = 8;

/// What one cgroup is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Protected {
    pub(super) min_bytes: u64,
    pub(super) low_bytes: u64,
}

/// How much may be protected in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caps {
    min_bytes: u64,
    low_bytes: u64,
}

impl Caps {
    /// On a machine of this size, of which so much is never offered.
    pub(super) fn of(machine_bytes: u64, reserve_bytes: u64) -> Self {
        let beside = |bytes: u64| machine_bytes.saturating_sub(bytes);
        Self {
            min_bytes: beside(reserve_bytes.max(machine_bytes / LOOSE_PART)),
            low_bytes: beside(reserve_bytes),
        }
    }

    /// For the parent of tasks that were granted this much together.
    pub(super) fn parent(&self, granted_bytes: u64) -> Protected {
        let rounded = granted_bytes.checked_next_multiple_of(STEP_BYTES).unwrap_or(u64::MAX);
        Protected { min_bytes: rounded.min(self.min_bytes), low_bytes: rounded.min(self.low_bytes) }
    }
}

/// For the root of the agent's tree: the tasks', and its own.
fn root(tasks: Protected) -> Protected {
    Protected {
        min_bytes: tasks.min_bytes.saturating_add(AGENT_BYTES),
        low_bytes: tasks.low_bytes.saturating_add(AGENT_BYTES),
    }
}

/// Writes both files.
pub(super) fn protect(cgroup: &Cgroup, protected: Protected) -> Result<(), IsolateError> {
    cgroup.write("memory.min", &protected.min_bytes.to_string())?;
    Ok(cgroup.write("memory.low", &protected.low_bytes.to_string())?)
}

/// The books: which task is protected how far, and what was written above them.
#[derive(Debug)]
pub(super) struct Protection {
    root: Cgroup,
    /// Of guaranteed tasks. Each may hold any part of what is granted, so each is protected up to all of it.
    parents: Vec<Cgroup>,
    caps: Caps,
    tasks: HashMap<PathBuf, u64>,
    granted_bytes: u64,
    written: Protected,
}

impl Protection {
    /// Takes over what tasks of an earlier agent have, and protects the agent itself.
    ///
    /// # Errors
    /// A cgroup of the tree that cannot be read or written.
    pub(super) fn open(tree: &Tree, caps: Caps) -> Result<Self, IsolateError> {
        let root = tree.root.clone();
        let parents = [Branch::Guaranteed, Branch::Exclusive].map(|branch| tree.branch(branch)).to_vec();
        let mut tasks = HashMap::new();
        for parent in &parents {
            for task in parent.children()? {
                let protected = task.read_number("memory.low").ok().flatten().unwrap_or(0);
                tasks.insert(task.path().to_owned(), protected);
            }
        }
        let granted_bytes = tasks.values().copied().fold(0, u64::saturating_add);
        let mut protection =
            Self { root, parents, caps, tasks, granted_bytes, written: Protected::default() };
        protection.write(caps.parent(granted_bytes))?;
        let agent = Protected { min_bytes: AGENT_BYTES, low_bytes: AGENT_BYTES };
        protect(&tree.agent_leaf(), agent)?;
        Ok(protection)
    }

    /// A task is protected this far from now on; 0 forgets it, and its cgroup is left as it is. What is above
    /// follows: upwards before the task's own files, downwards after them.
    ///
    /// # Errors
    /// A file that could not be written; the books then have what was asked for.
    pub(super) fn set(&mut self, task: &Cgroup, bytes: u64) -> Result<(), IsolateError> {
        let before = match bytes {
            0 => self.tasks.remove(task.path()),
            _ => self.tasks.insert(task.path().to_owned(), bytes),
        };
        self.granted_bytes = self.granted_bytes.saturating_sub(before.unwrap_or(0)).saturating_add(bytes);
        let wanted = self.caps.parent(self.granted_bytes);
        if wanted.low_bytes > self.written.low_bytes {
            self.write(wanted)?;
        }
        if bytes > 0 {
            protect(task, Protected { min_bytes: bytes, low_bytes: bytes })?;
        }
        if wanted == self.written { Ok(()) } else { self.write(wanted) }
    }

    /// Tells how much is protected.
    pub(super) fn report(&self, metrics: &Metrics) {
        metrics.memory_protected(self.written.min_bytes, self.written.low_bytes);
    }

    fn write(&mut self, wanted: Protected) -> Result<(), IsolateError> {
        protect(&self.root, root(wanted))?;
        self.parents.iter().try_for_each(|parent| protect(parent, wanted))?;
        self.written = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_machine_keeps_its_reserve_and_an_eighth() {
        let caps = Caps::of(64 << 30, 1 << 30);
        assert_eq!(caps, Caps { min_bytes: 56 << 30, low_bytes: 63 << 30 });
        assert_eq!(caps.parent(u64::MAX), Protected { min_bytes: 56 << 30, low_bytes: 63 << 30 });
        assert_eq!(caps.parent(0), Protected::default());
        let one = Protected { min_bytes: STEP_BYTES, low_bytes: STEP_BYTES };
        assert_eq!([1, STEP_BYTES].map(|granted| caps.parent(granted)), [one; 2]);
        assert_eq!(Caps::of(1 << 30, 2 << 30).parent(1 << 20), Protected::default(), "all of it is reserved");
    }

    proptest! {
        #[test]
        fn parents_protect_what_is_below_them_unless_the_host_needs_it(
            machine in 0..1_u64 << 50, reserve in 0..1_u64 << 50, granted in 0..1_u64 << 51,
        ) {
            let caps = Caps::of(machine, reserve);
            let parent = caps.parent(granted);
            prop_assert!(parent.min_bytes <= parent.low_bytes, "what is firm is soft too");
            prop_assert!(parent.low_bytes <= machine.saturating_sub(reserve));
            prop_assert!(parent.min_bytes <= machine - machine / LOOSE_PART);
            prop_assert!(parent.low_bytes >= granted.min(machine.saturating_sub(reserve)));
            prop_assert!(root(parent).min_bytes >= parent.min_bytes + AGENT_BYTES);
        }
    }

    #[test]
    fn books_follow_tasks_as_they_come_grow_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = Cgroup::at(dir.path());
        let parent = Cgroup::create(dir.path().join("guaranteed")).unwrap();
        let tasks = ["a", "b"].map(|name| Cgroup::create(parent.path().join(name)).unwrap());
        let empty = || {
            for cgroup in [&root, &parent].into_iter().chain(&tasks) {
                for file in ["memory.min", "memory.low"] {
                    std::fs::write(cgroup.path().join(file), "").unwrap();
                }
            }
        };
        empty();
        let read = |cgroup: &Cgroup| cgroup.read_number("memory.low").unwrap().unwrap();
        let caps = Caps::of(16 << 30, 0);
        let (tasks_now, written) = (HashMap::new(), Protected::default());
        let mut books = Protection {
            root: root.clone(),
            parents: vec![parent.clone()],
            caps,
            tasks: tasks_now,
            granted_bytes: 0,
            written,
        };
        books.set(&tasks[0], 1 << 30).unwrap();
        books.set(&tasks[1], 1).unwrap();
        assert_eq!((read(&tasks[0]), read(&tasks[1])), (1 << 30, 1));
        assert_eq!(read(&parent), (1 << 30) + STEP_BYTES);
        assert_eq!(read(&root), read(&parent) + AGENT_BYTES);
        // The files of a test are not cut when they are written, so shorter numbers need empty ones.
        empty();
        books.set(&tasks[0], 0).unwrap();
        assert_eq!((read(&parent), books.granted_bytes), (STEP_BYTES, 1));
        books.set(&tasks[0], 0).unwrap();
        assert_eq!(books.granted_bytes, 1, "a task goes only once");
    }
}
