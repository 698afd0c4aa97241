//! Who may talk to whom: connects and sends, decided in the call, and packets that open something.
//!
//! A rule is about who opens: what a connection carries afterwards, in either direction, belongs to whoever opened it
//! and is not asked again. Sockets without a connection open nothing, so for them [`conversation`] remembers the
//! peers whose answers no rule would let through.

mod address;
mod conversation;
mod denial;
mod opening;
mod packet;
mod rules;

pub use packet::{Owner, enters, leaves};

use aya_ebpf::{bindings::bpf_sock_addr, helpers::generated::bpf_get_socket_cookie};
use bulkhead_abi::{TalkKey, class, denied};

use crate::{ALLOW, denial::deny, opaque::opaque, task};

use address::Address;
use rules::{Attempt, PeerTask};

/// Answers a connect, or a send to an address on a socket without a connection.
#[inline(always)]
pub fn call(addr: *mut bpf_sock_addr, to: Address) -> i32 {
    let Some(cgroup_id) = task::current() else { return ALLOW };
    // SAFETY: `addr` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let (protocol, user_port) = unsafe {
        ((&raw const (*addr).protocol).read_volatile(), (&raw const (*addr).user_port).read_volatile())
    };
    // The context keeps the port as the address does: in network byte order, in the low half.
    let port = u16::from_be((user_port & 0xffff) as u16);
    let class = class_of(protocol);
    let answers = class != class::TCP;
    // SAFETY: `addr` is the context of such a hook.
    let elsewhere = unsafe { task::is_elsewhere(addr.cast()) };
    let peer = if elsewhere { PeerTask::None } else { PeerTask::HoldsPort };
    let attempt = Attempt { cgroup_id, address: to, port, cell: class, answers, peer };
    let Some(decision) = rules::decide(&attempt) else { return ALLOW };
    if decision.is_plain() {
        return ALLOW;
    }
    if class != class::TCP {
        // SAFETY: the helper takes the context of this hook.
        let cookie = unsafe { bpf_get_socket_cookie(addr.cast()) };
        if decision.allowed {
            conversation::remember(cookie, &to, port);
            return ALLOW;
        }
        if conversation::goes_on(cookie, &to, port) {
            return ALLOW;
        }
    }
    let protocol = protocol as u16;
    deny(TalkKey { cgroup_id, what: denied::CALL, protocol, port, other: 0, address: to.bytes() })
}

/// By the protocol's number.
#[inline(always)]
fn class_of(protocol: u32) -> u32 {
    const TCP: u32 = 6;
    const UDP: u32 = 17;
    const UDP_LITE: u32 = 136;
    const MPTCP: u32 = 262;
    opaque(match protocol {
        TCP | MPTCP => class::TCP,
        UDP | UDP_LITE => class::UDP,
        _ => class::OTHER,
    })
}

/// Reads the address of a call on an IPv4 socket.
#[inline(always)]
pub fn called4(addr: *mut bpf_sock_addr, sends: bool) -> Address {
    // SAFETY: `addr` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let to = unsafe { (&raw const (*addr).user_ip4).read_volatile() };
    if to != 0 {
        return Address::v4(to);
    }
    // Nowhere is here: at the address that the call comes from, or else at loopback.
    // SAFETY: as above; `sk` is the socket, never null here. `msg_src_ip4` is there for sends.
    let from = unsafe {
        if sends {
            (&raw const (*addr).msg_src_ip4).read_volatile()
        } else {
            (&raw const (*(*addr).__bindgen_anon_1.sk).src_ip4).read_volatile()
        }
    };
    Address::v4(opaque(if from == 0 { u32::from_ne_bytes([127, 0, 0, 1]) } else { from }))
}

/// Reads the address of a call on an IPv6 socket; IPv4 may be mapped into it.
#[inline(always)]
pub fn called6(addr: *mut bpf_sock_addr) -> Address {
    // SAFETY: `addr` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let words = unsafe {
        let words = (&raw const (*addr).user_ip6).cast::<u32>();
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    };
    let to = Address::v6(words);
    // Nowhere is here, at loopback.
    if to.is_nowhere() { Address::v6([0, 0, 0, opaque(1u32.to_be())]) } else { to }
}
