//! Interfaces, their queueing disciplines, and which of them leads outside: rtnetlink.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockFlag, SockProtocol, recv},
};
use tokio::io::Interest;

use super::{
    netlink::{self, Message, Request, attributes, flag, text, word},
    ready::Ready,
};

/// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
/// Groups of events, as bits.
const EVENTS_OF_LINKS: u32 = 1;
const EVENTS_OF_QDISCS: u32 = 1 << 3;
const EVENTS_OF_IPV4_ROUTES: u32 = 1 << 6;
const EVENTS_OF_IPV6_ROUTES: u32 = 1 << 10;
/// linux/if_link.h, linux/if.h
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFF_UP: u32 = 1;
const LINK_FIXED_BYTES: usize = 16;
/// linux/pkt_sched.h, linux/rtnetlink.h
const TCA_KIND: u16 = 1;
const QDISC_FIXED_BYTES: usize = 20;
const ROUTE_FIXED_BYTES: usize = 12;
/// The root of an interface, as a parent.
pub const ROOT: u32 = u32::MAX;
/// Addresses for documentation: nobody has them, so the way there is the way outside.
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// A network interface of the agent's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// What people call it.
    pub name: String,
    /// Longest packet that it sends in one piece.
    pub mtu_bytes: u32,
    /// Is it switched on?
    pub up: bool,
}

/// A queueing discipline of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// Of which interface.
    pub ifindex: u32,
    /// Its own number; 0 where the kernel put it there by itself.
    pub handle: u32,
    /// Below which other one; [`ROOT`] is the interface itself.
    pub parent: u32,
    /// `fq`, `mq`, `noqueue`, ...
    pub kind: String,
}

/// All interfaces.
///
/// # Errors
/// The kernel's refusal.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let answers = ask(Request::new(RTM_GETLINK, flag::DUMP, &[0; LINK_FIXED_BYTES]))?;
    Ok(answers.iter().filter_map(interface).collect())
}

/// All queueing disciplines.
///
/// # Errors
/// The kernel's refusal.
pub fn qdiscs() -> io::Result<Vec<Qdisc>> {
    let answers = ask(Request::new(RTM_GETQDISC, flag::DUMP, &[0; QDISC_FIXED_BYTES]))?;
    Ok(answers.iter().filter_map(qdisc).collect())
}

/// Puts a queueing discipline of this kind below a parent, in the place of what is there. What waits in that is lost.
///
/// # Errors
/// ENOENT where the kernel has no such kind.
pub fn put_qdisc(ifindex: u32, parent: u32, handle: u32, kind: &str) -> io::Result<()> {
    let flags = flag::ACK | flag::CREATE | flag::REPLACE;
    let fixed = qdisc_fixed(ifindex, parent, handle);
    let kind = [kind.as_bytes(), &[0]].concat();
    ask(Request::new(RTM_NEWQDISC, flags, &fixed).attribute(TCA_KIND, &kind)).map(drop)
}

/// Takes away what is at the root of an interface; the kernel puts its default there.
///
/// # Errors
/// ENOENT where the default is there already.
pub fn remove_root_qdisc(ifindex: u32) -> io::Result<()> {
    ask(Request::new(RTM_DELQDISC, flag::ACK, &qdisc_fixed(ifindex, ROOT, 0))).map(drop)
}

/// The interface that packets to the outside leave by: that of IPv4, or else of IPv6. `None` where there is no way.
///
/// # Errors
/// The kernel's refusal.
pub fn way_outside() -> io::Result<Option<u32>> {
    for address in [IpAddr::from(OUTSIDE_V4), IpAddr::from(OUTSIDE_V6)] {
        match way_to(address) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {}
            // Without IPv6 nothing answers for it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
            // A route that forbids.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) => {}
            found => return found,
        }
    }
    Ok(None)
}

fn way_to(address: IpAddr) -> io::Result<Option<u32>> {
    let (family, bits, bytes) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, 32, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, 128, v6.octets().to_vec()),
    };
    let mut fixed = [0; ROUTE_FIXED_BYTES];
    fixed[0] = u8::try_from(family).unwrap_or_default();
    fixed[1] = bits;
    let answers = ask(Request::new(RTM_GETROUTE, 0, &fixed).attribute(RTA_DST, &bytes))?;
    let route = answers.iter().find(|message| message.kind == RTM_NEWROUTE);
    let Some(parts) = route.and_then(|message| message.body.get(ROUTE_FIXED_BYTES..)) else {
        return Ok(None);
    };
    Ok(attributes(parts).find(|(kind, _)| *kind == RTA_OIF).and_then(|(_, value)| word(value, 0)))
}

