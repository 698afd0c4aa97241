//! The loop: waits for the kernel, looks, has the policy decide, and writes what was decided.

use std::{
    io::{self, PipeReader, PipeWriter},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Candidate, Decision, Evidence, Held, Policy, Resource, Step, Thresholds, look::Looker};
use crate::{
    grant::Class,
    isolate::{
        revocable::Revocable,
        tree::{Branch, Tree},
    },
    keeper::{Message, Sender},
    kernel::{
        cgroupfs::CgroupError,
        pressure::{CPU_PRESSURE, IO_PRESSURE, MEMORY_PRESSURE, Stall, StallTrigger, Woken, wait_for_any},
        priority,
    },
    measure::{runqueue::LatestWaits, tasks::Watched},
    metrics::QosMetrics,
};

/// Between two looks while something is held, or somebody waits: well within the tenth of a second in which to act.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Looks go on for so long after somebody waited: the kernel wakes for the same trigger only once in half a second.
const LOOK_ON: Duration = Duration::from_secs(1);
/// Somebody waits who does so for this part of what is allowed. It costs looks, and nobody anything else.
const NOTICED_PART: u64 = 10;
/// What the sampler saw of the tasks is taken over no more often; it looks no more often itself.
const TASKS_EVERY: Duration = Duration::from_millis(100);

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
    /// How long guaranteed tasks waited for a CPU.
    pub waits: LatestWaits,
    /// Ends tasks.
    pub keeper: Sender,
    /// Told each step.
    pub metrics: QosMetrics,
    /// Decides.
    pub policy: Box<dyn Policy>,
}

/// The running loop. On drop it ends, and lets the revocable tasks go first: nobody else would.
#[derive(Debug)]
pub struct Protection {
    /// The loop ends when this end of the pipe closes.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Protection {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that protects guaranteed tasks panicked");
        }
    }
}

/// Starts the loop, in a thread of its own.
///
/// # Errors
/// [`ControlError`]; then guaranteed tasks have their weights and protections, and no more.
pub fn spawn(parts: Parts, thresholds: &Thresholds) -> Result<Protection, ControlError> {
    let mut looker = Looker::open(&parts.tree);
    let triggers = match arm(&parts.tree, thresholds) {
        Ok(triggers) => Some(triggers),
        Err(error) if looker.sees_waits() => {
            let error = crate::error_chain(&error);
            tracing::info!(
                error,
                "look for pressure all the time: it needs CAP_SYS_RESOURCE to be woken for it"
            );
            None
        }
        Err(error) => return Err(ControlError::Watch(error)),
    };
    let (stopped, stop) = io::pipe().map_err(ControlError::Thread)?;
    let control = Control {
        looker,
        triggers,
        stopped,
        thresholds: *thresholds,
        tasks: Tasks::default(),
        began: Instant::now(),
        parts,
    };
    let thread = thread::Builder::new().name("qos".to_owned());
    let thread = thread.spawn(move || control.run()).map_err(ControlError::Thread)?;
    Ok(Protection { stop: Some(stop), thread: Some(thread) })
}

fn arm(tree: &Tree, thresholds: &Thresholds) -> Result<Vec<StallTrigger>, CgroupError> {
    let waits = [
        (Branch::Guaranteed, CPU_PRESSURE, Stall::Full, Resource::Cpu),
        (Branch::Guaranteed, MEMORY_PRESSURE, Stall::Some, Resource::Memory),
        (Branch::Guaranteed, IO_PRESSURE, Stall::Some, Resource::Io),
        (Branch::Exclusive, MEMORY_PRESSURE, Stall::Some, Resource::Memory),
        (Branch::Exclusive, IO_PRESSURE, Stall::Some, Resource::Io),
    ];
    let arm = |(branch, file, stall, resource)| {
        let permille = thresholds.of(resource).div_ceil(NOTICED_PART);
        StallTrigger::arm(&tree.branch(branch), file, stall, permille)
    };
    waits.into_iter().map(arm).collect()
}

struct Control {
    looker: Looker,
    /// `None` where the kernel does not wake this agent: then it looks all the time.
    triggers: Option<Vec<StallTrigger>>,
    stopped: PipeReader,
    thresholds: Thresholds,
    tasks: Tasks,
    began: Instant,
    parts: Parts,
}

