//! Why a task's files are not in its sandbox.

use std::{io, path::PathBuf};

use crate::{
    beneath::BeneathError, budget::Spent, copy::CopyError, digest::Mismatch, fetch::FetchError,
    unpack::UnpackError,
};

/// An artifact could not be staged. Nothing of the task's artifacts is left in its sandbox.
#[derive(Debug, thiserror::Error)]
#[error("artifact {shown:?}")]
pub struct StageError {
    /// Its uri, without what may be a secret.
    pub shown: String,
    /// What went wrong.
    #[source]
    pub problem: Problem,
}

/// What went wrong with an artifact, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The operator did not open this part of the host to tasks.
    #[error(
        "{} lies in no directory that this agent lets tasks read: put it below one of artifact_dirs, or have its operator add one",
        .0.display()
    )]
    NotAllowed(PathBuf),
    /// A file of this host cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The content is another.
    #[error("{0}: it was changed or damaged; check the artifact and its digest")]
    Mismatch(Mismatch),
    /// More than granted, or not wanted any more.
    #[error(transparent)]
    Spent(#[from] Spent),
    /// Not unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The place in the sandbox cannot be had.
    #[error(transparent)]
    Place(#[from] BeneathError),
    /// Something is there already.
    #[error("{} is there already: give one of the two another path", .0.display())]
    Exists(PathBuf),
    /// No room.
    #[error("{} is full: {advice}", path.display())]
    Full {
        /// What is full.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
        /// As the kernel said it.
        source: io::Error,
    },
    /// A step on the agent's own side failed.
    #[error("{step} {}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

// By hand: as a source it would be told twice.
impl From<Mismatch> for Problem {
    fn from(mismatch: Mismatch) -> Self {
        Self::Mismatch(mismatch)
    }
}

/// Said where the sandbox has no room.
const MORE_DISK: &str = "ask for more disk";
/// Said where the cache's disk has no room.
const MORE_ROOM: &str = "free some space on the agent's work directory, or lower artifact_cache";

impl Problem {
    /// A failure on the way into the sandbox.
    pub(crate) fn placing(step: &'static str, path: PathBuf, source: io::Error) -> Self {
        Self::io(step, path, source, MORE_DISK)
    }

    /// A failure on the way into the cache.
    pub(crate) fn caching(step: &'static str, path: PathBuf, source: io::Error) -> Self {
        Self::io(step, path, source, MORE_ROOM)
    }

    fn io(step: &'static str, path: PathBuf, source: io::Error, advice: &'static str) -> Self {
        if is_full(source.kind()) {
            return Self::Full { path, advice, source };
        }
        Self::Io { step, path, source }
    }

    /// A copy into the sandbox that did not come to its end.
    pub(crate) fn copying(path: PathBuf, error: CopyError<Self>) -> Self {
        match error {
            CopyError::Io(source) => Self::placing("copy to", path, source),
            CopyError::Refused(problem) => problem,
        }
    }

    /// A place in the sandbox that is taken, or cannot be had.
    pub(crate) fn place(error: BeneathError) -> Self {
        match error.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists(error.path().to_owned()),
            kind if is_full(kind) => {
                let path = error.path().to_owned();
                Self::Full { path, advice: MORE_DISK, source: error.into() }
            }
            _ => Self::Place(error),
        }
    }

    /// Was it given up because the launch was?
    pub fn stopped(&self) -> bool {
        matches!(self, Self::Spent(Spent::Stopped) | Self::Unpack(UnpackError::Spent(Spent::Stopped)))
    }
}

/// No space, or none that this user may have.
pub(crate) fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
