//! Bounds of volumes: a directory with a bound is a project of its own, for all tasks that use it together.
//!
//! # What a bound promises
//! The bound is the volume's, as the files in it are, and outlives the tasks as they do: it is the quota of the
//! directory's project, which the file system keeps. Whoever uses the volume is held to it, also a task that names no
//! bound. It is changed by a launch that names another one, and refused to it while a running task relies on the one
//! before. A launch that fails later puts the bound back.
//!
//! A volume within a bounded one, or around one, cannot be bounded: a file belongs to one project only.
//!
//! A volume that is full is an event of each task that uses it: the kernel does not say whose write was refused.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_proto::v1::{self, EventKind};
use bytesize::ByteSize;

use super::{
    IsolateError, Isolator, Refusals, TaskPlace, excess, full_at,
    projects::{ProjectError, Projects},
    walk,
};
use crate::{
    event::EventKey,
    grant::Grant,
    kernel::quota::{ProjectDir, QuotaError, Record},
    offer::ledger::TaskKey,
};

/// What a launch asks of a volume. 0 leaves it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// Of everything in it, and of itself.
    pub max_bytes: u64,
    /// Files and directories, itself too.
    pub max_inodes: u64,
}

impl Bound {
    fn is_none(self) -> bool {
        self == Self::default()
    }

    fn contradicts(self, other: Self) -> bool {
        let differ = |a: u64, b: u64| a != 0 && b != 0 && a != b;
        differ(self.max_bytes, other.max_bytes) || differ(self.max_inodes, other.max_inodes)
    }

    /// What is in force once this was asked where `before` was.
    fn over(self, before: Self) -> Self {
        let or = |asked, before| if asked == 0 { before } else { asked };
        Self {
            max_bytes: or(self.max_bytes, before.max_bytes),
            max_inodes: or(self.max_inodes, before.max_inodes),
        }
    }
}

impl From<Record> for Bound {
    fn from(record: Record) -> Self {
        Self { max_bytes: record.max_bytes, max_inodes: record.max_inodes }
    }
}

/// A volume cannot be bounded as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BoundError {
    /// It will not be, and this says why and what to do.
    #[error("volume {} cannot be bounded: {why}", path.display())]
    Refused {
        /// The volume.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A call failed.
    #[error("bound the volume {}", path.display())]
    Project {
        /// The volume.
        path: PathBuf,
        /// Which, and why.
        source: ProjectError,
    },
}

/// What a launch has changed about a volume.
#[derive(Debug)]
pub struct BoundChange {
    dir: ProjectDir,
    project: u32,
    /// It had no project before.
    fresh: bool,
    before: Bound,
}

/// A running task that has the volume.
#[derive(Clone, Debug)]
struct User {
    cgroup_id: u64,
    task: TaskKey,
    bound: Bound,
    /// How often the kernel told of a refusal since it came.
    refused: u64,
}

/// A volume while tasks use it.
#[derive(Debug)]
struct InUse {
    dir: ProjectDir,
    users: Vec<User>,
}

impl InUse {
    /// What the file system counts for it; `None` where it has no bound, or the file system no quotas.
    fn record(&self) -> Option<(u32, Record)> {
        let project = self.dir.project().ok().filter(|project| *project != 0)?;
        Some((project, self.dir.record(project).ok()?))
    }
}

/// By device and inode.
type Volumes = BTreeMap<(u64, u64), InUse>;

/// Whose bound keeps the volume from having this one.
fn holder(users: &[User], asked: Bound) -> Option<&User> {
    users.iter().find(|user| user.bound.contradicts(asked))
}

/// The bounds of all volumes of this node, and who relies on them.
#[derive(Debug)]
pub struct VolumeBounds {
    projects: Projects,
    in_use: Mutex<Volumes>,
    /// Held while directories move from one project to another.
    moving: Mutex<()>,
}

impl VolumeBounds {
    /// Gives out project ids of this range, on whatever file system a volume is.
    pub fn new(projects: RangeInclusive<u32>) -> Self {
        Self { projects: Projects::new(projects), in_use: Mutex::default(), moving: Mutex::default() }
    }

    /// Notes that a task has the volume, and holds it to the bound. What is there already is counted once, by walking
    /// through it, when a directory gets its first bound.
    ///
    /// Called by a launch before its process exists, and for tasks that outlived an agent. [`VolumeBounds::leave`]
    /// follows, also after an error.
    ///
    /// # Errors
    /// [`BoundError`]; the bound is then as before.
    pub fn enter(
        &self,
        task: &TaskPlace,
        directory: BorrowedFd<'_>,
        path: &Path,
        asked: Bound,
    ) -> Result<Option<BoundChange>, BoundError> {
        let failed = |error: ProjectError| BoundError::Project { path: path.to_owned(), source: error };
        let dir = ProjectDir::of(directory, path).map_err(|e| failed(e.into()))?;
        let id = dir.id().map_err(|e| failed(e.into()))?;
        let again = ProjectDir::of(directory, path).map_err(|e| failed(e.into()))?;
        {
            let mut volumes = self.in_use();
            let users =
                &mut volumes.entry(id).or_insert_with(|| InUse { dir: again, users: Vec::new() }).users;
            if let Some(other) = holder(users, asked) {
                return Err(refuse(path, taken(other)));
            }
            users.push(User { cgroup_id: task.id, task: task.task.clone(), bound: asked, refused: 0 });
        }
        if asked.is_none() { Ok(None) } else { self.hold(dir, asked) }
    }

