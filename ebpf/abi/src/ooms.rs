//! Whom the kernel ended for memory. `observe` (C) and the agent share these.

use crate::c::shared_with_c;

/// Most tasks whose victims are recorded at one time.
pub const MAX_OOMS: u32 = 8192;

shared_with_c! {
    /// The processes of one task that the kernel's out-of-memory killer chose: how many, and the largest.
    pub struct OomRecord as "oom_record" {
        /// Processes, each once. Those count too that were ending anyway and were only helped along.
        pub victims: u64,
        /// When the last was chosen, CLOCK_MONOTONIC.
        pub last_ns: u64,
        /// Of the largest, in pages: anonymous memory.
        pub anon_pages: u64,
        /// Mapped files.
        pub file_pages: u64,
        /// Shared memory and tmpfs files that it had mapped.
        pub shmem_pages: u64,
        /// What it had in swap.
        pub swap_pages: u64,
        /// Its process id, in the initial PID namespace.
        pub tgid: u32,
        /// The thread that was chosen for it.
        pub tid: u32,
        /// The name of that thread, filled up with zeros.
        pub comm: [u8; 16],
    }
}

/// Sound because of the size asserted by the macro: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    // SAFETY: repr(C), integers only, and no padding (asserted where the type is made).
    unsafe impl aya::Pod for super::OomRecord {}
}

#[cfg(test)]
mod tests {
    #[test]
    fn c_sees_a_name_of_the_kernels_length() {
        assert!(super::OomRecord::C_DECLARATION.ends_with("\t__u8 comm[16];\n};\n"));
        assert_eq!(crate::COMM_LEN, 16);
    }
}
