//! Why a launch failed.

use std::{io, path::PathBuf};

use bulkhead_proto::v1::TaskReason;
use nix::errno::Errno;

use super::{
    child::ChildError, plan::PlanError, sandbox::SandboxError, seccomp::SeccompError, volume::VolumeError,
};
use crate::{
    isolate::{IsolateError, disk_space::BoundError},
    journal::JournalError,
    kernel::{cgroupfs::CgroupError, landlock::LandlockError, spawn::SpawnError},
    user::UserError,
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
    /// The bound of a volume.
    #[error(transparent)]
    Bound(#[from] BoundError),
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
            Self::User(error) if error.is_about_a_group() => TaskReason::ConfinementRefused,
            Self::Seccomp(_) | Self::Bound(BoundError::Refused { .. }) => TaskReason::ConfinementRefused,
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
            _ if self.is_full() => format!("{chain}: ask for more disk"),
            _ => chain,
        }
    }

    /// Its sandbox had no room for what every task has: its output, its directories.
    fn is_full(&self) -> bool {
        let Self::Sandbox(error) = self else { return false };
        let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
        let kind = cause.map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
