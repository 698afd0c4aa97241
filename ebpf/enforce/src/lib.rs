//! The cgroup hooks that decide.
//!
//! They are attached once, to the cgroup below which all tasks run, and find the task by the
//! caller's ancestor at the level of tasks: cgroups that a task makes below its own stay held.
//! Only the context that the kernel promises to user space is read, so nothing needs relocation.
//!
//! | hook | does |
//! |---|---|
//! | bind4, bind6 | allow a granted port, deny others, answer port 0 with a free granted port |
//! | post_bind4, post_bind6 | check the port that was bound in the end, note that it is used |
//! | sock_release | note that it is free again |
//! | device | allow harmless and granted devices, deny others |
//! | net_egress, net_ingress | count what tasks send and receive, and hold it to their rates |
#![no_std]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "the hooks, named in the table above, have no parameters of their own")]

mod atomic;
mod denial;
mod device;
mod grant;
mod maps;
mod net;
mod protocol;
mod task;
mod usage;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_device, cgroup_skb, cgroup_sock, cgroup_sock_addr},
    programs::{DeviceContext, SkBuffContext, SockAddrContext, SockContext},
};
use bulkhead_abi::DenialKey;

use denial::deny;
use protocol::Protocol;

/// What a hook answers: the call goes on.
const ALLOW: i32 = 1;
/// What a hook answers: the call fails with EPERM.
const DENY: i32 = 0;

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    bind(ctx.sock_addr, 4)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    bind(ctx.sock_addr, 6)
}

#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    post_bind(ctx.sock, 4)
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    post_bind(ctx.sock, 6)
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the context of this hook.
    usage::release(unsafe { bpf_get_socket_cookie(ctx.sock.cast()) });
    ALLOW
}

#[cgroup_device]
pub fn device(ctx: DeviceContext) -> i32 {
    device::access(ctx.device)
}

#[cgroup_skb(egress)]
pub fn net_egress(ctx: SkBuffContext) -> i32 {
    net::egress(ctx.skb.skb)
}

#[cgroup_skb(ingress)]
pub fn net_ingress(ctx: SkBuffContext) -> i32 {
    net::ingress(ctx.skb.skb)
}

#[inline(always)]
fn bind(addr: *mut bpf_sock_addr, ip_version: u16) -> i32 {
    let Some(cgroup_id) = task::current() else { return ALLOW };
    // SAFETY: `addr` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let (kind, number, user_port) = unsafe {
        (
            (&raw const (*addr).type_).read_volatile(),
            (&raw const (*addr).protocol).read_volatile(),
            (&raw const (*addr).user_port).read_volatile(),
        )
    };
    // The context keeps the port as the address does: in network byte order, in the low half.
    let asked = u16::from_be((user_port & 0xffff) as u16);
    let denied = DenialKey { cgroup_id, ip_version, protocol: number as u16, port: asked, other: 0 };
    let Some(protocol) = Protocol::of_socket(kind) else { return deny(denied) };

    if asked != 0 {
        return if grant::contains(cgroup_id, protocol, asked) { ALLOW } else { deny(denied) };
    }
    // SAFETY: `sk` is the socket, never null here; the verifier admits whole, aligned reads of its port.
    let bound_port = unsafe { (&raw const (*(*addr).__bindgen_anon_1.sk).src_port).read_volatile() };
    if bound_port != 0 {
        // The kernel answers EINVAL, and the port that the socket has stays noted.
        return ALLOW;
    }
    // SAFETY: the helper takes the context of this hook.
    let cookie = unsafe { bpf_get_socket_cookie(addr.cast()) };
    match usage::choose(cgroup_id, protocol, cookie) {
        // SAFETY: the verifier admits a whole, aligned write of this field.
        Some(port) => unsafe { (&raw mut (*addr).user_port).write_volatile(u32::from(port.to_be())) },
        None => return deny(denied),
    }
    ALLOW
}

#[inline(always)]
fn post_bind(sock: *mut bpf_sock, ip_version: u16) -> i32 {
    let Some(cgroup_id) = task::current() else { return ALLOW };
    // SAFETY: `sock` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let (kind, number, src_port) = unsafe {
        (
            (&raw const (*sock).type_).read_volatile(),
            (&raw const (*sock).protocol).read_volatile(),
            (&raw const (*sock).src_port).read_volatile(),
        )
    };
    let port = (src_port & 0xffff) as u16;
    let denied = DenialKey { cgroup_id, ip_version, protocol: number as u16, port, other: 0 };
    let Some(protocol) = Protocol::of_socket(kind) else { return deny(denied) };
    if !grant::contains(cgroup_id, protocol, port) {
        return deny(denied);
    }
    // SAFETY: the helper takes the context of this hook.
    usage::bound(cgroup_id, protocol, port, unsafe { bpf_get_socket_cookie(sock.cast()) });
    ALLOW
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could loop here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
