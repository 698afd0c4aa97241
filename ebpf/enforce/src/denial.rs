//! Denials: counted exactly, reported at 1, 2, 4, 8 and so on.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated::bpf_ktime_get_ns,
    },
    maps::{HashMap, RingBuf},
};
use bulkhead_abi::{COMM_LEN, Denial, DenialEvent};

use crate::{DENY, atomic::fetch_add};

/// What was denied, and the maps that it is counted in. Its own value is the key of the map of denials.
pub trait Denied: Copy + 'static {
    /// Most keys of its own that a task gets; further denials share one.
    const MAX_KEYS: u64;

    /// The key that they share.
    fn shared(self) -> Self;
    /// The task's counters, where it has any: of all denials, and of its keys.
    fn counters(self) -> Option<Counters>;
    /// Where denials are counted.
    fn denials() -> &'static HashMap<Self, Denial>;
    /// Where they are reported.
    fn events() -> &'static RingBuf;
}

/// Two words of a map value, aligned.
#[derive(Clone, Copy)]
pub struct Counters {
    pub denied: *mut u64,
    pub keys: *mut u64,
}

/// Counts a denial of a call and returns the hook's answer.
#[inline(always)]
pub fn deny<K: Denied>(key: K) -> i32 {
    count(key, |event| {
        event.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        event.uid = bpf_get_current_uid_gid() as u32;
        event.comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
    });
    DENY
}

/// Counts a packet that is dropped. Whoever runs at that moment has nothing to do with it.
#[inline(always)]
pub fn deny_packet<K: Denied>(key: K) {
    count(key, |_| ());
}

#[inline(always)]
fn count<K: Denied>(key: K, name_caller: impl FnOnce(&mut DenialEvent<K>)) {
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let counters = key.counters();
    if let Some(c) = counters {
        // SAFETY: a field of a map value, aligned.
        unsafe { fetch_add(c.denied, 1) };
    }
    if let Some((key, denial)) = entry(key, counters, now_ns) {
        // SAFETY: fields of a map value, aligned.
        let count = unsafe {
            (&raw mut (*denial).last_ns).write_volatile(now_ns);
            fetch_add(&raw mut (*denial).count, 1) + 1
        };
        if count & (count - 1) == 0 {
            report(key, count, now_ns, name_caller);
        }
    }
}

/// Where this denial is counted. `None` when the map is full: it is then in the task's total only.
#[inline(always)]
fn entry<K: Denied>(mut key: K, counters: Option<Counters>, now_ns: u64) -> Option<(K, *mut Denial)> {
    if let Some(d) = K::denials().get_ptr_mut(key) {
        return Some((key, d));
    }
    let keys = counters.map(|c| c.keys);
    // SAFETY: a field of a map value, aligned.
    let own = keys.filter(|&k| unsafe { k.read_volatile() } < K::MAX_KEYS);
    if own.is_none() {
        key = key.shared();
    }
    let first = Denial { count: 0, first_ns: now_ns, last_ns: now_ns };
    if K::denials().insert(key, first, u64::from(BPF_NOEXIST)).is_ok()
        && let Some(keys) = own
    {
        // SAFETY: a field of a map value, aligned.
        unsafe { fetch_add(keys, 1) };
    }
    K::denials().get_ptr_mut(key).map(|d| (key, d))
}

#[inline(always)]
fn report<K: Denied>(key: K, count: u64, time_ns: u64, name_caller: impl FnOnce(&mut DenialEvent<K>)) {
    let Some(mut slot) = K::events().reserve::<DenialEvent<K>>(0) else { return };
    let mut event = DenialEvent { key, count, time_ns, pid: 0, uid: 0, comm: [0; COMM_LEN] };
    name_caller(&mut event);
    slot.write(event);
    slot.submit(0);
}
