//! Processes by descriptor: a pidfd never means another process, however often ids are reused.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
    unistd::Pid,
};
use tokio::io::Interest;

use super::ready::Ready;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody was there to see how.
    Unknown,
}

/// Opens a process by id. The caller must make sure by other means (start time, cgroup) that it is the one it means.
///
/// # Errors
/// `ESRCH` when there is none.
///
/// # Minimum kernel version
/// 5.3
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers and returns a new descriptor or minus one.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0u32) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made for us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// When a process was started, in ticks since the boot: field 22 of /proc/PID/stat. Together with the id it means
/// no other process until the next boot.
///
/// # Errors
/// When there is no such process.
pub fn start_ticks(pid: Pid) -> io::Result<u64> {
    // Larger than any such line: one read instead of one for every doubling of a buffer.
    let mut stat = String::with_capacity(1024);
    File::open(format!("/proc/{pid}/stat"))?.read_to_string(&mut stat)?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: {stat:?}")))
}

/// The name of the program, the second field, is in parentheses and may hold anything, parentheses too.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Sends a signal. A process that has ended already is no error.
///
/// # Errors
/// `EPERM` where the agent may not.
pub fn signal(pidfd: impl AsFd, signal: Signal) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: no siginfo is passed; the descriptor is open for the time of the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            signal as i32,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The status of a child that has ended, which is gone with it; `None` while it runs.
///
/// Not nix's waitid: it fails for a child that a real-time signal ended, after collecting it.
fn collect(pidfd: BorrowedFd<'_>) -> Result<Option<Exit>, Errno> {
    let id = libc::id_t::from(pidfd.as_raw_fd().cast_unsigned());
    // SAFETY: siginfo_t is plain data, for which all zeros is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is writable and lives through the call; the descriptor is open.
    let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::WNOHANG) };
    Errno::result(result)?;
    // SAFETY: waitid filled in the fields of a child's end, or left si_pid at zero where there is none yet.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match (pid, info.si_code) {
        (0, _) => None,
        (_, libc::CLD_EXITED) => Some(Exit::Code(status)),
        _ => Some(Exit::Signal(status)),
    })
}

/// A process whose end can be awaited.
#[derive(Debug)]
pub struct Watched {
    fd: Ready,
    pid: Pid,
}

impl Watched {
    /// Takes over the pidfd of this process. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(pidfd: OwnedFd, pid: Pid) -> io::Result<Self> {
        Ok(Self { fd: Ready::watch(pidfd, Interest::READABLE)?, pid })
    }

    /// Its id, which may mean another process as soon as this one has ended.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Another descriptor of the same process.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.as_fd().try_clone_to_owned()
    }

    /// Waits for the end of the process and, where it is our child, collects it.
    ///
    /// [`Exit::Unknown`] for a process that is not our child: the kernel tells its status only to its parent.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing; the child stays to be collected.
    pub async fn ended(&self) -> io::Result<Exit> {
        loop {
            match collect(self.fd.as_fd()) {
                Ok(Some(exit)) => return Ok(exit),
                Ok(None) => self.fd.wait().await?,
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // Not our child: its end can be seen, its status cannot.
                    while !self.readable()? {
                        self.fd.wait().await?;
                    }
                    return Ok(Exit::Unknown);
                }
            }
        }
    }

    /// Has the process ended?
    fn readable(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let rest = (3..=52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(parse_start_ticks(&format!("7 (a) S 1 (b) {rest}")), Some(22));
        assert_eq!(parse_start_ticks("7 (a) S 1"), None);
        assert!(start_ticks(Pid::this()).unwrap() > 0);
    }
}
