//! Values that the verifier knows nothing of.
//!
//! It follows every way through a program, and two ways become one only where it knows the same of both. After a
//! choice between a few values each of them would be a way of its own, and each later choice would multiply them.

/// Always 0. Not a constant to the verifier, because it could be written.
#[unsafe(no_mangle)]
static mut ZERO: u32 = 0;

/// The same value, forgotten.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    // SAFETY: nobody writes it. Volatile, because the compiler would find that out.
    value ^ unsafe { (&raw const ZERO).read_volatile() }
}
