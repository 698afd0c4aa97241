//! Which granted ports are in use, and the choice of a free one.
//!
//! A port that the programs gave to a socket is used until that socket is released, or is given
//! another. Connections accepted from a listener are sockets of their own that were given nothing, so
//! their end changes nothing. A port that was bound by number is remembered for as long as the grant lasts,
//! without its socket: it is chosen where no other is left.
//!
//! All of this is a hint. The kernel decides whether a port is free, and it may disagree: a
//! connection in TIME_WAIT, or a process outside the task. The search starts one past the last
//! choice, so a port is offered again as late as possible.

use aya_ebpf::bindings::BPF_NOEXIST;
use bulkhead_abi::{INDEX_WORDS, SocketPort};

use crate::{
    atomic::{fetch_and, fetch_or},
    grant::{granted, port_bit, word_key},
    maps::{COUNTERS, PORTS, SOCKETS, TASK_PORTS},
    protocol::Protocol,
};

/// Most steps of one search: a word of granted ports, or 64 words without any. A task that uses more
/// ports than these hold gets what the kernel says to a port in use, and the next search goes on there.
const MAX_STEPS: u32 = 128;

/// Set beside a port that another socket was given already.
const TAKEN: u32 = 1 << 16;

/// A port for a socket that asked for any, noted as used: one that looks free, else one that was bound by number; else
/// some port of the grant that is in use, so that the kernel answers. 0 for a task without ports.
///
/// A function of its own, as everything here that loops: what it leaves on its stack would keep the verifier
/// from finding alike what is alike after it.
#[inline(never)]
pub fn choose(cgroup_id: u64, protocol: u32, cookie: u64) -> u32 {
    let protocol = Protocol::of(protocol);
    let Some(walk) = Walk::of(cgroup_id, protocol) else { return 0 };
    let port = match take_free(cgroup_id, protocol, &walk) {
        0 => any(cgroup_id, protocol, &walk),
        port => port,
    };
    if port & TAKEN != 0 {
        release(cookie);
    } else if port != 0 {
        note(cookie, SocketPort { cgroup_id, port, protocol: protocol.index() });
    }
    port & !TAKEN
}

/// The socket holds no port any more.
#[inline(never)]
pub fn release(cookie: u64) {
    // SAFETY: only this socket's own calls, which the kernel serialises, change its entry.
    let Some(&held) = (unsafe { SOCKETS.get(cookie) }) else { return };
    // It was there a moment ago; if the map evicted it meanwhile, that is as good.
    let _ = SOCKETS.remove(cookie);
    unuse(held);
}

/// Remembers what a socket was given, in place of what it was given before and the kernel refused.
#[inline(always)]
fn note(cookie: u64, held: SocketPort) {
    if SOCKETS.insert(cookie, held, u64::from(BPF_NOEXIST)).is_ok() {
        return;
    }
    // SAFETY: as in `release`.
    if let Some(&before) = unsafe { SOCKETS.get(cookie) }
        && before != held
    {
        unuse(before);
    }
    if SOCKETS.insert(cookie, held, 0).is_err() {
        unuse(held);
    }
}

/// Goes round the grant once, from where the last search ended, and takes the first port that looks free. 0 if none
/// does.
#[inline(always)]
fn take_free(cgroup_id: u64, protocol: Protocol, walk: &Walk) -> u32 {
    for step in 0..MAX_STEPS {
        if step > walk.round {
            return 0;
        }
        let Some(at) = walk.step() else { continue };
        let port = claim(cgroup_id, protocol.index(), at.into());
        if port != 0 {
            walk.go_on_at((port as u16).wrapping_add(1));
            return port;
        }
    }
    0
}

/// The next granted port that was bound by number, or else the next one at all.
#[inline(always)]
fn any(cgroup_id: u64, protocol: Protocol, walk: &Walk) -> u32 {
    // Once through the index, and to its first word again.
    for _ in 0..=INDEX_WORDS {
        let Some(at) = walk.step() else { continue };
        let port = claim_any(cgroup_id, protocol.index(), at.into());
        if port != 0 {
            walk.go_on_at((port as u16).wrapping_add(1));
            return port;
        }
    }
    0
}

/// The walk through the granted words of one task and protocol.
///
/// Its position is in the map and read from there in each step. So the verifier knows nothing of it
/// and finds all steps alike; in a register it would follow every way that the position can take.
struct Walk {
    index: *const u64,
    position: *mut u64,
    /// Steps that go round the grant once.
    round: u32,
}

impl Walk {
    #[inline(always)]
    fn of(cgroup_id: u64, protocol: Protocol) -> Option<Self> {
        let task = TASK_PORTS.get_ptr(cgroup_id)?;
        let counters = COUNTERS.get_ptr_mut(cgroup_id)?;
        let protocol = protocol.index() as usize;
        // SAFETY: `protocol` is 0 or 1, and all three are arrays of two.
        unsafe {
            Some(Self {
                index: (&raw const (*task).words).cast::<u64>().add(protocol * INDEX_WORDS),
                position: (&raw mut (*counters).next_port).cast::<u64>().add(protocol),
                round: (&raw const (*task).round).cast::<u32>().add(protocol).read_volatile(),
            })
        }
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

/// Takes a port of the word that `at` is in, from `at` on, that looks free and was never bound by number. 0 if there
/// is none, or if another socket was faster.
#[inline(never)]
fn claim(cgroup_id: u64, protocol: u32, at: u32) -> u32 {
    let at = at as u16;
    let Some(word) = PORTS.get_ptr_mut(word_key(cgroup_id, Protocol::of(protocol), at)) else { return 0 };
    // SAFETY: fields of a map value, aligned.
    let taken =
        unsafe { (&raw const (*word).used).read_volatile() | (&raw const (*word).numbered).read_volatile() };
    let free = granted(word) & (u64::MAX << (at & 63)) & !taken;
    if free == 0 {
        return 0;
    }
    let port = (at & !63) | trailing_zeros(free);
    // SAFETY: a field of a map value, aligned.
    let was = unsafe { fetch_or(&raw mut (*word).used, port_bit(port)) };
    if was & port_bit(port) == 0 { port.into() } else { 0 }
}

/// The same for any port, those that are not used first; with [`TAKEN`] where all are.
#[inline(never)]
fn claim_any(cgroup_id: u64, protocol: u32, at: u32) -> u32 {
    let at = at as u16;
    let Some(word) = PORTS.get_ptr_mut(word_key(cgroup_id, Protocol::of(protocol), at)) else { return 0 };
    let all = granted(word) & (u64::MAX << (at & 63));
    if all == 0 {
        return 0;
    }
    // SAFETY: a field of a map value, aligned.
    let unused = all & !unsafe { (&raw const (*word).used).read_volatile() };
    let port = (at & !63) | trailing_zeros(if unused == 0 { all } else { unused });
    // SAFETY: as above.
    let was = unsafe { fetch_or(&raw mut (*word).used, port_bit(port)) };
    if was & port_bit(port) == 0 { port.into() } else { u32::from(port) | TAKEN }
}

/// Nobody that was given the port holds it any more.
#[inline(always)]
fn unuse(held: SocketPort) {
    let port = held.port as u16;
    let key = word_key(held.cgroup_id, Protocol::of(held.protocol), port);
    // Gone when the task's grant was taken back while a socket lived on elsewhere.
    let Some(word) = PORTS.get_ptr_mut(key) else { return };
    // SAFETY: a field of a map value, aligned.
    unsafe { fetch_and(&raw mut (*word).used, !port_bit(port)) };
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
