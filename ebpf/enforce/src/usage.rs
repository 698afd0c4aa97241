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

use bulkhead_abi::{INDEX_WORDS, SOCKET_WAYS, SocketPort, SocketSet, TaskPorts, port_choice, socket_set};

use crate::{
    atomic::{fetch_and, fetch_or, replace},
    grant::{granted, port_bit, word_key},
    maps::{COUNTERS, PORTS, SOCKETS, TASK_PORTS},
    protocol::Protocol,
};

/// Most steps of one search: a word of granted ports, or 64 words without any. A task that uses more
/// ports than these hold gets what the kernel says to a port in use, and the next search goes on there.
const MAX_STEPS: u32 = 128;

/// Set beside a port that another socket was given already.
const TAKEN: u32 = 1 << 16;

/// What a socket that asked for any port gets.
pub struct Choice {
    /// Noted as used: one that looks free, else one that was bound by number; else some port of the grant that is in use,
    /// so that the kernel answers. 0 for a task without ports, or where the policy says so.
    pub port: u16,
    /// The task's policy: bits of [`port_choice`].
    pub policy: u32,
}

/// Chooses, for a task whose policy has this bit.
#[inline(always)]
pub fn choose(cgroup_id: u64, protocol: Protocol, cookie: u64, policy: u32) -> Choice {
    let answer = ports_choose(cgroup_id, protocol.index(), cookie, policy);
    Choice { port: answer as u16, policy: (answer >> 32) as u32 }
}

/// The socket holds no port any more.
#[inline(always)]
pub fn release(cookie: u64) {
    ports_release(cookie);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ports_choose(cgroup_id: u64, protocol: u32, cookie: u64, wanted: u32) -> u64 {
    let protocol = Protocol::of(protocol);
    let Some(task) = TASK_PORTS.get_ptr(cgroup_id) else { return u64::from(port_choice::DEFAULT) << 32 };
    // SAFETY: a field of a map value, aligned.
    let policy = unsafe { (&raw const (*task).choice).read_volatile() };
    let answer = u64::from(policy) << 32;
    if policy & wanted == 0 {
        return answer;
    }
    let Some(walk) = Walk::of(cgroup_id, task, protocol) else { return answer };
    let port = match take_free(cgroup_id, protocol, &walk) {
        0 => any(cgroup_id, protocol, &walk),
        port => port,
    };
    if port & TAKEN != 0 {
        release(cookie);
    } else if port != 0 {
        note(cookie, SocketPort { cgroup_id, port, protocol: protocol.index() });
    }
    answer | u64::from(port & !TAKEN)
}

/// The sockets beside which this one is noted. Only a socket's own calls, which the kernel serialises, change its note;
/// where another takes its place meanwhile, a hint is lost.
struct Set {
    cookies: *mut u64,
    ports: *mut SocketPort,
}

impl Set {
    #[inline(always)]
    fn of(cookie: u64) -> Option<Self> {
        let set: *mut SocketSet = SOCKETS.get_ptr_mut(socket_set(cookie))?;
        // SAFETY: fields of a map value, aligned.
        unsafe {
            Some(Self { cookies: (&raw mut (*set).cookies).cast(), ports: (&raw mut (*set).ports).cast() })
        }
    }

    /// Whose place this is; `way` is below [`SOCKET_WAYS`].
    #[inline(always)]
    fn cookie(&self, way: usize) -> u64 {
        // SAFETY: an element of the array, aligned.
        unsafe { self.cookies.add(way).read_volatile() }
    }

    #[inline(always)]
    fn set_cookie(&self, way: usize, cookie: u64) {
        // SAFETY: as above.
        unsafe { self.cookies.add(way).write_volatile(cookie) };
    }

    /// Takes a place that is free.
    #[inline(always)]
    fn takes(&self, way: usize, cookie: u64) -> bool {
        // SAFETY: as above.
        self.cookie(way) == 0 && unsafe { replace(self.cookies.add(way), 0, cookie) } == 0
    }

    #[inline(always)]
    fn port(&self, way: usize) -> SocketPort {
        // SAFETY: as above.
        unsafe { self.ports.add(way).read_volatile() }
    }

    #[inline(always)]
    fn set_port(&self, way: usize, held: SocketPort) {
        // SAFETY: as above.
        unsafe { self.ports.add(way).write_volatile(held) };
    }
}

/// Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ports_release(cookie: u64) -> u32 {
    let Some(set) = Set::of(cookie) else { return 0 };
    for way in 0..SOCKET_WAYS {
        if set.cookie(way) == cookie {
            let held = set.port(way);
            set.set_cookie(way, 0);
            unuse(held);
            return 0;
        }
    }
    0
}

/// Remembers what a socket was given, in place of what it was given before and the kernel refused.
#[inline(always)]
fn note(cookie: u64, held: SocketPort) {
    let Some(set) = Set::of(cookie) else { return };
    for way in 0..SOCKET_WAYS {
        if set.cookie(way) == cookie {
            let before = set.port(way);
            set.set_port(way, held);
            if before != held {
                unuse(before);
            }
            return;
        }
    }
    for way in 0..SOCKET_WAYS {
        if set.takes(way, cookie) {
            return set.set_port(way, held);
        }
    }
    set.set_cookie(0, cookie);
    set.set_port(0, held);
}

