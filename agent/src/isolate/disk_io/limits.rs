//! What is written to `io.max` and `io.weight`, and read from `io.stat`. Pure.
//!
//! Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst`, "IO Interface Files".

use bulkhead_proto::{resources::SCALARS, v1::Resources};

use crate::{grant::DiskGrant, kernel::block::DeviceNumber};

/// The largest weight, and here the whole time of a disk.
const WHOLE: u32 = 10_000;
/// Where the disk's time is granted, the weights that tasks ask for only divide what is not: 1 to 100 of 10,000.
const ASKED_WEIGHTS: std::ops::RangeInclusive<u32> = 1..=100;
/// The kernel's bounds for `io.bfq.weight`.
const BFQ_WEIGHTS: std::ops::RangeInclusive<u32> = 1..=1000;

/// What a task may move; `None` is no cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    read_bytes: Option<u64>,
    write_bytes: Option<u64>,
    read_ops: Option<u64>,
    write_ops: Option<u64>,
}

impl Caps {
    /// Those of a grant.
    pub fn of(grant: &DiskGrant) -> Self {
        Self {
            read_bytes: grant.read_bytes_per_sec,
            write_bytes: grant.write_bytes_per_sec,
            read_ops: grant.read_ops_per_sec,
            write_ops: grant.write_ops_per_sec,
        }
    }

    /// No cap at all.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// For `io.max`. All four are named, so that what was there before is replaced.
    pub fn line(&self, disk: DeviceNumber) -> String {
        let cap = |cap: Option<u64>| cap.map_or_else(|| "max".to_owned(), |rate| rate.to_string());
        let [rbps, wbps, riops, wiops] =
            [self.read_bytes, self.write_bytes, self.read_ops, self.write_ops].map(cap);
        format!("{disk} rbps={rbps} wbps={wbps} riops={riops} wiops={wiops}")
    }
}

/// What the kernel counted of one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Read from the disk.
    pub read_bytes: u64,
    /// Written to it, by writeback too.
    pub written_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

impl Moved {
    /// From the text of `io.stat`; `None` where the disk is not in it.
    pub fn parse(text: &str, disk: DeviceNumber) -> Option<Self> {
        let number = disk.to_string();
        let pairs = text.lines().find_map(|line| line.strip_prefix(&number)?.strip_prefix(' '))?;
        let value = |key: &str| {
            let of = |pair: &str| pair.strip_prefix(key)?.strip_prefix('=')?.parse().ok();
            pairs.split(' ').find_map(of).unwrap_or(0)
        };
        Some(Self {
            read_bytes: value("rbytes"),
            written_bytes: value("wbytes"),
            read_ops: value("rios"),
            write_ops: value("wios"),
        })
    }
}

/// The weight of a task on a disk whose time is granted: its grant's part of that time, and what it asked for out of
/// the rest.
///
/// `measured` is what the disk does in both directions at once, so half of its time makes all of one direction's bytes,
/// or all of its operations. A grant of several of the four may need the time of all of them.
pub fn promised_weight(grant: &DiskGrant, measured: &Resources) -> u32 {
    let asked = (grant.io_weight / 100).clamp(*ASKED_WEIGHTS.start(), *ASKED_WEIGHTS.end());
    let granted = Resources {
        disk_read_bytes_per_sec: grant.read_bytes_per_sec.unwrap_or(0),
        disk_write_bytes_per_sec: grant.write_bytes_per_sec.unwrap_or(0),
        disk_read_ops_per_sec: grant.read_ops_per_sec.unwrap_or(0),
        disk_write_ops_per_sec: grant.write_ops_per_sec.unwrap_or(0),
        ..Resources::default()
    };
    let half = u128::from(WHOLE / 2);
    let time: u128 = SCALARS
        .iter()
        .map(|kind| ((kind.get)(&granted), (kind.get)(measured)))
        .filter(|(granted, all)| *granted > 0 && *all > 0)
        .map(|(granted, all)| (u128::from(granted) * half).div_ceil(u128::from(all)))
        .sum();
    u32::try_from(time).unwrap_or(WHOLE).saturating_add(asked).min(WHOLE)
}