    /// The task has ended, or was not launched. The bounds of its volumes stay.
    pub fn leave(&self, task: &TaskPlace) {
        let mut volumes = self.in_use();
        volumes.retain(|_, volume| {
            volume.users.retain(|user| user.cgroup_id != task.id);
            !volume.users.is_empty()
        });
    }

    /// Puts the bound back that was before a launch that failed, unless another task relies on it meanwhile.
    ///
    /// # Errors
    /// The kernel's.
    pub fn revert(&self, task: &TaskPlace, change: &BoundChange) -> Result<(), QuotaError> {
        let _moving = self.moving();
        let relied_on = {
            let id = change.dir.id()?;
            let volumes = self.in_use();
            let users = volumes.get(&id).into_iter().flat_map(|volume| &volume.users);
            users.into_iter().any(|user| user.cgroup_id != task.id && !user.bound.is_none())
        };
        if relied_on { Ok(()) } else { change.undo() }
    }

    fn hold(&self, dir: ProjectDir, asked: Bound) -> Result<Option<BoundChange>, BoundError> {
        let path = dir.path().to_owned();
        let failed = |error: ProjectError| BoundError::Project { path: path.clone(), source: error };
        dir.probe().map_err(|why| refuse(&path, why))?;
        let _moving = self.moving();
        let before = dir.project().map_err(|e| failed(e.into()))?;
        if before != 0 {
            self.check_own(&dir, before)?;
        }
        let change = if before == 0 {
            let project = self.projects.take(&dir).map_err(failed)?;
            // Of whoever had the id before.
            dir.limit(project, 0, 0).map_err(|e| failed(e.into()))?;
            BoundChange { dir, project, fresh: true, before: Bound::default() }
        } else {
            let record = dir.record(before).map_err(|e| failed(e.into()))?;
            BoundChange { dir, project: before, fresh: false, before: record.into() }
        };
        let limited = self.limit(&change, asked);
        if limited.is_err()
            && let Err(error) = change.undo()
        {
            tracing::warn!(error = crate::error_chain(&error), "put the bound of a volume back");
        }
        limited.map(|changed| changed.then_some(change))
    }

    /// False where the bound was in force before.
    fn limit(&self, change: &BoundChange, asked: Bound) -> Result<bool, BoundError> {
        let (dir, project) = (&change.dir, change.project);
        let failed =
            |error: QuotaError| BoundError::Project { path: dir.path().to_owned(), source: error.into() };
        // Limits are set last, so where there are some the walk was completed.
        if change.before.is_none() {
            if let Some(other) = walk::other_project(dir, project).map_err(failed)? {
                let what = if self.projects.owns(other) { "a bounded volume or a sandbox" } else { "files" };
                let why =
                    format!("it has {what} of project {other} in it: bound that, or take it out of there");
                return Err(refuse(dir.path(), why));
            }
            walk::assign_all(dir, project).map_err(failed)?;
        }
        let wanted = asked.over(change.before);
        if wanted == change.before {
            return Ok(false);
        }
        dir.limit(project, wanted.max_bytes, wanted.max_inodes).map_err(failed)?;
        // Looked at afterwards: tasks may be writing at this moment.
        match excess("it", dir.record(project).map_err(failed)?) {
            Some(why) => Err(refuse(dir.path(), why)),
            None => Ok(true),
        }
    }

    /// The project of a directory that has one must be its own.
    fn check_own(&self, dir: &ProjectDir, project: u32) -> Result<(), BoundError> {
        if !self.projects.owns(project) {
            let why = format!(
                "it belongs to project {project} of somebody else: `chattr -p 0` takes it out of that"
            );
            return Err(refuse(dir.path(), why));
        }
        let above = || -> Result<bool, QuotaError> {
            let parent = dir.parent()?;
            Ok(parent.device()? == dir.device()? && parent.project()? == project)
        };
        match above() {
            Ok(false) => Ok(()),
            Ok(true) => Err(refuse(dir.path(), "a directory above it is bounded already".to_owned())),
            Err(error) => Err(BoundError::Project { path: dir.path().to_owned(), source: error.into() }),
        }
    }

