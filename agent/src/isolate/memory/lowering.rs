//! Taking memory back from a running task without ending it: what the kernel can reclaim goes first, and where that
//! is not enough the limits stay.
//!
//! The hard limit is lowered last, while the task is frozen: between the look at what it uses and the write, nobody
//! can allocate, so the kernel never has to end a process for it.

use std::{
    thread,
    time::{Duration, Instant},
};

use bytesize::ByteSize;

use super::super::IsolateError;
use crate::kernel::cgroupfs::{Cgroup, CgroupError};

/// A resize is refused when the task could not be brought down within this time. It is looked at between two calls
/// of the kernel, of which each takes back at most [`STEP_BYTES`], and none is begun after it.
pub const WITHIN: Duration = Duration::from_secs(10);
/// Taken back at once. Small enough that one call does not take long.
const STEP_BYTES: u64 = 64 << 20;
/// Attempts in a row that brought nothing, after which there is nothing left to take.
const FRUITLESS: u32 = 6;
/// After an attempt that brought nothing: what is being written to a disk can be reclaimed a little later.
const PAUSE: Duration = Duration::from_millis(100);
/// A process that was slowed down at `memory.high` sleeps for two seconds at most, and cannot be frozen meanwhile.
const FREEZE_WITHIN: Duration = Duration::from_secs(3);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The task uses no more than it may.
    Reached,
    /// Hold it to this many bytes, and take back what is above.
    To(u64),
    /// Nothing more can be taken, or the time is up.
    GiveUp,
}

/// The way down. Pure.
#[derive(Debug)]
struct Plan {
    goal_bytes: u64,
    deadline: Instant,
    high_bytes: u64,
    least_bytes: u64,
    fruitless: u32,
}

impl Plan {
    fn new(goal_bytes: u64, now: Instant) -> Self {
        let (high_bytes, least_bytes) = (u64::MAX, u64::MAX);
        Self { goal_bytes, deadline: now + WITHIN, high_bytes, least_bytes, fruitless: 0 }
    }

    /// With what the task uses now.
    fn next(&mut self, current_bytes: u64, now: Instant) -> Step {
        if current_bytes <= self.goal_bytes {
            return Step::Reached;
        }
        self.fruitless = if current_bytes < self.least_bytes { 0 } else { self.fruitless + 1 };
        self.least_bytes = self.least_bytes.min(current_bytes);
        if self.fruitless >= FRUITLESS || now >= self.deadline {
            return Step::GiveUp;
        }
        // Never up again: growth in between is not given room.
        let next = self.least_bytes.min(self.high_bytes).saturating_sub(STEP_BYTES);
        self.high_bytes = next.max(self.goal_bytes);
        Step::To(self.high_bytes)
    }

    /// Was the last step in vain?
    fn stuck(&self) -> bool {
        self.fruitless > 0
    }

    /// It was brought down, and could not be stopped for the last step.
    fn again(&mut self, now: Instant) -> bool {
        self.fruitless += 1;
        self.fruitless < FRUITLESS && now < self.deadline
    }
}

/// Brings what the task uses down to `goal_bytes`, and lowers `memory.max` to `max_bytes` where that is given. On
/// return `memory.high` is at the goal, or anywhere above it after a failure: the caller sets both as they shall be.
///
/// Blocks for [`WITHIN`] and one step more.
///
/// # Errors
/// [`IsolateError::Refused`] where the task uses more; `memory.max` is then as before.
pub(super) fn lower(cgroup: &Cgroup, goal_bytes: u64, max_bytes: Option<u64>) -> Result<(), IsolateError> {
    let mut plan = Plan::new(goal_bytes, Instant::now());
    loop {
        let current = current(cgroup)?;
        match plan.next(current, Instant::now()) {
            Step::Reached => match max_bytes {
                None => return Ok(()),
                Some(max) if seal(cgroup, goal_bytes, max)? => return Ok(()),
                // Growth is slowed down from here on.
                Some(_) => cgroup.write("memory.high", &goal_bytes.to_string())?,
            },
            Step::To(high) => take(cgroup, high)?,
            Step::GiveUp => return Err(too_large(cgroup, current, goal_bytes)),
        }
        if plan.stuck() {
            thread::sleep(PAUSE);
        }
        if current <= goal_bytes && !plan.again(Instant::now()) {
            return Err(restless(current, goal_bytes));
        }
    }
}

