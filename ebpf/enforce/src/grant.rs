//! Is a port granted, and where is it counted if not?

use aya_ebpf::maps::{HashMap, RingBuf};
use bulkhead_abi::{
    Denial, DenialKey, MAX_DENIED_PORTS, PORTS_PER_WORD, PortWord, PortWordKey, denied_call, port_choice,
};

use crate::{
    atomic::fetch_or,
    denial::{Counters, Denied},
    maps::{COUNTERS, DENIALS, EVENTS, PORTS, TASK_PORTS},
    protocol::Protocol,
};

impl Denied for DenialKey {
    const MAX_KEYS: u64 = MAX_DENIED_PORTS;

    #[inline(always)]
    fn shared(self) -> Self {
        Self { port: 0, call: denied_call::OTHERS, ..self }
    }

    #[inline(always)]
    fn counters(self) -> Option<Counters> {
        let counters = COUNTERS.get_ptr_mut(self.cgroup_id)?;
        // SAFETY: fields of a map value.
        Some(unsafe {
            Counters { denied: &raw mut (*counters).denied, keys: &raw mut (*counters).denied_ports }
        })
    }

    #[inline(always)]
    fn denials() -> &'static HashMap<Self, Denial> {
        &DENIALS
    }

    #[inline(always)]
    fn events() -> &'static RingBuf {
        &EVENTS
    }
}

/// What a task may have the kernel choose: bits of [`port_choice`]. A task that was never granted anything may do
/// what one without ports may.
#[inline(always)]
pub fn choice(cgroup_id: u64) -> u32 {
    // SAFETY: without preallocation the kernel replaces values as a whole.
    unsafe { TASK_PORTS.get(cgroup_id) }.map_or(port_choice::DEFAULT, |task| task.choice)
}

/// Which sockets a task may make besides the usual: bits of `bulkhead_abi::socket_kind`.
#[inline(always)]
pub fn sockets(cgroup_id: u64) -> u32 {
    // SAFETY: as above.
    unsafe { TASK_PORTS.get(cgroup_id) }.map_or(0, |task| task.sockets)
}

/// Names the word of ports that `port` is in.
#[inline(always)]
pub fn word_key(cgroup_id: u64, protocol: Protocol, port: u16) -> PortWordKey {
    PortWordKey { cgroup_id, word: u32::from(port) / PORTS_PER_WORD, protocol: protocol.index() }
}

/// The bit of `port` within its word.
#[inline(always)]
pub fn port_bit(port: u16) -> u64 {
    1 << (u32::from(port) % PORTS_PER_WORD)
}

/// The granted ports of a word.
#[inline(always)]
pub fn granted(word: *mut PortWord) -> u64 {
    // SAFETY: a field of a map value, aligned; a single word is not torn.
    unsafe { (&raw const (*word).granted).read_volatile() }
}

/// Is this port granted? A task without any entry is granted nothing.
#[inline(always)]
pub fn contains(cgroup_id: u64, protocol: Protocol, port: u16) -> bool {
    match PORTS.get_ptr_mut(word_key(cgroup_id, protocol, port)) {
        Some(word) => granted(word) & port_bit(port) != 0,
        None => false,
    }
}

/// The same for a port that is asked for by number, which is noted: others are chosen before it.
#[inline(always)]
pub fn takes_by_number(cgroup_id: u64, protocol: Protocol, port: u16) -> bool {
    let Some(word) = PORTS.get_ptr_mut(word_key(cgroup_id, protocol, port)) else { return false };
    let bit = port_bit(port);
    if granted(word) & bit == 0 {
        return false;
    }
    // SAFETY: a field of a map value, aligned. Read first: most binds find the bit set.
    unsafe {
        let numbered = &raw mut (*word).numbered;
        if numbered.read_volatile() & bit == 0 {
            fetch_or(numbered, bit);
        }
    }
    true
}
