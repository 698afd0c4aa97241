//! Where a test can make a launch fail. An agent has none of it.

use super::LaunchError;
use crate::kernel::spawn::ChildStep;

/// One step of a launch in the agent, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Find out who the task runs as.
    Identity,
    /// Make its sandbox.
    Sandbox,
    /// Make its cgroup.
    Cgroup,
    /// Open this volume, and bound it.
    Volume(usize),
    /// Have this isolator set its limit.
    Limit(usize),
    /// Open its output.
    Outputs,
    /// Make its mounts and its rules of files.
    Files,
    /// Make its process and have it execute the program.
    Spawn,
    /// Have the kernel note how it ends.
    Record,
    /// Tell this isolator of its process.
    Attach(usize),
    /// Watch its process.
    Watch,
}

/// Makes launches fail.
pub trait Faults: Send + Sync {
    /// Called before each step, which is not taken where this fails.
    ///
    /// # Errors
    /// What the launch then fails with.
    fn before(&self, step: Step) -> Result<(), LaunchError>;

    /// Changes what the child does.
    fn child(&self, steps: &mut Vec<ChildStep<'_>>);
}
