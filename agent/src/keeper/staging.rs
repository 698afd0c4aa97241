//! A launch's artifacts: between its sandbox and its program.

use std::sync::Arc;

use bulkhead_stage::{Board, Limits, Planned, Request, StageError, Stager};
use tokio::sync::watch;

use super::Keeper;
use crate::{
    grant::DiskGrant,
    launch::{LaunchError, Prepared},
    offer::ledger::TaskKey,
    task::{End, KillRequest},
};

/// Where a task without a limit of files gets its own from: one for each so many bytes.
const BYTES_PER_ENTRY: u64 = 16 << 10;

/// What is to be staged for one task.
pub(super) struct Staging {
    pub(super) stager: Stager,
    pub(super) artifacts: Vec<Planned>,
    /// How far it is, for the local API.
    pub(super) board: Arc<Board>,
    /// Ends it early.
    pub(super) killed: watch::Receiver<Option<KillRequest>>,
}

impl Staging {
    /// Fills the sandbox. Its quota is in force already.
    ///
    /// # Errors
    /// Then nothing of the artifacts is in the sandbox.
    pub(super) async fn run(mut self, prepared: &Prepared) -> Result<(), StageError> {
        if self.artifacts.is_empty() {
            return Ok(());
        }
        let request = Request {
            artifacts: self.artifacts,
            into: prepared.sandbox.work(),
            owner: prepared.owner(),
            limits: limits(&prepared.grant().disk, self.stager.fetch_max_bytes()),
            progress: self.board,
        };
        let killed = async {
            if self.killed.wait_for(Option::is_some).await.is_err() {
                // The task is not kept any more, so nobody can want it to end.
                std::future::pending().await
            }
        };
        self.stager.stage(request, killed).await
    }
}

/// The disk grant, or as much as one fetch may bring where nothing was granted.
fn limits(disk: &DiskGrant, fetch_max_bytes: u64) -> Limits {
    if disk.bytes > 0 {
        return Limits { bytes: disk.bytes, entries: disk.inodes };
    }
    Limits { bytes: fetch_max_bytes, entries: disk.inodes.max(fetch_max_bytes / BYTES_PER_ENTRY) }
}

impl Keeper {
    /// The launch came to nothing.
    pub(super) fn launch_failed(&mut self, key: &TaskKey, error: &LaunchError) {
        tracing::info!(task = key.1, error = error.explain(), "launch failed");
        if matches!(error, LaunchError::Journal(_)) {
            self.journal_tried(false);
        }
        let killed = self.live.get(key).and_then(|live| *live.kill_early.borrow());
        let end = match (error, killed) {
            (LaunchError::Killed, Some(request)) => End::unstarted(request),
            (LaunchError::Stage(stage), Some(request)) if stage.problem.stopped() => End::unstarted(request),
            _ => End::failed(error.reason(), error.explain()),
        };
        self.ended(key, &end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::{Class, plain};

    #[test]
    fn without_a_disk_grant_a_fetch_is_the_bound() {
        let granted = DiskGrant { bytes: 1 << 20, inodes: 7, ..plain(Class::Guaranteed, 100, 1 << 20).disk };
        assert_eq!(limits(&granted, 1 << 30), Limits { bytes: 1 << 20, entries: 7 });
        let none = DiskGrant { bytes: 0, inodes: 7, ..granted };
        assert_eq!(limits(&none, 1 << 30), Limits { bytes: 1 << 30, entries: 1 << 16 });
    }
}