/// The speed of a link in bits a second, in each direction, where its driver knows it.
pub fn speed_bits_per_sec(name: &str) -> Option<u64> {
    let path = Path::new("/sys/class/net").join(name).join("speed");
    let megabits: i64 = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    u64::try_from(megabits).ok().filter(|megabits| *megabits > 0).map(|megabits| megabits * 1_000_000)
}

/// Bytes that an interface received and sent, by its own counters.
///
/// # Errors
/// Where it is gone.
pub fn traffic_bytes(name: &str) -> io::Result<(u64, u64)> {
    let read = |file: &str| {
        let path = Path::new("/sys/class/net").join(name).join("statistics").join(file);
        fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
    };
    Ok((read("rx_bytes")?, read("tx_bytes")?))
}

/// Tells when interfaces, queueing disciplines or routes have changed.
#[derive(Debug)]
pub struct Changes {
    socket: OwnedFd,
    ready: Ready,
}

impl Changes {
    /// Begins to listen. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open() -> io::Result<Self> {
        let groups = EVENTS_OF_LINKS | EVENTS_OF_QDISCS | EVENTS_OF_IPV4_ROUTES | EVENTS_OF_IPV6_ROUTES;
        let socket = netlink::open(SockProtocol::NetlinkRoute, groups, SockFlag::SOCK_NONBLOCK)?;
        let ready = Ready::watch(socket.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { socket, ready })
    }

    /// Waits for a change. Those that came since the last call are one.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub async fn next(&mut self) -> io::Result<()> {
        let mut any = false;
        let mut buffer = [0; 4096];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                // What was lost was a change too.
                Ok(_) | Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if any => return Ok(()),
                Err(Errno::EAGAIN) => self.ready.wait().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn ask(request: Request) -> io::Result<Vec<Message>> {
    netlink::ask(SockProtocol::NetlinkRoute, request)
}

fn qdisc_fixed(ifindex: u32, parent: u32, handle: u32) -> [u8; QDISC_FIXED_BYTES] {
    let mut fixed = [0; QDISC_FIXED_BYTES];
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    fixed[8..12].copy_from_slice(&handle.to_ne_bytes());
    fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
    fixed
}

fn interface(message: &Message) -> Option<Interface> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let (index, flags) = (word(&message.body, 4)?, word(&message.body, 8)?);
    let parts = message.body.get(LINK_FIXED_BYTES..)?;
    let find = |wanted| attributes(parts).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    Some(Interface {
        index,
        name: text(find(IFLA_IFNAME)?),
        mtu_bytes: word(find(IFLA_MTU)?, 0)?,
        up: flags & IFF_UP != 0,
    })
}

fn qdisc(message: &Message) -> Option<Qdisc> {
    if message.kind != RTM_NEWQDISC {
        return None;
    }
    let parts = message.body.get(QDISC_FIXED_BYTES..)?;
    let kind = attributes(parts).find(|(kind, _)| *kind == TCA_KIND)?.1;
    Some(Qdisc {
        ifindex: word(&message.body, 4)?,
        handle: word(&message.body, 8)?,
        parent: word(&message.body, 12)?,
        kind: text(kind),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found() {
        let loopback = interfaces().unwrap().into_iter().find(|i| i.name == "lo").unwrap();
        assert_eq!((loopback.index, loopback.mtu_bytes > 1500), (1, true));
        assert!(qdiscs().unwrap().iter().all(|q| !q.kind.is_empty()));
        assert!(traffic_bytes("lo").is_ok() && traffic_bytes("no such interface").is_err());
        assert_eq!(speed_bits_per_sec("lo"), None);
        // Wherever it leads, asking works.
        way_outside().unwrap();
    }

    #[test]
    fn answers_are_not_trusted() {
        let message = |kind, body: &[u8]| Message { kind, body: body.to_vec() };
        for length in 0..40 {
            assert_eq!(qdisc(&message(RTM_NEWQDISC, &vec![0xff; length])), None);
            assert_eq!(interface(&message(RTM_NEWLINK, &vec![0xff; length])), None);
        }
    }
}
