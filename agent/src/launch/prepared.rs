//! A task that has everything but its process, and how it gets that.

use std::{
    fs::File,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use super::{
    LaunchError, Launcher,
    child::{Child, Landlock},
    faults::Step,
    files::Files,
    image::RootImage,
    plan::Plan,
    sandbox::Sandbox,
    undo::{Rollback, Undo},
    view::SANDBOX_IN_IMAGE,
    volume::OpenVolume,
};
use crate::{
    grant::Grant,
    isolate::TaskPlace,
    journal::Started,
    kernel::{
        landlock, limits,
        pidfd::{self, Watched},
        spawn::{self, Identity},
    },
};

/// A task whose limits are set and which has no process yet. Dropped, it is undone; that blocks.
pub struct Prepared {
    /// The task's cgroup.
    pub place: TaskPlace,
    /// The task's directory.
    pub sandbox: Sandbox,
    pub(super) plan: Plan,
    pub(super) image: Option<RootImage>,
    pub(super) identity: Identity,
    pub(super) volumes: Vec<OpenVolume>,
    pub(super) launcher: Launcher,
    pub(super) rollback: Rollback,
}

/// A task whose program was executed.
#[derive(Debug)]
pub struct Running {
    /// Its process.
    pub process: Watched,
    /// Its cgroup.
    pub cgroup: TaskPlace,
    /// Its directory.
    pub sandbox: Sandbox,
    /// For the journal.
    pub started: Started,
    /// Keeps the layers of its root directory.
    pub image: Option<bulkhead_image::Lease>,
}

impl Prepared {
    /// Runs the program. Must be called within a tokio runtime, on a thread that may block.
    ///
    /// # Errors
    /// [`LaunchError`]; everything is undone.
    pub fn start(mut self) -> Result<Running, LaunchError> {
        let spawned = self.spawn()?;
        let pid = spawned.pid;
        self.rollback.push(Undo::Process(self.place.clone(), pid));
        // Read before anybody waits for it: even a process that has ended has its entry until then.
        let start_ticks = pidfd::start_ticks(pid).unwrap_or_default();
        self.launcher.before(Step::Record)?;
        self.rollback.push(Undo::Record(self.place.clone()));
        if let Some(Err(error)) = self.launcher.exits().map(|exits| exits.watch(self.place.id, pid)) {
            tracing::warn!(error = crate::error_chain(&error), "have the exit of a task recorded");
        }
        for (index, part) in self.launcher.isolators().parts().enumerate() {
            self.launcher.before(Step::Attach(index))?;
            part.attach(&self.place, &self.plan.grant, pid)
                .map_err(|e| LaunchError::Isolate { part: part.part(), source: Box::new(e) })?;
        }
        self.launcher.before(Step::Watch)?;
        let process = Watched::new(spawned.pidfd, pid).map_err(LaunchError::Watch)?;
        let started = Started {
            pid: pid.as_raw(),
            start_ticks,
            boot_id: crate::measure::node::boot_id(),
            cgroup_id: self.place.id,
            unix_time_ms: crate::unix_time_ms(),
            sandbox: self.sandbox.dir().display().to_string(),
            image: String::new(),
        };
        self.rollback.disarm();
        Ok(Running { process, cgroup: self.place, sandbox: self.sandbox, started, image: None })
    }

    /// User and group that the program will run as.
    pub fn owner(&self) -> (u32, u32) {
        (self.identity.uid, self.identity.gid)
    }

    /// What the task was granted.
    pub fn grant(&self) -> &Grant {
        &self.plan.grant
    }

    fn spawn(&self) -> Result<spawn::Spawned, LaunchError> {
        let shared = &self.launcher.shared;
        self.launcher.before(Step::Outputs)?;
        let null = File::open("/dev/null").map_err(LaunchError::Null)?;
        let stdout = Sandbox::open_output(&self.sandbox.stdout(), self.owner())?;
        let stderr = Sandbox::open_output(&self.sandbox.stderr(), self.owner())?;
        self.launcher.before(Step::Files)?;
        let files = Files::open(self, &shared.filters)?;
        self.launcher.before(Step::Spawn)?;
        let (cgroup, sandbox) = (self.place.cgroup.open_dir()?, self.sandbox_inside());
        let program = self.plan.program(self.image.as_ref(), &sandbox)?;
        let tmp = self.sandbox.tmp();
        let view = files.view(self, &shared.parts.host_parts, &sandbox, &tmp);
        let child = Child {
            fences: &self.plan.fences,
            identity: &self.identity,
            streams: [null.as_fd(), stdout.as_fd(), stderr.as_fd()],
            view: view.as_ref(),
            sandbox: &sandbox,
            directory: self.directory(),
            inherited_limit: limits::inherited_open_files(),
            landlock: files
                .landlock
                .as_ref()
                .map(|r| Landlock { ruleset: r.as_fd(), all: landlock::everything() }),
            seccomp: files.filters.iter().map(|filter| filter.program()).collect(),
        };
        let mut steps = child.steps()?;
        if let Some(faults) = &shared.faults {
            faults.child(&mut steps);
        }
        let command = spawn::Command {
            cgroup: cgroup.as_fd(),
            namespaces: self.plan.fences.namespaces,
            steps,
            programs: program.files,
            argv: program.argv,
            env: program.env,
        };
        spawn::spawn(&command).map_err(|source| {
            let program = command.argv.first().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
            LaunchError::Spawn { program, source }
        })
    }

    /// Where the task finds its sandbox.
    fn sandbox_inside(&self) -> PathBuf {
        if self.image.is_some() { SANDBOX_IN_IMAGE.into() } else { self.sandbox.work() }
    }

    /// Where it starts, if not in its sandbox.
    fn directory(&self) -> Option<&Path> {
        let of_image =
            || self.image.as_ref().map(|image| image.working_dir.as_str()).filter(|d| !d.is_empty());
        self.plan.working_dir.as_deref().or_else(|| of_image().map(Path::new))
    }
}
