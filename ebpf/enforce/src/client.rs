//! Which port a socket gets that nobody bound.
//!
//! The kernel runs connect hooks before it chooses a port. Before the hooks for UDP that is sent it has chosen
//! one already: these can only refuse.

use aya_ebpf::{
    bindings::{bpf_sock_addr, sockaddr},
    helpers::generated::{bpf_bind, bpf_get_socket_cookie, bpf_set_retval},
};
use bulkhead_abi::{
    DenialKey, denied_call,
    port_choice::{CLIENT_EPHEMERAL, CLIENT_GRANTED},
};

use crate::{ALLOW, DENY, denial::deny, grant, protocol::Protocol, task, usage};

/// Ports that are tried for one connection before the task is told that there is none.
const TRIES: u32 = 4;
/// What the kernel answers where its own range is used up.
const EADDRNOTAVAIL: i32 = 99;
const AF_INET: u32 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// `struct sockaddr_in`, of any address.
#[repr(C)]
struct AnyAddress4 {
    family: u16,
    port: u16,
    address: u32,
    zero: u64,
}

/// `struct sockaddr_in6`, of any address.
#[repr(C)]
struct AnyAddress6 {
    family: u16,
    port: u16,
    flow: u32,
    address: [u32; 4],
    scope: u32,
}

/// Answers connect() in one family.
#[inline(always)]
pub fn connect(addr: *mut bpf_sock_addr, ip_version: u16) -> i32 {
    let Some(cgroup_id) = task::current() else { return ALLOW };
    if bound_port(addr) != 0 {
        return ALLOW;
    }
    let choice = grant::choice(cgroup_id);
    if choice & CLIENT_EPHEMERAL != 0 {
        return ALLOW;
    }
    // SAFETY: `addr` is the context of such a hook.
    if unsafe { task::is_elsewhere(addr.cast()) } {
        return ALLOW;
    }
    let Some((protocol, number)) = ports_of(addr) else { return ALLOW };
    if choice & CLIENT_GRANTED != 0 {
        match bind_granted(addr, cgroup_id, protocol) {
            Bound::Yes => return ALLOW,
            Bound::AllTaken => {
                // SAFETY: the helper has no preconditions.
                unsafe { bpf_set_retval(-EADDRNOTAVAIL) };
                return DENY;
            }
            Bound::NoneGranted => {}
        }
    }
    deny(DenialKey { cgroup_id, ip_version, protocol: number as u16, port: 0, call: denied_call::CONNECT })
}

/// Answers UDP that is sent to an address of its own, in one family.
#[inline(always)]
pub fn send(addr: *mut bpf_sock_addr, ip_version: u16) -> i32 {
    let Some(cgroup_id) = task::current() else { return ALLOW };
    if grant::choice(cgroup_id) & CLIENT_EPHEMERAL != 0 {
        return ALLOW;
    }
    let Some((protocol, number)) = ports_of(addr) else { return ALLOW };
    let port = bound_port(addr) as u16;
    if grant::contains(cgroup_id, protocol, port) {
        return ALLOW;
    }
    // SAFETY: `addr` is the context of such a hook.
    if unsafe { task::is_elsewhere(addr.cast()) } {
        return ALLOW;
    }
    deny(DenialKey { cgroup_id, ip_version, protocol: number as u16, port, call: denied_call::SEND })
}

enum Bound {
    Yes,
    AllTaken,
    NoneGranted,
}

/// Binds the socket to a granted port and any address, as the kernel would to one of its own choice.
#[inline(always)]
fn bind_granted(addr: *mut bpf_sock_addr, cgroup_id: u64, protocol: Protocol) -> Bound {
    // SAFETY: the helper takes the context of this hook.
    let cookie = unsafe { bpf_get_socket_cookie(addr.cast()) };
    for _ in 0..TRIES {
        let port = usage::choose(cgroup_id, protocol, cookie, CLIENT_GRANTED).port;
        if port == 0 {
            return Bound::NoneGranted;
        }
        if bind_to(addr, port.to_be()) == 0 {
            return Bound::Yes;
        }
    }
    usage::release(cookie);
    Bound::AllTaken
}

/// The kernel's answer; the port is in network byte order.
#[inline(always)]
fn bind_to(addr: *mut bpf_sock_addr, port: u16) -> i64 {
    // SAFETY: `addr` is the context of this hook; the verifier admits a whole, aligned read.
    let family = unsafe { (&raw const (*addr).family).read_volatile() };
    // SAFETY: the helper takes the context of a connect hook, and an address on the stack of the length given.
    unsafe {
        if family == AF_INET {
            let mut any = AnyAddress4 { family: AF_INET as u16, port, address: 0, zero: 0 };
            let length = size_of::<AnyAddress4>() as i32;
            bpf_bind(addr, (&raw mut any).cast::<sockaddr>(), length)
        } else {
            let mut any = AnyAddress6 { family: AF_INET6, port, flow: 0, address: [0; 4], scope: 0 };
            let length = size_of::<AnyAddress6>() as i32;
            bpf_bind(addr, (&raw mut any).cast::<sockaddr>(), length)
        }
    }
}

/// The port that the socket has, 0 for none.
#[inline(always)]
fn bound_port(addr: *mut bpf_sock_addr) -> u32 {
    // SAFETY: `sk` is the socket, never null here; the verifier admits whole, aligned reads of its port.
    unsafe { (&raw const (*(*addr).__bindgen_anon_1.sk).src_port).read_volatile() }
}

/// What its port belongs to, and the protocol's number; `None` for sockets that have none, such as ping's.
#[inline(always)]
fn ports_of(addr: *mut bpf_sock_addr) -> Option<(Protocol, u32)> {
    // SAFETY: `addr` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let (kind, number) = unsafe {
        ((&raw const (*addr).type_).read_volatile(), (&raw const (*addr).protocol).read_volatile())
    };
    if number != IPPROTO_TCP && number != IPPROTO_UDP {
        return None;
    }
    Some((Protocol::of_socket(kind)?, number))
}
