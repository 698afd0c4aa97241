//! What can go wrong between the shell and the cluster, said with what to do about it.

use std::io;

use crate::{agent_ref::AgentRefError, framework_ref::FrameworkRefError, task_ref::TaskRefError};

/// Exit status of a command that could not do what was asked.
pub(crate) const FAILED: u8 = 1;
/// Exit status of an invocation that says nothing meaningful.
pub(crate) const BAD_USAGE: u8 = 2;
/// Exit status of `bulkhead run` when Bulkhead, and not the task, failed.
pub(crate) const RUN_FAILED: u8 = 125;
/// Exit status after the reader of our output went away, as a shell shows a SIGPIPE.
pub(crate) const OUTPUT_CLOSED: u8 = 128 + 13;

/// A command that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(
        "no master answers at {address} ({cause}); start one with `make run`, or name yours with --master or BULKHEAD_MASTER"
    )]
    NoMaster { address: String, cause: String },
    #[error("no agent answers at {address} ({cause}); `bulkhead agents` shows which are connected")]
    NoAgent { address: String, cause: String },
    #[error("{who} answered {call} with an error: {message}")]
    Refused { who: String, call: &'static str, message: String },
    #[error(
        "task {task_id} ran on agent {agent_id}, which the master does not know now; `bulkhead agents` shows those it knows"
    )]
    AgentUnknown { task_id: String, agent_id: String },
    #[error("the output of task {task_id} could not be read to its end: {cause}")]
    OutputIncomplete { task_id: String, cause: String },
    #[error(transparent)]
    AgentRef(#[from] AgentRefError),
    #[error(transparent)]
    FrameworkRef(#[from] FrameworkRefError),
    #[error(transparent)]
    TaskRef(#[from] TaskRefError),
    #[error("{failed} of {asked} {noun} failed")]
    Some { failed: usize, asked: usize, noun: &'static str },
    /// Not worth a word: whoever read our output has left.
    #[error("the reader of the output is gone")]
    OutputClosed,
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("cannot show this as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Output(error),
        }
    }
}
