//! Waits for one task's end, asks it to end when somebody wants that, and leaves no process behind.

use std::{collections::BTreeSet, fs, io, sync::Arc, time::Instant};

use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{sync::mpsc, time::sleep_until};

use super::outcome::{End, KillRequest};
use crate::{
    isolate::{Grants, Isolators, TaskPlace, cpu},
    kernel::{
        bpf::ExitRecords,
        cgroupfs::Cgroup,
        pidfd::{self, Exit, Watched},
    },
    launch::blocking,
};

/// A task whose program runs.
pub struct Supervised {
    /// Its main process; `None` where a restarted agent found it ended.
    pub process: Option<Watched>,
    /// Its cgroup.
    pub cgroup: TaskPlace,
    /// What it is granted, as that changes.
    pub grants: Grants,
    /// When its program was executed, as far as this agent knows.
    pub since: Instant,
    /// What to measure at its end.
    pub isolators: Arc<Isolators>,
    /// Where the kernel notes ends that nobody waits for; `None` where it cannot.
    pub exits: Option<Arc<ExitRecords>>,
}

/// Runs until the task's last process has ended.
///
/// The task is over when its main process is; what it leaves behind is killed. After a kill request every
/// process of the task gets SIGTERM, and what still runs when the grace is over is killed.
///
/// A program that is the first of a pid namespace needs help with that: see [`asking`].
pub async fn supervise(task: Supervised, mut kills: mpsc::Receiver<KillRequest>) -> End {
    let (mut killed, mut broke, mut defaulted) = (None, None, false);
    let mut violation = std::pin::pin!(task.isolators.watch(&task.cgroup, &task.grants));
    let exit = match &task.process {
        None => Exit::Unknown,
        Some(process) => loop {
            tokio::select! {
                exit = process.ended() => break exit.unwrap_or(Exit::Unknown),
                Some(request) = kills.recv() => {
                    let first = killed.unwrap_or(request);
                    defaulted |= ask(&task.cgroup.cgroup, process).await;
                    killed = Some(terminate(&task.cgroup.cgroup, first, &mut kills).await);
                }
                violated = &mut violation, if broke.is_none() => {
                    broke = Some(violated);
                    if let Err(error) = task.cgroup.cgroup.kill() {
                        tracing::warn!(error = crate::error_chain(&error), "kill a task that broke a limit");
                    }
                }
            }
        },
    };
    let exit = match if exit == Exit::Unknown { recorded_exit(&task) } else { exit } {
        Exit::Signal(libc::SIGKILL) if defaulted => Exit::Signal(libc::SIGTERM),
        exit => exit,
    };
    sweep(&task.cgroup.cgroup).await;
    let mut usage = task.isolators.measure(&task.cgroup);
    usage.cpu_usec = cpu::used_usec(&task.cgroup).unwrap_or(0);
    usage.wall_usec = u64::try_from(task.since.elapsed().as_micros()).unwrap_or(u64::MAX);
    let ended = task.isolators.explain(&task.cgroup);
    End::of(exit, killed, broke, ended, usage)
}

/// Asks every process to end. True where that meant to end the program at once.
async fn ask(cgroup: &Cgroup, program: &Watched) -> bool {
    let (cgroup, pid, descriptor) = (cgroup.clone(), program.pid(), program.descriptor());
    let asked = blocking(move || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        match asking(&status) {
            // The id may have gone to a stranger before its status was read; the descriptor has not.
            Asking::End => pidfd::signal(descriptor?, Signal::SIGKILL).map(|()| true),
            Asking::Signal => signal_all(&cgroup, Signal::SIGTERM).map(|()| false),
        }
    });
    asked.await.unwrap_or_else(|error| {
        tracing::warn!(error = crate::error_chain(&error), "ask a task to end");
        false
    })
}

/// What asking a program to end comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    /// SIGTERM, to it and all others.
    Signal,
    /// Its end, and with it that of its pid namespace.
    End,
}

/// Decides by /proc/PID/status. The kernel keeps signals from the first process of a pid namespace that it has no
/// handler for, where they would end any other process. So what SIGTERM means by default is done by the agent,
/// unless the program catches, ignores or blocks it. Pure.
fn asking(status: &str) -> Asking {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let ids: Vec<&str> = field("NSpid").unwrap_or_default().split_ascii_whitespace().collect();
    let first = ids.len() > 1 && ids.last() == Some(&"1");
    let has =
        |name| field(name).and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX);
    let own = has("SigCgt") | has("SigIgn") | has("SigBlk");
    if first && own & (1 << (libc::SIGTERM - 1)) == 0 { Asking::End } else { Asking::Signal }
}

