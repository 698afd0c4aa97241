//! Which devices a task may open, and make files of.

use aya_ebpf::{
    bindings::bpf_cgroup_dev_ctx,
    maps::{HashMap, RingBuf},
};
use bulkhead_abi::{Denial, DeviceKey, HARMLESS_DEVICES, MAX_DENIED_DEVICES, PTS_MAJORS, device_kind::CHAR};

use crate::{
    ALLOW,
    denial::{Counters, Denied, deny},
    maps::{DEVICE_COUNTERS, DEVICE_DENIALS, DEVICE_EVENTS, DEVICES},
    task,
};

/// Answers an open, a check of permissions or a mknod.
#[inline(always)]
pub fn access(device: *mut bpf_cgroup_dev_ctx) -> i32 {
    let Some(cgroup_id) = task::current() else { return ALLOW };
    // SAFETY: `device` is the context of this hook; the verifier admits whole, aligned reads of these fields.
    let (access_type, major, minor) = unsafe {
        (
            (&raw const (*device).access_type).read_volatile(),
            (&raw const (*device).major).read_volatile(),
            (&raw const (*device).minor).read_volatile(),
        )
    };
    // The context keeps the access above the kind.
    let (access, kind) = (access_type >> 16, access_type & 0xffff);
    if kind == CHAR && harmless(major, minor) {
        return ALLOW;
    }
    let key = DeviceKey { cgroup_id, kind, major, minor, access: 0 };
    // SAFETY: without preallocation the kernel replaces values as a whole; a read of one word is not torn.
    let granted = unsafe { DEVICES.get(key) }.copied().unwrap_or(0);
    if access & !granted == 0 { ALLOW } else { deny(DeviceKey { access, ..key }) }
}

#[inline(always)]
fn harmless(major: u32, minor: u32) -> bool {
    PTS_MAJORS.contains(&major) || HARMLESS_DEVICES.contains(&(major, minor))
}

impl Denied for DeviceKey {
    const MAX_KEYS: u64 = MAX_DENIED_DEVICES;

    #[inline(always)]
    fn shared(self) -> Self {
        Self { kind: 0, major: 0, minor: 0, access: 0, ..self }
    }

    #[inline(always)]
    fn counters(self) -> Option<Counters> {
        let counters = DEVICE_COUNTERS.get_ptr_mut(self.cgroup_id)?;
        // SAFETY: fields of a map value.
        Some(unsafe {
            Counters { denied: &raw mut (*counters).denied, keys: &raw mut (*counters).denied_keys }
        })
    }

    #[inline(always)]
    fn denials() -> &'static HashMap<Self, Denial> {
        &DEVICE_DENIALS
    }

    #[inline(always)]
    fn events() -> &'static RingBuf {
        &DEVICE_EVENTS
    }
}
