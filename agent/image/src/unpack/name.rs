//! One name in a directory of a layer: looked at, cleared, made to hide, given its owner and times.

use std::{
    ffi::OsStr,
    fs,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags},
    io::Errno,
};

use super::{LayerError, fd_path};
use crate::tarball::Entry;

/// The names of what is being unpacked, for errors.
#[derive(Clone, Copy)]
pub(super) struct Named<'a>(pub(super) &'a Entry);

impl Named<'_> {
    pub(super) fn path(self) -> String {
        String::from_utf8_lossy(&self.0.path).chars().take(300).collect()
    }

    pub(super) fn refuse<T>(self, why: &'static str) -> Result<T, LayerError> {
        Err(LayerError::Refused { path: self.path(), why })
    }

    pub(super) fn op(self, op: &'static str) -> impl FnOnce(Errno) -> LayerError {
        move |e| LayerError::Write { path: self.path(), op, source: e.into() }
    }
}

pub(super) fn kind_of(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes what an earlier entry of the same layer put there.
pub(super) fn clear(parent: &OwnedFd, name: &OsStr, named: Named<'_>) -> Result<(), LayerError> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // Follows no links, and is not deep: see MAX_DEPTH.
        Err(Errno::ISDIR) => fs::remove_dir_all(fd_path(parent).join(name)).map_err(|source| {
            LayerError::Write { path: named.path(), op: "remove what it replaces", source }
        }),
        Err(e) => Err(named.op("remove what it replaces")(e)),
    }
}

/// Hides a name of the layers below.
pub(super) fn whiteout(parent: &OwnedFd, name: &OsStr, named: Named<'_>) -> Result<(), LayerError> {
    match kind_of(parent, name).map_err(named.op("stat"))? {
        // Whiteouts hide what lower layers have, never what their own layer has.
        Some(FileType::Directory) => set_opaque(parent, name, named),
        Some(_) => Ok(()),
        None => {
            let made = rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0);
            made.map_err(named.op("make the whiteout"))
        }
    }
}

/// Hides everything that lower layers have in this directory.
pub(super) fn set_opaque(parent: &OwnedFd, name: &OsStr, named: Named<'_>) -> Result<(), LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty());
    let dir = dir.map_err(named.op("open the directory"))?;
    rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(named.op("set trusted.overlay.opaque (does the file system of the store take it?)"))
}

pub(super) fn symlink(
    parent: &OwnedFd,
    name: &OsStr,
    target: &[u8],
    named: Named<'_>,
) -> Result<(), LayerError> {
    if target.is_empty() || target.len() > 4095 {
        return named.refuse("it is a link with an empty or too long target");
    }
    rustix::fs::symlinkat(OsStr::from_bytes(target), parent, name).map_err(named.op("make the link"))?;
    set_owner_and_time(parent, name, named)
}

pub(super) fn set_owner_and_time(parent: &OwnedFd, name: &OsStr, named: Named<'_>) -> Result<(), LayerError> {
    let (uid, gid) = (Uid::from_raw(named.0.uid), Gid::from_raw(named.0.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(named.op("chown"))?;
    rustix::fs::utimensat(parent, name, &times(named.0.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(named.op("set the times"))
}

/// Owner, attributes and mode, in the order in which one does not take away the other.
pub(super) fn set_metadata(fd: &OwnedFd, named: Named<'_>) -> Result<(), LayerError> {
    let entry = named.0;
    rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(named.op("chown"))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
        rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())
            .map_err(named.op("set an extended attribute"))?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(named.op("chmod"))
}

fn is_kept(xattr: &[u8]) -> bool {
    let own = xattr.strip_prefix(b"user.").is_some_and(|rest| !rest.starts_with(b"overlay."));
    (own || xattr == b"security.capability") && !xattr.contains(&0)
}

pub(super) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}
