//! How much of a file is in the page cache, asked without reading any of it.
//!
//! `cachestat(2)` (Linux 6.5) counts the pages of a range. Where it is missing, and on overlayfs, whose files keep their
//! pages with the file below, the range is mapped without being touched and `mincore(2)` looks at each of its pages.
//!
//! Sources: the kernel's `mm/filemap.c` and `mm/mincore.c`. Both calls answer only those who own the file or may write
//! it: `cachestat` says `EPERM` to others, while `mincore` claims that all is cached, so it is not asked then.

use std::{
    ffi::{c_long, c_void},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    ptr::null_mut,
};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access, geteuid},
};
use syscalls::Sysno;

/// A byte for each page of it is needed to ask `mincore`.
const MAPPED_BYTES: u64 = 64 << 20;

/// How the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageCache {
    /// By `cachestat`.
    Counted,
    /// By `mincore`.
    Mapped,
}

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct Range {
    off: u64,
    len: u64,
}

/// `struct cachestat` of linux/mman.h; all in pages.
#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

impl PageCache {
    /// How this kernel can be asked.
    pub fn probe() -> Self {
        // No such descriptor: a kernel that knows the call says so.
        match counted(-1, 0, 1) {
            Err(Errno::EBADF) => Self::Counted,
            _ => Self::Mapped,
        }
    }

    /// Bytes of the range that are in the page cache. A page counts as far as it is in the range.
    ///
    /// `offset` is a multiple of the page size; `file` is a regular file that is open for reading.
    ///
    /// # Errors
    /// `EPERM` where the caller neither owns the file nor may write it, and what mapping it can end with.
    pub fn cached_bytes(self, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
        if len == 0 {
            return Ok(0);
        }
        let pages = match self {
            Self::Counted => match counted(file.as_raw_fd(), offset, len) {
                // Of huge pages there are no counts.
                Err(Errno::EOPNOTSUPP) => mapped(file, offset, len)?,
                other => other?,
            },
            Self::Mapped => mapped(file, offset, len)?,
        };
        Ok(pages.saturating_mul(page_bytes()).min(len))
    }
}

/// Size of a page.
pub fn page_bytes() -> u64 {
    procfs::page_size().max(1)
}

fn counted(file: RawFd, off: u64, len: u64) -> Result<u64, Errno> {
    let range = Range { off, len };
    let mut counts = Counts::default();
    let number = Sysno::cachestat as c_long;
    // SAFETY: the kernel reads one Range and writes one Counts, both of the layout of its UAPI and alive through the
    // call; it takes any number for the descriptor.
    let result = unsafe { libc::syscall(number, file, &raw const range, &raw mut counts, 0_u32) };
    Errno::result(result).map(|_| counts.cached)
}

fn mapped(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
    may_ask(file)?;
    let mut pages = 0;
    let end = offset.saturating_add(len);
    let mut at = offset;
    while at < end {
        let part = MAPPED_BYTES.min(end - at);
        pages += mapped_part(file, at, part)?;
        at += part;
    }
    Ok(pages)
}

/// As the kernel's `can_do_mincore`.
fn may_ask(file: BorrowedFd<'_>) -> io::Result<()> {
    let euid = geteuid();
    let owns = || nix::sys::stat::fstat(file).map(|stat| stat.st_uid == euid.as_raw());
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    if euid.is_root() || owns()? || access(link.as_str(), AccessFlags::W_OK).is_ok() {
        return Ok(());
    }
    Err(Errno::EPERM.into())
}

fn mapped_part(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
    let too_large = |_| io::Error::from(Errno::EOVERFLOW);
    let length = usize::try_from(len).map_err(too_large)?;
    let offset = i64::try_from(offset).map_err(too_large)?;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing of it is ever read or written, so what
    // happens to the file meanwhile does not matter.
    let map = unsafe {
        libc::mmap(null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset)
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let counted = resident(map, length);
    // SAFETY: exactly the mapping made above, to which no reference exists.
    let unmapped = Errno::result(unsafe { libc::munmap(map, length) });
    let pages = counted?;
    unmapped?;
    Ok(pages)
}

fn resident(map: *mut c_void, length: usize) -> Result<u64, Errno> {
    let page = usize::try_from(page_bytes()).unwrap_or(4096);
    let mut pages = vec![0_u8; length.div_ceil(page)];
    // SAFETY: the range is one whole mapping, and the kernel writes one byte for each of its pages, for which the
    // vector has room.
    Errno::result(unsafe { libc::mincore(map, length, pages.as_mut_ptr()) })?;
    Ok(pages.iter().filter(|page| **page & 1 != 0).count() as u64)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::fd::AsFd as _};

    use super::*;

    fn file(bytes: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; bytes]).unwrap();
        file
    }

    #[test]
    fn what_was_just_written_is_cached_by_either_way_of_asking() {
        let page = page_bytes();
        let bytes = 5 * page + 10;
        let file = file(usize::try_from(bytes).unwrap());
        let mut ways = vec![PageCache::Mapped];
        if PageCache::probe() == PageCache::Counted {
            ways.push(PageCache::Counted);
        }
        for way in ways {
            assert_eq!(way.cached_bytes(file.as_fd(), 0, bytes).unwrap(), bytes, "{way:?}");
            assert_eq!(way.cached_bytes(file.as_fd(), page, 2 * page).unwrap(), 2 * page, "{way:?}");
            assert_eq!(way.cached_bytes(file.as_fd(), 0, 0).unwrap(), 0, "{way:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_an_error() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(PageCache::Mapped.cached_bytes(reader.as_fd(), 0, 1).is_err());
    }
}
