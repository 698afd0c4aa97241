//! The cgroup hooks that decide.
//!
//! They are attached once, to the cgroup below which all tasks run, and find the task by the
//! caller's ancestor at the level of tasks: cgroups that a task makes below its own stay held.
//! Only the context that the kernel promises to user space is read, so nothing needs relocation.
//!
//! Functions with `no_mangle` that are no hooks are *global*: the verifier looks at each once, by its signature alone,
//! and not again for each way that leads to a call. So they take and return numbers, which it knows nothing of.
//!
//! | hook | does |
//! |---|---|
//! | bind4, bind6 | allow a granted port, deny others, answer port 0 as the task's policy says |
//! | port_connect4, port_connect6 | a port for a socket that is not bound, as the policy says |
//! | port_sendmsg4, port_sendmsg6 | the same for UDP that is sent, where the kernel has chosen already |
//! | sock_create | deny sockets that are neither TCP, UDP nor ping, unless granted |
//! | sock_release | note that the socket's port is free again |
//! | device | allow harmless and granted devices, deny others |
//! | net_egress, net_ingress | count what tasks send and receive, and hold it to their rates |
//! | connect4, connect6, sendmsg4, sendmsg6 | ask the task's rules whether it may talk to the peer |
#![no_std]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "the hooks, named in the table above, have no parameters of their own")]

mod atomic;
mod bind;
mod client;
mod denial;
mod device;
mod grant;
mod maps;
mod net;
mod opaque;
mod protocol;
mod socket;
mod talk;
mod task;
mod usage;

use aya_ebpf::{
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_device, cgroup_skb, cgroup_sock, cgroup_sock_addr},
    programs::{DeviceContext, SkBuffContext, SockAddrContext, SockContext},
};

/// What a hook answers: the call goes on.
const ALLOW: i32 = 1;
/// What a hook answers: the call fails with EPERM.
const DENY: i32 = 0;

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    bind::bind(ctx.sock_addr, 4)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    bind::bind(ctx.sock_addr, 6)
}

#[cgroup_sock_addr(connect4)]
pub fn port_connect4(ctx: SockAddrContext) -> i32 {
    client::connect(ctx.sock_addr, 4)
}

#[cgroup_sock_addr(connect6)]
pub fn port_connect6(ctx: SockAddrContext) -> i32 {
    client::connect(ctx.sock_addr, 6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn port_sendmsg4(ctx: SockAddrContext) -> i32 {
    client::send(ctx.sock_addr, 4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn port_sendmsg6(ctx: SockAddrContext) -> i32 {
    client::send(ctx.sock_addr, 6)
}

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    socket::create(ctx.sock)
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

#[cgroup_sock_addr(connect4)]
pub fn talk_connect4(ctx: SockAddrContext) -> i32 {
    talk::call(ctx.sock_addr, talk::called4(ctx.sock_addr, false))
}

#[cgroup_sock_addr(connect6)]
pub fn talk_connect6(ctx: SockAddrContext) -> i32 {
    talk::call(ctx.sock_addr, talk::called6(ctx.sock_addr))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn talk_sendmsg4(ctx: SockAddrContext) -> i32 {
    talk::call(ctx.sock_addr, talk::called4(ctx.sock_addr, true))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn talk_sendmsg6(ctx: SockAddrContext) -> i32 {
    talk::call(ctx.sock_addr, talk::called6(ctx.sock_addr))
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
