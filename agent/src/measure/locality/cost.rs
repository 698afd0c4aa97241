//! From bytes and bandwidths to time. Pure.

use bulkhead_proto::v1::DataAccess;

use super::{
    bandwidth::{Bandwidths, Speed},
    tally::{Amount, Home, Tally, scaled},
};

const USEC_PER_SEC: u64 = 1_000_000;

/// Time to read so much from there: its bytes one after the other, and a request for each of its files. At most
/// `u64::MAX`, where nothing moves.
pub(super) fn usec(amount: Amount, speed: &Speed) -> u64 {
    let bytes = scaled(amount.bytes, USEC_PER_SEC, speed.bytes_per_sec);
    bytes.saturating_add(scaled(amount.files, USEC_PER_SEC, speed.requests_per_sec))
}

/// The answer about a data set of which this is known.
pub(super) fn access(name: &str, tally: &Tally, bandwidths: &Bandwidths) -> DataAccess {
    let cached = Amount { bytes: tally.cached_bytes, files: 0 };
    let mut access_usec = usec(cached, &bandwidths.memory);
    let mut assumed = bandwidths.memory.assumed && cached.bytes > 0;
    for (home, amount) in &tally.homes {
        let speed = bandwidths.of(home);
        access_usec = access_usec.saturating_add(usec(*amount, &speed));
        assumed |= speed.assumed;
    }
    DataAccess {
        data_set: name.to_owned(),
        cached_bytes: tally.cached_bytes,
        disk_bytes: tally.bytes_at(|home| matches!(home, Home::Disk(_))),
        elsewhere_bytes: tally.bytes_at(|home| *home == Home::Elsewhere),
        access_usec,
        sampled: tally.sampled,
        entries_seen: tally.seen,
        entries_total: tally.total,
        entries_skipped: tally.skipped,
        assumed,
        error: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn speed(bytes_per_sec: u64, requests_per_sec: u64) -> Speed {
        Speed { bytes_per_sec, requests_per_sec, assumed: false }
    }

    #[test]
    fn each_part_is_read_at_the_speed_of_where_it_is() {
        let bandwidths = Bandwidths {
            memory: speed(10_000_000, 0),
            disks: [("vda".to_owned(), speed(1_000_000, 100))].into(),
            unknown_disk: Speed { assumed: true, ..speed(500_000, 50) },
            network: speed(100_000, u64::MAX),
        };
        let mut tally = Tally::default();
        tally.add(10_000_000, 2_000_000, &Home::Disk("vda".into()));
        tally.add(0, 50_000, &Home::Elsewhere);
        let known = access("/d", &tally, &bandwidths);
        assert_eq!(known.access_usec, 1_000_000 + 2_000_000 + 10_000 + 500_000);
        assert_eq!(
            (known.cached_bytes, known.disk_bytes, known.elsewhere_bytes),
            (10_000_000, 2_000_000, 50_000)
        );
        assert!(!known.assumed);
        tally.add(0, 1, &Home::Disk("vdb".into()));
        assert!(access("/d", &tally, &bandwidths).assumed);
    }

    proptest! {
        #[test]
        fn more_bytes_or_files_never_cost_less(
            bytes: u64, more_bytes: u64, files: u64, more_files: u64, bytes_per_sec: u64, requests_per_sec: u64,
        ) {
            let speed = speed(bytes_per_sec, requests_per_sec);
            let less = usec(Amount { bytes, files }, &speed);
            let more = Amount {
                bytes: bytes.saturating_add(more_bytes),
                files: files.saturating_add(more_files),
            };
            prop_assert!(usec(more, &speed) >= less);
        }

        #[test]
        fn more_bandwidth_never_costs_more(bytes: u64, files: u64, slow in 1_u64.., faster: u64) {
            let amount = Amount { bytes, files };
            let fast = speed(slow.saturating_add(faster), slow.saturating_add(faster));
            prop_assert!(usec(amount, &fast) <= usec(amount, &speed(slow, slow)));
        }
    }
}
