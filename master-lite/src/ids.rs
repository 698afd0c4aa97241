//! Names and moments: what the rest of the master is keyed by.

use std::{borrow::Borrow, fmt, sync::Arc};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as it travels.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<&$name> for String {
            fn from(id: &$name) -> Self {
                id.0.to_string()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// Names an agent: made by the agent, kept in its work directory.
    AgentId
}
id! {
    /// Names a framework: made by the master that first subscribed it, kept by the framework.
    FrameworkId
}
id! {
    /// Names an offer: made by the master, never used twice.
    OfferId
}
id! {
    /// Names a task within its framework.
    TaskId
}

/// Names a task within the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// Whose task it is. First, so that an ordered map keeps a framework's tasks together.
    pub framework: FrameworkId,
    /// Which of the framework's tasks.
    pub task: TaskId,
}

impl TaskKey {
    /// The key of this framework's task.
    pub fn new(framework: &FrameworkId, task: &str) -> Self {
        Self { framework: framework.clone(), task: task.into() }
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.framework, self.task)
    }
}

/// Names one stream of an agent or a framework; given by whoever feeds the core, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Names one operator call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Longest wait that somebody can ask for: a year, in milliseconds. What is to hold for longer is as good as for
/// ever, and a timer that never fires would keep what it waits for in memory.
pub const MAX_WAIT_MS: u64 = 365 * 24 * 60 * 60 * 1000;

/// A moment: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// The moment this many milliseconds later, or [`MAX_WAIT_MS`] where that is sooner.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.min(MAX_WAIT_MS)))
    }
}
