//! What the kernel counts of one cgroup, from the texts of its files. Pure.
//!
//! Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst` and `Documentation/accounting/psi.rst`.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// CPU time, counted since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuCount {
    /// Used by all processes together.
    pub used_usec: u64,
    /// For how long processes that wanted to run were kept from it by their cap; 0 without the cpu controller.
    pub throttled_usec: u64,
    /// Periods of the cap in which anything ran.
    pub periods: u64,
    /// And those of them in which it was used up.
    pub throttled_periods: u64,
}

/// Memory in use at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemUse {
    /// All that is charged: what `memory.max` is held against.
    pub all_bytes: u64,
    /// Anonymous.
    pub anon_bytes: u64,
    /// Page cache, shared memory and tmpfs among it.
    pub file_bytes: u64,
    /// The part of the page cache that is used again and again.
    pub active_file_bytes: u64,
    /// The other part, which goes first.
    pub inactive_file_bytes: u64,
    /// In swap, and not in `all_bytes`.
    pub swap_bytes: u64,
    /// The kernel's own, for these processes.
    pub kernel_bytes: u64,
}

/// How long processes stood still for one resource, counted since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StallCount {
    /// At least one of them.
    pub some_usec: u64,
    /// All that had anything to do, at once.
    pub full_usec: u64,
}

/// The three resources that the kernel tells stalls of; `None` where it does not (`psi=0`, no `CONFIG_PSI`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalls<T> {
    /// Waiting for a CPU.
    pub cpu: Option<T>,
    /// Waiting for memory to be taken back or brought in again.
    pub mem: Option<T>,
    /// Waiting for a disk.
    pub io: Option<T>,
}

impl<T> Stalls<T> {
    /// Each of the three through the same function.
    pub fn map<U>(self, mut change: impl FnMut(T) -> U) -> Stalls<U> {
        Stalls {
            cpu: self.cpu.map(&mut change),
            mem: self.mem.map(&mut change),
            io: self.io.map(&mut change),
        }
    }

    /// The resources by the names that metrics and tables give them.
    pub fn by_name(self) -> [(&'static str, Option<T>); 3] {
        [("cpu", self.cpu), ("memory", self.mem), ("io", self.io)]
    }
}

/// What was moved from and to disks, counted since the cgroup was made.
///
/// Over all devices that the kernel lists; what goes through a stacked one (device mapper, md) counts for each layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCount {
    /// Read, page cache not counted.
    pub read_bytes: u64,
    /// Written, writeback included.
    pub written_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

impl DiskCount {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            read_bytes: self.read_bytes.saturating_add(other.read_bytes),
            written_bytes: self.written_bytes.saturating_add(other.written_bytes),
            read_ops: self.read_ops.saturating_add(other.read_ops),
            write_ops: self.write_ops.saturating_add(other.write_ops),
        }
    }
}

/// Everything that was read of one cgroup at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When.
    pub at: Instant,
    /// There in every cgroup.
    pub cpu: CpuCount,
    /// `None` without the memory controller.
    pub mem: Option<MemUse>,
    /// What processes waited for.
    pub stalls: Stalls<StallCount>,
    /// `None` without the io controller.
    pub disk: Option<DiskCount>,
}

/// `cpu.stat`. Keys that are not there count as 0.
pub fn cpu_count(text: &str) -> CpuCount {
    let mut count = CpuCount::default();
    for (key, value) in pairs(text) {
        match key {
            "usage_usec" => count.used_usec = value,
            "throttled_usec" => count.throttled_usec = value,
            "nr_periods" => count.periods = value,
            "nr_throttled" => count.throttled_periods = value,
            _ => {}
        }
    }
    count
}

/// `memory.stat`, with the amounts of two other files.
pub fn mem_use(all_bytes: u64, swap_bytes: u64, stat: &str) -> MemUse {
    let mut mem = MemUse { all_bytes, swap_bytes, ..MemUse::default() };
    // The sum of all kinds came with Linux 5.18.
    let (mut kernel, mut kinds) = (None, 0u64);
    for (key, value) in pairs(stat) {
        match key {
            "anon" => mem.anon_bytes = value,
            "file" => mem.file_bytes = value,
            "active_file" => mem.active_file_bytes = value,
            "inactive_file" => mem.inactive_file_bytes = value,
            "kernel" => kernel = Some(value),
            "kernel_stack" | "pagetables" | "slab" => kinds = kinds.saturating_add(value),
            _ => {}
        }
    }
    mem.kernel_bytes = kernel.unwrap_or(kinds);
    mem
}

