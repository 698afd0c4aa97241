//! The policy: down in halves while guaranteed tasks wait, up again by a quarter when they no longer do.
//!
//! Fast down and slow up is what keeps two who share a link from swinging (TCP does the same). Each resource has a ladder of its
//! own:
//!
//! | resource | first | then | last |
//! |---|---|---|---|
//! | CPU | half of what revocable tasks used, and half again at each look | freeze | absolve |
//! | memory | nine tenths of what they have, and so on down to an eighth | end the youngest, one at a time | absolve |
//! | disk | the least weight | freeze | absolve |
//!
//! A squeeze that the kernel has no means for is left out. Nothing begins before revocable tasks can be to blame for more than the
//! threshold: who did not run kept nobody from a CPU.
//!
//! Where the last step does not help either, they are not what the guaranteed tasks wait for: they get all back, and this
//! resource is not looked at for a while.

use std::time::{Duration, Instant};

use super::{Decision, Evidence, Held, Policy, Reason, Resource, Step};

/// Revocable tasks are frozen rather than squeezed below this: a task with less only seems to run.
const LEAST_CPU_MILLI: u64 = 50;
/// A bound below this part of what they had when it began gives back little and lets them do nothing but reclaim.
const LEAST_MEM_PART: u64 = 8;

/// The next step down comes no sooner: what a step does is seen only in what happens after it.
const SETTLE: Duration = Duration::from_millis(100);
/// Where guaranteed tasks wait long when they wait, this part of the threshold is enough.
const TAIL_PART: u64 = 4;
/// The kernel caps tasks per period, mostly of this length: in less, one that is capped may stand still all the time.
const WHOLE_PERIOD_USEC: u64 = 100_000;

/// When to correct, and when not to any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Guaranteed tasks may wait for others this much of the time.
    pub cpu_permille: u64,
    /// A quarter of it, where 99 of 100 waits for a CPU took up to this or more: few waits, but long ones.
    pub runqueue_p99_usec: u64,
    /// The same for memory.
    pub mem_permille: u64,
    /// The same for a disk.
    pub io_permille: u64,
    /// A step has this long to show what it does before the next is worse than a squeeze.
    pub patience: Duration,
    /// Nobody waited for this long, at half the threshold: a little is given back.
    pub calm: Duration,
    /// Corrections did not help: they are left alone for this long.
    pub absolved: Duration,
}

impl Thresholds {
    /// Where waiting for this resource begins to count, whatever else is seen.
    pub fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Cpu => self.cpu_permille,
            Resource::Memory => self.mem_permille,
            Resource::Io => self.io_permille,
        }
    }

    /// And in the light of this.
    fn within(&self, resource: Resource, seen: &Evidence) -> u64 {
        let long = seen.runqueue_p99_usec.is_some_and(|usec| usec >= self.runqueue_p99_usec);
        let part = if resource == Resource::Cpu && long { TAIL_PART } else { 1 };
        self.of(resource) / part
    }
}

/// What the kernel can squeeze revocable tasks by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    /// A cap of CPU.
    pub cpu: bool,
    /// A weight at the disk.
    pub io: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Ladder {
    thresholds: Thresholds,
    means: Means,
    cpu: Rung,
    mem: Rung,
    io: Rung,
}

/// How far down one resource is.
#[derive(Clone, Copy, Debug, Default)]
struct Rung {
    /// What is left to them, in the resource's unit; `None` is all.
    left: Option<u64>,
    /// What they had when it began.
    begun: u64,
    frozen: bool,
    /// Of the last step.
    since: Option<Instant>,
    /// Since when nobody has waited.
    calm_since: Option<Instant>,
    /// Not to be looked at before.
    absolved_until: Option<Instant>,
}

impl Ladder {
    /// Nothing is held yet.
    pub fn new(thresholds: Thresholds, means: Means) -> Self {
        Self { thresholds, means, cpu: Rung::default(), mem: Rung::default(), io: Rung::default() }
    }

    fn rung(&mut self, resource: Resource) -> &mut Rung {
        match resource {
            Resource::Cpu => &mut self.cpu,
            Resource::Memory => &mut self.mem,
            Resource::Io => &mut self.io,
        }
    }

    fn step(&mut self, resource: Resource, now: Instant, seen: &Evidence) -> Option<Step> {
        let (thresholds, means, waited) = (self.thresholds, self.means, seen.waited_permille(resource));
        let allowed = thresholds.within(resource, seen);
        let rung = self.rung(resource);
        if rung.absolved_until.is_some_and(|until| now < until) {
            return None;
        }
        rung.absolved_until = None;
        if waited > allowed {
            rung.calm_since = None;
            let to_blame = rung.holds() || seen.blamed_permille(resource) > allowed;
            let clear = resource != Resource::Cpu
                || seen.throttled_permille == 0
                || seen.over_usec >= WHOLE_PERIOD_USEC;
            return if to_blame && clear {
                rung.down(resource, now, seen, (&thresholds, means))
            } else {
                None
            };
        }
        if waited * 2 > allowed {
            rung.calm_since = None;
            return None;
        }
        rung.up(resource, now, &thresholds)
    }

