//! Moves what a directory holds already to its project: what a launch has put into a sandbox, what a volume has.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use crate::kernel::quota::{ProjectDir, QuotaError, project_of, set_project_of};

/// One descriptor is open for each level.
const MAX_DEPTH: usize = 256;

/// Moves the directory and every file and directory below it to the project, directories before what is in them: what
/// somebody makes meanwhile inherits it. Links, pipes and devices stay as they are; they take up no blocks.
///
/// # Errors
/// The kernel's, and ELOOP below [`MAX_DEPTH`] levels.
pub(super) fn assign_all(dir: &ProjectDir, project: u32) -> Result<(), QuotaError> {
    visit(dir, "move to a project what is in", &mut |fd, is_dir| set_project_of(fd, project, is_dir))
}

/// Takes out of the project what of the directory and everything below it belongs to it.
///
/// # Errors
/// As [`assign_all`].
pub(super) fn release_all(dir: &ProjectDir, project: u32) -> Result<(), QuotaError> {
    visit(dir, "take out of a project what is in", &mut |fd, is_dir| {
        if project_of(fd)? == project { set_project_of(fd, 0, is_dir) } else { Ok(()) }
    })
}

/// A project besides this one that something below the directory belongs to, if there is one.
///
/// # Errors
/// As [`assign_all`].
pub(super) fn other_project(dir: &ProjectDir, project: u32) -> Result<Option<u32>, QuotaError> {
    let mut found = None;
    visit(dir, "look at the projects of what is in", &mut |fd, _| {
        found = found.or(Some(project_of(fd)?).filter(|other| ![0, project].contains(other)));
        Ok(())
    })?;
    Ok(found)
}

/// Told of an open file, and whether it is a directory.
type Visit<'a> = dyn FnMut(BorrowedFd<'_>, bool) -> io::Result<()> + 'a;

fn visit(dir: &ProjectDir, op: &'static str, act: &mut Visit<'_>) -> Result<(), QuotaError> {
    let walked = dir.as_fd().try_clone_to_owned().and_then(|fd| walk(fd, act, 0));
    walked.map_err(|source| QuotaError { op, path: dir.path().to_owned(), source })
}

fn walk(dir: OwnedFd, act: &mut Visit<'_>, depth: usize) -> io::Result<()> {
    if depth == MAX_DEPTH {
        return Err(Errno::ELOOP.into());
    }
    act(dir.as_fd(), true)?;
    // A descriptor of its own: reading moves the position of the one that was handed in.
    let mut entries = Dir::openat(&dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        // Nothing may be opened that opening changes or waits for. What cannot be told by the entry is tried.
        if !matches!(entry.file_type(), None | Some(Type::Directory | Type::File)) {
            continue;
        }
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let opened = match openat(&dir, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            // Removed, or made a link or a socket, meanwhile.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => continue,
            Err(error) => return Err(error.into()),
        };
        if is_dir(&opened)? {
            walk(opened, act, depth + 1)?;
        } else {
            act(opened.as_fd(), false)?;
        }
    }
    Ok(())
}

fn is_dir(fd: &OwnedFd) -> io::Result<bool> {
    let mode = nix::sys::stat::fstat(fd)?.st_mode;
    Ok(mode & libc::S_IFMT == libc::S_IFDIR)
}
