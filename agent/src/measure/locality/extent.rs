//! How much data one open file has, and how much of it is in memory. Nothing is read.

use std::{io, os::fd::BorrowedFd, time::Instant};

use rustix::fs::{SeekFrom, seek};

use super::{sample::spread, tally::scaled};
use crate::kernel::page_cache::{PageCache, page_bytes};

/// A file of more parts than this is taken for one without holes, of as much data as it has blocks.
const MOST_EXTENTS: usize = 256;
/// Asked about at once: so much takes the kernel some milliseconds at most.
const COUNTED_WINDOW: u64 = 1 << 30;
const MAPPED_WINDOW: u64 = 64 << 20;

/// Of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) data_bytes: u64,
    pub(super) cached_bytes: u64,
    /// Not all of its pages were asked about.
    pub(super) sampled: bool,
}

/// Data of a regular file of this size and so many bytes of blocks.
///
/// Holes are no data and cost nothing. After `until` it is at one window, which is then taken for the rest.
pub(super) fn held(
    file: BorrowedFd<'_>,
    (size, allocated): (u64, u64),
    page_cache: PageCache,
    until: Instant,
) -> io::Result<Held> {
    let whole = vec![(0, size)];
    let extents = if allocated < size { extents(file, size).unwrap_or_else(|| whole.clone()) } else { whole };
    let data_bytes = extents.iter().map(|(_, len)| len).sum::<u64>();
    let held = cached(file, &extents, page_cache, until)?;
    if extents.len() == 1 && data_bytes > allocated && allocated > 0 {
        // Compressed, or too many holes to tell: what has blocks is what would have to be read.
        let cached_bytes = scaled(held.cached_bytes, allocated, data_bytes);
        return Ok(Held { data_bytes: allocated, cached_bytes, ..held });
    }
    Ok(held)
}

/// Parts between holes, as (offset, length) on borders of pages; `None` where the file system does not tell, or there
/// are too many.
fn extents(file: BorrowedFd<'_>, size: u64) -> Option<Vec<(u64, u64)>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return None,
        };
        let hole = seek(file, SeekFrom::Hole(data)).ok()?.min(size);
        if hole <= data || extents.len() == MOST_EXTENTS {
            return None;
        }
        let begin = data / page_bytes() * page_bytes();
        extents.push((begin, hole - begin));
        at = hole;
    }
    Some(extents)
}

fn cached(
    file: BorrowedFd<'_>,
    extents: &[(u64, u64)],
    page_cache: PageCache,
    until: Instant,
) -> io::Result<Held> {
    let window = if page_cache == PageCache::Counted { COUNTED_WINDOW } else { MAPPED_WINDOW };
    let windows: u64 = extents.iter().map(|(_, len)| len.div_ceil(window)).sum();
    let data_bytes = extents.iter().map(|(_, len)| len).sum::<u64>();
    let (mut asked, mut cached_bytes, mut sampled) = (0_u64, 0_u64, false);
    for number in spread(windows) {
        if asked > 0 && Instant::now() >= until {
            sampled = true;
            break;
        }
        let Some((offset, len)) = nth_window(extents, window, number) else { break };
        cached_bytes += page_cache.cached_bytes(file, offset, len)?;
        asked += len;
    }
    let cached_bytes = if sampled { scaled(cached_bytes, data_bytes, asked) } else { cached_bytes };
    Ok(Held { data_bytes, cached_bytes: cached_bytes.min(data_bytes), sampled })
}

fn nth_window(extents: &[(u64, u64)], window: u64, mut number: u64) -> Option<(u64, u64)> {
    for (offset, len) in extents {
        let here = len.div_ceil(window);
        if number < here {
            let begin = number * window;
            return Some((offset + begin, window.min(len - begin)));
        }
        number -= here;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd as _, os::unix::fs::FileExt as _, os::unix::fs::MetadataExt as _};

    use proptest::prelude::*;

    use super::*;

    fn held_of(file: &File) -> Held {
        let m = file.metadata().unwrap();
        held(file.as_fd(), (m.size(), m.blocks() * 512), PageCache::probe(), Instant::now()).unwrap()
    }

    #[test]
    fn holes_are_no_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(held_of(&file), Held::default(), "nothing but a hole");
        file.write_all_at(&[1; 8192], 1 << 30).unwrap();
        file.write_all_at(&[1; 4096], 1 << 35).unwrap();
        let held = held_of(&file);
        assert!((12288..65536).contains(&held.data_bytes), "{held:?}");
        assert_eq!(held.cached_bytes, held.data_bytes, "it was just written");
    }

    #[test]
    fn an_empty_file_and_a_small_one() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(held_of(&file), Held::default());
        file.write_all_at(b"abc", 0).unwrap();
        let held = held_of(&file);
        assert_eq!((held.data_bytes, held.cached_bytes), (3, 3));
    }

    proptest! {
        #[test]
        fn windows_cover_each_extent_once(lens in prop::collection::vec(1_u64..50, 1..6), window in 1_u64..20) {
            let extents: Vec<_> = lens.iter().enumerate().map(|(i, len)| (i as u64 * 100, *len)).collect();
            let windows: u64 = lens.iter().map(|len| len.div_ceil(window)).sum();
            let mut covered: Vec<u64> =
                spread(windows).filter_map(|n| nth_window(&extents, window, n)).flat_map(|(at, len)| at..at + len).collect();
            covered.sort_unstable();
            let expected: Vec<u64> = extents.iter().flat_map(|(at, len)| *at..at + len).collect();
            prop_assert_eq!(covered, expected);
            prop_assert_eq!(nth_window(&extents, window, windows), None);
        }
    }
}
