//! The loop: waits for the kernel, looks, has the policy decide, and writes what was decided.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use procfs::{Current as _, Meminfo};

use super::{Candidate, Decision, Evidence, Policy, Thresholds, evidence::Counted};
use crate::{
    grant::Class,
    isolate::{
        revocable::Revocable,
        tree::{Branch, Tree},
    },
    keeper::{Message, Sender},
    kernel::{
        cgroupfs::{Cgroup, CgroupError},
        pressure::{CPU_PRESSURE, IO_PRESSURE, MEMORY_PRESSURE, StallTrigger, wait_for_any},
        priority,
        reread::{Reread, Room},
    },
    measure::tasks::{
        Stalls, Watched,
        reading::{cpu_count, stall_count},
    },
    metrics::QosMetrics,
};

/// Between two looks while something is held, or somebody waits: long enough for a share of it to mean something.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The first look, after the kernel has woken: who is to blame is only seen while it happens, and others wait meanwhile.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// The loop could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The kernel does not tell of pressure, or cannot wake for it.
    #[error("watch what guaranteed tasks wait for")]
    Watch(#[source] CgroupError),
    /// There is no thread to be had.
    #[error("start the thread that protects guaranteed tasks")]
    Thread(#[source] io::Error),
}

/// What it works with.
pub struct Parts {
    /// Where the guaranteed tasks are.
    pub tree: Tree,
    /// Where what is decided goes.
    pub revocable: Arc<Revocable>,
    /// Who they are, and what they use.
    pub watched: Arc<Watched>,
    /// Ends tasks.
    pub keeper: Sender,
    /// Told each step.
    pub metrics: QosMetrics,
    /// Decides.
    pub policy: Box<dyn Policy>,
}

/// Starts the loop in a thread of its own, which ends with the agent.
///
/// # Errors
/// [`ControlError`]; then guaranteed tasks have their weights and protections, and no more.
pub fn spawn(parts: Parts, thresholds: &Thresholds) -> Result<(), ControlError> {
    let guaranteed = parts.tree.branch(Branch::Guaranteed);
    let files = [
        (CPU_PRESSURE, thresholds.cpu_permille),
        (MEMORY_PRESSURE, thresholds.mem_permille),
        (IO_PRESSURE, thresholds.io_permille),
    ];
    let arm = |(file, permille)| StallTrigger::arm(&guaranteed, file, permille);
    let triggers = files.into_iter().map(arm).collect::<Result<Vec<_>, _>>().map_err(ControlError::Watch)?;
    let control = Control { looker: Looker::open(&guaranteed, &parts.revocable.cgroup()), triggers, parts };
    let thread = thread::Builder::new().name("qos".to_owned());
    thread.spawn(move || control.run()).map(drop).map_err(ControlError::Thread)
}

struct Control {
    looker: Looker,
    triggers: Vec<StallTrigger>,
    parts: Parts,
}

impl Control {
    fn run(mut self) {
        if let Err(error) = priority::first_of_all() {
            tracing::info!(%error, "protect guaranteed tasks from a thread like all others");
        }
        let mut told = false;
        loop {
            let at_most = (!self.parts.policy.is_calm()).then_some(LOOK_EVERY);
            if let Err(error) = wait_for_any(&self.triggers, at_most) {
                tracing::error!(%error, "wait for pressure; guaranteed tasks are protected no longer");
                return self.let_go();
            }
            if at_most.is_none() {
                self.looker.begin(Instant::now());
                thread::sleep(FIRST_LOOK);
            }
            let seen = self.evidence();
            let decision = self.parts.policy.decide(Instant::now(), &seen);
            let applied = self.apply(&decision);
            if let Err(error) = &applied
                && !told
            {
                tracing::warn!(error = crate::error_chain(error), "hold the revocable tasks");
            }
            told = applied.is_err();
        }
    }

    /// What the looker sees, and what the sampler saw last of each task.
    fn evidence(&mut self) -> Evidence {
        let mut seen = self.looker.look(Instant::now());
        // By the ids of their cgroups: the youngest last.
        for (task, class, reading, used) in self.parts.watched.latest() {
            let throttled_permille = used.map_or(0, |used| used.throttled_permille);
            let mem_bytes = reading.mem.map_or(0, |mem| mem.all_bytes);
            match class {
                Class::Guaranteed => {
                    seen.throttled_permille = seen.throttled_permille.max(throttled_permille);
                }
                Class::Revocable => seen.tasks.push(Candidate { task, mem_bytes }),
            }
        }
        seen
    }

    fn apply(&self, decision: &Decision) -> Result<(), CgroupError> {
        let result = self.parts.revocable.hold(decision.held);
        for reason in &decision.reasons {
            self.parts.metrics.corrected(reason);
            tracing::info!(held = ?decision.held, "{reason}");
        }
        self.parts.metrics.held(&decision.held);
        if let Some(task) = &decision.kill {
            let why: Vec<_> = decision.reasons.iter().map(ToString::to_string).collect();
            let message = Message::Revoke(task.clone(), why.join("; "));
            if self.parts.keeper.blocking_send(message).is_err() {
                tracing::debug!("the agent is ending: no task is revoked any more");
            }
        }
        result
    }

    fn let_go(&self) {
        if let Err(error) = self.parts.revocable.hold(super::Held::default()) {
            tracing::warn!(error = crate::error_chain(&error), "let the revocable tasks go");
        }
    }
}

/// Reads the counters, from files that are kept open.
struct Looker {
    stalls: Stalls<Reread>,
    cpu: Option<Reread>,
    mem: Option<Reread>,
    room: Room,
    last: Option<Counted>,
}

impl Looker {
    /// A file that is not there tells nothing.
    fn open(guaranteed: &Cgroup, revocable: &Cgroup) -> Self {
        let open = |cgroup: &Cgroup, file| Reread::open(cgroup.path().join(file)).ok();
        Self {
            stalls: Stalls {
                cpu: open(guaranteed, CPU_PRESSURE),
                mem: open(guaranteed, MEMORY_PRESSURE),
                io: open(guaranteed, IO_PRESSURE),
            },
            cpu: open(revocable, "cpu.stat"),
            mem: open(revocable, "memory.current"),
            room: Room::default(),
            last: None,
        }
    }

    fn begin(&mut self, now: Instant) {
        self.last = Some(self.count(now));
    }

    fn look(&mut self, now: Instant) -> Evidence {
        let counted = self.count(now);
        let before = self.last.replace(counted).unwrap_or(counted);
        let text = self.mem.as_ref().and_then(|file| file.read(&mut self.room).ok());
        let mem_bytes = text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let available_permille = available_permille();
        Evidence { mem_bytes, available_permille, ..Evidence::between(&before, &counted) }
    }

    fn count(&mut self, at: Instant) -> Counted {
        let room = &mut self.room;
        let mut stall = |file: &Option<Reread>| stall_count(file.as_ref()?.read(room).ok()?);
        let stalls =
            Stalls { cpu: stall(&self.stalls.cpu), mem: stall(&self.stalls.mem), io: stall(&self.stalls.io) };
        let text = self.cpu.as_ref().and_then(|file| file.read(room).ok());
        Counted { at, stalls, cpu_usec: text.map_or(0, |text| cpu_count(text).used_usec) }
    }
}

/// Of the machine's memory.
fn available_permille() -> Option<u64> {
    let mem = Meminfo::current().ok()?;
    mem.mem_available?.saturating_mul(1000).checked_div(mem.mem_total)
}