/// The grace, then the end. Ends early when no process is left: whoever handles
/// SIGTERM by ending its children first is given the time to do so, and nobody else keeps the task waiting.
/// A further request can only shorten the grace. Returns the request that counts: the first.
async fn terminate(
    cgroup: &Cgroup,
    first: KillRequest,
    kills: &mut mpsc::Receiver<KillRequest>,
) -> KillRequest {
    let mut deadline = Instant::now() + first.grace;
    loop {
        tokio::select! {
            Ok(()) = cgroup.wait_empty() => return first,
            () = sleep_until(deadline.into()) => break,
            Some(next) = kills.recv() => deadline = deadline.min(Instant::now() + next.grace),
        }
    }
    if let Err(error) = cgroup.kill() {
        tracing::warn!(error = crate::error_chain(&error), "kill a task");
    }
    first
}

/// Kills what is left and waits until nothing is.
async fn sweep(cgroup: &Cgroup) {
    let result = match cgroup.populated() {
        Ok(true) => cgroup.kill(),
        other => other.map(|_| ()),
    };
    if let Err(error) = result {
        tracing::warn!(error = crate::error_chain(&error), "kill what a task left behind");
    }
    if let Err(error) = cgroup.wait_empty().await {
        tracing::warn!(error = crate::error_chain(&error), "wait for the end of a task's processes");
    }
}

fn recorded_exit(task: &Supervised) -> Exit {
    let Some(exits) = &task.exits else { return Exit::Unknown };
    exits
        .take(task.cgroup.id)
        .unwrap_or_else(|error| {
            tracing::warn!(error = crate::error_chain(&error), "read how a task ended");
            None
        })
        .unwrap_or(Exit::Unknown)
}

/// How often a task is walked through for processes that were forked meanwhile. One that forks without end is
/// ended by the grace.
const WALKS: usize = 8;

/// Descriptors that are open at once for it.
const BATCH: usize = 256;

/// Sends a signal once to every process in the cgroup and below it, those included that are forked meanwhile:
/// a shell waits for its new child before it handles its own signal.
fn signal_all(cgroup: &Cgroup, signal: Signal) -> io::Result<()> {
    let mut told = BTreeSet::new();
    for _ in 0..WALKS {
        let before = told.len();
        signal_new(cgroup, signal, &mut told)?;
        if told.len() == before {
            break;
        }
    }
    Ok(())
}

fn signal_new(cgroup: &Cgroup, signal: Signal, told: &mut BTreeSet<i32>) -> io::Result<()> {
    for child in cgroup.children().map_err(io::Error::other)? {
        signal_new(&child, signal, told)?;
    }
    let new: Vec<i32> = listed(cgroup)?.into_iter().filter(|pid| told.insert(*pid)).collect();
    for some in new.chunks(BATCH) {
        let opened: Vec<_> =
            some.iter().filter_map(|pid| Some((*pid, pidfd::open(Pid::from_raw(*pid)).ok()?))).collect();
        // An id may have gone to a stranger since it was read; while we hold the descriptor it cannot.
        let still = listed(cgroup)?;
        for (pid, pidfd) in opened {
            if still.contains(&pid) {
                pidfd::signal(&pidfd, signal)?;
            }
        }
    }
    Ok(())
}

fn listed(cgroup: &Cgroup) -> io::Result<BTreeSet<i32>> {
    let procs = cgroup.read("cgroup.procs").map_err(io::Error::other)?;
    Ok(procs.lines().filter_map(|pid| pid.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(ids: &str, caught: u64, ignored: u64, blocked: u64) -> String {
        format!(
            "Name:\tx\nNSpid:\t{ids}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn only_the_first_of_a_namespace_without_a_handler_is_ended() {
        let term = 1 << (libc::SIGTERM - 1);
        assert_eq!(asking(&status("100\t1", 0, 0, 0)), Asking::End);
        assert_eq!(asking(&status("100\t7\t1", !term, !term, !term)), Asking::End);
        for (caught, ignored, blocked) in [(term, 0, 0), (0, term, 0), (0, 0, term)] {
            assert_eq!(asking(&status("100\t1", caught, ignored, blocked)), Asking::Signal);
        }
        for ids in ["100", "1", "100\t2"] {
            assert_eq!(asking(&status(ids, 0, 0, 0)), Asking::Signal);
        }
        assert_eq!(asking(""), Asking::Signal, "it has ended");
        let whole = fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(asking(&whole), Asking::Signal);
    }
}
