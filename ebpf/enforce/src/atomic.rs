//! Read-modify-write on shared words.
//!
//! The bpf target declares no compare-and-swap, so `core::sync::atomic` offers loads and stores only,
//! and the compiler's intrinsics change their signature between releases. The instructions themselves
//! are stable (kernel 5.12). Those that return something are fully ordered.

use core::arch::asm;

macro_rules! fetch {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `word` points into a map value, aligned to 8 bytes.
        #[inline(always)]
        pub unsafe fn $name(word: *mut u64, operand: u64) -> u64 {
            let mut value = operand;
            // SAFETY: one instruction that touches `word`, which the caller vouches for and the verifier checks.
            unsafe {
                asm!(
                    concat!("{v} = ", $instruction, "((u64 *)({p} + 0), {v})"),
                    v = inout(reg) value,
                    p = in(reg) word,
                    options(nostack),
                );
            }
            value
        }
    };
}

fetch! {
    /// Adds, and returns what was there before.
    fetch_add, "atomic_fetch_add"
}
fetch! {
    /// Sets bits, and returns what was there before.
    fetch_or, "atomic_fetch_or"
}
fetch! {
    /// Keeps only bits of the operand, and returns what was there before.
    fetch_and, "atomic_fetch_and"
}

/// Adds, without asking what was there.
///
/// # Safety
/// `word` points into a map value, aligned to 8 bytes.
#[inline(always)]
pub unsafe fn add(word: *mut u64, operand: u64) {
    // SAFETY: one instruction that touches `word`, which the caller vouches for and the verifier checks.
    unsafe {
        asm!("lock *(u64 *)({p} + 0) += {v}", v = in(reg) operand, p = in(reg) word, options(nostack));
    }
}

/// Puts `new` in the place of `expected`; where something else is there, that stays. Returns what was there.
///
/// # Safety
/// `word` points into a map value, aligned to 8 bytes.
#[inline(always)]
pub unsafe fn replace(word: *mut u64, expected: u64, new: u64) -> u64 {
    let mut was = expected;
    // SAFETY: as above; the instruction leaves in r0 what was there.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({p} + 0, r0, {v})",
            inout("r0") was,
            v = in(reg) new,
            p = in(reg) word,
            options(nostack),
        );
    }
    was
}
