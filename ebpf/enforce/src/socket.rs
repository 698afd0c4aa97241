//! Which sockets a task may make.

use aya_ebpf::bindings::bpf_sock;
use bulkhead_abi::{
    DenialKey, denied_call,
    socket_kind::{RAW, SCTP},
};

use crate::{ALLOW, denial::deny, grant, task};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_MPTCP: u32 = 262;
const AF_INET: u32 = 2;

/// Answers socket() for IPv4 and IPv6. TCP and UDP are held where they take a port. Ping sockets hold none, and
/// send nothing but echo requests, to users whom `net.ipv4.ping_group_range` lets.
#[inline(always)]
pub fn create(sock: *mut bpf_sock) -> i32 {
    let Some(cgroup_id) = task::current() else { return ALLOW };
    // SAFETY: `sock` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let (family, kind, number) = unsafe {
        (
            (&raw const (*sock).family).read_volatile(),
            (&raw const (*sock).type_).read_volatile(),
            (&raw const (*sock).protocol).read_volatile(),
        )
    };
    let needed = match (kind, number) {
        (SOCK_STREAM, IPPROTO_TCP | IPPROTO_MPTCP)
        | (SOCK_DGRAM, IPPROTO_UDP | IPPROTO_ICMP | IPPROTO_ICMPV6) => return ALLOW,
        (SOCK_RAW, _) => RAW,
        (_, IPPROTO_SCTP) => SCTP,
        // Nobody can be granted these.
        _ => 0,
    };
    if grant::sockets(cgroup_id) & needed != 0 {
        return ALLOW;
    }
    // SAFETY: `sock` is the context of such a hook.
    if unsafe { task::is_elsewhere(sock.cast()) } {
        return ALLOW;
    }
    let ip_version = if family == AF_INET { 4 } else { 6 };
    deny(DenialKey {
        cgroup_id,
        ip_version,
        protocol: number as u16,
        port: kind as u16,
        call: denied_call::SOCKET,
    })
}
