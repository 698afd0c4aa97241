//! What the core wants done.

use bulkhead_proto::v1::{Grant, RoleSettings, master_message, scheduler_event};

use super::SetRoleError;
use crate::ids::{RequestId, SessionId};

/// One thing to do; effects of a step are carried out in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send to an agent.
    ToAgent {
        /// Its stream.
        session: SessionId,
        /// What.
        message: master_message::Message,
    },
    /// Send to a framework's scheduler.
    ToScheduler {
        /// Its stream.
        session: SessionId,
        /// What.
        event: scheduler_event::Event,
    },
    /// End a stream, after what was sent on it before.
    Close {
        /// Which.
        session: SessionId,
        /// How, and why.
        closing: Closing,
    },
    /// Answer an operator's [`StopTask`](super::Event::StopTask).
    Answer {
        /// Which call.
        request: RequestId,
        /// Whether the task is being stopped.
        result: Result<(), StopError>,
    },
    /// Answer an operator's [`ResizeTask`](super::Event::ResizeTask).
    ResizeAnswer {
        /// Which call.
        request: RequestId,
        /// What the task holds now.
        result: Result<Grant, ResizeError>,
    },
    /// Answer an operator's [`SetRole`](super::Event::SetRole).
    RoleAnswer {
        /// Which call.
        request: RequestId,
        /// What is said of the role now.
        result: Result<RoleSettings, SetRoleError>,
    },
    /// Tell whoever reads the master's log.
    Log {
        /// How much it matters.
        severity: Severity,
        /// One line.
        text: String,
    },
}

/// How a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closing {
    /// It served its purpose.
    Done,
    /// Its first message cannot be accepted, or it breaks the protocol.
    Invalid(String),
    /// It asks for something that is over, and must not try again with the same words.
    Refused(String),
    /// A newer stream of the same agent or framework takes over.
    Replaced(String),
    /// Nothing was heard on it for too long.
    Silent(String),
}

/// Why a task was not resized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// There is not exactly one such task.
    #[error(transparent)]
    Task(#[from] StopError),
    /// It keeps the grant that it had.
    #[error("not resized: {0}")]
    Refused(String),
}

/// Why a task cannot be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// No live task has the id.
    #[error("no live task has the id {task:?}{hint}")]
    NotFound {
        /// The id that was asked for.
        task: String,
        /// What is known instead, or how to look.
        hint: String,
    },
    /// Several frameworks have a live task of this id.
    #[error("task id {task:?} is used by frameworks {frameworks}; name the framework, too")]
    Ambiguous {
        /// The id that was asked for.
        task: String,
        /// Their ids.
        frameworks: String,
    },
}

/// How much a line in the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The life of the cluster.
    Info,
    /// Somebody should look.
    Warn,
}
