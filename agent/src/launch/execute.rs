//! Carries a plan out, step by step: sandbox, cgroup, limits, program. When one fails, those before it are undone.
//!
//! Everything here blocks; [`Launcher::prepare`] and [`Prepared::start`] run on blocking threads.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_proto::v1::TaskReason;
use nix::errno::Errno;

use super::{
    child::{Child, ChildError, Landlock},
    faults::{Faults, Step},
    image::RootImage,
    plan::{Plan, PlanError},
    sandbox::{Sandbox, SandboxError},
    seccomp::{Filter, FilterCache, SeccompError},
    undo::{Rollback, Undo},
    view::{HostParts, SANDBOX_IN_IMAGE, Tree as FileTree, View},
    volume::{OpenVolume, VolumeError},
};
use crate::{
    grant::Grant,
    isolate::{
        IsolateError, Isolators, TaskPlace,
        tree::{Branch, Tree},
    },
    journal::{JournalError, Started},
    kernel::{
        bpf::ExitRecords,
        cgroupfs::{Cgroup, CgroupError},
        landlock::{self, LandlockError},
        limits, mounts,
        pidfd::{self, Watched},
        spawn::{self, Identity, SpawnError},
    },
    user::{self, UserError, Users},
};

/// A step of a launch failed; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The user is not one, or not allowed.
    #[error(transparent)]
    User(#[from] UserError),
    /// The cgroup could not be made.
    #[error("make the task's cgroup")]
    Cgroup(#[from] CgroupError),
    /// A cgroup of this name is there and holds processes.
    #[error("{}: processes of an earlier task are still there", .0.display())]
    Occupied(PathBuf),
    /// A limit could not be set.
    #[error("set the {part} limit")]
    Isolate {
        /// Which part of the grant.
        part: &'static str,
        /// Why.
        source: Box<IsolateError>,
    },
    /// The sandbox could not be made.
    #[error("make the sandbox")]
    Sandbox(#[from] SandboxError),
    /// A file that every task needs.
    #[error("open /dev/null")]
    Null(#[source] io::Error),
    /// The task names an image, and it was not unpacked.
    #[error("the image {0} was not unpacked")]
    NoImage(String),
    /// What it executes, now that its image is known.
    #[error(transparent)]
    Program(#[from] PlanError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A mount of the sandbox, of a readable path, or of a device that it was granted.
    #[error("make a mount of {}", path.display())]
    Mount {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The rules of files.
    #[error(transparent)]
    Landlock(#[from] LandlockError),
    /// The filter of system calls.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// What its process is to do.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The program could not be started.
    #[error("start {program:?}")]
    Spawn {
        /// As the task named it.
        program: String,
        /// At which step and why.
        source: SpawnError,
    },
    /// The image could not be brought.
    #[error(transparent)]
    Image(Box<bulkhead_image::ImageError>),
    /// Somebody asked for the task's end before its program was started.
    #[error("the task was killed before it was started")]
    Killed,
    /// The task's files could not be brought.
    #[error("stage the task's files")]
    Stage(#[source] bulkhead_stage::StageError),
    /// The launch could not be made durable, so the program was not started.
    #[error("write the launch to the journal")]
    Journal(#[source] JournalError),
    /// The process was started and cannot be watched; it was ended again.
    #[error("watch the new process")]
    Watch(#[source] io::Error),
}

impl LaunchError {
    /// The reason for the task's last status.
    pub fn reason(&self) -> TaskReason {
        match self {
            Self::User(UserError::Root(_)) => TaskReason::UserNotAllowed,
            Self::User(UserError::ForeignGroup { .. } | UserError::UnknownGroup(_)) | Self::Seccomp(_) => {
                TaskReason::ConfinementRefused
            }
            Self::Program(error) => error.reason(),
            Self::NoImage(_) => TaskReason::ImageFailed,
            Self::User(_) => TaskReason::UserUnknown,
            Self::Image(_) => TaskReason::ImageFailed,
            Self::Stage(_) => TaskReason::ArtifactFailed,
            Self::Isolate { source, .. } if matches!(**source, IsolateError::Refused(_)) => {
                TaskReason::InvalidGrant
            }
            Self::Spawn { source, .. } => match source.exec_errno() {
                Some(Errno::ENOENT | Errno::ENOTDIR) => TaskReason::CommandNotFound,
                Some(Errno::EACCES | Errno::ENOEXEC) => TaskReason::CommandNotExecutable,
                _ => TaskReason::LaunchFailed,
            },
            _ => TaskReason::LaunchFailed,
        }
    }

    /// The whole chain in one line, with advice where there is some.
    pub fn explain(&self) -> String {
        let chain = crate::error_chain(self);
        match self.reason() {
            TaskReason::CommandNotFound => {
                format!("{chain}: install it on the agent's host, or name it by its path")
            }
            TaskReason::CommandNotExecutable => {
                format!("{chain}: is it a program, and may the task's user execute it?")
            }
            _ => chain,
        }
    }
}

/// Launches tasks on this host. Cheap to clone.
#[derive(Clone)]
pub struct Launcher {
    shared: Arc<Shared>,
}

/// What a launcher works with.
pub struct Parts {
    /// Where tasks' cgroups are.
    pub tree: Tree,
    /// What holds them.
    pub isolators: Arc<Isolators>,
    /// Where the kernel notes how they end while no agent is there, if it does.
    pub exits: Option<Arc<ExitRecords>>,
    /// Sandboxes are below it.
    pub work_dir: PathBuf,
    /// What their mounts are made of.
    pub host_parts: HostParts,
    /// May they run as root without a user namespace?
    pub allow_root: bool,
}

struct Shared {
    parts: Parts,
    users: Users,
    filters: FilterCache,
    faults: Option<Box<dyn Faults>>,
}

/// A task whose limits are set and which has no process yet. Dropped, it is undone; that blocks.
pub struct Prepared {
    /// The task's cgroup.
    pub place: TaskPlace,
    /// The task's directory.
    pub sandbox: Sandbox,
    plan: Plan,
    image: Option<RootImage>,
    identity: Identity,
    launcher: Launcher,
    rollback: Rollback,
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

    /// The cgroup tree.
    pub fn tree(&self) -> &Tree {
        &self.shared.parts.tree
    }

    fn before(&self, step: Step) -> Result<(), LaunchError> {
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
        let identity = self.identity(&plan, image.as_ref())?;
        self.before(Step::Sandbox)?;
        let owner = (identity.uid, identity.gid);
        let work_dir = &self.shared.parts.work_dir;
        let sandbox = Sandbox::create(work_dir, &plan.framework_id, &plan.task_id, owner)?;
        rollback.push(Undo::Sandbox(sandbox.clone()));
        self.before(Step::Cgroup)?;
        let place = self.make_cgroup(&plan, &sandbox)?;
        rollback.push(Undo::Cgroup(place.clone()));
        for (index, part) in self.isolators().parts().enumerate() {
            self.before(Step::Limit(index))?;
            rollback.push(Undo::Limit(place.clone(), index));
            part.prepare(&place, &plan.grant)
                .map_err(|e| LaunchError::Isolate { part: part.part(), source: Box::new(e) })?;
        }
        Ok(Prepared { place, sandbox, plan, image, identity, launcher: self.clone(), rollback })
    }

    /// Who the task runs as, seen from the host.
    fn identity(&self, plan: &Plan, image: Option<&RootImage>) -> Result<Identity, UserError> {
        let users = &self.shared.users;
        let said_by_image = image.map(|image| image.user.as_str()).filter(|user| !user.is_empty());
        let mut identity = match (image, plan.user.as_deref().or(said_by_image)) {
            (Some(image), Some(user)) => user::in_image(image, user)?,
            (_, user) => users.host(user.unwrap_or(&plan.default_user))?,
        };
        if identity.uid == 0 {
            if plan.fences.user_namespace {
                // Root is what it is inside; outside it is nobody in particular.
                identity = users.host(&plan.default_user)?;
            }
            if identity.uid == 0 && !self.shared.parts.allow_root {
                let name = plan.user.as_deref().or(said_by_image).unwrap_or(&plan.default_user);
                return Err(UserError::Root(name.to_owned()));
            }
        }
        if !plan.fences.groups.is_empty() {
            identity.groups = groups(plan, image, &identity)?;
        }
        Ok(identity)
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
        Ok(TaskPlace { task, cgroup, id, sandbox: sandbox.dir().to_owned() })
    }

    /// Takes the limits and the cgroup of a task away whose processes have ended.
    pub fn clear(&self, cgroup: &TaskPlace) {
        for (part, error) in self.isolators().cleanup(cgroup) {
            tracing::warn!(part, error = crate::error_chain(&error), "clean up after a task");
        }
        if let Err(error) = cgroup.cgroup.remove() {
            tracing::warn!(error = crate::error_chain(&error), "remove a task's cgroup");
        }
        if let Some(Err(error)) = self.exits().map(|exits| exits.forget(cgroup.id)) {
            tracing::warn!(error = crate::error_chain(&error), "forget an exit record");
        }
    }
}

/// The groups that a task names, which must be its user's own unless the agent trusts it.
fn groups(plan: &Plan, image: Option<&RootImage>, identity: &Identity) -> Result<Vec<u32>, UserError> {
    let id = |name: &String| {
        let gid = match image {
            Some(image) => user::image_group(image, name)?,
            None => user::host_group(name)?,
        };
        let own = identity.gid == gid || identity.groups.contains(&gid);
        if own || plan.fences.any_group {
            return Ok(gid);
        }
        let user = plan.user.clone().unwrap_or_else(|| plan.default_user.clone());
        Err(UserError::ForeignGroup { user, group: name.clone() })
    };
    plan.fences.groups.iter().map(id).collect()
}

/// Descriptors that the child needs until it executes the program.
struct Files {
    /// The sandbox, where the task has mounts of its own.
    sandbox: Option<OwnedFd>,
    volumes: Vec<OpenVolume>,
    /// Readable paths that its own /tmp would hide.
    readable: Vec<(OwnedFd, PathBuf)>,
    own_layer: Option<PathBuf>,
    devices: Vec<(OwnedFd, PathBuf)>,
    landlock: Option<OwnedFd>,
    filter: Option<Arc<Filter>>,
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
        self.launcher.before(Step::Outputs)?;
        let null = File::open("/dev/null").map_err(LaunchError::Null)?;
        let owner = (self.identity.uid, self.identity.gid);
        let stdout = Sandbox::open_output(&self.sandbox.stdout(), owner)?;
        let stderr = Sandbox::open_output(&self.sandbox.stderr(), owner)?;
        self.launcher.before(Step::Files)?;
        let files = self.files()?;
        self.launcher.before(Step::Spawn)?;
        let (cgroup, sandbox) = (self.place.cgroup.open_dir()?, self.sandbox_inside());
        let program = self.plan.program(self.image.as_ref(), &sandbox)?;
        let (view, tmp) = (&self.launcher.shared.parts.host_parts, self.sandbox.tmp());
        let view = self.view(view, &files, &sandbox, &tmp);
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
            seccomp: files.filter.as_ref().map(|filter| filter.program()),
        };
        let mut steps = child.steps()?;
        if let Some(faults) = &self.launcher.shared.faults {
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

    fn files(&self) -> Result<Files, LaunchError> {
        let fences = &self.plan.fences;
        let volumes: Vec<_> = self.plan.volumes.iter().map(|v| v.open()).collect::<Result<_, _>>()?;
        let targets = self.plan.volumes.iter().map(|volume| volume.target.as_path());
        let own_layer = match (&self.image, volumes.is_empty()) {
            (Some(_), false) => Some(self.sandbox.layer(targets)?),
            _ => None,
        };
        let kept = fences.capabilities(self.identity.uid == 0 || fences.user_namespace);
        let filter = fences.seccomp.as_ref().map(|json| self.launcher.shared.filters.get(json, kept));
        let hidden = fences.readable_paths.iter().filter(|p| fences.private_files && p.starts_with("/tmp"));
        let readable = hidden.map(|path| Ok((clone_tree(path)?, path.clone())));
        let devices = self.plan.grant.devices.iter().filter(|_| fences.private_files);
        Ok(Files {
            sandbox: if fences.private_files { Some(clone_tree(&self.sandbox.work())?) } else { None },
            landlock: if fences.landlock { Some(self.ruleset(&volumes)?) } else { None },
            devices: devices
                .map(|d| Ok((clone_tree(&d.path)?, d.path.clone())))
                .collect::<Result<_, LaunchError>>()?,
            filter: filter.transpose()?,
            readable: readable.collect::<Result<_, LaunchError>>()?,
            volumes,
            own_layer,
        })
    }

    /// What a task may reach of the host's root.
    fn ruleset(&self, volumes: &[OpenVolume]) -> Result<OwnedFd, LandlockError> {
        // Its output too, which it may open again through /dev/stdout.
        let sandbox = &self.sandbox;
        let own = [sandbox.work(), sandbox.tmp(), sandbox.stdout(), sandbox.stderr()];
        let paths: Vec<(PathBuf, bool)> = volumes.iter().map(|v| (v.path(), v.writable)).collect();
        let of = |writable| paths.iter().filter(move |(_, w)| *w == writable).map(|(path, _)| path.as_path());
        let readable = self.plan.fences.readable_paths.iter().map(PathBuf::as_path);
        let system = landlock::SYSTEM.iter().map(Path::new);
        let read_exec: Vec<&Path> = system.chain(readable).chain(of(false)).collect();
        let read_write: Vec<&Path> = own.iter().map(PathBuf::as_path).chain(of(true)).collect();
        landlock::ruleset(&read_exec, &read_write)
    }

    fn view<'a>(
        &'a self,
        parts: &'a HostParts,
        files: &'a Files,
        sandbox: &Path,
        tmp: &'a Path,
    ) -> Option<View<'a>> {
        let fences = &self.plan.fences;
        if !fences.namespaces.mount {
            return None;
        }
        let own = files.sandbox.as_ref();
        let own = own.map(|fd| FileTree { fd: fd.as_fd(), target: sandbox.to_owned(), writable: true });
        let volumes = self.plan.volumes.iter().zip(&files.volumes).map(|(volume, open)| FileTree {
            fd: open.tree.as_fd(),
            target: volume.target.clone(),
            writable: open.writable,
        });
        Some(View {
            parts,
            layers: self.image.as_ref().map_or(&[], |image| &image.layers),
            own_layer: files.own_layer.as_deref(),
            private: fences.private_files,
            pid_namespace: fences.namespaces.pid,
            trees: own.into_iter().chain(of_host(&files.readable, false)).chain(volumes).collect(),
            tmp,
            devices: of_host(&files.devices, true),
        })
    }
}

fn of_host(trees: &[(OwnedFd, PathBuf)], writable: bool) -> Vec<FileTree<'_>> {
    trees.iter().map(|(fd, path)| FileTree { fd: fd.as_fd(), target: path.clone(), writable }).collect()
}

fn clone_tree(path: &Path) -> Result<OwnedFd, LaunchError> {
    // Not opened for reading: a device would answer to that.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    let opened = opened.and_then(|directory| mounts::clone_tree(directory.as_fd()));
    opened.map_err(|source| LaunchError::Mount { path: path.to_owned(), source })
}
