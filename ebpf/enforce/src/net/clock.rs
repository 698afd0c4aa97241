//! A rate's clock: the time at which all that was sent is paid for.

use crate::atomic::{fetch_add, replace};

/// A word of a map value, aligned to 8 bytes, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy)]
pub struct Clock(*mut u64);

impl Clock {
    /// # Safety
    /// `word` points into a map value, aligned to 8 bytes.
    #[inline(always)]
    pub unsafe fn new(word: *mut u64) -> Self {
        Self(word)
    }

    /// When the next packet's turn is. By the time it is paid for, others may have been faster.
    #[inline(always)]
    pub fn turn(self) -> u64 {
        // SAFETY: of `new`.
        unsafe { self.0.read_volatile() }
    }

    /// Pays for a packet, and returns when its turn is. What was not used before `floor` is gone.
    ///
    /// Where several CPUs find the clock behind at once, one of them moves it on; packets of the others may be paid with
    /// time that is gone, one each.
    #[inline(always)]
    pub fn pay(self, cost_ns: u64, floor: u64) -> u64 {
        // SAFETY: of `new`.
        let turn = unsafe { fetch_add(self.0, cost_ns) };
        if turn >= floor {
            return turn;
        }
        // SAFETY: of `new`.
        unsafe { replace(self.0, turn + cost_ns, floor + cost_ns) };
        floor
    }
}
