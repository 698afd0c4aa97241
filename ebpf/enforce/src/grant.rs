//! Is a port granted?

use bulkhead_abi::{PORTS_PER_WORD, PortWordKey};

use crate::{maps::GRANTS, protocol::Protocol};

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
