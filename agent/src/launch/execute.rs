//! Carries a plan out: cgroup, limits, sandbox, program. What a failed step left is undone.
//!
//! Everything here blocks; [`Launcher::prepare`] and [`Prepared::start`] run on blocking threads.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::PathBuf,
    sync::Arc,
};

use bulkhead_proto::v1::TaskReason;
use nix::errno::Errno;

use super::{
    plan::Plan,
    sandbox::{Sandbox, SandboxError},
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
        limits,
        pidfd::Watched,
        spawn::{self, ChildStep, Namespaces, SpawnError},
    },
    user::{self, UserError},
};

/// A step of a launch failed; nothing of the task is left but its sandbox.
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
    /// The program could not be started.
    #[error("start {program:?}")]
    Spawn {
        /// As the task named it.
        program: String,
        /// At which step and why.
        source: SpawnError,
    },
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
    /// The reason for the task's status.
    pub fn reason(&self) -> TaskReason {
        match self {
            Self::User(UserError::Root(_)) => TaskReason::UserNotAllowed,
            Self::User(_) => TaskReason::UserUnknown,
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
    tree: Tree,
    isolators: Arc<Isolators>,
    exits: Option<Arc<ExitRecords>>,
    work_dir: PathBuf,
    allow_root: bool,
}

/// A task whose limits are set and which has no process yet. Must be started or undone.
pub struct Prepared {
    /// The task's cgroup.
    pub cgroup: TaskPlace,
    /// The task's directory.
    pub sandbox: Sandbox,
    plan: Plan,
    identity: spawn::Identity,
    launcher: Launcher,
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
}

impl Launcher {
    /// A launcher below `tree` whose tasks are held by `isolators`.
    ///
    /// `exits` is where the kernel notes how they end while no agent is there, if it does.
    pub fn new(
        tree: Tree,
        isolators: Arc<Isolators>,
        exits: Option<Arc<ExitRecords>>,
        work_dir: PathBuf,
        allow_root: bool,
    ) -> Self {
        Self { tree, isolators, exits, work_dir, allow_root }
    }

    /// The kernel's notes of how tasks ended.
    pub fn exits(&self) -> Option<&Arc<ExitRecords>> {
        self.exits.as_ref()
    }

    /// The limits, for measuring and cleaning up.
    pub fn isolators(&self) -> &Arc<Isolators> {
        &self.isolators
    }

    /// The cgroup tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Sets everything up for the program.
    ///
    /// # Errors
    /// [`LaunchError`]; what was done is undone.
    pub fn prepare(&self, plan: Plan) -> Result<Prepared, LaunchError> {
        let identity = user::resolve(&plan.user, self.allow_root)?;
        let owner = (identity.uid, identity.gid);
        let sandbox = Sandbox::create(&self.work_dir, &plan.framework_id, &plan.task_id, owner)?;
        let cgroup = self.make_cgroup(&plan, &sandbox)?;
        let prepared = Prepared { cgroup, sandbox, plan, identity, launcher: self.clone() };
        match self.isolators.prepare(&prepared.cgroup, &prepared.plan.grant) {
            Ok(()) => Ok(prepared),
            Err((part, source)) => {
                prepared.undo();
                Err(LaunchError::Isolate { part, source })
            }
        }
    }

    /// A fresh cgroup. What an earlier run left empty is replaced, so that no counter of it is inherited.
    fn make_cgroup(&self, plan: &Plan, sandbox: &Sandbox) -> Result<TaskPlace, LaunchError> {
        let cgroup = self.tree.task(Branch::of(&plan.grant), &plan.framework_id, &plan.task_id);
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
        for (part, error) in self.isolators.cleanup(cgroup) {
            tracing::warn!(part, error = crate::error_chain(&error), "clean up after a task");
        }
        if let Err(error) = cgroup.cgroup.remove() {
            tracing::warn!(error = crate::error_chain(&error), "remove a task's cgroup");
        }
        if let Some(Err(error)) = self.exits.as_ref().map(|exits| exits.forget(cgroup.id)) {
            tracing::warn!(error = crate::error_chain(&error), "forget an exit record");
        }
    }
}

impl Prepared {
    /// Runs the program. Must be called within a tokio runtime, on a thread that may block.
    ///
    /// # Errors
    /// [`LaunchError`]; limits and cgroup are gone again, the sandbox stays for its output.
    pub fn start(self) -> Result<Running, LaunchError> {
        match self.execute() {
            Ok((process, started)) => {
                Ok(Running { process, cgroup: self.cgroup, sandbox: self.sandbox, started })
            }
            Err(error) => {
                self.undo();
                Err(error)
            }
        }
    }

    /// User and group that the program will run as.
    pub fn owner(&self) -> (u32, u32) {
        (self.identity.uid, self.identity.gid)
    }

    /// What the task was granted.
    pub fn grant(&self) -> &Grant {
        &self.plan.grant
    }

    /// Gives up a launch that is not wanted any more.
    pub fn undo(self) {
        self.launcher.clear(&self.cgroup);
    }

    fn execute(&self) -> Result<(Watched, Started), LaunchError> {
        let null = File::open("/dev/null").map_err(LaunchError::Null)?;
        let owner = (self.identity.uid, self.identity.gid);
        let stdout = Sandbox::open_output(&self.sandbox.stdout(), owner)?;
        let stderr = Sandbox::open_output(&self.sandbox.stderr(), owner)?;
        let cgroup = self.cgroup.cgroup.open_dir()?;
        let failed = |source| LaunchError::Spawn { program: self.program(), source };
        let cwd = CString::new(self.sandbox.work().as_os_str().as_bytes()).map_err(|e| failed(e.into()))?;
        let mut steps = vec![
            ChildStep::Session,
            ChildStep::Streams([null.as_fd(), stdout.as_fd(), stderr.as_fd()]),
            ChildStep::Directory(cwd),
        ];
        steps.extend(limits::inherited_open_files());
        if self.identity.uid != 0 {
            // No setuid program lends a task what its user has not.
            steps.push(ChildStep::NoNewPrivileges);
        }
        steps.extend([ChildStep::Identity(self.identity.clone()), ChildStep::Signals]);
        let command = spawn::Command {
            cgroup: cgroup.as_fd(),
            namespaces: Namespaces::default(),
            steps,
            programs: self.plan.programs.clone(),
            argv: self.plan.argv.clone(),
            env: self.environment().map_err(failed)?,
        };
        let spawned = spawn::spawn(&command).map_err(failed)?;
        if let Some(Err(error)) = self.launcher.exits.as_ref().map(|e| e.watch(self.cgroup.id, spawned.pid)) {
            tracing::warn!(error = crate::error_chain(&error), "have the exit of a task recorded");
        }
        // Read before anybody waits for it: even a process that has ended has its entry until then.
        let stat = procfs::process::Process::new(spawned.pid.as_raw()).and_then(|p| p.stat());
        let started = Started {
            pid: spawned.pid.as_raw(),
            start_ticks: stat.map_or(0, |s| s.starttime),
            boot_id: crate::measure::node::boot_id(),
            cgroup_id: self.cgroup.id,
            unix_time_ms: crate::unix_time_ms(),
            sandbox: self.sandbox.dir().display().to_string(),
        };
        match Watched::new(spawned.pidfd) {
            Ok(process) => Ok((process, started)),
            Err(error) => {
                self.cgroup.cgroup.kill()?;
                // Collected here, so that the cgroup can be removed.
                let _collected = nix::sys::wait::waitpid(spawned.pid, None);
                Err(LaunchError::Watch(error))
            }
        }
    }

    fn program(&self) -> String {
        self.plan.argv.first().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The task's variables, and those that only this host knows.
    fn environment(&self) -> Result<Vec<CString>, SpawnError> {
        let mut env = self.plan.env.clone();
        let work = self.sandbox.work().display().to_string();
        env.entry("HOME".into()).or_insert_with(|| work.clone());
        env.insert("BULKHEAD_SANDBOX".into(), work);
        env.iter().map(|(k, v)| Ok(CString::new(format!("{k}={v}"))?)).collect()
    }
}