    /// What refusals mean for the tasks that use volumes.
    pub(super) fn refused(&self, refusals: &Refusals) -> Vec<(EventKey, u64, String)> {
        let mut told = Vec::new();
        for ((device, _), volume) in self.in_use().iter_mut() {
            if !refusals.keys().any(|(on, _)| on == device) {
                continue;
            }
            let Some((project, record)) = volume.record() else { continue };
            let Some((count, inodes)) = refusals.get(&(*device, project)) else { continue };
            let path = volume.dir.path().display();
            let full = full_at(&record, *inodes);
            for user in &mut volume.users {
                user.refused += count;
                let key = EventKey {
                    object: path.to_string(),
                    ..EventKey::of_run(&user.task, user.cgroup_id, EventKind::DiskFull)
                };
                let message =
                    format!("its volume {path} is full at {full}: remove files, or raise the bound");
                told.push((key, user.refused, message));
            }
        }
        told
    }

    fn in_use(&self) -> MutexGuard<'_, Volumes> {
        // Every change is one insertion or removal.
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moving(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only measures: bounds are of volumes and not of grants, and a launch sets them with [`VolumeBounds::enter`].
impl Isolator for Arc<VolumeBounds> {
    fn part(&self) -> &'static str {
        "volumes"
    }

    fn features(&self) -> &'static [&'static str] {
        &[]
    }

    fn prepare(&self, _task: &TaskPlace, _grant: &Grant) -> Result<(), IsolateError> {
        Ok(())
    }

    fn update(&self, _task: &TaskPlace, _before: &Grant, _after: &Grant) -> Result<(), IsolateError> {
        Ok(())
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let volumes = self.in_use();
        let own = volumes.values().filter(|volume| volume.users.iter().any(|user| user.cgroup_id == task.id));
        for (_, record) in own.filter_map(InUse::record) {
            usage.volume_bytes = usage.volume_bytes.saturating_add(record.bytes);
            usage.volume_inodes = usage.volume_inodes.saturating_add(record.inodes);
        }
    }

    fn cleanup(&self, _task: &TaskPlace) -> Result<(), IsolateError> {
        Ok(())
    }
}

impl BoundChange {
    fn undo(&self) -> Result<(), QuotaError> {
        self.dir.limit(self.project, self.before.max_bytes, self.before.max_inodes)?;
        if self.fresh { walk::release_all(&self.dir, self.project) } else { Ok(()) }
    }
}

fn refuse(path: &Path, why: String) -> BoundError {
    BoundError::Refused { path: path.to_owned(), why }
}

fn taken(by: &User) -> String {
    let Bound { max_bytes, max_inodes } = by.bound;
    let bytes = (max_bytes > 0).then(|| ByteSize::b(max_bytes).to_string());
    let inodes = (max_inodes > 0).then(|| format!("{max_inodes} files"));
    let bound: Vec<String> = bytes.into_iter().chain(inodes).collect();
    let (framework, task) = &by.task;
    format!(
        "task {task} of framework {framework} runs with its bound of {}: ask for the same, for none, or wait for its \
         end",
        bound.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound(max_bytes: u64, max_inodes: u64) -> Bound {
        Bound { max_bytes, max_inodes }
    }

    fn user(cgroup_id: u64, bound: Bound) -> User {
        User { cgroup_id, task: ("f".into(), format!("t{cgroup_id}")), bound, refused: 0 }
    }

    #[test]
    fn a_bound_that_a_task_relies_on_is_not_changed() {
        let users = [user(1, bound(0, 0)), user(2, bound(10 << 20, 0)), user(3, bound(0, 7))];
        for fine in [bound(0, 0), bound(10 << 20, 0), bound(10 << 20, 7), bound(0, 7)] {
            assert!(holder(&users, fine).is_none(), "{fine:?}");
        }
        assert_eq!(holder(&users, bound(9 << 20, 7)).unwrap().cgroup_id, 2);
        assert_eq!(holder(&users, bound(10 << 20, 8)).unwrap().cgroup_id, 3);
        let words = taken(&users[1]);
        assert!(words.contains("t2") && words.contains("10.0 MiB"), "{words}");
    }

    #[test]
    fn what_is_not_asked_for_stays() {
        assert_eq!(bound(5, 0).over(bound(3, 4)), bound(5, 4));
        assert_eq!(bound(0, 9).over(bound(3, 4)), bound(3, 9));
    }

    proptest! {
        /// Whoever came in is held to what it asked for, as long as it stays.
        #[test]
        fn no_bound_in_force_contradicts_a_user(
            steps in prop::collection::vec((0..6_u64, 0..4_u64, 0..3_u64, any::<bool>()), 1..40),
        ) {
            let (mut users, mut in_force) = (Vec::<User>::new(), Bound::default());
            for (id, max_bytes, max_inodes, leaves) in steps {
                if leaves {
                    users.retain(|user| user.cgroup_id != id);
                    continue;
                }
                let asked = bound(max_bytes, max_inodes);
                if holder(&users, asked).is_none() {
                    in_force = asked.over(in_force);
                    users.push(user(id, asked));
                }
                prop_assert!(users.iter().all(|user| user.bound.over(in_force) == in_force), "{users:?} {in_force:?}");
            }
        }
    }
}
