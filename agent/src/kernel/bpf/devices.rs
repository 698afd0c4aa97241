//! Device grants and denials of tasks, in the pinned maps.

use std::{collections::BTreeMap, fmt, path::Path};

use bulkhead_abi::{Denial, DeviceCounters, DeviceKey, device_access, device_kind, names};

use super::{BpfError, table::Table};

/// A device, whatever its file is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// A block device, or else a character device.
    pub block: bool,
    /// The driver's number.
    pub major: u32,
    /// The number within the driver.
    pub minor: u32,
}

/// `block device 8:0`.
impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.block { "block" } else { "character" };
        write!(f, "{kind} device {}:{}", self.major, self.minor)
    }
}

impl DeviceId {
    fn key(self, cgroup_id: u64) -> DeviceKey {
        let kind = if self.block { device_kind::BLOCK } else { device_kind::CHAR };
        DeviceKey { cgroup_id, kind, major: self.major, minor: self.minor, access: 0 }
    }

    /// The device that a denial is about; `None` for what is counted together.
    pub fn of(key: &DeviceKey) -> Option<Self> {
        let id = Self { block: key.kind == device_kind::BLOCK, major: key.major, minor: key.minor };
        (key.kind != 0).then_some(id)
    }
}

/// What an access is called: `read, write`.
pub fn access_name(access: u32) -> String {
    let names =
        [(device_access::READ, "read"), (device_access::WRITE, "write"), (device_access::MAKE, "make")];
    let named = names.into_iter().filter(|(bit, _)| access & bit != 0).map(|(_, name)| name);
    named.collect::<Vec<_>>().join(", ")
}

/// Which devices each task may use, besides [`bulkhead_abi::HARMLESS_DEVICES`] and pseudo-terminals. Keyed by the id
/// of the task's cgroup, which is never used again for another.
pub struct DeviceRules {
    devices: Table<DeviceKey, u32>,
    counters: Table<u64, DeviceCounters>,
    denials: Table<DeviceKey, Denial>,
}

impl DeviceRules {
    /// Opens the maps in [`Loaded::devices`](super::Loaded::devices).
    ///
    /// # Errors
    /// A map that is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            devices: Table::open(dir, names::DEVICES)?,
            counters: Table::open(dir, names::DEVICE_COUNTERS)?,
            denials: Table::open(dir, names::DEVICE_DENIALS)?,
        })
    }

    /// Grants exactly this: devices, and bits of [`device_access`] for each. What was granted before and is not among
    /// them is taken back; what is open stays open. Counts are kept.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer; then some may be granted, until [`revoke`](Self::revoke).
    pub fn grant(&self, cgroup_id: u64, devices: &BTreeMap<DeviceId, u32>) -> Result<(), BpfError> {
        // Looking for what was granted takes a system call for each device of all tasks: not for a new task.
        let before =
            if self.counters.get(&cgroup_id)?.is_some() { self.granted(cgroup_id)? } else { Vec::new() };
        self.counters.make(cgroup_id, DeviceCounters::default())?;
        for (id, access) in devices {
            self.devices.set(id.key(cgroup_id), *access)?;
        }
        let stays = |key: &DeviceKey| DeviceId::of(key).is_some_and(|id| devices.contains_key(&id));
        for key in before.iter().filter(|key| !stays(key)) {
            self.devices.delete(key)?;
        }
        Ok(())
    }

    /// Takes everything back, and forgets the denials. Harmless for a task that is not known.
    ///
    /// # Errors
    /// The kernel's answer; calling again goes on where it stopped.
    pub fn revoke(&self, cgroup_id: u64) -> Result<(), BpfError> {
        for key in self.granted(cgroup_id)? {
            self.devices.delete(&key)?;
        }
        // As above: not for a task that is known to have none.
        if self.counters.get(&cgroup_id)?.is_none_or(|counters| counters.denied > 0) {
            for (key, _) in self.denials(cgroup_id)? {
                self.denials.delete(&key)?;
            }
        }
        self.counters.delete(&cgroup_id)
    }

    /// How often this task was refused a device since it was first granted something. Exact.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn total_denied(&self, cgroup_id: u64) -> Result<u64, BpfError> {
        Ok(self.counters.get(&cgroup_id)?.map_or(0, |c| c.denied))
    }

    /// What was denied to this task, in order. At most
    /// [`MAX_DENIED_DEVICES`](bulkhead_abi::MAX_DENIED_DEVICES) are told apart; the rest is one entry.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn denials(&self, cgroup_id: u64) -> Result<Vec<(DeviceKey, Denial)>, BpfError> {
        let mut found = self.denials.select(|key| key.cgroup_id == cgroup_id)?;
        found.sort_by_key(|(key, _)| *key);
        Ok(found)
    }

    fn granted(&self, cgroup_id: u64) -> Result<Vec<DeviceKey>, BpfError> {
        let found = self.devices.select(|key| key.cgroup_id == cgroup_id)?;
        Ok(found.into_iter().map(|(key, _)| key).collect())
    }
}
