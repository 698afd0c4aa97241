//! What of an answer is worth telling again. Pure.

use bulkhead_proto::v1::DataAccess;

/// A difference below this is nothing that a task would notice.
const NOTICED_USEC: u64 = 10_000;
/// Nor is one of so few bytes: a log that grows, a page here and there.
const NOTICED_BYTES: u64 = 16 << 20;

/// Does `now` differ from what was told last by so much that somebody might decide otherwise?
pub fn is_news(told: Option<&DataAccess>, now: &DataAccess, percent: u32) -> bool {
    let Some(told) = told else { return true };
    let total =
        |a: &DataAccess| a.cached_bytes.saturating_add(a.disk_bytes).saturating_add(a.elsewhere_bytes);
    let all_bytes = total(told).max(total(now));
    let bytes =
        |part: fn(&DataAccess) -> u64| differs(part(told), part(now), all_bytes, NOTICED_BYTES, percent);
    told.error != now.error
        || told.assumed != now.assumed
        || differs(
            told.access_usec,
            now.access_usec,
            told.access_usec.max(now.access_usec),
            NOTICED_USEC,
            percent,
        )
        || bytes(|a| a.cached_bytes)
        || bytes(|a| a.disk_bytes)
        || bytes(|a| a.elsewhere_bytes)
}

fn differs(before: u64, after: u64, of: u64, at_least: u64, percent: u32) -> bool {
    let difference = before.abs_diff(after);
    difference >= at_least && u128::from(difference) * 100 >= u128::from(of) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told() -> DataAccess {
        DataAccess {
            cached_bytes: 1 << 30,
            disk_bytes: 1 << 30,
            access_usec: 2_000_000,
            ..DataAccess::default()
        }
    }

    #[test]
    fn noise_is_no_news() {
        let news = |now: &DataAccess| is_news(Some(&told()), now, 10);
        assert!(is_news(None, &told(), 10));
        assert!(!news(&told()));
        assert!(!news(&DataAccess { access_usec: 2_150_000, entries_seen: 3, sampled: true, ..told() }));
        assert!(news(&DataAccess { access_usec: 2_300_000, ..told() }));
        assert!(!news(&DataAccess { cached_bytes: (1 << 30) + (100 << 20), ..told() }));
        assert!(news(&DataAccess { cached_bytes: 0, disk_bytes: 2 << 30, ..told() }));
        assert!(news(&DataAccess { error: "gone".into(), ..DataAccess::default() }));
        assert!(news(&DataAccess { assumed: true, ..told() }));
    }

    #[test]
    fn of_small_things_only_what_a_task_notices_is_news() {
        let small = |access_usec| DataAccess { access_usec, ..DataAccess::default() };
        assert!(!is_news(Some(&small(10)), &small(9000), 10));
        assert!(is_news(Some(&small(10)), &small(20_000), 10));
    }

    proptest! {
        #[test]
        fn the_same_again_is_never_news(cached_bytes: u64, disk_bytes: u64, access_usec: u64, percent in 0_u32..200) {
            let same = DataAccess { cached_bytes, disk_bytes, access_usec, ..DataAccess::default() };
            prop_assert!(!is_news(Some(&same), &same, percent));
        }
    }
}
