//! Which task is calling, or whose packet it is, and whether it is held where it calls.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_skb_ancestor_cgroup_id,
    },
};

/// The level of task cgroups below the root of the hierarchy. The loader sets it before the
/// programs are verified, which then know it as a constant.
#[unsafe(no_mangle)]
static TASK_LEVEL: i32 = 0;

/// The cookie of the network namespace that tasks share with the agent, set like the level. 0 on
/// kernels that do not tell theirs: tasks are then held in all of them.
#[unsafe(no_mangle)]
static HOST_NETNS: u64 = 0;

/// The cgroup id of the calling task, or `None` for processes above the level of tasks.
#[inline(always)]
pub fn current() -> Option<u64> {
    // SAFETY: the helper has no preconditions.
    some(unsafe { bpf_get_current_ancestor_cgroup_id(level()) })
}

/// The cgroup id of the task whose socket sends or receives this packet, or `None` for sockets of processes above the
/// level of tasks.
#[inline(always)]
pub fn of_packet(packet: *mut __sk_buff) -> Option<u64> {
    // SAFETY: the helper takes the context of a cgroup_skb hook.
    some(unsafe { bpf_skb_ancestor_cgroup_id(packet, level()) })
}

#[inline(always)]
fn level() -> i32 {
    // SAFETY: a static of this object. Volatile, because the compiler takes its value for final.
    unsafe { (&raw const TASK_LEVEL).read_volatile() }
}

#[inline(always)]
fn some(id: u64) -> Option<u64> {
    if id == 0 { None } else { Some(id) }
}

/// Is the socket in a network namespace of the task's own? There its ports are no one else's.
///
/// # Safety
/// `ctx` is the context of a hook on a socket or on a socket's address.
#[inline(always)]
pub unsafe fn is_elsewhere(ctx: *mut c_void) -> bool {
    // SAFETY: a static of this object, as above.
    let host = unsafe { (&raw const HOST_NETNS).read_volatile() };
    // SAFETY: the helper takes the contexts that the caller vouches for.
    host != 0 && unsafe { bpf_get_netns_cookie(ctx) } != host
}
