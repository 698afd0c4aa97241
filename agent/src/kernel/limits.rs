//! How many files the agent may have open: a few for each task, so as many as the host allows.

use std::{io, sync::OnceLock};

use nix::errno::Errno;

use super::spawn::ChildStep;

static INHERITED: OnceLock<libc::rlimit> = OnceLock::new();

/// Raises the soft limit of open files to the hard one, once. Programs that are started later get the limit
/// that the agent was started with: some walk through every descriptor that they might have.
///
/// # Errors
/// The kernel's; the limit is then as it was.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit, which lives through the call.
    Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: the kernel reads one rlimit, which lives through the call.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) })?;
    INHERITED.get_or_init(|| limit);
    Ok(())
}

/// Gives a program the limit that the agent was started with, where it was raised since.
pub fn inherited_open_files() -> Option<ChildStep<'static>> {
    let limit = INHERITED.get()?;
    let (resource, name) = (libc::RLIMIT_NOFILE, "nofile");
    Some(ChildStep::Limit { resource, name, soft: limit.rlim_cur, hard: limit.rlim_max })
}
