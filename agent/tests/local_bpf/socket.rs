//! Sockets by short names.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage,
        connect, getsockname, sendto, setsockopt, socket, sockopt,
    },
};

/// `tcp4`, `udp4`, `tcp6`, `udp6` on loopback; with `m` behind a 6 an IPv4 address mapped into IPv6, with `d` every address
/// of both families; with `r` at the end SO_REUSEADDR is set.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    tcp: bool,
    v4: bool,
    mapped: bool,
    dual: bool,
    reuse_address: bool,
}

impl Kind {
    pub(crate) fn of(name: &str) -> Self {
        let has = |c| name[3..].contains(c);
        Self {
            tcp: name.starts_with("tcp"),
            v4: has('4'),
            mapped: has('m'),
            dual: has('d'),
            reuse_address: has('r'),
        }
    }

    pub(crate) fn socket(self) -> Result<OwnedFd, Errno> {
        let family = if self.v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let kind = if self.tcp { SockType::Stream } else { SockType::Datagram };
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        if self.tcp {
            setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        if self.reuse_address {
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        }
        Ok(fd)
    }

    pub(crate) fn address(self, port: u16) -> Box<dyn SockaddrLike> {
        let v6 = |ip| Box::new(SockaddrIn6::from(SocketAddrV6::new(ip, port, 0, 0)));
        match self {
            Self { v4: true, .. } => Box::new(SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))),
            Self { mapped: true, .. } => v6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
            Self { dual: true, .. } => v6(Ipv6Addr::UNSPECIFIED),
            _ => v6(Ipv6Addr::LOCALHOST),
        }
    }
}

/// Connects, or sends a byte, with a new socket, whatever the address: `tcp`, `udp`, or with an IPv4 address mapped into
/// IPv6 `tcp-mapped`, `udp-mapped`.
pub(crate) fn reach(how: &str, kind: &str, address: IpAddr, port: u16) -> Result<(), Errno> {
    let to: SockaddrStorage = match address {
        IpAddr::V4(v4) if kind.ends_with("-mapped") => {
            SocketAddrV6::new(v4.to_ipv6_mapped(), port, 0, 0).into()
        }
        IpAddr::V4(v4) => SocketAddrV4::new(v4, port).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, 0).into(),
    };
    let family = if to.as_sockaddr_in().is_some() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket_type = if kind.starts_with("tcp") { SockType::Stream } else { SockType::Datagram };
    let fd = socket(family, socket_type, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    match how {
        "connect" => connect(fd.as_raw_fd(), &to),
        "fastopen" => {
            sendto(fd.as_raw_fd(), b"x", &to, MsgFlags::from_bits_retain(libc::MSG_FASTOPEN)).map(drop)
        }
        _ => sendto(fd.as_raw_fd(), b"x", &to, MsgFlags::empty()).map(drop),
    }
}

/// The port that a socket has, 0 for none.
pub(crate) fn port_of(fd: i32) -> u16 {
    let name: SockaddrStorage = getsockname(fd).unwrap();
    let (v4, v6) = (name.as_sockaddr_in(), name.as_sockaddr_in6());
    v4.map(SockaddrIn::port).or_else(|| v6.map(SockaddrIn6::port)).unwrap()
}

pub(crate) fn reuse_port(fd: &OwnedFd) -> Result<(), Errno> {
    setsockopt(fd, sockopt::ReusePort, &true)
}

/// Of any family, type and protocol, by their numbers.
pub(crate) fn other_socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    let made = socket2::Socket::new(family.into(), kind.into(), Some(protocol.into()));
    made.map(Into::into).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

/// Moves this thread into a network namespace of its own, and turns its loopback interface on.
pub(crate) fn unshare_net() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    let failed = |e: io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    if status.map_err(failed)?.success() { Ok(()) } else { Err(Errno::EIO) }
}
