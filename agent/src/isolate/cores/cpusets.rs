//! The cpuset files of the tree, written so that at no moment two tasks may run on one exclusive core.
//!
//! ```text
//! agent, guaranteed, revocable    cpuset.cpus = all but the exclusive cores; all, or empty, while there are none
//! exclusive/<task>                cpuset.cpus = its cores, cpuset.mems = their memory nodes
//! ```
//!
//! Where the kernel has `cpuset.cpus.exclusive` (Linux 6.7) each of these tasks is a partition besides, which takes
//! the cores away from every other cgroup of the host, and gives them back by itself when the cgroup goes. Older
//! kernels make partitions only directly below another, which would take all of the agent's tree away from the host;
//! there the other cgroups of the host are restricted one by one ([`super::host`]).
//!
//! Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst`, Cpuset.

use super::{CPUS, Done, host, read_set, release, write_set};
use crate::{
    isolate::{
        IsolateError,
        tree::{Branch, Tree},
    },
    kernel::{
        cgroupfs::{Cgroup, CgroupError},
        cpu_set::CpuSet,
    },
};

const MEMS: &str = "cpuset.mems";
const EXCLUSIVE: &str = "cpuset.cpus.exclusive";
const PARTITION: &str = "cpuset.cpus.partition";

/// How a task's cores are set apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Partition {
    /// By the cpusets of all others only.
    #[default]
    Member,
    /// By the kernel.
    Root,
    /// By the kernel, and without its load balancing.
    Isolated,
}

impl Partition {
    fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Root => "root",
            Self::Isolated => "isolated",
        }
    }
}

/// What one task has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) cpus: CpuSet,
    /// Empty where the machine has no nodes, or these have no memory.
    pub(super) mems: CpuSet,
    pub(super) partition: Partition,
}

/// The files.
pub(super) struct Cpusets {
    tree: Tree,
    all: CpuSet,
    keep_system_off: bool,
    has_partitions: bool,
}

impl Cpusets {
    pub(super) fn new(tree: Tree, all: CpuSet, keep_system_off: bool) -> Self {
        let has_partitions = tree.branch(Branch::Exclusive).has(EXCLUSIVE);
        Self { tree, all, keep_system_off, has_partitions }
    }

    pub(super) fn has_partitions(&self) -> bool {
        self.has_partitions
    }

    /// Does the kernel keep the host off by itself?
    pub(super) fn keeps_off_by_kernel(&self) -> bool {
        self.has_partitions && self.keep_system_off
    }

    /// The cgroups that may have cores of their own.
    pub(super) fn tasks(&self) -> Result<Vec<Cgroup>, CgroupError> {
        self.tree.branch(Branch::Exclusive).children()
    }

    /// What a task's cgroup has.
    pub(super) fn read(&self, task: &Cgroup) -> Result<Held, CgroupError> {
        let partition = match task.read(PARTITION)?.split_whitespace().next() {
            Some("root") => Partition::Root,
            Some("isolated") => Partition::Isolated,
            _ => Partition::Member,
        };
        Ok(Held { cpus: read_set(task, CPUS)?, mems: read_set(task, MEMS)?, partition })
    }

    /// Makes everything but the tasks agree with what is taken: for an agent that starts.
    pub(super) fn agree(&self, taken: &CpuSet) -> Done {
        self.share_all_but(taken)?;
        self.reserve(taken)
    }

    /// Moves a task from `before` to `after`, while `others` are taken. Nobody is on a core before the last one has
    /// left it: those that share leave first, and come back last.
    ///
    /// # Errors
    /// The file that could not be written, or why the kernel makes no partition of it. Some files are written then.
    pub(super) fn hold(
        &self,
        task: &Cgroup,
        before: &Held,
        after: &Held,
        others: &CpuSet,
    ) -> Result<(), IsolateError> {
        let during = others.union(&before.cpus).union(&after.cpus);
        self.share_all_but(&during)?;
        self.reserve(&during)?;
        if task.exists() {
            self.set_task(task, before, after)?;
        }
        let now = others.union(&after.cpus);
        self.reserve(&now)?;
        Ok(self.share_all_but(&now)?)
    }

