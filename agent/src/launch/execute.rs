//! Carries a plan out, step by step: sandbox, cgroup, limits, program. When one fails, those before it are undone.
//!
//! Everything here blocks; [`Launcher::prepare`] and [`Prepared::start`] run on blocking threads.

use std::{os::fd::AsFd as _, path::PathBuf, sync::Arc};

use super::{
    LaunchError,
    faults::{Faults, Step},
    image::RootImage,
    owner,
    plan::Plan,
    prepared::Prepared,
    sandbox::Sandbox,
    seccomp::FilterCache,
    undo::{Rollback, Undo},
    view::HostParts,
    volume::{OpenVolume, Volume},
};
use crate::{
    isolate::{
        Isolators, TaskPlace,
        disk_space::VolumeBounds,
        tree::{Branch, Tree},
    },
    kernel::{bpf::ExitRecords, cgroupfs::Cgroup},
    user::Users,
};

/// Launches tasks on this host. Cheap to clone.
#[derive(Clone)]
pub struct Launcher {
    pub(super) shared: Arc<Shared>,
}

/// What a launcher works with.
pub struct Parts {
    /// Where tasks' cgroups are.
    pub tree: Tree,
    /// What holds them.
    pub isolators: Arc<Isolators>,
    /// What holds their volumes.
    pub volumes: Arc<VolumeBounds>,
    /// Where the kernel notes how they end while no agent is there, if it does.
    pub exits: Option<Arc<ExitRecords>>,
    /// Sandboxes are below it.
    pub work_dir: PathBuf,
    /// What their mounts are made of.
    pub host_parts: HostParts,
    /// May they run as root without a user namespace?
    pub allow_root: bool,
}

pub(super) struct Shared {
    pub(super) parts: Parts,
    pub(super) filters: FilterCache,
    pub(super) faults: Option<Box<dyn Faults>>,
    users: Users,
}

impl Launcher {
    /// A launcher of these parts.
    pub fn new(parts: Parts) -> Self {
        Self::with_faults(parts, None)
    }

    /// One that fails where a test wants it to.
    pub fn with_faults(parts: Parts, faults: Option<Box<dyn Faults>>) -> Self {
        let (users, filters) = (Users::default(), FilterCache::default());
        Self { shared: Arc::new(Shared { parts, users, filters, faults }) }
    }

    /// The kernel's notes of how tasks ended.
    pub fn exits(&self) -> Option<&Arc<ExitRecords>> {
        self.shared.parts.exits.as_ref()
    }

    /// The limits, for measuring and cleaning up.
    pub fn isolators(&self) -> &Arc<Isolators> {
        &self.shared.parts.isolators
    }

    /// The bounds of volumes.
    pub(super) fn volumes(&self) -> &VolumeBounds {
        &self.shared.parts.volumes
    }

    /// The cgroup tree.
    pub fn tree(&self) -> &Tree {
        &self.shared.parts.tree
    }

    pub(super) fn before(&self, step: Step) -> Result<(), LaunchError> {
        self.shared.faults.as_ref().map_or(Ok(()), |faults| faults.before(step))
    }

    /// Sets everything up for the program. `image` is the root directory of a plan that names one.
    ///
    /// # Errors
    /// [`LaunchError`]; what was done is undone.
    pub fn prepare(&self, plan: Plan, image: Option<RootImage>) -> Result<Prepared, LaunchError> {
        if let (Some(reference), None) = (&plan.image, &image) {
            // On the host's root it would run with less around it than it asked for.
            return Err(LaunchError::NoImage(reference.clone()));
        }
        let mut rollback = Rollback::new(self.clone());
        self.before(Step::Identity)?;
        let identity = owner::of(&plan, image.as_ref(), &self.shared.users, self.shared.parts.allow_root)?;
        self.before(Step::Sandbox)?;
        let owner = (identity.uid, identity.gid);
        let work_dir = &self.shared.parts.work_dir;
        let sandbox = Sandbox::create(work_dir, &plan.framework_id, &plan.task_id, owner)?;
        rollback.push(Undo::Sandbox(sandbox.clone()));
        self.before(Step::Cgroup)?;
        let place = self.make_cgroup(&plan, &sandbox)?;
        rollback.push(Undo::Cgroup(place.clone()));
        let volumes = self.open_volumes(&plan, &place, &mut rollback)?;
        for (index, part) in self.isolators().parts().enumerate() {
            self.before(Step::Limit(index))?;
            rollback.push(Undo::Limit(place.clone(), index));
            part.prepare(&place, &plan.grant)
                .map_err(|e| LaunchError::Isolate { part: part.part(), source: Box::new(e) })?;
        }
        Ok(Prepared { place, sandbox, plan, image, identity, volumes, launcher: self.clone(), rollback })
    }

    /// A fresh cgroup. What an earlier run left empty is replaced, so that no counter of it is inherited.
    fn make_cgroup(&self, plan: &Plan, sandbox: &Sandbox) -> Result<TaskPlace, LaunchError> {
        let cgroup = self.tree().task(Branch::of(&plan.grant), &plan.framework_id, &plan.task_id);
        if cgroup.exists() {
            if cgroup.populated()? {
                return Err(LaunchError::Occupied(cgroup.path().to_owned()));
            }
            cgroup.remove()?;
        }
        let cgroup = Cgroup::create(cgroup.path())?;
        let id = cgroup.id()?;
        let task = (plan.framework_id.clone(), plan.task_id.clone());
        let role = plan.role.clone();
        Ok(TaskPlace { task, role, cgroup, id, sandbox: sandbox.dir().to_owned() })
    }

    /// Opened once, so that what is bounded is what the task gets.
    fn open_volumes(
        &self,
        plan: &Plan,
        place: &TaskPlace,
        rollback: &mut Rollback,
    ) -> Result<Vec<OpenVolume>, LaunchError> {
        let mut opened = Vec::with_capacity(plan.volumes.len());
        for (index, volume) in plan.volumes.iter().enumerate() {
            self.before(Step::Volume(index))?;
            let open = volume.open()?;
            rollback.push(Undo::Volume(place.clone()));
            let changed = self.volumes().enter(place, open.directory(), &volume.source(), volume.bound)?;
            rollback.extend(changed.map(|change| Undo::Bound(place.clone(), change)));
            opened.push(open);
        }
        Ok(opened)
    }

    /// Takes note of the volumes of a task that outlived the agent before this one.
    pub fn adopt_volumes(&self, place: &TaskPlace, volumes: &[Volume]) {
        for volume in volumes {
            let enter = || -> Result<_, LaunchError> {
                let directory = volume.directory()?;
                Ok(self.volumes().enter(place, directory.as_fd(), &volume.source(), volume.bound)?)
            };
            if let Err(error) = enter() {
                tracing::error!(
                    task = place.task.1,
                    error = error.explain(),
                    "recover the bound of a volume"
                );
            }
        }
    }

    /// Takes the limits and the cgroup of a task away whose processes have ended.
    pub fn clear(&self, cgroup: &TaskPlace) {
        for (part, error) in self.isolators().cleanup(cgroup) {
            tracing::warn!(part, error = crate::error_chain(&error), "clean up after a task");
        }
        self.volumes().leave(cgroup);
        if let Err(error) = cgroup.cgroup.remove() {
            tracing::warn!(error = crate::error_chain(&error), "remove a task's cgroup");
        }
        if let Some(Err(error)) = self.exits().map(|exits| exits.forget(cgroup.id)) {
            tracing::warn!(error = crate::error_chain(&error), "forget an exit record");
        }
    }
}
