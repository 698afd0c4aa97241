//! What a launch has done so far, undone in reverse order unless the launch succeeds.

use nix::{sys::wait::waitpid, unistd::Pid};
use tokio::runtime::Handle;

use super::{Launcher, Sandbox};
use crate::isolate::{TaskPlace, disk_space::BoundChange};

/// How to undo one step. Each is harmless where its step was taken only in part.
#[derive(Debug)]
pub(super) enum Undo {
    /// Remove the sandbox, and what isolators keep for it.
    Sandbox(Sandbox),
    /// Remove the cgroup.
    Cgroup(TaskPlace),
    /// Forget that it uses its volumes.
    Volume(TaskPlace),
    /// Put the bound of a volume back.
    Bound(TaskPlace, BoundChange),
    /// Take the limit of this isolator away.
    Limit(TaskPlace, usize),
    /// Forget how the process ended.
    Record(TaskPlace),
    /// End every process, and collect this one.
    Process(TaskPlace, Pid),
}

/// Dropped, it undoes everything that was pushed, last first. Must be dropped on a thread that may block.
pub(super) struct Rollback {
    launcher: Launcher,
    done: Vec<Undo>,
}

impl Rollback {
    pub(super) fn new(launcher: Launcher) -> Self {
        Self { launcher, done: Vec::with_capacity(16) }
    }

    /// To be called before the step is taken, so that a part of it is undone too; only what names something that
    /// does not exist before is pushed after.
    pub(super) fn push(&mut self, undo: Undo) {
        self.done.push(undo);
    }

    /// As [`Rollback::push`], of any number.
    pub(super) fn extend(&mut self, undo: impl IntoIterator<Item = Undo>) {
        self.done.extend(undo);
    }

    /// The launch succeeded.
    pub(super) fn disarm(mut self) {
        self.done.clear();
    }
}

impl Drop for Rollback {
    fn drop(&mut self) {
        while let Some(undo) = self.done.pop() {
            self.launcher.undo(undo);
        }
    }
}

impl Launcher {
    fn undo(&self, undo: Undo) {
        let warn = |what: &str, error: &dyn std::error::Error| {
            tracing::warn!(error = crate::error_chain(error), "undo a launch: {what}");
        };
        match undo {
            Undo::Sandbox(sandbox) => {
                self.isolators().discard(sandbox.dir());
                if let Err(error) = sandbox.remove() {
                    warn("remove the sandbox", &error);
                }
            }
            Undo::Cgroup(place) => {
                if let Err(error) = place.cgroup.remove() {
                    warn("remove the cgroup", &error);
                }
            }
            Undo::Volume(place) => self.volumes().leave(&place),
            Undo::Bound(place, change) => {
                if let Err(error) = self.volumes().revert(&place, &change) {
                    warn("put the bound of a volume back", &error);
                }
            }
            Undo::Limit(place, part) => {
                if let Some(Err(error)) = self.isolators().part(part).map(|part| part.cleanup(&place)) {
                    warn("take a limit away", &error);
                }
            }
            Undo::Record(place) => {
                if let Some(Err(error)) = self.exits().map(|exits| exits.forget(place.id)) {
                    warn("forget the exit record", &error);
                }
            }
            Undo::Process(place, pid) => {
                if let Err(error) = place.cgroup.kill() {
                    warn("end its processes", &error);
                }
                // Collected here, so that the cgroup can be removed.
                if let Err(error) = waitpid(pid, None) {
                    warn("wait for its process", &error);
                }
                let empty = Handle::try_current().map(|runtime| runtime.block_on(place.cgroup.wait_empty()));
                if let Ok(Err(error)) = empty {
                    warn("wait for the end of its processes", &error);
                }
            }
        }
    }
}
