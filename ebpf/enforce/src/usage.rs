//! Which granted ports are in use, and the choice of a free one.
//!
//! A port is used from the moment it is chosen or bound until the socket that did so is released.
//! Connections accepted from a listener are sockets of their own that never bound, so their end
//! changes nothing. Several sockets may hold one port (both families, SO_REUSEPORT): users are counted.
//!
//! All of this is a hint. The kernel decides whether a port is free, and it may disagree: a
//! connection in TIME_WAIT, or a process outside the task. The search starts one past the last
//! choice, so a port is offered again as late as possible.

use core::arch::asm;

use bulkhead_abi::{INDEX_WORDS, PortUse, PortWordKey, SocketPort};

use crate::{
    atomic::{fetch_add, fetch_and, fetch_or},
    grant::{port_bit, word_key},
    maps::{COUNTERS, GRANT_INDEX, GRANTS, PORT_USE, SOCKETS},
    protocol::Protocol,
};

/// Steps of one search: a word of granted ports, or 64 words without any. A task that uses more
/// ports than these hold gets what the kernel says to a port in use, and the next search goes on there.
const MAX_STEPS: u32 = 128;

/// A port for a socket that asked for any: a free one, noted as used; where none looks free, some
/// port of the grant, so that the kernel answers. `None` for a task without ports.
#[inline(always)]
pub fn choose(cgroup_id: u64, protocol: Protocol, cookie: u64) -> Option<u16> {
    // An earlier choice for this socket that the kernel refused.
    release(cookie);
    let walk = Walk::of(cgroup_id, protocol)?;
    let Some(port) = take_free(cgroup_id, protocol, &walk) else { return any(cgroup_id, protocol, &walk) };
    let held = SocketPort { cgroup_id, port: port.into(), protocol: protocol.index() };
    if SOCKETS.insert(cookie, held, 0).is_err() {
        unuse(held.cgroup_id, held.protocol, held.port);
    }
    Some(port)
}

