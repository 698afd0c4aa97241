//! Local ports of the sockets in this network namespace, asked of the kernel directly: `NETLINK_SOCK_DIAG`.
//!
//! The kernel goes through its own tables and sends only sockets within the range of ports asked for, so a host with
//! a hundred thousand connections elsewhere costs next to nothing here. Sockets in every state count: those in
//! TIME_WAIT are there, and, since Linux 6.8, TCP sockets that are bound and nothing else.
//!
//! Source: linux/inet_diag.h, and what `inet_diag_bc_run` in net/ipv4/inet_diag.c makes of the filter. Needs
//! `CONFIG_INET_DIAG` and `CONFIG_INET_UDP_DIAG`, which the kernel loads as modules where they are some.

use std::{io, ops::RangeInclusive};

use bulkhead_proto::resources::{PortNumbers, PortSet};
use nix::sys::socket::SockProtocol;

use super::netlink::{self, Request, flag};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// Operations of the filter: is the local port at least, and at most, the one that follows?
const PORT_AT_LEAST: u8 = 2;
const PORT_AT_MOST: u8 = 3;
/// `struct inet_diag_req_v2`, up to the states; a socket's address follows, all zero.
const REQUEST_BYTES: usize = 56;
/// Where `struct inet_diag_msg` has the local port, in network byte order.
const LOCAL_PORT_AT: usize = 4;
const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// Ports within the range that some socket holds, by protocol.
///
/// # Errors
/// The kernel's answer; `ENOENT` where it lacks the configuration.
pub fn ports_in_use(range: &RangeInclusive<u16>) -> io::Result<PortSet> {
    Ok(PortSet::new(of_protocol(libc::IPPROTO_TCP, range)?, of_protocol(libc::IPPROTO_UDP, range)?))
}

fn of_protocol(protocol: i32, range: &RangeInclusive<u16>) -> io::Result<PortNumbers> {
    let mut ports = PortNumbers::default();
    for family in FAMILIES {
        let answers = match netlink::ask(SockProtocol::NetlinkSockDiag, request(family, protocol, range)) {
            // A kernel without IPv6 has no such sockets.
            Err(e) if family == libc::AF_INET6 && e.raw_os_error() == Some(libc::ENOENT) => continue,
            answers => answers?,
        };
        ports = ports.union(&answers.iter().filter_map(|message| local_port(&message.body)).collect());
    }
    Ok(ports)
}

fn request(family: i32, protocol: i32, range: &RangeInclusive<u16>) -> Request {
    let byte = |number: i32| u8::try_from(number).unwrap_or_default();
    let mut fixed = [0; REQUEST_BYTES];
    fixed[..2].copy_from_slice(&[byte(family), byte(protocol)]);
    fixed[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    Request::new(SOCK_DIAG_BY_FAMILY, flag::DUMP, &fixed).attribute(INET_DIAG_REQ_BYTECODE, &filter(range))
}

/// Two comparisons. Each is an operation, with the bytes to go on by where it holds and where it does not, and the port
/// in another one's place. Whoever arrives at the end is taken, whoever goes beyond it is not.
fn filter(range: &RangeInclusive<u16>) -> [u8; 16] {
    let operation = |code: u8, holds: u8, not: u16| {
        let [low, high] = not.to_ne_bytes();
        [code, holds, low, high]
    };
    let port = |port: u16| operation(0, 0, port);
    let parts = [
        operation(PORT_AT_LEAST, 8, 20),
        port(*range.start()),
        operation(PORT_AT_MOST, 8, 12),
        port(*range.end()),
    ];
    let mut bytes = [0; 16];
    bytes.copy_from_slice(parts.as_flattened());
    bytes
}

fn local_port(message: &[u8]) -> Option<u16> {
    let bytes = message.get(LOCAL_PORT_AT..LOCAL_PORT_AT + 2)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?)).filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn only(port: u16) -> PortSet {
        ports_in_use(&(port..=port)).unwrap()
    }

    #[test]
    fn each_protocol_and_family_is_seen_and_nothing_out_of_range() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (Ok(tcp), Ok(udp)) = (TcpListener::bind(address), UdpSocket::bind(address)) else {
                println!("SKIP {address}: no such family here");
                continue;
            };
            let [tcp_port, udp_port] = [tcp.local_addr(), udp.local_addr()].map(|a| a.unwrap().port());
            assert_eq!(only(tcp_port).tcp().iter().collect::<Vec<_>>(), [tcp_port], "{address}");
            assert_eq!(only(udp_port).udp().iter().collect::<Vec<_>>(), [udp_port], "{address}");
        }
    }

    #[test]
    fn a_connection_in_time_wait_holds_its_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let (server, _) = listener.accept().unwrap();
        assert!(only(port).tcp().contains(port));
        // Whoever closes first waits.
        drop(client);
        drop(server);
        assert!(only(port).tcp().contains(port), "in TIME_WAIT, or on its way there");
    }

    #[test]
    fn the_filter_is_what_the_kernel_checks() {
        let bytes = filter(&(0x1234..=0x5678));
        // Lengths are multiples of four, and at most four beyond the end.
        assert_eq!(bytes[..4], [2, 8, 20u16.to_ne_bytes()[0], 20u16.to_ne_bytes()[1]]);
        assert_eq!(bytes[6..8], 0x1234u16.to_ne_bytes());
        assert_eq!(bytes[14..], 0x5678u16.to_ne_bytes());
    }

    #[test]
    fn a_message_that_is_cut_off_has_no_port() {
        assert_eq!(local_port(&[2, 10, 0, 0, 0x1f]), None);
        assert_eq!(local_port(&[2, 10, 0, 0, 0x1f, 0x90]), Some(8080));
        assert_eq!(local_port(&[2, 10, 0, 0, 0, 0]), None, "not bound");
    }
}