/// The scheduler bfq has a tenth of the range.
pub fn bfq_weight(weight: u32) -> u32 {
    (weight / 10).clamp(*BFQ_WEIGHTS.start(), *BFQ_WEIGHTS.end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::{Class, plain};
    use proptest::prelude::*;

    const DISK: DeviceNumber = DeviceNumber { major: 254, minor: 0 };

    fn grant(io_weight: u32, [rbps, wbps, riops, wiops]: [u64; 4]) -> DiskGrant {
        let cap = |rate: u64| Some(rate).filter(|rate| *rate > 0);
        DiskGrant {
            io_weight,
            read_bytes_per_sec: cap(rbps),
            write_bytes_per_sec: cap(wbps),
            read_ops_per_sec: cap(riops),
            write_ops_per_sec: cap(wiops),
            ..plain(Class::Guaranteed, 100, 1 << 20).disk
        }
    }

    fn measured(of_each: u64) -> Resources {
        Resources {
            disk_read_bytes_per_sec: of_each,
            disk_write_bytes_per_sec: of_each,
            disk_read_ops_per_sec: of_each,
            disk_write_ops_per_sec: of_each,
            ..Resources::default()
        }
    }

    #[test]
    fn every_cap_is_named() {
        let caps = Caps::of(&grant(100, [1 << 20, 0, 0, 50]));
        assert_eq!(caps.line(DISK), "254:0 rbps=1048576 wbps=max riops=max wiops=50");
        assert!(!caps.is_none());
        assert_eq!(Caps::default().line(DISK), "254:0 rbps=max wbps=max riops=max wiops=max");
    }

    #[test]
    fn the_disk_is_found_among_others() {
        let text = "8:0 rbytes=1 wbytes=2\n\
                    254:0 rbytes=90112 wbytes=5 rios=22 wios=3 dbytes=0 dios=0 cost.vrate=100.00\n";
        let moved = Moved { read_bytes: 90_112, written_bytes: 5, read_ops: 22, write_ops: 3 };
        assert_eq!(Moved::parse(text, DISK), Some(moved));
        assert_eq!(Moved::parse(text, DeviceNumber { major: 54, minor: 0 }), None);
        // A disk that the cgroup has not touched may be there without numbers.
        assert_eq!(Moved::parse("254:0 \n", DISK), Some(Moved::default()));
        assert_eq!(Moved::parse("254:0 rbytes=x rios=-1\n", DISK), Some(Moved::default()));
    }

    #[test]
    fn a_grant_weighs_its_part_of_the_disks_time() {
        let all = measured(1000);
        let weight = |io_weight, rates| promised_weight(&grant(io_weight, rates), &all);
        assert_eq!(weight(100, [0, 0, 0, 0]), 1);
        assert_eq!(weight(300, [0, 0, 0, 0]), 3);
        assert_eq!(weight(10_000, [0, 0, 0, 0]), 100);
        assert_eq!(weight(100, [400, 0, 0, 0]), 2001);
        assert_eq!(weight(100, [400, 400, 400, 400]), 8001);
        assert_eq!(weight(100, [u64::MAX, u64::MAX, 1, 0]), 10_000);
        assert_eq!(promised_weight(&grant(100, [5, 5, 5, 5]), &Resources::default()), 1);
        assert_eq!([1, 10_000, 250].map(bfq_weight), [1, 1000, 25]);
    }

    proptest! {
        /// Whoever has a grant gets at least its time, next to all other grants and to twenty tasks without one.
        #[test]
        fn promised_time_is_there(grants in prop::collection::vec([0u64..100, 0u64..100, 0u64..100, 0u64..100], 1..6)) {
            let all = measured(1000);
            // At most 40 % of each kind is offered; five grants of up to 8 % stay within.
            let grants: Vec<_> = grants.into_iter().map(|rates| grant(10_000, rates.map(|r| r * 4 / 5))).collect();
            let strangers = 10 * promised_weight(&grant(10_000, [0; 4]), &all);
            let total: u32 = grants.iter().map(|g| promised_weight(g, &all)).sum::<u32>() + strangers;
            for grant in &grants {
                let part = f64::from(promised_weight(grant, &all)) / f64::from(total);
                let caps = Caps::of(grant);
                let of = |cap: Option<u64>| f64::from(u32::try_from(cap.unwrap_or(0)).unwrap()) / 1000.0 / 2.0;
                let time = of(caps.read_bytes) + of(caps.write_bytes) + of(caps.read_ops) + of(caps.write_ops);
                prop_assert!(part >= time, "{part} {time}");
            }
        }
    }
}
