//! Reads the formats, entry by entry. The content says which it is.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufReader, Read, Seek as _},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use tar::EntryType;

use super::{Kind, MAX_LINK_BYTES, UnpackError, Unpacker, gate::Gated, text};

/// Feeds every entry of the archive to the unpacker.
pub(super) fn entries(mut archive: File, to: &mut Unpacker<'_>) -> Result<(), UnpackError> {
    let mut magic = [0; 4];
    let mut start = (&archive).take(magic.len() as u64);
    let mut read = 0;
    while let Ok(more @ 1..) = start.read(&mut magic[read..]) {
        read += more;
    }
    archive.rewind().map_err(damaged)?;
    match magic {
        [0x1f, 0x8b, ..] => tar_entries(flate2::read::MultiGzDecoder::new(BufReader::new(archive)), to),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            tar_entries(zstd::stream::read::Decoder::new(archive).map_err(damaged)?, to)
        }
        // With entries, and empty.
        [b'P', b'K', 3, 4] | [b'P', b'K', 5, 6] => zip_entries(archive, to),
        _ => tar_entries(BufReader::new(archive), to),
    }
}

fn damaged(error: impl std::fmt::Display) -> UnpackError {
    UnpackError::Format(error.to_string())
}

fn tar_entries(reader: impl Read, to: &mut Unpacker<'_>) -> Result<(), UnpackError> {
    let (reader, gate) = Gated::new(reader);
    let mut archive = tar::Archive::new(reader);
    let mut entries = archive.entries().map_err(damaged)?;
    loop {
        gate.headers();
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(damaged)?;
        gate.open();
        let name = entry.path_bytes().into_owned();
        let name = OsStr::from_bytes(&name);
        let header = entry.header();
        let (mode, kind) = (header.mode().map_err(damaged)?, header.entry_type());
        let mtime = header.mtime().ok().and_then(|t| i64::try_from(t).ok());
        let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
        let kind = match kind {
            EntryType::Directory => Kind::Dir,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File(&mut entry),
            EntryType::Symlink => Kind::Symlink(OsStr::from_bytes(&target)),
            EntryType::Link => Kind::HardLink(OsStr::from_bytes(&target)),
            // Comments for the whole archive.
            EntryType::XGlobalHeader => continue,
            other => return Err(UnpackError::Kind { name: text(name), kind: word(other) }),
        };
        to.entry(name, mode, mtime, kind)?;
        // So that only headers follow.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(damaged)?;
    }
}

fn word(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Char => "character device",
        EntryType::Block => "block device",
        EntryType::Fifo => "pipe",
        _ => "thing of an unknown kind",
    }
}

fn zip_entries(archive: File, to: &mut Unpacker<'_>) -> Result<(), UnpackError> {
    let mut archive = zip::ZipArchive::new(BufReader::new(archive)).map_err(damaged)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(damaged)?;
        let name = entry.name_raw().to_vec();
        let name = OsStr::from_bytes(&name);
        let mode = entry.unix_mode();
        if let Some(kind) = mode.and_then(special) {
            return Err(UnpackError::Kind { name: text(name), kind });
        }
        if entry.is_dir() {
            to.entry(name, mode.unwrap_or(0o755), None, Kind::Dir)?;
        } else if entry.is_symlink() {
            let mut target = Vec::new();
            (&mut entry).take(MAX_LINK_BYTES + 1).read_to_end(&mut target).map_err(damaged)?;
            let target = std::ffi::OsString::from_vec(target);
            to.entry(name, 0, None, Kind::Symlink(&target))?;
        } else {
            to.entry(name, mode.unwrap_or(0o644), None, Kind::File(&mut entry))?;
        }
    }
    Ok(())
}

/// What the mode says that a zip file's entry is, where that is neither file, directory nor link.
fn special(mode: u32) -> Option<&'static str> {
    use rustix::fs::FileType;
    match FileType::from_raw_mode(mode) {
        FileType::CharacterDevice => Some("character device"),
        FileType::BlockDevice => Some("block device"),
        FileType::Fifo => Some("pipe"),
        FileType::Socket => Some("socket"),
        _ => None,
    }
}
