//! Waiting for programs that may still look at what is no longer named.

use std::time::Duration;

/// Of `enum membarrier_cmd` in linux/membarrier.h.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
/// Where the kernel cannot wait for us. A program runs for some microseconds.
const LONG_AFTER: Duration = Duration::from_millis(200);

/// Returns when every program that ran when it was called has ended. Takes some 10 to 30 ms.
///
/// The system call waits for a grace period of RCU, which programs on cgroup hooks run under. Kernels that run with
/// `nohz_full` refuse it.
pub(super) fn wait() {
    // SAFETY: this command reads and writes no memory of the caller.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if waited != 0 {
        std::thread::sleep(LONG_AFTER);
    }
}
