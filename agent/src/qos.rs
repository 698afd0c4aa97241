//! Protects guaranteed tasks from revocable ones.
//!
//! ```text
//! kernel wakes (pressure of the guaranteed tasks) -> Evidence -> Policy -> Decision -> cgroups of the revocable tasks
//! ```
//!
//! Revocable tasks run on what is idle, and the kernel's weights keep most of their weight off the others. Not all: caches of
//! the CPU, writeback and reclaim know no weights. So while guaranteed tasks wait for more than they should, revocable ones
//! are held to less and less, in steps that can be taken back; only memory is taken by ending tasks.

pub mod control;
mod evidence;
mod ladder;
mod look;

use std::{fmt, time::Instant};

pub use evidence::{Candidate, Evidence};
pub use ladder::{Ladder, Means, Thresholds};

pub use crate::isolate::revocable::Held;
use crate::offer::ledger::TaskKey;

/// What guaranteed tasks wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A CPU.
    Cpu,
    /// Memory that has to be taken back, or brought in again.
    Memory,
    /// A disk.
    Io,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Io];

    /// In metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
        }
    }
}

/// Why something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What guaranteed tasks waited for.
    pub resource: Resource,
    /// For this much of the time.
    pub waited_permille: u64,
    /// Where it begins to count.
    pub threshold_permille: u64,
    /// What is done.
    pub step: Step,
}

/// A correction, or taking one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Less of it.
    Squeeze,
    /// Nothing at all.
    Freeze,
    /// One task is ended.
    Kill,
    /// A little more again.
    Ease,
    /// All that it may have. Corrections did not help: something else makes the guaranteed tasks wait.
    Absolve,
}

impl Step {
    /// In metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Squeeze => "squeeze",
            Self::Freeze => "freeze",
            Self::Kill => "kill",
            Self::Ease => "ease",
            Self::Absolve => "absolve",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, waited_permille, threshold_permille, step } = self;
        let tenths = |permille: u64| format!("{}.{} %", permille / 10, permille % 10);
        write!(
            f,
            "{}: guaranteed tasks waited for {} during {} of the time ({} is allowed)",
            step.name(),
            resource.name(),
            tenths(*waited_permille),
            tenths(*threshold_permille)
        )
    }
}

/// What follows from the evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// From now on.
    pub held: Held,
    /// To be ended.
    pub kill: Option<TaskKey>,
    /// One for each thing that changes.
    pub reasons: Vec<Reason>,
}

/// Decides. Pure: `now` is an argument, and what it remembers is its own.
///
/// # Contract
/// - Nothing is held while there are no revocable tasks.
/// - What is held is taken back, in the end, once guaranteed tasks no longer wait.
/// - A task is ended only where nothing else gives back what is waited for.
pub trait Policy: fmt::Debug + Send {
    /// Called after each look.
    fn decide(&mut self, now: Instant, seen: &Evidence) -> Decision;

    /// Is nothing held, so that the next look can wait for the kernel to wake?
    fn is_calm(&self) -> bool;
}
