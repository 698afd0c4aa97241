//! Denials: counted exactly, reported at 1, 2, 4, 8 and so on.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated::bpf_ktime_get_ns,
    },
};
use bulkhead_abi::{COMM_LEN, Denial, DenialEvent, DenialKey, MAX_DENIED_PORTS, TaskCounters};

use crate::{
    DENY,
    atomic::fetch_add,
    maps::{COUNTERS, DENIALS, EVENTS},
};

/// A bind that is not allowed.
pub struct Denied {
    pub cgroup_id: u64,
    pub ip_version: u16,
    pub protocol: u16,
    pub port: u16,
}

impl Denied {
    /// Counts the denial and returns the hook's answer.
    #[inline(always)]
    pub fn answer(self) -> i32 {
        // SAFETY: the helper has no preconditions.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        let counters = COUNTERS.get_ptr_mut(self.cgroup_id);
        if let Some(c) = counters {
            // SAFETY: a field of a map value, aligned.
            unsafe { fetch_add(&raw mut (*c).denied, 1) };
        }
        if let Some((key, denial)) = self.entry(counters, now_ns) {
            // SAFETY: fields of a map value, aligned.
            let count = unsafe {
                (&raw mut (*denial).last_ns).write_volatile(now_ns);
                fetch_add(&raw mut (*denial).count, 1) + 1
            };
            if count & (count - 1) == 0 {
                report(&key, count, now_ns);
            }
        }
        DENY
    }

    /// Where this denial is counted. `None` when the map is full: it is then in the task's total only.
    #[inline(always)]
    fn entry(&self, counters: Option<*mut TaskCounters>, now_ns: u64) -> Option<(DenialKey, *mut Denial)> {
        let mut key = DenialKey {
            cgroup_id: self.cgroup_id,
            port: self.port,
            protocol: self.protocol,
            ip_version: self.ip_version,
            other: 0,
        };
        if let Some(d) = DENIALS.get_ptr_mut(key) {
            return Some((key, d));
        }
        // SAFETY: a field of a map value, aligned.
        let keys = counters.map(|c| unsafe { &raw mut (*c).denied_ports });
        // SAFETY: as above.
        let own = keys.filter(|&k| unsafe { k.read_volatile() } < MAX_DENIED_PORTS);
        if own.is_none() {
            key.port = 0;
            key.other = 1;
        }
        let first = Denial { count: 0, first_ns: now_ns, last_ns: now_ns };
        if DENIALS.insert(key, first, u64::from(BPF_NOEXIST)).is_ok()
            && let Some(keys) = own
        {
            // SAFETY: a field of a map value, aligned.
            unsafe { fetch_add(keys, 1) };
        }
        DENIALS.get_ptr_mut(key).map(|d| (key, d))
    }
}

#[inline(always)]
fn report(key: &DenialKey, count: u64, time_ns: u64) {
    let Some(mut slot) = EVENTS.reserve::<DenialEvent>(0) else { return };
    slot.write(DenialEvent {
        key: *key,
        count,
        time_ns,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        comm: bpf_get_current_comm().unwrap_or([0; COMM_LEN]),
    });
    slot.submit(0);
}
