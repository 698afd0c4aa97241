//! Cores of a task's own: whole physical cores on which nobody else runs, and the memory next to them.
//!
//! Tasks with cores of their own live in a branch of the tree apart. All others are kept off these cores by the
//! cpusets of their branches, the rest of the host by the kernel or by cpusets of its own ([`cpusets`], [`host`]).
//! One core, that with the lowest CPU, is never given out: the kernel's own housekeeping, the system's services and
//! the agent need a place.
//!
//! Which core is whose is written nowhere but in the tasks' own cpusets, so an agent that starts finds it there.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_proto::v1;

use super::{IsolateError, Isolator, TaskPlace, tree::Tree};
use crate::{
    grant::Grant,
    kernel::{
        bpf::ForeignTimes,
        cgroupfs::{Cgroup, CgroupError},
        cpu_set::CpuSet,
    },
    measure::topology::{Core, Topology},
};

mod cpusets;
mod host;
mod nodes;
mod placement;

pub use cpusets::forget;
use cpusets::{Cpusets, Held, Partition};
use placement::place;

const CPUS: &str = "cpuset.cpus";

/// Needs the cpuset controller; without it, tasks that ask for cores of their own are refused.
pub struct Cores {
    /// Why no cores can be given out here.
    unfit: Option<String>,
    topology: Topology,
    cpusets: Cpusets,
    foreign: Option<Arc<ForeignTimes>>,
    /// Held while files are written: the cpusets of the branches belong to all tasks.
    books: Mutex<Books>,
}

/// Whose cores are taken, by the directory of the task's cgroup.
type Books = BTreeMap<PathBuf, Owner>;

struct Owner {
    cgroup_id: u64,
    held: Held,
}

impl Cores {
    /// Takes over what the tree holds. `foreign` counts who runs on cores that are not his, where the kernel can;
    /// with `keep_system_off` the rest of the host is kept off, too.
    ///
    /// # Errors
    /// When a cgroup cannot be read. What cannot be written is logged: the tasks run as they did.
    pub fn start(
        tree: &Tree,
        topology: Result<Topology, String>,
        foreign: Option<Arc<ForeignTimes>>,
        keep_system_off: bool,
    ) -> Result<Self, CgroupError> {
        let no_cpusets = "the cpuset controller is not on the cgroup v2 hierarchy";
        let unfit = if tree.has("cpuset") { None } else { Some(no_cpusets.to_owned()) };
        let unfit = unfit.or_else(|| topology.as_ref().err().cloned());
        let topology = topology.unwrap_or_default();
        let cpusets = Cpusets::new(tree.clone(), topology.possible().clone(), keep_system_off);
        let books = if unfit.is_none() { find_owners(&cpusets)? } else { Books::new() };
        let cores = Self { unfit, topology, cpusets, foreign, books: Mutex::new(books) };
        if cores.unfit.is_none() {
            let books = cores.lock();
            if let Err(error) = cores.cpusets.agree(&all_taken(&books)) {
                let error = crate::error_chain(&error);
                tracing::error!(error, "keep others off the cores that are taken");
            }
            cores.count_foreign(&books);
        }
        Ok(cores)
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // Each entry is written before the files that follow from it.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All cores but the one that stays with the system.
    fn placeable(&self) -> &[Core] {
        self.topology.cores().get(1..).unwrap_or_default()
    }

    /// The machine's cores and memory nodes.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// What each memory node has of cores now; nothing of its memory.
    pub fn by_node(&self) -> Vec<v1::NumaNode> {
        let placeable = if self.unfit.is_none() { self.placeable() } else { &[] };
        nodes::by_node(&self.topology, placeable, &all_taken(&self.lock()))
    }

    /// Gives the task as many CPUs as its grant names: more, fewer, or its first ones.
    fn give(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let mut books = self.lock();
        let path = task.cgroup.path();
        let before = books.get(path).map_or_else(Held::default, |owner| owner.held.clone());
        let others = taken_by_others(&books, path);
        let cpus = self.choose(&before.cpus, &others, grant)?;
        let partition = self.partition(grant)?;
        let after = Held { mems: self.topology.memory_of(&cpus), cpus, partition };
        if after == before {
            return Ok(());
        }
        books.insert(path.to_owned(), Owner { cgroup_id: task.id, held: after.clone() });
        let done = self.cpusets.hold(&task.cgroup, &before, &after, &others);
        if done.is_err() {
            // What was there before is put back as far as it goes; the first error says more.
            let _ = self.cpusets.hold(&task.cgroup, &after, &before, &others);
            if before.cpus.is_empty() {
                books.remove(path);
            } else {
                books.insert(path.to_owned(), Owner { cgroup_id: task.id, held: before });
            }
        }
        self.count_foreign(&books);
        done
    }

    fn choose(&self, own: &CpuSet, others: &CpuSet, grant: &Grant) -> Result<CpuSet, IsolateError> {
        let refused = |misfit: placement::Misfit| IsolateError::Refused(format!("exclusive cores: {misfit}"));
        let want = usize::try_from(grant.cpu_milli / 1000).unwrap_or(usize::MAX);
        let all = self.placeable();
        if want <= own.len() {
            // Some of its own, chosen as if nobody else were there.
            let not_own = self.topology.cpus().difference(own);
            return place(all, &not_own, want, own).map_err(refused);
        }
        let taken = others.union(own);
        match place(all, &taken, want - own.len(), own) {
            Ok(more) => Ok(own.union(&more)),
            Err(placement::Misfit::Size { .. }) => {
                // Named for the whole, not for the difference.
                let misfit = place(all, others, want, own).err();
                Err(refused(misfit.unwrap_or(placement::Misfit::Room { want, left: own.len() })))
            }
            Err(placement::Misfit::Room { left, .. }) => {
                Err(refused(placement::Misfit::Room { want, left: left + own.len() }))
            }
        }
    }

    fn partition(&self, grant: &Grant) -> Result<Partition, IsolateError> {
        if grant.cpu.isolated {
            if !self.cpusets.has_partitions() {
                let why = "isolated cores need cpuset.cpus.exclusive (Linux 6.7), which this kernel has not";
                return Err(IsolateError::Refused(why.to_owned()));
            }
            return Ok(Partition::Isolated);
        }
        Ok(if self.cpusets.keeps_off_by_kernel() { Partition::Root } else { Partition::Member })
    }

    /// What the kernel counts is proof of exclusivity, and no part of it: a failure is logged.
    fn count_foreign(&self, books: &Books) {
        let Some(foreign) = &self.foreign else { return };
        let owners: Vec<_> = books.values().map(|o| (o.cgroup_id, o.held.cpus.clone())).collect();
        if let Err(error) = foreign.own(&owners) {
            tracing::warn!(error = crate::error_chain(&error), "count foreign time on exclusive cores");
        }
    }
}

/// The owners that an earlier agent left, also those that no journal knows any more.
fn find_owners(cpusets: &Cpusets) -> Result<Books, CgroupError> {
    let mut books = Books::new();
    for cgroup in cpusets.tasks()? {
        let held = cpusets.read(&cgroup)?;
        if !held.cpus.is_empty() {
            let cgroup_id = cgroup.id()?;
            books.insert(cgroup.path().to_owned(), Owner { cgroup_id, held });
        }
    }
    Ok(books)
}

fn all_taken(books: &Books) -> CpuSet {
    books.values().fold(CpuSet::default(), |all, owner| all.union(&owner.held.cpus))
}

fn taken_by_others(books: &Books, task: &std::path::Path) -> CpuSet {
    let others = books.iter().filter(|(path, _)| path.as_path() != task);
    others.fold(CpuSet::default(), |all, (_, owner)| all.union(&owner.held.cpus))
}

impl Isolator for Arc<Cores> {
    fn part(&self) -> &'static str {
        "cores"
    }

