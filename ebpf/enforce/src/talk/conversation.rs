//! Peers that sockets without a connection talk with, where the answers need a rule of their own and have none.
//!
//! The map forgets those that were silent for longest. An entry is worth nothing once its socket is closed: cookies
//! are never used again.

use bulkhead_abi::Conversation;

use super::address::Address;
use crate::maps::CONVERSATIONS;

/// From now on both may go on.
#[inline(always)]
pub fn remember(cookie: u64, peer: &Address, port: u16) {
    let key = key(cookie, peer, port);
    if CONVERSATIONS.get_ptr(key).is_none() {
        // A map that takes no more loses an answer, as the network may.
        let _ = CONVERSATIONS.insert(key, 1, 0);
    }
}

/// Has one of the two opened it, as a rule allows?
#[inline(always)]
pub fn goes_on(cookie: u64, peer: &Address, port: u16) -> bool {
    CONVERSATIONS.get_ptr(key(cookie, peer, port)).is_some()
}

#[inline(always)]
fn key(cookie: u64, peer: &Address, port: u16) -> Conversation {
    Conversation { cookie, address: peer.bytes(), port: port.into(), unused: 0 }
}
