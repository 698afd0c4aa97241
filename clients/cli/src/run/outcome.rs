//! From a task's last status to our exit code and a sentence.

use bulkhead_proto::v1::{TaskReason, TaskState, TaskStatus, TaskUsage};

use crate::{
    error::RUN_FAILED,
    quantity::{size, span},
};

/// Exit code for a command that is there and cannot be executed, as shells have it.
const NOT_EXECUTABLE: u8 = 126;
/// Exit code for a command that was not found, as shells have it.
const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that ended a task, as shells do.
const SIGNAL_BASE: i32 = 128;
/// What the kernel ends a task with at its memory limit.
const SIGKILL: i32 = 9;

/// How `run` ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: u8,
    /// For standard error; nothing where the exit code says it all.
    pub(crate) sentence: Option<String>,
}

/// What a task was granted, as far as sentences name it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) mem_bytes: u64,
}

/// The exit code and the words for a task's last status.
pub(crate) fn outcome(status: &TaskStatus, limits: Limits) -> Outcome {
    Outcome { code: exit_code(status), sentence: sentence(status, limits) }
}

fn exit_code(status: &TaskStatus) -> u8 {
    match (status.state(), status.reason()) {
        (_, TaskReason::OutOfMemory) => signal_code(SIGKILL),
        (_, TaskReason::CommandNotFound) => NOT_FOUND,
        (_, TaskReason::CommandNotExecutable) => NOT_EXECUTABLE,
        (TaskState::Finished, _) => 0,
        (TaskState::Failed | TaskState::Killed, _) => match (status.exit_code, status.signal) {
            (_, Some(signal)) => signal_code(signal),
            (Some(code), None) => u8::try_from(code).unwrap_or(RUN_FAILED),
            (None, None) if status.state() == TaskState::Killed => signal_code(SIGKILL),
            (None, None) => RUN_FAILED,
        },
        _ => RUN_FAILED,
    }
}

fn signal_code(signal: i32) -> u8 {
    u8::try_from(SIGNAL_BASE.saturating_add(signal)).unwrap_or(u8::MAX)
}

fn sentence(status: &TaskStatus, limits: Limits) -> Option<String> {
    let message = status.message.as_str();
    let said = |words: &str| match message {
        "" => words.to_owned(),
        message => format!("{words}: {message}"),
    };
    match (status.state(), status.reason()) {
        (TaskState::Finished, _) => None,
        (_, TaskReason::OutOfMemory) => Some(out_of_memory(status.usage.as_ref(), limits)),
        (_, TaskReason::Exited) => None,
        (TaskState::Failed, TaskReason::Signaled) => {
            Some(format!("the task was ended by {}", signal_name(status.signal)))
        }
        (TaskState::Failed, TaskReason::Unspecified) if status.exit_code.is_some() => None,
        (TaskState::Killed, reason) => {
            Some(format!("the task was stopped ({})", reason_words(reason).unwrap_or("no reason given")))
        }
        (TaskState::Rejected, _) => Some(said("the master refused the launch")),
        (TaskState::Lost, _) => Some(said("the task is lost")),
        (_, reason) => Some(said(reason_words(reason).unwrap_or("the task failed"))),
    }
}

fn out_of_memory(usage: Option<&TaskUsage>, limits: Limits) -> String {
    let peak = usage.map(|u| u.mem_peak_bytes).filter(|&peak| peak > 0);
    let peak = peak.map(|peak| format!(" (peak {})", size(peak))).unwrap_or_default();
    format!(
        "killed by the kernel at its memory limit of {}{peak}; give it more with --mem",
        size(limits.mem_bytes)
    )
}

