//! Which port a task may bind, and which one it gets for port 0.

use aya_ebpf::{bindings::bpf_sock_addr, helpers::generated::bpf_get_socket_cookie};
use bulkhead_abi::{
    DenialKey, denied_call,
    port_choice::{BIND_EPHEMERAL, BIND_GRANTED},
};

use crate::{ALLOW, denial::deny, grant, protocol::Protocol, task, usage};

/// Allow, and do not ask for `CAP_NET_BIND_SERVICE`: whoever was granted a privileged port may bind it. The second
/// bit means that in these two hooks only.
const ALLOW_GRANTED: i32 = 3;

/// Answers bind() in one family.
#[inline(always)]
pub fn bind(addr: *mut bpf_sock_addr, ip_version: u16) -> i32 {
    let Some(cgroup_id) = task::current() else { return ALLOW };
    // SAFETY: `addr` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let (kind, user_port) = unsafe {
        ((&raw const (*addr).type_).read_volatile(), (&raw const (*addr).user_port).read_volatile())
    };
    // The context keeps the port as the address does: in network byte order, in the low half.
    let asked = u16::from_be((user_port & 0xffff) as u16);
    if asked != 0
        && let Some(protocol) = Protocol::of_socket(kind)
        && grant::takes_by_number(cgroup_id, protocol, asked)
    {
        return ALLOW_GRANTED;
    }
    // SAFETY: `addr` is the context of such a hook.
    if unsafe { task::is_elsewhere(addr.cast()) } {
        return ALLOW;
    }
    match Protocol::of_socket(kind) {
        Some(protocol) if asked == 0 => bind_any(addr, ip_version, cgroup_id, protocol),
        _ => deny(denied(addr, ip_version, cgroup_id, asked)),
    }
}

/// Port 0.
#[inline(always)]
fn bind_any(addr: *mut bpf_sock_addr, ip_version: u16, cgroup_id: u64, protocol: Protocol) -> i32 {
    // SAFETY: `sk` is the socket, never null here; the verifier admits whole, aligned reads of its port.
    let bound_port = unsafe { (&raw const (*(*addr).__bindgen_anon_1.sk).src_port).read_volatile() };
    if bound_port != 0 {
        // The kernel answers EINVAL, and the port that the socket has stays noted.
        return ALLOW;
    }
    // SAFETY: the helper takes the context of this hook.
    let cookie = unsafe { bpf_get_socket_cookie(addr.cast()) };
    let choice = usage::choose(cgroup_id, protocol, cookie, BIND_GRANTED);
    if choice.port != 0 {
        // SAFETY: the verifier admits a whole, aligned write of this field.
        unsafe { (&raw mut (*addr).user_port).write_volatile(u32::from(choice.port.to_be())) };
        return ALLOW_GRANTED;
    }
    if choice.policy & BIND_EPHEMERAL != 0 {
        return ALLOW;
    }
    deny(denied(addr, ip_version, cgroup_id, 0))
}

#[inline(always)]
fn denied(addr: *mut bpf_sock_addr, ip_version: u16, cgroup_id: u64, port: u16) -> DenialKey {
    // SAFETY: as above.
    let number = unsafe { (&raw const (*addr).protocol).read_volatile() };
    DenialKey { cgroup_id, ip_version, protocol: number as u16, port, call: denied_call::BIND }
}
