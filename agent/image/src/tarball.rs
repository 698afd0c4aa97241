//! The entries of a tar stream, one after the other, with bounds on everything that is kept in memory.
//!
//! The fields of a header are decoded by the `tar` crate. What lies between headers is read here, because a layer
//! is hostile: the crate keeps extended headers of any size in memory, and takes the values of PAX records for
//! lines of text, which extended attributes are not.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

/// Everything in a tar stream starts at a multiple of this.
const BLOCK: usize = 512;
/// Most bytes of one extended header. Extended attributes are 64 KiB at most, and few.
const MAX_EXTENDED: u64 = 1 << 20;
/// Most pieces of a sparse file.
const MAX_PIECES: usize = 1 << 16;
/// The kernel counts positions in files with a sign.
const MAX_SIZE: u64 = i64::MAX.cast_unsigned();

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file, whose bytes follow.
    File,
    /// A file with holes: the bytes of these pieces follow, without what is between them.
    Sparse {
        /// With its holes.
        size: u64,
        /// (offset, length) in ascending order, adding up to what follows.
        pieces: Vec<(u64, u64)>,
    },
    /// Another name of an entry before.
    HardLink(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device, by major and minor.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it is written there; may be anything but holds no NUL.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Bytes that follow in the stream.
    pub(crate) size: u64,
    /// The permission bits, with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    /// Extended attributes, as they are written there.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The stream is no tar stream, or asks for too much.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The stream cannot be read: it is cut off, or not what it was compressed from.
    #[error("read it")]
    Read(#[from] io::Error),
    /// A header says nothing usable.
    #[error("entry {number}: {why}")]
    Header { number: u64, why: &'static str },
}

/// Moves forward in what it reads from.
pub(crate) trait Skip: Read {
    /// Leaves out this many bytes. May succeed behind the end.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// A stream that can only be read.
pub(crate) struct Stream<R>(pub(crate) R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Skip for Stream<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink())?;
        if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// A tar stream.
pub(crate) struct Tarball<R> {
    inner: R,
    /// Bytes of the current entry that nobody read so far.
    unread: u64,
    /// Bytes that fill its last block.
    padding: u64,
    /// Bytes from the start of the stream.
    position: u64,
    number: u64,
}

/// What extended headers say of the entry after them.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Skip> Tarball<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, unread: 0, padding: 0, position: 0, number: 0 }
    }

    /// Where the bytes of the current entry start, when none was read.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn bad<T>(&self, why: &'static str) -> Result<T, TarError> {
        Err(TarError::Header { number: self.number, why })
    }

    /// The next entry; `None` at the end. What was not read of the entry before is left out.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = Extended::default();
        let mut headers = 0;
        loop {
            let rest = self.unread + self.padding;
            self.inner.skip(rest)?;
            self.position += rest;
            (self.unread, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().or_else(|_| self.bad("its size is no number"))?;
            headers += 1;
            if headers > 16 {
                return self.bad("more than 16 extended headers before it");
            }
            let kind = header.entry_type();
            match kind.as_byte() {
                b'x' | b'X' => {
                    let records = self.extended(size)?;
                    self.read_pax(&records, &mut extended)?;
                }
                // Says something of all entries; builders of images write nothing but comments into it.
                b'g' => drop(self.extended(size)?),
                b'L' => extended.path = Some(without_nul(self.extended(size)?)),
                b'K' => extended.link = Some(without_nul(self.extended(size)?)),
                _ => return self.entry(&header, kind, size, extended).map(Some),
            }
        }
    }

    /// The header at this place; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(room) = block.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.inner.read(room) {
                // Some tools leave out the empty blocks at the end.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.position += BLOCK as u64;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        self.number += 1;
        let header = Header::from_byte_slice(&block).clone();
        // The sum is made with spaces in its own place.
        let sum = |range: std::ops::Range<usize>| block[range].iter().map(|b| u32::from(*b)).sum::<u32>();
        let computed = sum(0..148) + 8 * u32::from(b' ') + sum(156..BLOCK);
        if header.cksum().ok() != Some(computed) {
            return self.bad("its checksum is wrong: this is no tar archive, or a damaged one");
        }
        Ok(Some(header))
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        extended: Extended,
    ) -> Result<Entry, TarError> {
        let size = extended.size.unwrap_or(size);
        if size > MAX_SIZE {
            return self.bad("it is larger than a file can be");
        }
        let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extended.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let link = link.unwrap_or_default();
        if path.contains(&0) || link.contains(&0) {
            return self.bad("its name has a NUL byte in it");
        }
        let device = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
        let kind = match kind {
            // The oldest archives know directories by their names alone.
            EntryType::Regular if header.as_bytes()[156] == 0 && path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Link => Kind::HardLink(link),
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Char => Kind::CharDevice(device(header.device_major()), device(header.device_minor())),
            EntryType::Block => Kind::BlockDevice,
            EntryType::Directory => Kind::Directory,
            EntryType::Fifo => Kind::Fifo,
            EntryType::GNUSparse => self.sparse(header, size)?,
            _ => return self.bad("it is of a kind that images do not have"),
        };
        let follows = if matches!(kind, Kind::File | Kind::Sparse { .. }) { size } else { 0 };
        self.unread = follows;
        self.padding = follows.next_multiple_of(BLOCK as u64) - follows;
        let id = |own: Option<u64>, plain: io::Result<u64>| {
            let id = own.or_else(|| plain.ok()).and_then(|id| u32::try_from(id).ok());
            // The highest number means "nobody" to chown(2).
            id.filter(|id| *id != u32::MAX)
        };
        let (uid, gid) = (id(extended.uid, header.uid()), id(extended.gid, header.gid()));
        let (Some(uid), Some(gid)) = (uid, gid) else {
            return self.bad("its owner or group is no number that the kernel takes");
        };
        let Ok(mode) = header.mode() else { return self.bad("its mode is no number") };
        let seconds = header.mtime().ok().and_then(|s| i64::try_from(s).ok()).unwrap_or(0);
        let mtime = extended.mtime.unwrap_or((seconds, 0));
        Ok(Entry { path, kind, size: follows, mode: mode & 0o7777, uid, gid, mtime, xattrs: extended.xattrs })
    }

    /// The whole of an extended header's content.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENDED {
            return self.bad("an extended header is larger than 1 MiB");
        }
        let mut content = Vec::new();
        self.inner.by_ref().take(size).read_to_end(&mut content)?;
        if content.len() as u64 != size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        self.position += size;
        Ok(content)
    }

    /// PAX: any number of `LENGTH KEY=VALUE\n`, where the length is that of the whole record.
    fn read_pax(&self, records: &[u8], extended: &mut Extended) -> Result<(), TarError> {
        let mut rest = records;
        while !rest.is_empty() {
            let Some((key, value, after)) = record(rest) else {
                return self.bad("a PAX record is malformed");
            };
            let number = || std::str::from_utf8(value).ok().and_then(|v| v.parse::<u64>().ok());
            match key {
                b"path" => extended.path = Some(value.to_vec()),
                b"linkpath" => extended.link = Some(value.to_vec()),
                b"size" => {
                    extended.size =
                        number().map_or_else(|| self.bad("its size is no number"), |n| Ok(Some(n)))?
                }
                b"uid" => extended.uid = Some(number().unwrap_or(u64::MAX)),
                b"gid" => extended.gid = Some(number().unwrap_or(u64::MAX)),
                b"mtime" => extended.mtime = time(value),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return self
                        .bad("it is a sparse file in PAX form, which is not read: pack without --sparse");
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        extended.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// The map of a sparse file: four pieces in the header, and more of them in blocks of their own.
    fn sparse(&mut self, header: &Header, stored: u64) -> Result<Kind, TarError> {
        let Some(gnu) = header.as_gnu() else { return self.bad("it is sparse, but not in GNU form") };
        let Ok(size) = gnu.real_size() else { return self.bad("its size is no number") };
        let mut pieces = Vec::new();
        let piece = |p: &tar::GnuSparseHeader| Some((p.offset().ok()?, p.length().ok()?));
        pieces.extend(gnu.sparse.iter().filter(|p| !p.is_empty()).map(piece));
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.inner.read_exact(block.as_mut_bytes())?;
            self.position += BLOCK as u64;
            pieces.extend(block.sparse().iter().filter(|p| !p.is_empty()).map(piece));
            if pieces.len() > MAX_PIECES {
                return self.bad("it is sparse in too many pieces");
            }
            more = block.is_extended();
        }
        let Some(pieces) = pieces.into_iter().collect::<Option<Vec<_>>>() else {
            return self.bad("its map of holes is malformed");
        };
        let (mut end, mut total) = (0, 0_u64);
        for (offset, length) in &pieces {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
            let Some(next) = next else { return self.bad("its map of holes is malformed") };
            (end, total) = (next, total + length);
        }
        if total != stored {
            return self.bad("its map of holes does not fit its bytes");
        }
        Ok(Kind::Sparse { size, pieces })
    }
}

/// Bytes of the current entry.
impl<R: Skip> Read for Tarball<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.by_ref().take(self.unread).read(buffer)?;
        if n == 0 && self.unread > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.unread -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    if name.last() == Some(&0) {
        name.pop();
    }
    name
}

/// Key, value, and what follows.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(text.get(..space)?).ok()?.parse().ok()?;
    let (whole, rest) = text.split_at_checked(length)?;
    let body = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((body.get(..equals)?, body.get(equals + 1..)?, rest))
}

/// Seconds with a fraction, as PAX writes them.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    // Minus one and a half is two seconds before, and half a second more.
    match nanos {
        0 => Some((seconds, 0)),
        _ if whole.starts_with('-') => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

#[cfg(test)]
#[path = "tarball/tests.rs"]
mod tests;