/// The kernel bound the socket to the port.
#[inline(always)]
pub fn bound(cgroup_id: u64, protocol: Protocol, port: u16, cookie: u64) {
    let held = SocketPort { cgroup_id, port: port.into(), protocol: protocol.index() };
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
#[inline(never)]
pub fn release(cookie: u64) {
    // SAFETY: only this socket's own calls, which the kernel serialises, change its entry.
    let Some(&held) = (unsafe { SOCKETS.get(cookie) }) else { return };
    // It was there a moment ago; if the map evicted it meanwhile, that is as good.
    let _ = SOCKETS.remove(cookie);
    unuse(held.cgroup_id, held.protocol, held.port);
}

/// Goes round the grant once, from where the last search ended, and takes the first port that looks free.
#[inline(always)]
fn take_free(cgroup_id: u64, protocol: Protocol, walk: &Walk) -> Option<u16> {
    for _ in 0..MAX_STEPS {
        let Some(at) = walk.step() else { continue };
        let port = claim(cgroup_id, protocol.index(), at.into());
        if port != 0 {
            walk.go_on_at((port as u16).wrapping_add(1));
            return Some(port as u16);
        }
    }
    None
}

/// The next granted port, used or not.
#[inline(always)]
fn any(cgroup_id: u64, protocol: Protocol, walk: &Walk) -> Option<u16> {
    // Once through the index, and to its first word again.
    for _ in 0..=INDEX_WORDS {
        let Some(at) = walk.step() else { continue };
        let granted = granted_from(word_key(cgroup_id, protocol, at), at & !63);
        return (granted != 0).then(|| (at & !63) | trailing_zeros(granted));
    }
    None
}

/// The walk through the granted words of one task and protocol.
///
/// Its position is in the map and read from there in each step. So the verifier knows nothing of it
/// and finds all steps alike; in a register it would follow every way that the position can take.
struct Walk {
    index: *const u64,
    position: *mut u64,
}

impl Walk {
    #[inline(always)]
    fn of(cgroup_id: u64, protocol: Protocol) -> Option<Self> {
        let index = GRANT_INDEX.get_ptr(cgroup_id)?.cast::<u64>();
        let counters = COUNTERS.get_ptr_mut(cgroup_id)?;
        let protocol = protocol.index() as usize;
        // SAFETY: `protocol` is 0 or 1, and both values have two halves of these sizes.
        let (index, position) = unsafe {
            (index.add(protocol * INDEX_WORDS), (&raw mut (*counters).next_port).cast::<u64>().add(protocol))
        };
        Some(Self { index, position })
    }

    /// Moves past the next granted word, or past up to 64 words without any. Returns where in a
    /// granted word to look: at the position, or from its first port.
    #[inline(always)]
    fn step(&self) -> Option<u16> {
        // SAFETY: a field of a map value, aligned.
        let at = unsafe { self.position.read_volatile() } as u16;
        let word = at >> 6;
        // SAFETY: the index is below 16, the length of the array.
        let words = unsafe { self.index.add(usize::from(word >> 6) & 15).read_volatile() };
        // Of 64 words: those that are granted, from the one at hand on.
        let words = words >> (word & 63);
        if words == 0 {
            self.go_on_at(((word >> 6) + 1) << 12);
            return None;
        }
        let skip = trailing_zeros(words);
        self.go_on_at((word + skip + 1) << 6);
        Some(if skip == 0 { at } else { (word + skip) << 6 })
    }

    #[inline(always)]
    fn go_on_at(&self, port: u16) {
        // SAFETY: a field of a map value, aligned.
        unsafe { self.position.write_volatile(u64::from(port)) };
    }
}

/// Takes a free port of the word that `at` is in, from `at` on. 0 if there is none, or if another
/// socket was faster.
///
/// A function of its own: what it leaves on its stack would keep the verifier from finding alike
/// what is alike after it.
#[inline(never)]
fn claim(cgroup_id: u64, protocol: u32, at: u32) -> u32 {
    let at = at as u16;
    let key = word_key(cgroup_id, Protocol::of(protocol), at);
    let Some(word) = PORT_USE.get_ptr_mut(key) else { return 0 };
    // SAFETY: a field of a map value, aligned.
    let free = granted_from(key, at) & !unsafe { (&raw const (*word).used).read_volatile() };
    if free == 0 {
        return 0;
    }
    let port = (at & !63) | trailing_zeros(free);
    // SAFETY: a field of a map value, aligned.
    let was = unsafe { fetch_or(&raw mut (*word).used, port_bit(port)) };
    if was & port_bit(port) != 0 {
        return 0;
    }
    add_user(word, port);
    port.into()
}

/// The granted ports of a word, from `at` on.
#[inline(always)]
fn granted_from(key: PortWordKey, at: u16) -> u64 {
    // SAFETY: a single word, which is not torn.
    unsafe { GRANTS.get(key) }.map_or(0, |granted| granted & (u64::MAX << (at & 63)))
}

#[inline(always)]
fn add_user(word: *mut PortUse, port: u16) {
    // SAFETY: fields of a map value, aligned.
    unsafe { fetch_add(users(word, port), 1) };
}

/// Takes a user away; the last one frees the port.
#[inline(never)]
fn unuse(cgroup_id: u64, protocol: u32, port: u32) {
    let port = port as u16;
    let key = word_key(cgroup_id, Protocol::of(protocol), port);
    // Gone when the task's grant was taken back while a socket lived on elsewhere.
    let Some(word) = PORT_USE.get_ptr_mut(key) else { return };
    // SAFETY: fields of a map value, aligned.
    unsafe {
        let users = users(word, port);
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

/// The users of a port. Where the compiler knows the bound of the index from elsewhere it drops a
/// mask, and the verifier, which does not, then refuses the access: so the mask is an instruction.
#[inline(always)]
fn users(word: *mut PortUse, port: u16) -> *mut u64 {
    let mut slot = usize::from(port);
    // SAFETY: one instruction on one register; then the index is below 64, the length of the array.
    unsafe {
        asm!("{v} &= 63", v = inout(reg) slot, options(pure, nomem, nostack));
        (&raw mut (*word).users).cast::<u64>().add(slot)
    }
}

/// The number of the lowest bit that is set, 0 where none is. By arithmetic alone: the target has no
/// instruction for it, and each branch would be one more way for the verifier to follow.
#[inline(always)]
fn trailing_zeros(bits: u64) -> u16 {
    // As many ones as there were zeros below the lowest bit.
    let below = !bits & bits.wrapping_sub(1);
    let pairs = below - (below >> 1 & 0x5555_5555_5555_5555);
    let nibbles = (pairs & 0x3333_3333_3333_3333) + (pairs >> 2 & 0x3333_3333_3333_3333);
    let bytes = (nibbles + (nibbles >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (bytes.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u16 & 63
}