/// A reason in a few words; nothing where the state says it all.
pub(crate) fn reason_words(reason: TaskReason) -> Option<&'static str> {
    Some(match reason {
        TaskReason::Unspecified | TaskReason::Exited | TaskReason::Signaled => return None,
        TaskReason::OutOfMemory => "out of memory",
        TaskReason::CommandNotFound => "command not found",
        TaskReason::CommandNotExecutable => "command not executable",
        TaskReason::UserUnknown => "no such user on the agent",
        TaskReason::UserNotAllowed => "user not allowed on the agent",
        TaskReason::InvalidGrant => "impossible grant",
        TaskReason::LaunchFailed => "launch failed",
        TaskReason::KilledByFramework => "by its framework",
        TaskReason::KilledByOperator => "by an operator",
        TaskReason::FrameworkGone => "its framework is gone",
        TaskReason::OfferGone => "the offer was gone",
        TaskReason::ExceedsOffer => "more than was offered",
        TaskReason::AgentLost => "its agent is gone",
        TaskReason::ExitUnknown => "it ended while no agent was there to see how",
        TaskReason::UnknownTask => "nobody knows it",
        TaskReason::InvalidTask => "malformed task",
        TaskReason::MemoryStalled => "stood still for memory",
        TaskReason::Revoked => "revoked for guaranteed tasks",
        TaskReason::ArtifactFailed => "artifact failed",
        TaskReason::ImageFailed => "image failed",
        TaskReason::ConfinementRefused => "confinement refused",
        TaskReason::Unacknowledged => "earlier ends are not acknowledged",
        TaskReason::AgentRestarted => "its agent started over",
    })
}

