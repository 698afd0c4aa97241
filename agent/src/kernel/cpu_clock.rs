//! CPU time of the calling thread.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What the calling thread has used so far; zero where the kernel does not tell.
pub fn of_this_thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
