//! Time of others on cores that belong to one task. `observe` (C) and the agent share these.

use crate::c::shared_with_c;

/// Most tasks with cores of their own at one time: as many as a kernel may have CPUs.
pub const MAX_OWNERS: u32 = 8192;

shared_with_c! {
    /// What ran on the cores of one task and was not its own.
    pub struct ForeignTime as "foreign_time" {
        /// Threads of the kernel.
        pub kernel_ns: u64,
        /// Everybody else.
        pub others_ns: u64,
    }
}

/// Sound because of the size asserted by the macro: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    // SAFETY: repr(C), integers only, and no padding (asserted where the type is made).
    unsafe impl aya::Pod for super::ForeignTime {}
}
