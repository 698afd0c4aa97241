//! From how a task's processes ended to the status that says so. Pure.

use std::time::Duration;

use bulkhead_proto::v1::{TaskReason, TaskState, TaskUsage};

use crate::{isolate::Violation, kernel::pidfd::Exit};

/// Somebody wants the task to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KillRequest {
    /// Who: repeated in the task's last status.
    pub reason: TaskReason,
    /// Between SIGTERM and the end of every process.
    pub grace: Duration,
}

/// The end of a task, ready to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// FINISHED, FAILED or KILLED.
    pub state: TaskState,
    /// Why.
    pub reason: TaskReason,
    /// For people.
    pub message: String,
    /// Where the program exited.
    pub exit_code: Option<i32>,
    /// Where a signal ended it.
    pub signal: Option<i32>,
    /// What the kernel counted.
    pub usage: TaskUsage,
}

impl End {
    /// A task that never ran.
    pub fn failed(reason: TaskReason, message: String) -> Self {
        Self {
            state: TaskState::Failed,
            reason,
            message,
            exit_code: None,
            signal: None,
            usage: TaskUsage::default(),
        }
    }

    /// A task that was killed before it ran.
    pub fn unstarted(kill: KillRequest) -> Self {
        let message = kill_message(kill.reason).to_owned();
        Self { state: TaskState::Killed, ..Self::failed(kill.reason, message) }
    }

    /// A task that ran. A kill that was asked for explains any end but a clean exit; else a limit that it broke;
    /// else what the kernel ended for a limit (`ended`); else the exit code or the signal speaks.
    pub fn of(
        exit: Exit,
        killed: Option<KillRequest>,
        broke: Option<Violation>,
        ended: Option<Violation>,
        usage: TaskUsage,
    ) -> Self {
        let (exit_code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
            Exit::Unknown => (None, None),
        };
        // Without a status nobody knows whether that was the task's end.
        let broke = broke.or_else(|| ended.filter(|_| exit != Exit::Unknown));
        let (state, reason, message) = match (killed, broke, exit) {
            (_, _, Exit::Code(0)) => (TaskState::Finished, TaskReason::Exited, String::new()),
            (Some(kill), ..) => (TaskState::Killed, kill.reason, kill_message(kill.reason).to_owned()),
            (_, Some(broke), _) => (TaskState::Failed, broke.reason, broke.message),
            (.., Exit::Code(code)) => (TaskState::Failed, TaskReason::Exited, format!("exit code {code}")),
            (.., Exit::Signal(signal)) => (TaskState::Failed, TaskReason::Signaled, signal_message(signal)),
            (.., Exit::Unknown) => (
                TaskState::Failed,
                TaskReason::ExitUnknown,
                "the task ended while no agent was there to see how".to_owned(),
            ),
        };
        Self { state, reason, message, exit_code, signal, usage }
    }
}

fn kill_message(reason: TaskReason) -> &'static str {
    match reason {
        TaskReason::KilledByOperator => "killed on an operator's request",
        TaskReason::FrameworkGone => "killed because its framework is gone",
        TaskReason::AgentLost => "killed because the master had given this agent up and the task for lost",
        TaskReason::Revoked => {
            "ended by the agent: guaranteed tasks need what it was lent; its event says what was measured"
        }
        TaskReason::AgentRestarted => "killed because another agent has the same task",
        _ => "killed on its framework's request",
    }
}

fn signal_message(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => format!("ended by {known}"),
        Err(_) => format!("ended by signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit: Exit, killed: Option<TaskReason>, ended: Option<&str>) -> End {
        let kill = killed.map(|reason| KillRequest { reason, grace: Duration::ZERO });
        let ended =
            ended.map(|message| Violation { reason: TaskReason::OutOfMemory, message: message.to_owned() });
        End::of(exit, kill, None, ended, TaskUsage::default())
    }

    fn told(end: &End) -> (TaskState, TaskReason) {
        (end.state, end.reason)
    }

    #[test]
    fn exit_codes_speak_for_themselves() {
        assert_eq!(told(&end(Exit::Code(0), None, None)), (TaskState::Finished, TaskReason::Exited));
        let failed = end(Exit::Code(3), None, None);
        assert_eq!(told(&failed), (TaskState::Failed, TaskReason::Exited));
        assert_eq!(failed.exit_code, Some(3));
    }

    #[test]
    fn the_kernel_explains_a_signal_at_the_memory_limit() {
        let oom = end(Exit::Signal(9), None, Some("at 64.0 MiB"));
        assert_eq!(told(&oom), (TaskState::Failed, TaskReason::OutOfMemory));
        assert_eq!(oom.message, "at 64.0 MiB");
        assert_eq!(told(&end(Exit::Unknown, None, Some(""))), (TaskState::Failed, TaskReason::ExitUnknown));
        assert_eq!(told(&end(Exit::Signal(9), None, None)), (TaskState::Failed, TaskReason::Signaled));
    }

    #[test]
    fn a_kill_that_was_asked_for_explains_the_end() {
        let by = Some(TaskReason::KilledByOperator);
        assert_eq!(told(&end(Exit::Signal(15), by, None)), (TaskState::Killed, TaskReason::KilledByOperator));
        assert_eq!(told(&end(Exit::Code(143), by, None)), (TaskState::Killed, TaskReason::KilledByOperator));
        assert_eq!(told(&end(Exit::Code(0), by, None)), (TaskState::Finished, TaskReason::Exited));
    }

    #[test]
    fn an_end_that_nobody_saw_is_not_called_a_success() {
        assert_eq!(told(&end(Exit::Unknown, None, None)), (TaskState::Failed, TaskReason::ExitUnknown));
    }
}