/// What the sampler saw of the tasks.
#[derive(Default)]
struct Tasks {
    taken: Option<Instant>,
    /// The most that a guaranteed one stood still at its own cap.
    throttled_permille: u64,
    /// The youngest last.
    revocable: Vec<Candidate>,
}

impl Control {
    fn run(mut self) {
        if let Err(error) = priority::first_of_all() {
            tracing::info!(%error, "protect guaranteed tasks from a thread like all others");
        }
        if let Err(error) = self.protect() {
            tracing::error!(%error, "wait for pressure; guaranteed tasks are protected no longer");
        }
        if let Err(error) = self.parts.revocable.hold(Held::default()) {
            tracing::warn!(error = crate::error_chain(&error), "let the revocable tasks go");
        }
        self.parts.metrics.held(&Held::default());
    }

    /// Until it is stopped.
    fn protect(&mut self) -> io::Result<()> {
        let (mut look_until, mut told) = (None, false);
        loop {
            let looking =
                !self.parts.policy.is_calm() || look_until.is_some_and(|until| Instant::now() < until);
            if self.wait(looking)? == Woken::Stopped {
                return Ok(());
            }
            let now = Instant::now();
            let seen = self.evidence(now);
            if !seen.tasks.is_empty() && self.noticed(&seen) {
                look_until = Some(now + LOOK_ON);
            }
            let decision = self.parts.policy.decide(now, &seen);
            if decision.reasons.iter().any(|reason| matches!(reason.step, Step::Squeeze | Step::Freeze)) {
                // What was before the step says nothing about what it does.
                self.looker.begin(now);
            }
            let applied = self.apply(&decision);
            if let Err(error) = &applied
                && !told
            {
                tracing::warn!(error = crate::error_chain(error), "hold the revocable tasks");
            }
            told = applied.is_err();
        }
    }

    /// For the next look: who is to blame is only seen while it happens, so the first one comes a little later than the kernel.
    fn wait(&mut self, looking: bool) -> io::Result<Woken> {
        let after = |time| wait_for_any(&[], &self.stopped, Some(time));
        match &self.triggers {
            Some(triggers) if !looking => {
                if wait_for_any(triggers, &self.stopped, None)? == Woken::Stopped {
                    return Ok(Woken::Stopped);
                }
                self.looker.begin(Instant::now());
            }
            None if !looking && !self.parts.watched.any_of_each_class() => return after(TASKS_EVERY),
            Some(_) | None => {}
        }
        after(LOOK_EVERY)
    }

    /// What the looker sees, and what the sampler saw last.
    fn evidence(&mut self, now: Instant) -> Evidence {
        if self.tasks.taken.is_none_or(|taken| now.saturating_duration_since(taken) >= TASKS_EVERY) {
            self.tasks = Tasks::of(&self.parts.watched, now);
        }
        let seen = Evidence {
            throttled_permille: self.tasks.throttled_permille,
            runqueue_p99_usec: self.parts.waits.p99_usec(),
            tasks: self.tasks.revocable.clone(),
            ..self.looker.look(now)
        };
        if tracing::enabled!(tracing::Level::TRACE) {
            let at_ms = now.saturating_duration_since(self.began).as_millis();
            let evidence = serde_json::to_string(&seen).unwrap_or_default();
            tracing::trace!(at_ms, evidence, "looked");
        }
        seen
    }

    fn noticed(&self, seen: &Evidence) -> bool {
        Resource::ALL.iter().any(|resource| {
            seen.waited_permille(*resource).saturating_mul(NOTICED_PART) >= self.thresholds.of(*resource)
        })
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
}

impl Tasks {
    fn of(watched: &Watched, now: Instant) -> Self {
        let mut tasks = Self { taken: Some(now), ..Self::default() };
        // By the ids of their cgroups: the youngest last.
        for (task, class, reading, used) in watched.latest() {
            let throttled_permille = used.map_or(0, |used| used.throttled_permille);
            let mem_bytes = reading.mem.map_or(0, |mem| mem.all_bytes);
            match class {
                Class::Guaranteed => {
                    tasks.throttled_permille = tasks.throttled_permille.max(throttled_permille);
                }
                Class::Revocable => tasks.revocable.push(Candidate { task, mem_bytes }),
            }
        }
        tasks
    }
}
