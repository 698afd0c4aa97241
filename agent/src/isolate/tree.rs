//! The cgroups that hold the tasks, and which controllers they have.
//!
//! ```text
//! <cgroup2 mount>/<cgroup_root>/agent                 the agent itself
//! <cgroup2 mount>/<cgroup_root>/guaranteed/<task>     weighted by their grants
//! <cgroup2 mount>/<cgroup_root>/exclusive/<task>      guaranteed, on cores of their own
//! <cgroup2 mount>/<cgroup_root>/revocable/<task>      run when nobody else wants the CPU, capped together
//! ```
//!
//! Tasks with cores of their own live apart so that all others are kept off those cores by the cpusets of their
//! parents: three files, however many tasks there are.

use std::path::Path;

use nix::unistd::Pid;

use super::cpu::{Bandwidth, quota_usec, set_bandwidth, weight_of_cpus};
use crate::{
    grant::{Class, Grant, PERIOD_USEC},
    kernel::cgroupfs::{Cgroup, CgroupError, cgroup2_mount},
};

/// Controllers that isolators use, where the kernel has them.
const WANTED: [&str; 5] = ["cpu", CPUSET, "io", "memory", "pids"];
/// The controller of cores and memory nodes.
const CPUSET: &str = "cpuset";

/// From the tree's root down to a task.
const LEVELS_TO_TASKS: u32 = 2;

/// Where in the tree a task lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// Guaranteed tasks on the cores that all share.
    Guaranteed,
    /// Guaranteed tasks on cores of their own.
    Exclusive,
    /// Revocable tasks.
    Revocable,
}

impl Branch {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Guaranteed, Self::Exclusive, Self::Revocable];

    /// That of a task with this grant.
    pub fn of(grant: &Grant) -> Self {
        match grant.class {
            Class::Revocable => Self::Revocable,
            Class::Guaranteed if grant.cpu.exclusive => Self::Exclusive,
            Class::Guaranteed => Self::Guaranteed,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "guaranteed",
            Self::Exclusive => "exclusive",
            Self::Revocable => "revocable",
        }
    }
}

/// The agent's part of the cgroup tree.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Above all tasks; BPF programs are attached here.
    pub root: Cgroup,
    /// How many levels the task cgroups are below the mount: what the BPF programs ask for.
    pub task_level: u32,
    controllers: Vec<&'static str>,
}

impl Tree {
    /// Names the tree without touching it.
    ///
    /// # Errors
    /// Where no cgroup2 is mounted.
    pub fn locate(cgroup_root: &Path) -> Result<Self, CgroupError> {
        let mount = cgroup2_mount()?;
        let relative = cgroup_root.strip_prefix("/").unwrap_or(cgroup_root);
        let root = Cgroup::at(mount.join(relative));
        let depth = u32::try_from(relative.components().count()).unwrap_or(u32::MAX - LEVELS_TO_TASKS);
        Ok(Self { root, task_level: depth + LEVELS_TO_TASKS, controllers: Vec::new() })
    }

    /// Makes the tree, moves the agent into its leaf, and hands down the controllers that are there.
    ///
    /// What is there already stays as it is, tasks included: a restarted agent calls this too.
    ///
    /// # Errors
    /// The directory or file that could not be made or written; mostly a lack of privilege or of delegation.
    pub fn set_up(cgroup_root: &Path, cpus: u64) -> Result<Self, CgroupError> {
        let mut tree = Self::locate(cgroup_root)?;
        let mount = Cgroup::at(cgroup2_mount()?);
        let available = mount.controllers()?;
        tree.controllers = WANTED.into_iter().filter(|w| available.iter().any(|a| a == w)).collect();

        let relative = cgroup_root.strip_prefix("/").unwrap_or(cgroup_root);
        let mut chain = vec![mount];
        for part in relative.components() {
            let below = chain[chain.len() - 1].path().join(part);
            chain.push(Cgroup::create(below)?);
        }
        // Processes and controllers do not go together in one cgroup, so the agent leaves first.
        Cgroup::create(tree.agent_leaf().path())?.add_process(Pid::this())?;
        for cgroup in &chain {
            cgroup.enable(&tree.controllers)?;
        }
        // Cpusets are set on the branches; only tasks with cores of their own have one each.
        let of_tasks: Vec<_> = tree.controllers.iter().copied().filter(|c| *c != CPUSET).collect();
        for branch in Branch::ALL {
            let exclusive = branch == Branch::Exclusive;
            let controllers = if exclusive { &tree.controllers } else { &of_tasks };
            Cgroup::create(tree.branch(branch).path())?.enable(controllers)?;
        }
        tree.set_weights(cpus)?;
        Ok(tree)
    }