    fn held(&self) -> Held {
        Held {
            cpu_milli: self.cpu.left,
            mem_high_bytes: self.mem.left,
            io_least: self.io.left.is_some(),
            frozen: [self.cpu, self.mem, self.io].iter().any(|rung| rung.frozen),
        }
    }
}

impl Rung {
    /// Somebody waits.
    fn down(
        &mut self,
        resource: Resource,
        now: Instant,
        seen: &Evidence,
        (thresholds, means): (&Thresholds, Means),
    ) -> Option<Step> {
        let since = self.since.map(|since| now.saturating_duration_since(since));
        if since.is_some_and(|since| since < SETTLE) {
            return None;
        }
        if let Some(next) = self.less(resource, seen, means) {
            self.begun = if self.left.is_none() { used(resource, seen) } else { self.begun };
            (self.left, self.since) = (Some(next), Some(now));
            return Some(Step::Squeeze);
        }
        if since.is_some_and(|since| since < thresholds.patience) {
            return None;
        }
        self.since = Some(now);
        if resource == Resource::Memory && self.left.is_some() && !seen.tasks.is_empty() {
            return Some(Step::Kill);
        }
        if resource != Resource::Memory && !self.frozen {
            self.frozen = true;
            return Some(Step::Freeze);
        }
        *self = Self { absolved_until: Some(now + thresholds.absolved), ..Self::default() };
        Some(Step::Absolve)
    }

    /// The next squeeze; `None` at the end of that.
    fn less(&self, resource: Resource, seen: &Evidence, means: Means) -> Option<u64> {
        if self.frozen {
            return None;
        }
        let next = match (resource, self.left) {
            (Resource::Cpu, _) if !means.cpu => return None,
            (Resource::Io, _) if !means.io => return None,
            (Resource::Cpu, left) => {
                left.unwrap_or_else(|| used(resource, seen)).max(2 * LEAST_CPU_MILLI) / 2
            }
            (Resource::Memory, None) => part(seen.mem_bytes),
            (Resource::Memory, Some(left)) => part(left).max(self.begun / LEAST_MEM_PART),
            // A weight has only one least.
            (Resource::Io, _) => 0,
        };
        (self.left != Some(next)).then_some(next)
    }

    /// Nobody waits.
    fn up(&mut self, resource: Resource, now: Instant, thresholds: &Thresholds) -> Option<Step> {
        if !self.holds() {
            return None;
        }
        let since = *self.calm_since.get_or_insert(now);
        if now.saturating_duration_since(since) < thresholds.calm {
            return None;
        }
        self.calm_since = Some(now);
        if self.frozen {
            self.frozen = false;
            if self.left.is_none() {
                *self = Self::default();
            }
            return Some(Step::Ease);
        }
        let more = self.left.map(|left| left.saturating_add((left / 4).max(1)));
        match more.filter(|more| resource != Resource::Io && *more < self.begun) {
            Some(more) => self.left = Some(more),
            None => *self = Self::default(),
        }
        Some(Step::Ease)
    }

    fn holds(&self) -> bool {
        self.frozen || self.left.is_some()
    }
}

fn used(resource: Resource, seen: &Evidence) -> u64 {
    match resource {
        Resource::Cpu => seen.cpu_milli,
        Resource::Memory => seen.mem_bytes,
        Resource::Io => 0,
    }
}

/// Nine tenths.
fn part(bytes: u64) -> u64 {
    bytes - bytes.div_ceil(10)
}

impl Policy for Ladder {
    fn decide(&mut self, now: Instant, seen: &Evidence) -> Decision {
        if seen.tasks.is_empty() {
            *self = Self::new(self.thresholds, self.means);
            return Decision::default();
        }
        let mut decision = Decision::default();
        for resource in Resource::ALL {
            let Some(step) = self.step(resource, now, seen) else { continue };
            if step == Step::Kill {
                decision.kill = seen.tasks.last().map(|youngest| youngest.task.clone());
            }
            decision.reasons.push(Reason {
                resource,
                waited_permille: seen.waited_permille(resource),
                threshold_permille: self.thresholds.within(resource, seen),
                step,
            });
        }
        decision.held = self.held();
        decision
    }

    fn is_calm(&self) -> bool {
        self.held() == Held::default()
    }
}

#[cfg(test)]
mod tests;
