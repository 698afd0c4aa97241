//! What `run --json` and `run --detach` print about a task, beside its output.

use bulkhead_proto::v1::{AgentInfo, TaskSpec, TaskStatus};
use serde::Serialize;

/// One line of `run --json`, told apart by `type`. The task's output has lines of its own (`"type":"output"`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Report {
    /// An offer was accepted.
    Launched {
        task_id: String,
        framework_id: String,
        agent_id: String,
        hostname: String,
        spec: Box<TaskSpec>,
    },
    /// The task took a step.
    Status(Box<TaskStatus>),
    /// The task runs and is left alone.
    Detached { task_id: String, agent_id: String },
    /// The task has ended and its output is complete.
    Ended { task_id: String, exit_code: u8, message: Option<String> },
}

impl Report {
    pub(super) fn launched(framework_id: &str, task: &TaskSpec, agent: &AgentInfo) -> Self {
        Self::Launched {
            task_id: task.task_id.clone(),
            framework_id: framework_id.to_owned(),
            agent_id: agent.agent_id.clone(),
            hostname: agent.hostname.clone(),
            spec: Box::new(task.clone()),
        }
    }

    pub(super) fn detached(status: &TaskStatus) -> Self {
        Self::Detached { task_id: status.task_id.clone(), agent_id: status.agent_id.clone() }
    }

    pub(super) fn ended(status: &TaskStatus, exit_code: u8, message: Option<String>) -> Self {
        Self::Ended { task_id: status.task_id.clone(), exit_code, message }
    }
}
