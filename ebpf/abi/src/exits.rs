//! How tasks ended. `observe` (C) and the agent share these.

use crate::c::shared_with_c;

/// Most tasks whose main process is watched at one time.
pub const MAX_EXITS: u32 = 8192;

shared_with_c! {
    /// The end of a task's main process.
    pub struct ExitRecord as "exit_record" {
        /// The main process, in the initial PID namespace. The agent writes it.
        pub main_tgid: u32,
        /// As wait(2) reports it: exit code, signal and core dump bit.
        pub status: u32,
        /// CLOCK_MONOTONIC; 0 while the process lives.
        pub exited_ns: u64,
    }
}

/// Sound because of the size asserted by the macro: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    // SAFETY: repr(C), integers only, and no padding (asserted where the type is made).
    unsafe impl aya::Pod for super::ExitRecord {}
}

#[cfg(test)]
mod tests {
    #[test]
    fn c_sees_the_same_fields_in_the_same_order() {
        let expected = "struct exit_record {\n\t__u32 main_tgid;\n\t__u32 status;\n\t__u64 exited_ns;\n};\n";
        assert_eq!(super::ExitRecord::C_DECLARATION, expected);
    }
}