    /// Tasks together weigh as much against the rest of the machine as they may be granted; revocable
    /// ones run only on CPU that nobody else wants.
    fn set_weights(&self, cpus: u64) -> Result<(), CgroupError> {
        if !self.has("cpu") {
            return Ok(());
        }
        let weight = weight_of_cpus(cpus).to_string();
        self.root.write("cpu.weight", &weight)?;
        self.branch(Branch::Guaranteed).write("cpu.weight", &weight)?;
        self.branch(Branch::Exclusive).write("cpu.weight", &weight)?;
        let revocable = self.branch(Branch::Revocable);
        if revocable.has("cpu.idle") {
            revocable.write("cpu.idle", "1")
        } else {
            revocable.write("cpu.weight", "1")
        }
    }

    /// Caps all revocable tasks together, or no longer; they get at least a hundredth of a CPU, so that none stands still.
    ///
    /// # Errors
    /// The kernel's refusal. Nothing is done without the cpu controller.
    pub fn cap_revocable(&self, cap_milli: Option<u64>) -> Result<(), CgroupError> {
        if !self.has("cpu") {
            return Ok(());
        }
        let quota_usec = cap_milli.map(|cap| quota_usec(cap, PERIOD_USEC));
        let cap = Bandwidth { quota_usec, period_usec: PERIOD_USEC, burst_usec: 0 };
        set_bandwidth(&self.branch(Branch::Revocable), &cap)
    }

    /// Below a directory of plain files, without controllers.
    #[cfg(test)]
    pub(super) fn in_files(dir: &Path) -> Self {
        Self { root: Cgroup::at(dir), task_level: LEVELS_TO_TASKS, controllers: Vec::new() }
    }

    /// Does the tree have this controller?
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    /// The cgroup under which the tasks of a branch live.
    pub fn branch(&self, branch: Branch) -> Cgroup {
        self.root.child(branch.name())
    }

    /// The root of the hierarchy.
    pub fn mount(&self) -> Cgroup {
        Cgroup::at(self.root.path().ancestors().nth(self.depth()).unwrap_or_else(|| self.root.path()))
    }

    /// The cgroups from below the mount down to the tree's root, which is the last.
    pub fn path_from_mount(&self) -> Vec<Cgroup> {
        let mut path: Vec<_> = self.root.path().ancestors().take(self.depth()).map(Cgroup::at).collect();
        path.reverse();
        path
    }

    fn depth(&self) -> usize {
        usize::try_from(self.task_level.saturating_sub(LEVELS_TO_TASKS)).unwrap_or(usize::MAX)
    }

    /// The agent's own cgroup.
    pub fn agent_leaf(&self) -> Cgroup {
        self.root.child("agent")
    }

    /// The cgroup of a task, made or not.
    ///
    /// The prefix keeps a task from being named like a control file; ids have no `@`, so no two tasks share a name.
    pub fn task(&self, branch: Branch, framework_id: &str, task_id: &str) -> Cgroup {
        self.branch(branch).child(&format!("task@{framework_id}@{task_id}"))
    }

    /// The cgroups of all tasks, also of those that no agent knows any more.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn tasks(&self) -> Result<Vec<Cgroup>, CgroupError> {
        let mut tasks = Vec::new();
        for branch in Branch::ALL {
            tasks.extend(self.branch(branch).children()?);
        }
        Ok(tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_cannot_be_named_like_a_control_file() {
        let tree = Tree { root: Cgroup::at("/c"), task_level: 3, controllers: vec![] };
        let task = tree.task(Branch::Guaranteed, "cpu", "max");
        assert_eq!(task.path(), Path::new("/c/guaranteed/task@cpu@max"));
    }

    #[test]
    fn the_way_from_the_mount_ends_at_the_root_of_the_tree() {
        let tree = Tree { root: Cgroup::at("/sys/fs/cgroup/a/b"), task_level: 4, controllers: vec![] };
        assert_eq!(tree.mount(), Cgroup::at("/sys/fs/cgroup"));
        assert_eq!(tree.path_from_mount(), ["/sys/fs/cgroup/a", "/sys/fs/cgroup/a/b"].map(Cgroup::at));
    }
}