    fn features(&self) -> &'static [&'static str] {
        &["cgroup_cpuset"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        match &self.unfit {
            _ if !grant.cpu.exclusive => Ok(()),
            Some(why) => Err(IsolateError::Refused(format!("exclusive cores: {why}"))),
            None => self.give(task, grant),
        }
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        if before.cpu.exclusive != after.cpu.exclusive {
            let why = "a task has cores of its own from its start, or never: restart it to change that";
            return Err(IsolateError::Refused(why.to_owned()));
        }
        let part = |grant: &Grant| (grant.cpu_milli, grant.cpu.isolated);
        if part(before) == part(after) { Ok(()) } else { self.prepare(task, after) }
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.prepare(task, grant)
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Some(foreign) = self.foreign.as_ref().filter(|_| self.lock().contains_key(task.cgroup.path()))
        else {
            return;
        };
        if let Ok(Some(time)) = foreign.of(task.id) {
            usage.foreign_cpu_usec = (time.kernel_ns + time.others_ns) / 1000;
        }
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        let mut books = self.lock();
        let path = task.cgroup.path();
        let Some(owner) = books.remove(path) else { return Ok(()) };
        let others = all_taken(&books);
        let given_back = self.cpusets.hold(&task.cgroup, &owner.held, &Held::default(), &others);
        self.count_foreign(&books);
        given_back
    }
}

/// For messages about cgroups that are not a task's.
type Done = Result<(), CgroupError>;

/// Writes a set of CPUs or nodes where the file holds another; an empty set clears it.
fn write_set(cgroup: &Cgroup, file: &str, set: &CpuSet) -> Done {
    if read_set(cgroup, file)? == *set {
        return Ok(());
    }
    // An empty write(2) would be none.
    let text = if set.is_empty() { "\n".to_owned() } else { set.to_string() };
    cgroup.write(file, &text)
}

/// Lets a cgroup use all CPUs again. One with processes may not go back to an empty set; all there are is the same.
fn release(cgroup: &Cgroup, all: &CpuSet) -> Done {
    let set = read_set(cgroup, CPUS)?;
    if set.is_empty() || set == *all {
        return Ok(());
    }
    match cgroup.write(CPUS, "\n") {
        Err(CgroupError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOSPC) => {
            write_set(cgroup, CPUS, all)
        }
        other => other,
    }
}

fn read_set(cgroup: &Cgroup, file: &str) -> Result<CpuSet, CgroupError> {
    let text = cgroup.read(file)?;
    text.parse().map_err(|_| CgroupError::Malformed {
        path: cgroup.path().join(file),
        expected: "a list of numbers",
        found: text.clone(),
    })
}
