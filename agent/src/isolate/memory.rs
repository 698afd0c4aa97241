//! Memory: a hard limit (`memory.max`), a soft one (`memory.high`), swap only where it was asked for, and protection
//! up to what a guaranteed task was granted (`memory.min`, `memory.low`).
//!
//! The kernel holds all of it but one: a task that crawls at its limit, because what it needs is taken away as fast
//! as it comes, is ended by [`watch`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bulkhead_proto::v1::{self, EventKind, TaskReason};
use futures::future::BoxFuture;

use super::{Grants, IsolateError, Isolator, TaskPlace, Violation, tree::Tree};
use crate::{
    error_chain,
    event::{EventKey, EventLog},
    grant::Grant,
    kernel::{
        bpf::{OomRecords, OomVictim},
        pressure::memory_full_usec,
    },
    metrics::Metrics,
    unix_time_ms,
};

mod limits;
mod lowering;
mod oom;
mod protection;
mod stall;
mod watch;

use limits::Limits;
use protection::{Caps, Protection};

pub use lowering::WITHIN;

/// What the memory of tasks is held with, besides the controller.
pub struct MemorySetup {
    /// Physical memory of the machine.
    pub machine_bytes: u64,
    /// What of it is never offered.
    pub reserve_bytes: u64,
    /// Does the kernel report the pressure of single cgroups?
    pub pressure: bool,
    /// Whom the kernel ends for memory, where it tells.
    pub ooms: Option<Arc<OomRecords>>,
    /// Where ends and stalls are told.
    pub events: Arc<EventLog>,
    /// Where the protected amount is told.
    pub metrics: Arc<Metrics>,
}

/// Needs the memory controller.
pub struct Memory {
    setup: MemorySetup,
    protection: Mutex<Protection>,
    /// Tasks whose limits were lowered, by cgroup, and when that was over.
    lowered: Mutex<HashMap<u64, Option<Instant>>>,
}

impl Memory {
    /// Takes over what tasks of an earlier agent have.
    ///
    /// # Errors
    /// A cgroup of the tree that cannot be read or written.
    pub fn open(tree: &Tree, setup: MemorySetup) -> Result<Self, IsolateError> {
        let caps = Caps::of(setup.machine_bytes, setup.reserve_bytes);
        let protection = Mutex::new(Protection::open(tree, caps)?);
        Ok(Self { setup, protection, lowered: Mutex::default() })
    }

    fn protect(&self, task: &TaskPlace, bytes: u64) -> Result<(), IsolateError> {
        // What was written stays written, and what was not is written with the next change.
        let mut protection = lock(&self.protection);
        protection.set(&task.cgroup, bytes)?;
        protection.report(&self.setup.metrics);
        Ok(())
    }