/// Growth is slowed down first, and then the rest is reclaimed.
fn take(cgroup: &Cgroup, high_bytes: u64) -> Result<(), CgroupError> {
    cgroup.write("memory.high", &high_bytes.to_string())?;
    // Linux 5.19; before, the kernel reclaims only where the limit is written.
    let left = current(cgroup)?.saturating_sub(high_bytes);
    if left > 0 && cgroup.has("memory.reclaim") {
        // EAGAIN: not all of it could be reclaimed, which the next look at the size says too.
        let _less = cgroup.write("memory.reclaim", &left.min(STEP_BYTES).to_string());
    }
    Ok(())
}

/// Lowers the hard limit while nobody can allocate. False where the task has grown, or does not stop.
fn seal(cgroup: &Cgroup, goal_bytes: u64, max_bytes: u64) -> Result<bool, CgroupError> {
    if !cgroup.freeze(FREEZE_WITHIN)? {
        return Ok(false);
    }
    let sealed = current(cgroup).and_then(|now| {
        if now > goal_bytes {
            return Ok(false);
        }
        cgroup.write("memory.max", &max_bytes.to_string()).map(|()| true)
    });
    // Whatever came of it: a task that stays frozen would be lost.
    cgroup.thaw()?;
    sealed
}

fn current(cgroup: &Cgroup) -> Result<u64, CgroupError> {
    Ok(cgroup.read_number("memory.current")?.unwrap_or(0))
}

fn too_large(cgroup: &Cgroup, current_bytes: u64, goal_bytes: u64) -> IsolateError {
    let stat = |key| cgroup.read_key("memory.stat", key).ok().flatten().unwrap_or(0);
    IsolateError::Refused(format!(
        "the task uses {}, {} of it anonymous memory, and the kernel cannot take back enough for {}; its limits stay \
         as they were: ask for at least what it uses, or let it free some first",
        ByteSize::b(current_bytes),
        ByteSize::b(stat("anon")),
        ByteSize::b(goal_bytes),
    ))
}

fn restless(current_bytes: u64, goal_bytes: u64) -> IsolateError {
    IsolateError::Refused(format!(
        "the task was brought down to {} and cannot be stopped there, or grows again at once, so that {} would end \
         it; its limits stay as they were: try again when it is less busy",
        ByteSize::b(current_bytes),
        ByteSize::b(goal_bytes),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_large_task_is_brought_down_in_steps() {
        let now = Instant::now();
        let mut plan = Plan::new(32 * MIB, now);
        assert_eq!(plan.next(200 * MIB, now), Step::To(136 * MIB));
        assert_eq!(plan.next(136 * MIB, now), Step::To(72 * MIB));
        assert_eq!(plan.next(80 * MIB, now), Step::To(32 * MIB), "never below the goal");
        assert!(!plan.stuck());
        assert_eq!(plan.next(32 * MIB, now), Step::Reached);
    }

    #[test]
    fn growth_is_given_no_room() {
        let now = Instant::now();
        let mut plan = Plan::new(0, now);
        assert_eq!(plan.next(200 * MIB, now), Step::To(136 * MIB));
        assert_eq!(plan.next(400 * MIB, now), Step::To(72 * MIB));
        assert!(plan.stuck());
    }

    #[test]
    fn it_gives_up_where_nothing_comes_back_and_when_the_time_is_over() {
        let now = Instant::now();
        let mut plan = Plan::new(MIB, now);
        let steps: Vec<_> = (0..=FRUITLESS).map(|_| plan.next(50 * MIB, now)).collect();
        let (last, before) = steps.split_last().unwrap();
        assert!(before.iter().all(|step| *step == Step::To(MIB)), "{steps:?}");
        assert_eq!(*last, Step::GiveUp);

        let mut plan = Plan::new(MIB, now);
        assert_eq!(plan.next(50 * MIB, now + WITHIN), Step::GiveUp);
        assert!(!Plan::new(MIB, now).again(now + WITHIN));
    }

    proptest! {
        #[test]
        fn limits_only_go_down_and_never_below_the_goal(
            goal in 0..1_u64 << 40, sizes in proptest::collection::vec(0..1_u64 << 41, 1..60),
        ) {
            let now = Instant::now();
            let mut plan = Plan::new(goal, now);
            let mut before = u64::MAX;
            for size in sizes {
                match plan.next(size, now) {
                    Step::To(high) => {
                        prop_assert!(size > goal && high >= goal && high <= before);
                        before = high;
                    }
                    Step::Reached => prop_assert!(size <= goal),
                    Step::GiveUp => prop_assert!(size > goal),
                }
            }
        }
    }
}