/// Goes round the grant once, from where the last search ended, and takes the first port that looks free. 0 if none
/// does.
#[inline(always)]
fn take_free(cgroup_id: u64, protocol: Protocol, walk: &Walk) -> u32 {
    for step in 0..MAX_STEPS {
        if step > walk.round {
            return 0;
        }
        let (at, words) = walk.position();
        let port = walk.go_on(ports_claim(cgroup_id, protocol.index(), at, words));
        if port != 0 {
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
        let (at, words) = walk.position();
        let port = walk.go_on(ports_claim_any(cgroup_id, protocol.index(), at, words));
        if port != 0 {
            return port;
        }
    }
    0
}

/// The walk through the granted words of one task and protocol. Its position is in the map.
struct Walk {
    index: *const u64,
    position: *mut u64,
    /// Steps that go round the grant once.
    round: u32,
}

impl Walk {
    #[inline(always)]
    fn of(cgroup_id: u64, task: *const TaskPorts, protocol: Protocol) -> Option<Self> {
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

    /// The port to go on at, and which of the 64 words around it are granted.
    #[inline(always)]
    fn position(&self) -> (u32, u64) {
        // SAFETY: a field of a map value, aligned.
        let at = unsafe { self.position.read_volatile() } as u32 & 0xffff;
        // SAFETY: the index is below 16, the length of the array.
        let words = unsafe { self.index.add((at >> 12) as usize & 15).read_volatile() };
        (at, words)
    }

    /// Takes what a step returned: the port to go on at in the upper half, and the one that was found.
    #[inline(always)]
    fn go_on(&self, step: u64) -> u32 {
        // SAFETY: a field of a map value, aligned.
        unsafe { self.position.write_volatile(step >> 32) };
        step as u32
    }
}

/// Where to look from a position on.
struct Step {
    /// In a granted word, if there is any.
    at: Option<u16>,
    /// Where to go on if there is nothing.
    next: u16,
}

impl Step {
    /// To the position or to the first port of the next granted word, or past up to 64 words without any.
    #[inline(always)]
    fn of(at: u32, words: u64) -> Self {
        let (at, word) = (at as u16, (at as u16) >> 6);
        // Of 64 words: those that are granted, from the one at hand on.
        let words = words >> (word & 63);
        if words == 0 {
            return Self { at: None, next: ((word >> 6) + 1) << 12 };
        }
        let skip = trailing_zeros(words);
        let first = if skip == 0 { at } else { (word + skip) << 6 };
        Self { at: Some(first), next: (word + skip + 1) << 6 }
    }

    #[inline(always)]
    fn nothing(&self) -> u64 {
        u64::from(self.next) << 32
    }
}

/// Of a port that was found; the search goes on behind it.
#[inline(always)]
fn found(port: u16, taken: u32) -> u64 {
    u64::from(port.wrapping_add(1)) << 32 | u64::from(u32::from(port) | taken)
}

/// One step: takes a port of the next word, from the position on, that looks free and was never bound by number.
/// None if there is none, or if another socket was faster.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ports_claim(cgroup_id: u64, protocol: u32, at: u32, words: u64) -> u64 {
    let step = Step::of(at, words);
    let Some(at) = step.at else { return step.nothing() };
    let key = word_key(cgroup_id, Protocol::of(protocol), at);
    let Some(word) = PORTS.get_ptr_mut(key) else { return step.nothing() };
    // SAFETY: fields of a map value, aligned.
    let taken =
        unsafe { (&raw const (*word).used).read_volatile() | (&raw const (*word).numbered).read_volatile() };
    let free = granted(word) & (u64::MAX << (at & 63)) & !taken;
    if free == 0 {
        return step.nothing();
    }
    let port = (at & !63) | trailing_zeros(free);
    // SAFETY: a field of a map value, aligned.
    let was = unsafe { fetch_or(&raw mut (*word).used, port_bit(port)) };
    if was & port_bit(port) == 0 { found(port, 0) } else { step.nothing() }
}

/// The same for any port, those that are not used first; with [`TAKEN`] where all are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ports_claim_any(cgroup_id: u64, protocol: u32, at: u32, words: u64) -> u64 {
    let step = Step::of(at, words);
    let Some(at) = step.at else { return step.nothing() };
    let key = word_key(cgroup_id, Protocol::of(protocol), at);
    let Some(word) = PORTS.get_ptr_mut(key) else { return step.nothing() };
    let all = granted(word) & (u64::MAX << (at & 63));
    if all == 0 {
        return step.nothing();
    }
    // SAFETY: a field of a map value, aligned.
    let unused = all & !unsafe { (&raw const (*word).used).read_volatile() };
    let port = (at & !63) | trailing_zeros(if unused == 0 { all } else { unused });
    // SAFETY: as above.
    let was = unsafe { fetch_or(&raw mut (*word).used, port_bit(port)) };
    found(port, if was & port_bit(port) == 0 { 0 } else { TAKEN })
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