    /// A task would crawl without end at a soft limit that nobody watches.
    fn check(&self, limits: &Limits) -> Result<(), IsolateError> {
        if limits.high_bytes.is_some() && !self.setup.pressure {
            return Err(IsolateError::Refused(
                "this kernel does not report the memory pressure of single tasks (CONFIG_PSI, and not psi=0), so a \
                 task above its high_bytes could stand still unseen: ask for no high_bytes"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Brings the task to these limits, upwards first. What fails leaves something in between.
    fn change(&self, task: &TaskPlace, from: &Limits, to: &Limits) -> Result<(), IsolateError> {
        self.check(to)?;
        if to.swap_bytes < from.swap_bytes {
            swapped_in(task, to.swap_bytes)?;
        }
        if to.protected_bytes > from.protected_bytes {
            self.protect(task, to.protected_bytes)?;
        }
        if to.max_bytes > from.max_bytes {
            task.cgroup.write("memory.max", &to.max_bytes.to_string())?;
        }
        if to.ceiling() < from.ceiling() || to.max_bytes < from.max_bytes {
            let max = Some(to.max_bytes).filter(|max| *max < from.max_bytes);
            lowering::lower(&task.cgroup, to.ceiling(), max)?;
        }
        to.write(&task.cgroup)?;
        if to.protected_bytes < from.protected_bytes {
            self.protect(task, to.protected_bytes)?;
        }
        Ok(())
    }

    /// As `change`, with the watch told, and all as before where it fails.
    fn change_or_go_back(&self, task: &TaskPlace, from: &Limits, to: &Limits) -> Result<(), IsolateError> {
        lock(&self.lowered).insert(task.id, None);
        let result = self.change(task, from, to);
        if result.is_err() {
            let back = from.write(&task.cgroup).and_then(|()| self.protect(task, from.protected_bytes));
            if let Err(error) = back {
                tracing::error!(
                    task = task.task.1,
                    error = error_chain(&error),
                    "go back to the limits before"
                );
            }
        }
        lock(&self.lowered).insert(task.id, Some(Instant::now()));
        result
    }

    /// Is a limit of this task being lowered, or was one after `then`?
    fn lowered_since(&self, cgroup_id: u64, then: Instant) -> bool {
        lock(&self.lowered).get(&cgroup_id).is_some_and(|over| over.is_none_or(|over| over >= then))
    }

    fn victim(&self, task: &TaskPlace) -> Option<OomVictim> {
        let victim = self.setup.ooms.as_ref()?.victim(task.id);
        victim.unwrap_or_else(|error| {
            tracing::warn!(error = error_chain(&error), "read whom the kernel ended for memory");
            None
        })
    }

    /// How many processes of the task were ended for memory, and a sentence about it.
    fn ends(&self, task: &TaskPlace) -> Option<(u64, String)> {
        let counts = oom::Counts::read(&task.cgroup).filter(|counts| counts.kills > 0)?;
        let victim = self.victim(task);
        let number = |file| task.cgroup.read_number(file).ok().flatten().unwrap_or(0);
        let message = oom::message(counts, victim.as_ref(), number("memory.max"), peak_bytes(task));
        Some((counts.processes(victim.map(|v| v.victims)), message))
    }

    /// Makes an event of what the kernel ended; what is known already changes nothing.
    fn record_ends(&self, task: &TaskPlace) -> u64 {
        let Some((count, message)) = self.ends(task) else { return 0 };
        self.record(task, EventKind::OutOfMemory, count, message);
        count
    }

    fn record(&self, task: &TaskPlace, kind: EventKind, count: u64, message: String) {
        let key = EventKey::of_run(&task.task, task.id, kind);
        self.setup.events.record(key, count, message, unix_time_ms());
    }
}

impl Isolator for Memory {
    fn part(&self) -> &'static str {
        "memory"
    }

    fn features(&self) -> &'static [&'static str] {
        &["cgroup_memory"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let limits = Limits::of(grant, procfs::page_size());
        self.check(&limits)?;
        limits.write_new(&task.cgroup)?;
        if limits.protected_bytes > 0 {
            self.protect(task, limits.protected_bytes)?;
        }
        if let Some(Err(error)) = self.setup.ooms.as_ref().map(|ooms| ooms.watch(task.id)) {
            // It is held all the same.
            tracing::warn!(error = error_chain(&error), "have ends for memory recorded");
        }
        Ok(())
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        let [from, to] = [before, after].map(|grant| Limits::of(grant, procfs::page_size()));
        if from == to { Ok(()) } else { self.change_or_go_back(task, &from, &to) }
    }

    fn watch<'a>(&'a self, task: &'a TaskPlace, grants: Grants) -> Option<BoxFuture<'a, Violation>> {
        Some(Box::pin(watch::watch(self, task, grants)))
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let limits = Limits::of(grant, procfs::page_size());
        if task.cgroup.read_number("cgroup.freeze")? == Some(1) {
            // The agent before was ended while it lowered a limit.
            task.cgroup.thaw()?;
        }
        // The kernel is ahead of the journal where that agent was ended after it had raised one.
        let max_bytes = task.cgroup.read_number("memory.max")?.unwrap_or(u64::MAX);
        self.change_or_go_back(task, &Limits { max_bytes, ..limits }, &limits)?;
        self.protect(task, limits.protected_bytes)?;
        self.setup.ooms.as_ref().map_or(Ok(()), |ooms| Ok(ooms.watch(task.id)?))
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        usage.mem_peak_bytes = peak_bytes(task).max(usage.mem_peak_bytes);
        usage.mem_stall_usec = memory_full_usec(&task.cgroup).unwrap_or(usage.mem_stall_usec);
        usage.oom_kills = self.record_ends(task).max(usage.oom_kills);
    }

    fn explain(&self, task: &TaskPlace) -> Option<Violation> {
        let (_, message) = self.ends(task)?;
        Some(Violation { reason: TaskReason::OutOfMemory, message })
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        lock(&self.lowered).remove(&task.id);
        let forgotten = self.setup.ooms.as_ref().map_or(Ok(()), |ooms| ooms.forget(task.id));
        self.protect(task, 0)?;
        Ok(forgotten?)
    }
}

/// memory.peak came with Linux 5.19; before, what is used now is the best there is.
fn peak_bytes(task: &TaskPlace) -> u64 {
    let read = |file: &&str| task.cgroup.read_number(file).ok().flatten();
    ["memory.peak", "memory.current"].iter().find_map(read).unwrap_or(0)
}

/// The kernel brings nothing back from swap for a lower limit; a limit that is not held is not promised.
fn swapped_in(task: &TaskPlace, swap_bytes: u64) -> Result<(), IsolateError> {
    let swapped = task.cgroup.read_number("memory.swap.current")?.unwrap_or(0);
    if swapped <= swap_bytes {
        return Ok(());
    }
    Err(IsolateError::Refused(format!(
        "the task has {} in swap, more than {}, and the kernel does not bring it back: its limits stay as they were",
        bytesize::ByteSize::b(swapped),
        bytesize::ByteSize::b(swap_bytes),
    )))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Books and marks are changed in single steps; what the kernel refused in between is written the next time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
