//! Which task a packet comes from that opens something within the node.
//!
//! Its receiver sees a port that the kernel chose, which says nothing. So while any task's rules name tasks, those that
//! send leave a note of what they open; the packet is received within moments, on the same node. Tasks in network
//! namespaces of their own leave none: their addresses may be those of others.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use bulkhead_abi::{OPENING_NS, Opener, Opening};

use crate::maps::{OPENINGS, TALK_NAMING};

/// Would anybody ask?
#[inline(always)]
pub fn matters() -> bool {
    // SAFETY: one word, which is not torn.
    TALK_NAMING.get_ptr(0).is_some_and(|naming| unsafe { naming.read_volatile() } != 0)
}

/// The task sends this.
#[inline(always)]
pub fn note(cgroup_id: u64, opening: Opening) {
    // SAFETY: the helper has no preconditions.
    let opener = Opener { cgroup_id, sent_ns: unsafe { bpf_ktime_get_ns() } };
    // A map that takes no more makes the peer a stranger, who is told apart from tasks as all strangers are.
    let _ = OPENINGS.insert(opening, opener, 0);
}

/// The task that sent this a moment ago; 0 for none.
#[inline(always)]
pub fn sender(opening: Opening) -> u64 {
    let Some(opener) = OPENINGS.get_ptr(opening) else { return 0 };
    // SAFETY: fields of a map value, aligned; the helper has no preconditions. No two sockets have the same key at a
    // time, so an entry that is replaced meanwhile is of the same packet sent again.
    let (cgroup_id, sent_ns, now_ns) = unsafe {
        (
            (&raw const (*opener).cgroup_id).read_volatile(),
            (&raw const (*opener).sent_ns).read_volatile(),
            bpf_ktime_get_ns(),
        )
    };
    if now_ns.wrapping_sub(sent_ns) < OPENING_NS { cgroup_id } else { 0 }
}
