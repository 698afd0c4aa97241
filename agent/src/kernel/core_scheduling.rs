//! Core scheduling: only tasks with the same cookie run on the threads of one core at a time.
//!
//! Source: the kernel's `Documentation/admin-guide/hw-vuln/core-scheduling.rst` (Linux 5.14, `CONFIG_SCHED_CORE`).

use nix::errno::Errno;

/// Can cookies be had here? Asks for the caller's own, which changes nothing.
///
/// # Errors
/// Why not, for people.
pub fn supported() -> Result<(), String> {
    let mut cookie: u64 = 0;
    // SAFETY: this request writes one u64, the cookie of the calling thread (0), to the address given.
    let asked = unsafe {
        libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_GET, CALLER, PIDTYPE_PID, &raw mut cookie)
    };
    match Errno::result(asked) {
        Ok(_) => Ok(()),
        Err(Errno::EINVAL) => Err("the kernel was built without CONFIG_SCHED_CORE".to_owned()),
        Err(Errno::ENODEV) => Err("no core has a second hardware thread that is online".to_owned()),
        Err(errno) => Err(format!("prctl(PR_SCHED_CORE): {errno}")),
    }
}

/// The calling thread.
const CALLER: libc::c_ulong = 0;
/// One thread; 1 is its process and 2 its process group.
const PIDTYPE_PID: libc::c_ulong = 0;
