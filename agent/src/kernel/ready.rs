//! Waiting for a descriptor in the runtime.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor that the runtime watches for one kind of readiness. Closed on drop.
#[derive(Debug)]
pub struct Ready {
    fd: AsyncFd<OwnedFd>,
    interest: Interest,
}

impl Ready {
    /// Takes the descriptor over. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `EPERM` for files that epoll cannot watch.
    pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an OwnedFd stays open, and the same descriptor, until it is dropped; here that is when
        // the AsyncFd is, since nothing takes it out again.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Ok(Self { fd: fd.map_err(|e| e.into_parts().1)?, interest })
    }

    /// Waits until it is ready, or was since the last call. May wake for nothing: look, then wait again.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn wait(&self) -> io::Result<()> {
        self.fd.ready(self.interest).await?.clear_ready();
        Ok(())
    }
}

impl AsFd for Ready {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
