//! Which granted ports are in use, and the choice of a free one.
//!
//! A port is used from the moment it is chosen or bound until the socket that did so is released.
//! Connections accepted from a listener are sockets of their own that never bound, so their end
//! changes nothing. Several sockets may hold one port (both families, SO_REUSEPORT): users are counted.
//!
//! All of this is a hint. The kernel decides whether a port is free, and it may disagree: a
//! connection in TIME_WAIT, or a process outside the task. The search starts one past the last
//! choice, so a port is offered again as late as possible.

use bulkhead_abi::{GrantIndex, PortUse, Protocol, SocketPort, TaskCounters};

use crate::{
    atomic::{fetch_add, fetch_and, fetch_or},
    grant::{port_bit, word_key},
    maps::{COUNTERS, GRANT_INDEX, GRANTS, PORT_USE, SOCKETS},
};

/// Words that one search looks at. A task that uses more ports than these hold gets what the kernel
/// says to a port in use, and the next search goes on from there.
const MAX_STEPS: u32 = 128;

/// A port for a socket that asked for any: a free one, noted as used; where none looks free, some
/// port of the grant, so that the kernel answers. `None` for a task without ports.
#[inline(always)]
pub fn choose(cgroup_id: u64, protocol: Protocol, cookie: u64) -> Option<u16> {
    // An earlier choice for this socket that the kernel refused.
    release(cookie);
    // SAFETY: the agent replaces an index as a whole, and a stale one only costs a wrong hint.
    let index = unsafe { GRANT_INDEX.get(cgroup_id) }?;
    let counters = COUNTERS.get_ptr_mut(cgroup_id)?;
    let next = next_port(counters, protocol);
    // SAFETY: a field of a map value, aligned.
    let start = unsafe { next.read_volatile() } as u16;
    let port = match search(index, cgroup_id, protocol, start)? {
        Found::Free(port) => {
            let held = SocketPort { cgroup_id, port: port.into(), protocol: protocol as u32 };
            if SOCKETS.insert(cookie, held, 0).is_err() {
                unuse(held);
            }
            port
        }
        Found::Used(port) => port,
    };
    // SAFETY: a field of a map value, aligned.
    unsafe { next.write_volatile(u64::from(port.wrapping_add(1))) };
    Some(port)
}

/// The kernel bound the socket to the port.
#[inline(always)]
pub fn bound(cgroup_id: u64, protocol: Protocol, port: u16, cookie: u64) {
    let held = SocketPort { cgroup_id, port: port.into(), protocol: protocol as u32 };
    // SAFETY: only this socket's own calls, which the kernel serialises, change its entry.
    if let Some(chosen) = unsafe { SOCKETS.get(cookie) } {
        if *chosen == held {
            return;
        }
        release(cookie);
    }
    if SOCKETS.insert(cookie, held, 0).is_ok()
        && let Some(word) = PORT_USE.get_ptr_mut(word_key(cgroup_id, protocol, port))
    {
        // The user first: whoever frees the port looks at users last.
        add_user(word, port);
        // SAFETY: a field of a map value, aligned.
        unsafe { fetch_or(&raw mut (*word).used, port_bit(port)) };
    }
}

/// The socket holds no port any more.
#[inline(always)]
pub fn release(cookie: u64) {
    // SAFETY: only this socket's own calls, which the kernel serialises, change its entry.
    let Some(&held) = (unsafe { SOCKETS.get(cookie) }) else { return };
    // It was there a moment ago; if the map evicted it meanwhile, that is as good.
    let _ = SOCKETS.remove(cookie);
    unuse(held);
}

enum Found {
    Free(u16),
    Used(u16),
}

