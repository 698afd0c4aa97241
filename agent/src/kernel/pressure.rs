//! Pressure in one cgroup: how long its processes stood still, and being woken when they do.
//!
//! Source: the kernel's `Documentation/accounting/psi.rst`. Per-cgroup pressure came with Linux 4.20, triggers with 5.2.

use std::{
    fs,
    io::{self, PipeReader, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::io::Interest;

use super::{
    cgroupfs::{Cgroup, CgroupError},
    ready::Ready,
};

/// Files of a cgroup. They are there without the controllers too.
pub const MEMORY_PRESSURE: &str = "memory.pressure";
/// Of waiting for a CPU.
pub const CPU_PRESSURE: &str = "cpu.pressure";
/// Of waiting for a disk.
pub const IO_PRESSURE: &str = "io.pressure";

/// Over which time a trigger looks: without CAP_SYS_RESOURCE, the kernel takes multiples of two seconds only.
const WINDOW: Duration = Duration::from_secs(2);
/// The shortest that the kernel takes from the privileged. It looks ten times in it.
const SHORT_WINDOW: Duration = Duration::from_millis(500);

/// How long all processes of the cgroup that had something to do waited for memory at once, since it was made.
///
/// # Errors
/// When the file cannot be read: `EOPNOTSUPP` where the kernel was started with `psi=0`, `ENODEV` after the cgroup
/// was removed.
pub fn memory_full_usec(cgroup: &Cgroup) -> Result<u64, CgroupError> {
    let text = cgroup.read(MEMORY_PRESSURE)?;
    full_usec(&text).ok_or_else(|| CgroupError::Malformed {
        path: cgroup.path().join(MEMORY_PRESSURE),
        expected: "a line `full ... total=<microseconds>`",
        found: text,
    })
}

/// The total of the `full` line.
fn full_usec(text: &str) -> Option<u64> {
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    full.split_whitespace().find_map(|field| field.strip_prefix("total=")?.parse().ok())
}

/// Wakes when all processes of a cgroup stood still for memory for a part of two seconds, at most once in that time.
/// While there is no such pressure it costs nothing; otherwise the kernel looks ten times in two seconds.
#[derive(Debug)]
pub struct MemoryTrigger {
    ready: Ready,
}

impl MemoryTrigger {
    /// Arms the trigger at this percentage; 1 to 100. It is disarmed on drop. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `EOPNOTSUPP` and `ENOENT` where the kernel has no pressure of cgroups, `EPERM` or `EINVAL` where it lets only
    /// the privileged ask.
    pub fn arm(cgroup: &Cgroup, percent: u32) -> Result<Self, CgroupError> {
        let file = order(cgroup, percent)?;
        let ready = Ready::watch(file.into(), Interest::PRIORITY)
            .map_err(|source| failed(cgroup, "watch".to_owned(), source))?;
        Ok(Self { ready })
    }

    /// Does the kernel take a trigger for this cgroup? Nothing stays armed.
    ///
    /// # Errors
    /// As [`Self::arm`].
    pub fn try_arm(cgroup: &Cgroup) -> Result<(), CgroupError> {
        order(cgroup, 100).map(drop)
    }

    /// Waits for the pressure. Returns at once, again and again, after the cgroup was removed.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn fired(&self) -> io::Result<()> {
        self.ready.wait().await
    }
}

/// Who stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// At least one process.
    Some,
    /// All that have something to do. For a CPU each one counts for itself: somebody else ran there. Linux 5.13.
    Full,
}

/// Wakes when processes of a cgroup stood still for a part of half a second, at most once in that time.
///
/// To be called as root: the kernel lets nobody else look so often.
#[derive(Debug)]
pub struct StallTrigger {
    file: fs::File,
}

impl StallTrigger {
    /// Arms the trigger for one of the files above; 1 to 1000. It is disarmed on drop.
    ///
    /// # Errors
    /// As [`MemoryTrigger::arm`].
    pub fn arm(
        cgroup: &Cgroup,
        file: &'static str,
        stall: Stall,
        permille: u64,
    ) -> Result<Self, CgroupError> {
        let stall_usec = SHORT_WINDOW.as_micros() * u128::from(permille.clamp(1, 1000)) / 1000;
        let who = match stall {
            Stall::Some => "some",
            Stall::Full => "full",
        };
        let order = format!("{who} {stall_usec} {}", SHORT_WINDOW.as_micros());
        set(cgroup, file, &order).map(|file| Self { file })
    }
}

impl AsFd for StallTrigger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Somebody stands still, or it is time; who was interrupted looks once too often.
    Look,
    /// The other end of the pipe is closed.
    Stopped,
}

/// Waits until one of the triggers has fired since the call before, or for this long, or until the other end of the pipe is
/// closed.
///
/// # Errors
/// `ENOMEM`; and `ENODEV` once a cgroup was removed.
pub fn wait_for_any(
    triggers: &[StallTrigger],
    stopped: &PipeReader,
    at_most: Option<Duration>,
) -> io::Result<Woken> {
    let stopping = PollFd::new(stopped.as_fd(), PollFlags::empty());
    let triggers = triggers.iter().map(|one| PollFd::new(one.as_fd(), PollFlags::POLLPRI));
    let mut all: Vec<_> = std::iter::once(stopping).chain(triggers).collect();
    let at_most = at_most.map_or(PollTimeout::NONE, |time| time.try_into().unwrap_or(PollTimeout::MAX));
    match poll(&mut all, at_most) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let has = |one: &PollFd<'_>, flag| one.revents().is_some_and(|events| events.contains(flag));
    match all.as_slice() {
        [stopping, ..] if has(stopping, PollFlags::POLLHUP) => Ok(Woken::Stopped),
        [_, triggers @ ..] if triggers.iter().any(|one| has(one, PollFlags::POLLERR)) => {
            Err(Errno::ENODEV.into())
        }
        _ => Ok(Woken::Look),
    }
}

/// The file with the trigger in it, which lasts as long as the file is open.
fn order(cgroup: &Cgroup, percent: u32) -> Result<fs::File, CgroupError> {
    let stall_usec = WINDOW.as_micros() * u128::from(percent.clamp(1, 100)) / 100;
    set(cgroup, MEMORY_PRESSURE, &format!("full {stall_usec} {}", WINDOW.as_micros()))
}

fn set(cgroup: &Cgroup, name: &str, order: &str) -> Result<fs::File, CgroupError> {
    let path = cgroup.path().join(name);
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .and_then(|mut file| file.write_all(order.as_bytes()).map(|()| file))
        .map_err(|source| CgroupError::Io { op: format!("set the trigger {order:?} in"), path, source })
}

fn failed(cgroup: &Cgroup, op: String, source: io::Error) -> CgroupError {
    CgroupError::Io { op, path: cgroup.path().join(MEMORY_PRESSURE), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_full_line_counts() {
        let text = "some avg10=1.00 avg60=0.00 avg300=0.00 total=99\n\
                    full avg10=0.50 avg60=0.00 avg300=0.00 total=41\n";
        assert_eq!(full_usec(text), Some(41));
        assert_eq!(full_usec("some avg10=1.00 total=99\n"), None);
        assert_eq!(full_usec(""), None);
    }
}
