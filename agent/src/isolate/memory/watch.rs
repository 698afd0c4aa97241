//! Waits for a task to stand still at its memory limit. Nothing is polled while it gets on:
//!
//! ```text
//! memory.events.local (first time at high or max) --> PSI trigger --> a look after each slice --> Violation
//! ```
//!
//! A trigger costs the kernel a thread, so only tasks that have met their limit get one.

use std::time::{Duration, Instant};

use bulkhead_proto::v1::{EventKind, TaskReason};
use bytesize::ByteSize;
use tokio::{io::Interest, time::sleep};

use super::{
    Memory,
    stall::{Bound, Episode, Reading, Verdict},
};
use crate::{
    grant::{Grant, MemGrant},
    isolate::{Grants, TaskPlace, Violation},
    kernel::{
        cgroupfs::{Cgroup, CgroupError, flat_key},
        pressure::{MemoryTrigger, memory_full_usec},
        ready::Ready,
    },
};

/// The cgroup's own limits, and not those of cgroups that the task made below it (Linux 5.2).
const OWN_EVENTS: &str = "memory.events.local";
/// Ends of single processes are looked for at most this often: a task can live at its limit, which is an event each
/// time.
const QUIET: Duration = Duration::from_secs(1);

/// The counters behind a watch cannot be read; mostly the task has just ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("wait for memory events")]
    Wait(#[from] std::io::Error),
}

/// Ends when the task stalled as long as its grant allows, and never otherwise.
pub(super) async fn watch(memory: &Memory, task: &TaskPlace, mut grants: Grants) -> Violation {
    loop {
        let grant = grants.borrow_and_update().clone();
        let watched = async {
            match watch_grant(memory, task, &grant).await {
                Ok(violation) => violation,
                Err(error) => {
                    tracing::debug!(
                        task = task.task.1,
                        error = crate::error_chain(&error),
                        "memory is not watched"
                    );
                    std::future::pending().await
                }
            }
        };
        tokio::select! {
            violation = watched => return violation,
            Ok(()) = grants.changed() => {}
        }
    }
}

async fn watch_grant(memory: &Memory, task: &TaskPlace, grant: &Grant) -> Result<Violation, WatchError> {
    let single_ends = async {
        // Otherwise the first end is the task's, and told with it.
        if grant.mem.oom_group { std::future::pending().await } else { note_ends(memory, task).await }
    };
    let stalls = async {
        // Without it nobody has a soft limit.
        if memory.setup.pressure {
            watch_stalls(memory, task, &grant.mem).await
        } else {
            std::future::pending().await
        }
    };
    tokio::select! {
        stalled = stalls => stalled,
        ended = single_ends => Err(ended),
    }
}

/// Records ends of single processes as they come. Returns only what keeps it from that.
async fn note_ends(memory: &Memory, task: &TaskPlace) -> WatchError {
    let noted = async {
        let events = watched(&task.cgroup, "memory.events")?;
        loop {
            memory.record_ends(task);
            sleep(QUIET).await;
            events.wait().await?;
        }
    };
    let ended: Result<std::convert::Infallible, WatchError> = noted.await;
    match ended {
        Err(error) => error,
    }
}

async fn watch_stalls(memory: &Memory, task: &TaskPlace, grant: &MemGrant) -> Result<Violation, WatchError> {
    let bound = Bound { percent: grant.stall_percent, lasting: grant.stall_for };
    let events = watched(&task.cgroup, OWN_EVENTS)?;
    while reading(&task.cgroup)?.hits == 0 {
        events.wait().await?;
    }
    drop(events);
    let trigger = MemoryTrigger::arm(&task.cgroup, bound.percent)?;
    loop {
        trigger.fired().await?;
        if let Some((percent, lasted)) = follow(memory, task, &bound).await? {
            let current = task.cgroup.read_number("memory.current")?.unwrap_or(0);
            let violation = violation(grant, current, percent, lasted);
            memory.record(task, EventKind::MemoryStalled, 1, violation.message.clone());
            return Ok(violation);
        }
    }
}

/// Looks until the task gets on, or has stalled for long enough.
async fn follow(
    memory: &Memory,
    task: &TaskPlace,
    bound: &Bound,
) -> Result<Option<(u64, Duration)>, WatchError> {
    let began = Instant::now();
    let mut episode = Episode::begin(began, reading(&task.cgroup)?);
    loop {
        sleep(bound.slice()).await;
        // While a limit is lowered the task is slowed down on purpose.
        if memory.lowered_since(task.id, began) {
            return Ok(None);
        }
        match episode.look(Instant::now(), reading(&task.cgroup)?, bound) {
            Verdict::Calm => return Ok(None),
            Verdict::Stalling => {}
            Verdict::Stalled { percent, lasted } => return Ok(Some((percent, lasted))),
        }
    }
}

fn watched(cgroup: &Cgroup, file: &str) -> Result<Ready, WatchError> {
    let opened = std::fs::File::open(cgroup.path().join(file))?;
    Ok(Ready::watch(opened.into(), Interest::PRIORITY)?)
}

fn reading(cgroup: &Cgroup) -> Result<Reading, CgroupError> {
    let text = cgroup.read(OWN_EVENTS)?;
    let value = |key| flat_key(&text, key).unwrap_or(0);
    Ok(Reading { full_usec: memory_full_usec(cgroup)?, hits: value("high") + value("max") })
}

fn violation(grant: &MemGrant, current_bytes: u64, percent: u64, lasted: Duration) -> Violation {
    let (limit, advice) = match grant.high_bytes {
        Some(high) => {
            (format!("memory.high of {}", ByteSize::b(high)), "more memory, or a higher high_bytes")
        }
        None => (format!("limit of {}", ByteSize::b(grant.max_bytes)), "more memory"),
    };
    Violation {
        reason: TaskReason::MemoryStalled,
        message: format!(
            "ended by the agent: it stood still for memory in {percent} % of {:.1} s at its {limit}, using {}; it may \
             in {} % of {:.1} s: ask for {advice}",
            lasted.as_secs_f64(),
            ByteSize::b(current_bytes),
            grant.stall_percent,
            grant.stall_for.as_secs_f64(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::{Class, plain};

    #[test]
    fn a_stall_is_told_with_its_size_its_length_and_what_to_do() {
        let mut grant = plain(Class::Guaranteed, 100, 64 << 20).mem;
        let told = |grant: &MemGrant| violation(grant, 33 << 20, 93, Duration::from_millis(10_400)).message;
        let text = told(&grant);
        for part in ["93 % of 10.4 s", "limit of 64.0 MiB", "using 33.0 MiB", "50 % of 10.0 s"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        grant.high_bytes = Some(32 << 20);
        assert!(told(&grant).contains("memory.high of 32.0 MiB") && told(&grant).contains("high_bytes"));
    }
}