/// Goes round the granted words once, from the port `start` to the word it is in.
#[inline(always)]
fn search(index: &GrantIndex, cgroup_id: u64, protocol: Protocol, start: u16) -> Option<Found> {
    let mut at = start;
    let mut round = false;
    let mut used = None;
    for _ in 0..MAX_STEPS {
        // Of 64 words: those that are granted, from the one at hand on.
        let word = at >> 6;
        let words = index.words[protocol as usize & 1][usize::from(word >> 6) & 15] >> (word & 63);
        if words == 0 {
            at = ((word >> 6) + 1) << 12;
            round |= at == 0;
            continue;
        }
        let skip = trailing_zeros(words);
        if skip != 0 {
            at = (word + skip) << 6;
        }
        if round && at > start {
            break;
        }
        match claim(cgroup_id, protocol, at) {
            Some(Found::Free(port)) => return Some(Found::Free(port)),
            Some(Found::Used(port)) if used.is_none() => used = Some(port),
            _ => {}
        }
        at = ((at >> 6) + 1) << 6;
        round |= at == 0;
    }
    used.map(Found::Used)
}

/// Takes a free port of the word that `at` is in, at `at` or above.
#[inline(always)]
fn claim(cgroup_id: u64, protocol: Protocol, at: u16) -> Option<Found> {
    let key = word_key(cgroup_id, protocol, at);
    // SAFETY: a single word, which is not torn.
    let granted = *(unsafe { GRANTS.get(key) }?) & (u64::MAX << (at & 63));
    let word = PORT_USE.get_ptr_mut(key)?;
    // SAFETY: a field of a map value, aligned.
    let free = granted & !unsafe { (&raw const (*word).used).read_volatile() };
    if free != 0 {
        let port = (at & !63) | trailing_zeros(free);
        // SAFETY: a field of a map value, aligned.
        let was = unsafe { fetch_or(&raw mut (*word).used, port_bit(port)) };
        // Otherwise another socket was faster, and the search goes on.
        if was & port_bit(port) == 0 {
            add_user(word, port);
            return Some(Found::Free(port));
        }
    }
    (granted != 0).then(|| Found::Used((at & !63) | trailing_zeros(granted)))
}

#[inline(always)]
fn add_user(word: *mut PortUse, port: u16) {
    // SAFETY: the index is below 64, and the fields of a map value are aligned.
    unsafe { fetch_add(&raw mut (*word).users[usize::from(port & 63)], 1) };
}

/// Takes a user away; the last one frees the port.
#[inline(always)]
fn unuse(held: SocketPort) {
    let protocol = if held.protocol == Protocol::Tcp as u32 { Protocol::Tcp } else { Protocol::Udp };
    let port = held.port as u16;
    // Gone when the task's grant was taken back while a socket lived on elsewhere.
    let Some(word) = PORT_USE.get_ptr_mut(word_key(held.cgroup_id, protocol, port)) else { return };
    // SAFETY: the index is below 64, and the fields of a map value are aligned.
    unsafe {
        let users = &raw mut (*word).users[usize::from(port & 63)];
        if users.read_volatile() == 0 {
            return;
        }
        if fetch_add(users, u64::MAX) == 1 {
            fetch_and(&raw mut (*word).used, !port_bit(port));
            // Somebody may have become a user between the two.
            if users.read_volatile() != 0 {
                fetch_or(&raw mut (*word).used, port_bit(port));
            }
        }
    }
}

#[inline(always)]
fn next_port(counters: *mut TaskCounters, protocol: Protocol) -> *mut u64 {
    // SAFETY: within the value that `counters` points to.
    unsafe { &raw mut (*counters).next_port[protocol as usize & 1] }
}

/// The number of the lowest bit. The target has no instruction for it, and what the compiler
/// makes of `u64::trailing_zeros` reads a table that is not there.
#[inline(always)]
fn trailing_zeros(bits: u64) -> u16 {
    let lowest = bits & bits.wrapping_neg();
    let mut n = 0;
    for (shift, mask) in [
        (32, 0xffff_ffff_0000_0000u64),
        (16, 0xffff_0000_ffff_0000),
        (8, 0xff00_ff00_ff00_ff00),
        (4, 0xf0f0_f0f0_f0f0_f0f0),
        (2, 0xcccc_cccc_cccc_cccc),
        (1, 0xaaaa_aaaa_aaaa_aaaa),
    ] {
        n += u16::from(lowest & mask != 0) * shift;
    }
    n & 63
}
