//! The cgroups that hold the tasks, and which controllers they have.
//!
//! ```text
//! <cgroup2 mount>/<cgroup_root>/agent                 the agent itself
//! <cgroup2 mount>/<cgroup_root>/guaranteed/<task>     weighted by their grants
//! <cgroup2 mount>/<cgroup_root>/revocable/<task>      run when nobody else wants the CPU
//! ```

use std::path::Path;

use nix::unistd::Pid;

use super::cpu::weight;
use crate::{
    grant::Class,
    kernel::cgroupfs::{Cgroup, CgroupError, cgroup2_mount},
};

/// Controllers that isolators use, where the kernel has them.
const WANTED: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// The agent's part of the cgroup tree.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Above all tasks; BPF programs are attached here.
    pub root: Cgroup,
    /// How many levels the task cgroups are below the mount: what the BPF programs ask for.
    pub task_level: u32,
    controllers: Vec<&'static str>,
    guaranteed: Cgroup,
    revocable: Cgroup,
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
        let depth = u32::try_from(relative.components().count()).unwrap_or(u32::MAX - 2);
        let (guaranteed, revocable) = (root.child("guaranteed"), root.child("revocable"));
        Ok(Self { root, task_level: depth + 2, controllers: Vec::new(), guaranteed, revocable })
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
        for parent in [&tree.guaranteed, &tree.revocable] {
            Cgroup::create(parent.path())?.enable(&tree.controllers)?;
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
        self.root.write("cpu.weight", &weight(cpus.saturating_mul(1000)).to_string())?;
        self.guaranteed.write("cpu.weight", &weight(cpus.saturating_mul(1000)).to_string())?;
        if self.revocable.has("cpu.idle") {
            self.revocable.write("cpu.idle", "1")
        } else {
            self.revocable.write("cpu.weight", "1")
        }
    }

    /// Does the tree have this controller?
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    /// The cgroup under which tasks of this class live.
    pub fn parent(&self, class: Class) -> &Cgroup {
        match class {
            Class::Guaranteed => &self.guaranteed,
            Class::Revocable => &self.revocable,
        }
    }

    /// The agent's own cgroup.
    pub fn agent_leaf(&self) -> Cgroup {
        self.root.child("agent")
    }

    /// The cgroup of a task, made or not.
    ///
    /// The prefix keeps a task from being named like a control file; ids have no `@`, so no two tasks share a name.
    pub fn task(&self, class: Class, framework_id: &str, task_id: &str) -> Cgroup {
        self.parent(class).child(&format!("task@{framework_id}@{task_id}"))
    }

    /// The cgroups of all tasks, also of those that no agent knows any more.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn tasks(&self) -> Result<Vec<Cgroup>, CgroupError> {
        let mut tasks = self.guaranteed.children()?;
        tasks.extend(self.revocable.children()?);
        Ok(tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_cannot_be_named_like_a_control_file() {
        let cgroup = Cgroup::at("/c/guaranteed");
        let root = Cgroup::at("/c");
        let tree = Tree {
            revocable: root.child("revocable"),
            guaranteed: cgroup,
            root,
            task_level: 3,
            controllers: vec![],
        };
        let task = tree.task(Class::Guaranteed, "cpu", "max");
        assert_eq!(task.path(), Path::new("/c/guaranteed/task@cpu@max"));
    }
}