/// What the kernel refused a task over its life, where it refused something; what the exit code cannot say.
pub(crate) fn refusals(status: &TaskStatus) -> Option<String> {
    let usage = status.usage.as_ref()?;
    let count = |n: u64, one: &str, many: &str| match n {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {many}")),
    };
    let parts: Vec<String> = [
        count(usage.ports_refused, "bind to a port outside its grant", "binds to ports outside its grant"),
        count(usage.pids_refused, "fork at its process limit", "forks at its process limit"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let id = &status.task_id;
    (!parts.is_empty())
        .then(|| format!("the kernel refused {}; see `bulkhead events {id}`", parts.join(" and ")))
}

/// `1 s of CPU in 3 s (0 ms held back), at most 12 MiB`: what the kernel counted.
pub(crate) fn usage_words(usage: &TaskUsage) -> String {
    let cpu = span(usage.cpu_usec / 1000);
    let (wall, held_back) = (span(usage.wall_usec / 1000), span(usage.cpu_throttled_usec / 1000));
    // A kernel that does not hold memory to the grant does not count it either.
    let peak = match usage.mem_peak_bytes {
        0 => String::new(),
        bytes => format!(", at most {}", size(bytes)),
    };
    format!("{cpu} of CPU in {wall} ({held_back} held back){peak}")
}

fn signal_name(signal: Option<i32>) -> String {
    const NAMES: [(i32, &str); 10] = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (15, "SIGTERM"),
    ];
    match signal {
        None => "a signal".to_owned(),
        Some(number) => NAMES
            .iter()
            .find(|known| known.0 == number)
            .map_or_else(|| format!("signal {number}"), |known| known.1.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { mem_bytes: 64 << 20 };

    fn status(state: TaskState, reason: TaskReason) -> TaskStatus {
        TaskStatus { state: state.into(), reason: reason.into(), ..TaskStatus::default() }
    }

    fn exited(code: i32) -> TaskStatus {
        TaskStatus { exit_code: Some(code), ..status(TaskState::Failed, TaskReason::Exited) }
    }

    fn signaled(state: TaskState, reason: TaskReason, signal: i32) -> TaskStatus {
        TaskStatus { signal: Some(signal), ..status(state, reason) }
    }

    #[test]
    fn a_tasks_own_code_is_ours_without_a_word() {
        for code in [1, 2, 77, 255] {
            let got = outcome(&exited(code), LIMITS);
            assert_eq!((i32::from(got.code), got.sentence), (code, None));
        }
        let finished = status(TaskState::Finished, TaskReason::Unspecified);
        assert_eq!(outcome(&finished, LIMITS), Outcome { code: 0, sentence: None });
    }

    #[test]
    fn signals_are_128_and_more() {
        let segv = outcome(&signaled(TaskState::Failed, TaskReason::Signaled, 11), LIMITS);
        assert_eq!((segv.code, segv.sentence.as_deref()), (139, Some("the task was ended by SIGSEGV")));
        let term = outcome(&signaled(TaskState::Killed, TaskReason::KilledByOperator, 15), LIMITS);
        assert_eq!(
            (term.code, term.sentence.as_deref()),
            (143, Some("the task was stopped (by an operator)"))
        );
        let real_time = outcome(&signaled(TaskState::Failed, TaskReason::Signaled, 34), LIMITS);
        assert_eq!(real_time.sentence.as_deref(), Some("the task was ended by signal 34"));
        assert_eq!(outcome(&signaled(TaskState::Failed, TaskReason::Signaled, i32::MAX), LIMITS).code, 255);
    }

    #[test]
    fn a_stopped_task_that_exits_by_itself_keeps_its_code() {
        let graceful =
            TaskStatus { exit_code: Some(0), ..status(TaskState::Killed, TaskReason::KilledByFramework) };
        assert_eq!(outcome(&graceful, LIMITS).code, 0);
        assert_eq!(outcome(&status(TaskState::Killed, TaskReason::KilledByFramework), LIMITS).code, 137);
    }

    #[test]
    fn out_of_memory_names_limit_and_peak() {
        let usage = Some(TaskUsage { mem_peak_bytes: 64 << 20, ..TaskUsage::default() });
        let killed = TaskStatus { usage, ..signaled(TaskState::Failed, TaskReason::OutOfMemory, 9) };
        let got = outcome(&killed, LIMITS);
        assert_eq!(got.code, 137);
        assert_eq!(
            got.sentence.as_deref(),
            Some("killed by the kernel at its memory limit of 64 MiB (peak 64 MiB); give it more with --mem")
        );
    }

    #[test]
    fn failures_to_start_have_the_shells_codes_and_the_agents_words() {
        let not_found = TaskStatus {
            message: "execve nosuch: ENOENT".to_owned(),
            ..status(TaskState::Failed, TaskReason::CommandNotFound)
        };
        let got = outcome(&not_found, LIMITS);
        assert_eq!(
            (got.code, got.sentence.as_deref()),
            (127, Some("command not found: execve nosuch: ENOENT"))
        );
        assert_eq!(outcome(&status(TaskState::Failed, TaskReason::CommandNotExecutable), LIMITS).code, 126);
        for (state, reason) in [
            (TaskState::Rejected, TaskReason::ExceedsOffer),
            (TaskState::Lost, TaskReason::AgentLost),
            (TaskState::Failed, TaskReason::UserUnknown),
            (TaskState::Failed, TaskReason::LaunchFailed),
            (TaskState::Unspecified, TaskReason::Unspecified),
        ] {
            let got = outcome(&status(state, reason), LIMITS);
            assert_eq!(got.code, 125, "{state:?} {reason:?}");
            assert!(got.sentence.is_some(), "{state:?} {reason:?}");
        }
    }

    #[test]
    fn refusals_are_counted_in_words() {
        let usage = |ports_refused, pids_refused| TaskStatus {
            task_id: "t-1".to_owned(),
            usage: Some(TaskUsage { ports_refused, pids_refused, ..TaskUsage::default() }),
            ..TaskStatus::default()
        };
        assert_eq!(refusals(&usage(0, 0)), None);
        assert_eq!(refusals(&TaskStatus::default()), None);
        assert_eq!(
            refusals(&usage(1, 20)).as_deref(),
            Some(
                "the kernel refused 1 bind to a port outside its grant and 20 forks at its process limit; see `bulkhead events t-1`"
            )
        );
    }
}
