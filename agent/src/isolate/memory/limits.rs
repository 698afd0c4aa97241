//! The limits of one task, from its grant.

use super::super::IsolateError;
use crate::{
    grant::{Class, Grant},
    kernel::cgroupfs::Cgroup,
};

/// What the files of a task's cgroup shall hold. The kernel rounds down to pages; here that is done already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// `memory.max`.
    pub(super) max_bytes: u64,
    /// `memory.high`.
    pub(super) high_bytes: Option<u64>,
    /// `memory.swap.max`.
    pub(super) swap_bytes: u64,
    /// `memory.oom.group`.
    pub(super) oom_group: bool,
    /// `memory.min` and `memory.low`.
    pub(super) protected_bytes: u64,
}

impl Limits {
    /// Pure. Revocable tasks are protected from nobody.
    pub(super) fn of(grant: &Grant, page_bytes: u64) -> Self {
        let whole = |bytes: u64| bytes / page_bytes * page_bytes;
        Self {
            max_bytes: whole(grant.mem.max_bytes),
            high_bytes: grant.mem.high_bytes.map(whole),
            swap_bytes: whole(grant.mem.swap_bytes),
            oom_group: grant.mem.oom_group,
            protected_bytes: if grant.class == Class::Guaranteed { whole(grant.mem_bytes) } else { 0 },
        }
    }

    /// What the task can use without being slowed down.
    pub(super) fn ceiling(&self) -> u64 {
        self.high_bytes.map_or(self.max_bytes, |high| high.min(self.max_bytes))
    }

    /// Of a cgroup that is new: what the kernel starts with is not written.
    pub(super) fn write_new(&self, cgroup: &Cgroup) -> Result<(), IsolateError> {
        cgroup.write("memory.max", &self.max_bytes.to_string())?;
        if self.high_bytes.is_some() {
            self.write_high(cgroup)?;
        }
        self.write_rest(cgroup)
    }

    /// Of a cgroup that may have had others. Lowers `memory.max` at once: see [`super::lowering`].
    pub(super) fn write(&self, cgroup: &Cgroup) -> Result<(), IsolateError> {
        cgroup.write("memory.max", &self.max_bytes.to_string())?;
        self.write_high(cgroup)?;
        self.write_rest(cgroup)
    }

    fn write_high(&self, cgroup: &Cgroup) -> Result<(), IsolateError> {
        let high = self.high_bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        Ok(cgroup.write("memory.high", &high)?)
    }

    fn write_rest(&self, cgroup: &Cgroup) -> Result<(), IsolateError> {
        // A grant is memory, not disk traffic: none unless it was asked for. Kernels without swap have no such file.
        if cgroup.has("memory.swap.max") {
            cgroup.write("memory.swap.max", &self.swap_bytes.to_string())?;
        } else if self.swap_bytes > 0 {
            return Err(IsolateError::Refused(
                "this kernel has no swap for cgroups (memory.swap.max): ask for no swap_bytes".to_owned(),
            ));
        }
        // By default half a task is worse than none: its other processes would wait for the one that is gone.
        Ok(cgroup.write("memory.oom.group", if self.oom_group { "1" } else { "0" })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::plain;

    #[test]
    fn limits_are_whole_pages_and_only_guaranteed_tasks_are_protected() {
        let mut grant = plain(Class::Guaranteed, 100, 50_000_001);
        let limits = Limits::of(&grant, 4096);
        assert_eq!((limits.max_bytes, limits.protected_bytes), (49_999_872, 49_999_872));
        assert_eq!((limits.high_bytes, limits.swap_bytes, limits.oom_group), (None, 0, true));
        grant.mem.max_bytes = 60_000_000;
        grant.mem.high_bytes = Some(55_000_000);
        let bursting = Limits::of(&grant, 4096);
        assert_eq!(bursting.protected_bytes, limits.protected_bytes, "the burst is not protected");
        assert_eq!((bursting.max_bytes, bursting.ceiling()), (59_998_208, 54_996_992));
        assert_eq!(Limits::of(&plain(Class::Revocable, 100, 1 << 30), 4096).protected_bytes, 0);
    }
}
