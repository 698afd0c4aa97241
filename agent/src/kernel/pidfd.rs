//! Processes by descriptor: a pidfd never means another process, however often ids are reused.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
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

/// A process whose end can be awaited.
#[derive(Debug)]
pub struct Watched {
    fd: Ready,
}

impl Watched {
    /// Takes over a pidfd. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: Ready::watch(pidfd, Interest::READABLE)? })
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
            match waitid(Id::PIDFd(self.fd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(Exit::Code(code)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Exit::Signal(signal as i32)),
                // Its first thread may be gone while others run on.
                Ok(_) | Err(Errno::EINTR) => self.fd.wait().await?,
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
