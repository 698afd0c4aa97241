//! Devices: grants and denials. `enforce` and the agent share these.

/// What a [`DeviceKey::kind`] says, as in linux/bpf.h.
pub mod device_kind {
    /// A block device.
    pub const BLOCK: u32 = 1;
    /// A character device.
    pub const CHAR: u32 = 2;
}

/// Bits of [`DeviceKey::access`], as in linux/bpf.h.
pub mod device_access {
    /// Making its file.
    pub const MAKE: u32 = 1;
    /// Reading.
    pub const READ: u32 = 2;
    /// Writing.
    pub const WRITE: u32 = 4;
}

/// Character devices that every task may use and make files of: they lead nowhere but into the task itself.
/// Major and minor number: null, zero, full, random, urandom; tty and ptmx.
pub const HARMLESS_DEVICES: [(u32, u32); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
/// The major numbers of pseudo-terminals (/dev/pts), all of whose minors are harmless.
pub const PTS_MAJORS: core::ops::RangeInclusive<u32> = 136..=143;

/// Most granted devices at one time, all tasks together.
pub const MAX_DEVICES: u32 = 16_384;
/// Most [`DeviceKey`]s with a denial at one time.
pub const MAX_DEVICE_DENIALS: u32 = 16_384;
/// Most keys of its own that one task gets in the map of denials; further ones are counted together.
pub const MAX_DENIED_DEVICES: u64 = 64;
/// Size of the ring buffer of events: some 800 of them.
pub const DEVICE_RING_BYTES: u32 = 64 * 1024;

/// Names a device of one task.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceKey {
    /// The task's cgroup.
    pub cgroup_id: u64,
    /// A [`device_kind`]; 0 stands for all that is beyond [`MAX_DENIED_DEVICES`].
    pub kind: u32,
    /// The driver's number.
    pub major: u32,
    /// The number within the driver.
    pub minor: u32,
    /// What was refused, bits of [`device_access`]. In the map of grants it is the value, and 0 here.
    pub access: u32,
}

/// What programs count for one task.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Calls that were refused, all of them.
    pub denied: u64,
    /// Keys of this task in the map of denials, bounded by [`MAX_DENIED_DEVICES`].
    pub denied_keys: u64,
}

const _: () = {
    assert!(size_of::<DeviceKey>() == 8 + 4 * 4);
    assert!(size_of::<DeviceCounters>() == 2 * 8);
    assert!(DEVICE_RING_BYTES.is_power_of_two());
};

/// Sound because of the sizes asserted above: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    use super::{DeviceCounters, DeviceKey};

    // SAFETY: repr(C), integers only, and no padding (asserted in the parent module).
    unsafe impl aya::Pod for DeviceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DeviceCounters {}
}
