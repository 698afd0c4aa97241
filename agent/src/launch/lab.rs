//! A launcher by itself, without an agent around it: for measurements and for tests of launches.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::v1;

use super::{
    LaunchError, Launcher, Plan, PlanError, Running, confine::Rules, execute::Parts, faults::Faults,
    host_parts::HostPartsError, plan::Defaults, view::HostParts,
};
use crate::{
    grant::GrantDefaults,
    isolate::{Isolator, Isolators, disk_space::VolumeBounds, tree::Tree},
    kernel::cgroupfs::{CgroupError, cgroup2_mount},
};

/// Everything that a launch needs. Its cgroups are removed with it; the directory is the caller's.
pub struct Lab {
    /// Where its tasks' cgroups are: below `guaranteed`.
    pub tree: Tree,
    /// With no limits but those that were handed in.
    pub launcher: Launcher,
    /// What its tasks leave out. They run as `nobody`.
    pub defaults: Defaults,
}

/// A launch cannot work here.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The cgroup tree.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The cgroup of its tasks.
    #[error("make {}", path.display())]
    Branch {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What mounts are made of.
    #[error(transparent)]
    HostParts(#[from] HostPartsError),
}

impl Lab {
    /// Works in `dir`, which every user must be able to enter, and in a new cgroup of this name. Needs root.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn new(
        dir: &Path,
        cgroup: &str,
        isolators: Vec<Box<dyn Isolator>>,
        faults: Option<Box<dyn Faults>>,
    ) -> Result<Self, LabError> {
        let mount = cgroup2_mount()?;
        let tree = Tree::locate(Path::new(cgroup))?;
        let path = tree.root.path().join("guaranteed");
        fs::create_dir_all(&path).map_err(|source| LabError::Branch { path, source })?;
        let parts = Parts {
            tree: tree.clone(),
            isolators: Arc::new(Isolators::new(isolators)),
            volumes: Arc::new(VolumeBounds::new(1..=1)),
            exits: None,
            work_dir: dir.to_owned(),
            host_parts: HostParts::make(dir, &mount)?,
            allow_root: false,
        };
        let grant = GrantDefaults {
            pids_max: 64,
            disk_bytes: 0,
            output_bytes: 1 << 20,
            stall_percent: 100,
            stall_for: Duration::from_secs(60),
        };
        let defaults =
            Defaults { user: "nobody".into(), grant, kill_grace: Duration::ZERO, rules: Rules::default() };
        Ok(Self { launcher: Launcher::with_faults(parts, faults), tree, defaults })
    }

    /// A plan for this program, with a small grant; `change` may ask for more.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn plan(&self, argv: &[&str], change: impl FnOnce(&mut v1::TaskSpec)) -> Result<Plan, PlanError> {
        let resources = v1::Resources { cpu_milli: 100, mem_bytes: 64 << 20, ..v1::Resources::default() };
        let grant = v1::Grant { resources: Some(resources), class: 1, ..v1::Grant::default() };
        let mut spec = v1::TaskSpec {
            task_id: "t".into(),
            argv: argv.iter().map(|&word| word.into()).collect(),
            grant: Some(grant),
            ..v1::TaskSpec::default()
        };
        change(&mut spec);
        Plan::make("f", &spec, &self.defaults)
    }

    /// Launches it; also the moment in which its program had been executed.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing is left.
    pub async fn launch(&self, plan: Plan) -> Result<(Running, Instant), LaunchError> {
        let launcher = self.launcher.clone();
        super::blocking(move || {
            let running = launcher.prepare(plan, None)?.start()?;
            Ok((running, Instant::now()))
        })
        .await
    }

    /// Takes away what is left of a task whose program has ended, but for its sandbox.
    ///
    /// # Errors
    /// When its cgroup cannot be watched.
    pub async fn clear(&self, running: &Running) -> Result<(), CgroupError> {
        running.cgroup.cgroup.wait_empty().await?;
        self.launcher.clear(&running.cgroup);
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Nothing is left in it but its own directories.
        drop(self.tree.root.remove());
    }
}