    fn set_task(&self, task: &Cgroup, before: &Held, after: &Held) -> Result<(), IsolateError> {
        if after.partition == Partition::Member && before.partition != Partition::Member {
            task.write(PARTITION, Partition::Member.name())?;
        }
        // A partition's exclusive CPUs are at no moment outside of its CPUs.
        let partitioned = |held: &Held| held.partition != Partition::Member;
        let exclusive = if partitioned(after) { after.cpus.clone() } else { CpuSet::default() };
        let set_exclusive =
            || if self.has_partitions { write_set(task, EXCLUSIVE, &exclusive) } else { Ok(()) };
        if before.cpus.is_subset(&after.cpus) {
            write_set(task, CPUS, &after.cpus)?;
            write_set(task, MEMS, &after.mems)?;
            set_exclusive()?;
        } else {
            set_exclusive()?;
            write_set(task, CPUS, &after.cpus)?;
            write_set(task, MEMS, &after.mems)?;
        }
        if partitioned(after) {
            make_partition(task, after.partition)?;
        }
        Ok(())
    }

    /// Keeps all tasks that share cores, the agent and, where the kernel does not do so, the host off these.
    fn share_all_but(&self, taken: &CpuSet) -> Done {
        let rest = self.all.difference(taken);
        let sharing = [
            self.tree.agent_leaf(),
            self.tree.branch(Branch::Guaranteed),
            self.tree.branch(Branch::Revocable),
        ];
        for cgroup in &sharing {
            if taken.is_empty() { release(cgroup, &self.all)? } else { write_set(cgroup, CPUS, &rest)? }
        }
        if self.has_partitions {
            return Ok(());
        }
        // Switched off, what an earlier agent restricted is given back.
        host::restrict(&self.tree, if self.keep_system_off { &rest } else { &self.all }, &self.all)
    }

    /// Lets the cgroups above the tasks hand these CPUs to partitions, and no others.
    fn reserve(&self, taken: &CpuSet) -> Done {
        if !self.has_partitions {
            return Ok(());
        }
        let branch = self.tree.branch(Branch::Exclusive);
        let before = read_set(&branch, EXCLUSIVE)?;
        let (more, fewer) = (taken.difference(&before), before.difference(taken));
        // A cgroup's exclusive CPUs are among its parent's, so they grow from above and shrink from below.
        let mut above = self.tree.path_from_mount();
        for cgroup in &above {
            let has = read_set(cgroup, EXCLUSIVE)?;
            write_set(cgroup, EXCLUSIVE, &has.union(&more))?;
        }
        write_set(&branch, EXCLUSIVE, taken)?;
        above.reverse();
        for cgroup in &above {
            let has = read_set(cgroup, EXCLUSIVE)?;
            write_set(cgroup, EXCLUSIVE, &has.difference(&fewer))?;
        }
        Ok(())
    }
}

/// The kernel takes the word and says only in the file whether it holds.
fn make_partition(task: &Cgroup, partition: Partition) -> Result<(), IsolateError> {
    let wanted = partition.name();
    if task.read(PARTITION)?.trim() != wanted {
        task.write(PARTITION, wanted)?;
    }
    match task.read(PARTITION)?.trim() {
        is if is == wanted => Ok(()),
        is => Err(IsolateError::Refused(format!(
            "the kernel does not set the cores of {} apart: cpuset.cpus.partition is {is:?}, not {wanted:?}",
            task.path().display()
        ))),
    }
}

/// Gives back what was taken from the rest of the host, which may use `all` CPUs then. For `cleanup`, before the tree itself is removed and after its
/// last process has ended.
///
/// # Errors
/// The file that could not be written.
pub fn forget(tree: &Tree, all: &CpuSet) -> Done {
    let cpusets = Cpusets::new(tree.clone(), all.clone(), true);
    if !tree.branch(Branch::Exclusive).has(CPUS) {
        return Ok(());
    }
    for task in cpusets.tasks()? {
        if cpusets.has_partitions {
            task.write(PARTITION, Partition::Member.name())?;
            write_set(&task, EXCLUSIVE, &CpuSet::default())?;
        }
    }
    cpusets.reserve(&CpuSet::default())?;
    if cpusets.has_partitions { Ok(()) } else { host::restrict(tree, all, all) }
}
