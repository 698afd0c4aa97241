//! Where refused calls and dropped packets are counted.

use aya_ebpf::maps::{HashMap, RingBuf};
use bulkhead_abi::{Denial, MAX_DENIED_PEERS, TalkKey, denied};

use crate::{
    denial::{Counters, Denied},
    maps::{TALK_COUNTERS, TALK_DENIALS, TALK_EVENTS},
};

impl Denied for TalkKey {
    const MAX_KEYS: u64 = MAX_DENIED_PEERS;

    #[inline(always)]
    fn shared(self) -> Self {
        Self { port: 0, other: 1, address: [0; 16], ..self }
    }

    #[inline(always)]
    fn counters(self) -> Option<Counters> {
        let counters = TALK_COUNTERS.get_ptr_mut(self.cgroup_id)?;
        // SAFETY: fields of a map value.
        Some(unsafe {
            let count = if self.what == denied::CALL {
                &raw mut (*counters).refused
            } else {
                &raw mut (*counters).dropped
            };
            Counters { denied: count, keys: &raw mut (*counters).keys }
        })
    }

    #[inline(always)]
    fn denials() -> &'static HashMap<Self, Denial> {
        &TALK_DENIALS
    }

    #[inline(always)]
    fn events() -> &'static RingBuf {
        &TALK_EVENTS
    }
}
