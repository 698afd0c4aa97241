//! Is a port granted, and where is it counted if not?

use aya_ebpf::maps::{HashMap, RingBuf};
use bulkhead_abi::{Denial, DenialKey, MAX_DENIED_PORTS, PORTS_PER_WORD, PortWordKey};

use crate::{
    denial::{Counters, Denied},
    maps::{COUNTERS, DENIALS, EVENTS, GRANTS},
    protocol::Protocol,
};

impl Denied for DenialKey {
    const MAX_KEYS: u64 = MAX_DENIED_PORTS;

    #[inline(always)]
    fn shared(self) -> Self {
        Self { port: 0, other: 1, ..self }
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

/// A task without any entry is granted nothing.
#[inline(always)]
pub fn contains(cgroup_id: u64, protocol: Protocol, port: u16) -> bool {
    // SAFETY: without preallocation the kernel replaces values as a whole; a read of one word is not torn.
    match unsafe { GRANTS.get(word_key(cgroup_id, protocol, port)) } {
        Some(granted) => granted & port_bit(port) != 0,
        None => false,
    }
}
