//! Which network namespace this process is in.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `SO_NETNS_COOKIE`, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace of this process: what `bpf_get_netns_cookie` tells BPF programs. No
/// other namespace gets the same before the host restarts.
///
/// # Errors
/// The kernel's answer; `ENOPROTOOPT` before Linux 5.14.
pub fn cookie() -> io::Result<u64> {
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which has as many.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if answer == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_namespace_has_one_cookie() {
        match super::cookie() {
            Ok(cookie) => assert!(cookie != 0 && super::cookie().unwrap() == cookie),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT)),
        }
    }
}
