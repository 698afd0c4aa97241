//! Which thread comes first.

use nix::errno::Errno;

/// Has the calling thread run before all ordinary ones, as soon as it is woken. For threads that do little and must not be
/// late; what they start is ordinary again.
///
/// # Errors
/// `EPERM` without CAP_SYS_NICE, or where the kernel keeps real time from this cgroup (`CONFIG_RT_GROUP_SCHED`).
pub fn first_of_all() -> nix::Result<()> {
    /// The calling thread.
    const CALLER: libc::pid_t = 0;
    // The lowest of those above all ordinary threads: kernel threads that must not wait come before it.
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param at the address given.
    let set = unsafe {
        libc::sched_setscheduler(CALLER, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const lowest)
    };
    Errno::result(set).map(drop)
}