/// A file of pressure. The `full` line of the whole machine's CPU, and before Linux 5.13 of any, is not there: 0.
/// `None` where there is no `some` line.
pub fn stall_count(text: &str) -> Option<StallCount> {
    let total = |line: &str| line.rsplit_once("total=")?.1.trim().parse().ok();
    let (mut some, mut full) = (None, 0);
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("some", rest)) => some = total(rest),
            Some(("full", rest)) => full = total(rest).unwrap_or(0),
            _ => {}
        }
    }
    Some(StallCount { some_usec: some?, full_usec: full })
}

/// `io.stat`. A device that the cgroup has not touched may be there without numbers.
pub fn disk_count(text: &str) -> DiskCount {
    let mut count = DiskCount::default();
    for (key, value) in text.split_ascii_whitespace().filter_map(|pair| pair.split_once('=')) {
        let Ok(value) = value.parse::<u64>() else { continue };
        let sum = match key {
            "rbytes" => &mut count.read_bytes,
            "wbytes" => &mut count.written_bytes,
            "rios" => &mut count.read_ops,
            "wios" => &mut count.write_ops,
            _ => continue,
        };
        *sum = sum.saturating_add(value);
    }
    count
}

/// A file with one number in it.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines of a key and a number; others are left out.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_there_without_the_controller() {
        let plain = "usage_usec 12\nuser_usec 8\nsystem_usec 4\n";
        assert_eq!(cpu_count(plain), CpuCount { used_usec: 12, ..CpuCount::default() });
        let capped = "usage_usec 12\nnr_periods 5\nnr_throttled 3\nthrottled_usec 77\nnr_bursts 0\n";
        let expected = CpuCount { used_usec: 12, throttled_usec: 77, periods: 5, throttled_periods: 3 };
        assert_eq!(cpu_count(capped), expected);
        assert_eq!(cpu_count("usage_usec -3\nusage_usec\n\n"), CpuCount::default());
    }

    #[test]
    fn memory_by_kinds_with_the_kernels_sum_where_it_tells_one() {
        let stat = "anon 1\nfile 20\nkernel 300\nkernel_stack 5\nactive_file 12\ninactive_file 7\nslab 9\n";
        let expected = MemUse {
            all_bytes: 400,
            anon_bytes: 1,
            file_bytes: 20,
            active_file_bytes: 12,
            inactive_file_bytes: 7,
            swap_bytes: 8,
            kernel_bytes: 300,
        };
        assert_eq!(mem_use(400, 8, stat), expected);
        let before_5_18 = "anon 1\nkernel_stack 5\npagetables 2\nslab 9\nslab_reclaimable 4\n";
        assert_eq!(mem_use(0, 0, before_5_18).kernel_bytes, 16);
    }

    #[test]
    fn stalls_are_the_totals() {
        let both = "some avg10=1.00 avg60=0.00 avg300=0.00 total=99\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=41\n";
        assert_eq!(stall_count(both), Some(StallCount { some_usec: 99, full_usec: 41 }));
        assert_eq!(stall_count("some avg10=1.00 total=9\n"), Some(StallCount { some_usec: 9, full_usec: 0 }));
        for text in ["", "full avg10=1.00 total=9\n", "some\n", "some avg10=1.00 total=x\n"] {
            assert_eq!(stall_count(text), None, "{text}");
        }
    }

    #[test]
    fn disks_are_added_up() {
        let text =
            "254:0 rbytes=90112 wbytes=5 rios=22 wios=3 dbytes=0 dios=0\n8:0 \n7:1 rbytes=8 rios=x wios=-1\n";
        let expected = DiskCount { read_bytes: 90_120, written_bytes: 5, read_ops: 22, write_ops: 3 };
        assert_eq!(disk_count(text), expected);
        assert_eq!(disk_count(""), DiskCount::default());
    }
}
