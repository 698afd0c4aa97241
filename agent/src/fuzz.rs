//! The crate root of the fuzz targets (`agent/fuzz`): the modules that read what comes from outside, without the rest of
//! the agent, which takes minutes to build with the instrumentation of a fuzzer. The agent itself does not contain it.

#![allow(dead_code, unreachable_pub, reason = "the rest of the agent uses what is not used here")]

pub mod fuzzing;
mod grant;

mod launch {
    pub mod capability;
    pub mod seccomp;
}

mod kernel {
    pub mod quota {
        mod requests;

        pub use requests::{FORBIDDEN_IOCTLS, SYS_FILE_SETATTR};
    }
}
