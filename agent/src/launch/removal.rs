//! Removes a directory that a hostile task has filled: nested deeper than any path or stack goes, or locked.
//!
//! Only descriptors and names are used, never paths, so nothing outside can be reached through a link; at most
//! [`MAX_DEPTH`] directories are open at once. A directory that lies deeper is moved up to the top and removed from there.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat, renameat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::kernel::quota;

/// Levels below the top that are walked into.
const MAX_DEPTH: usize = 24;

/// Removes the directory and everything in it. One that is gone is no error.
///
/// # Errors
/// The kernel's, such as EBUSY for a mount point; what could not be removed is left.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match open_dir(AT_FDCWD, path) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // Else a directory of another project could not be moved into it. Most file systems have no such flags.
    let _unlocked = quota::unlock(&top);
    let mut removal = Removal { top, moved: 0 };
    // What was moved up is met in the next pass, which begins to read anew.
    loop {
        let top = removal.top.try_clone()?;
        let moved = removal.moved;
        removal.clear(top.as_fd(), 0)?;
        if removal.moved == moved {
            break;
        }
    }
    match unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Removal {
    top: OwnedFd,
    /// How many directories were moved to the top, for their names.
    moved: u64,
}

impl Removal {
    /// Empties an open directory.
    fn clear(&mut self, dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        let mut entries =
            Dir::openat(dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let removed = match entry.file_type() {
                Some(Type::Directory) => Err(Errno::EISDIR),
                _ => unlock_and(dir, name, || unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)),
            };
            match removed {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EISDIR) => self.remove_dir(dir, name, depth)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn remove_dir(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        let remove = || unlinkat(parent, name, UnlinkatFlags::RemoveDir);
        match unlock_and(parent, name, remove) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        if depth == MAX_DEPTH {
            return self.move_up(parent, name);
        }
        let child = open_dir(parent, name)?;
        self.clear(child.as_fd(), depth + 1)?;
        drop(child);
        match remove() {
            // Something deeper was moved up, or somebody is still writing: the next pass finds it.
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        loop {
            // Tasks cannot make files at the top, but an earlier removal may have been cut short.
            let up = format!(".removing-{}", self.moved);
            self.moved += 1;
            match unlock_and(parent, name, || renameat(parent, name, &self.top, up.as_str())) {
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
                result => return Ok(result?),
            }
        }
    }
}

/// Tries; where it is not permitted, unlocks the file and its directory (`chattr +i`, `+a`) and tries once more.
fn unlock_and(
    dir: BorrowedFd<'_>,
    name: &CStr,
    attempt: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    match attempt() {
        Err(Errno::EPERM) => {
            let flags =
                OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let file = openat(dir, name, flags, Mode::empty());
            let unlocked = [file.ok().map(quota::unlock), Some(quota::unlock(dir))];
            if unlocked.into_iter().flatten().any(|did| did.unwrap_or(false)) {
                attempt()
            } else {
                Err(Errno::EPERM)
            }
        }
        result => result,
    }
}

fn open_dir<P: ?Sized + nix::NixPath>(at: impl AsFd, name: &P) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Directories in directories, without any path.
    fn nest(dir: &Path, levels: usize) {
        let mut at = open_dir(AT_FDCWD, dir).unwrap();
        for _ in 0..levels {
            nix::sys::stat::mkdirat(&at, "deeper", Mode::from_bits_truncate(0o700)).unwrap();
            drop(
                openat(&at, "file", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::from_bits_truncate(0o600))
                    .unwrap(),
            );
            at = open_dir(&at, "deeper").unwrap();
        }
    }

    #[test]
    fn no_depth_is_too_deep() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        nest(&tree, 5000);
        fs::create_dir(tree.join(".removing-0")).unwrap();
        fs::write(tree.join(".removing-0/file"), "").unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("precious").exists());
        std::os::unix::fs::symlink(&outside, &tree).unwrap();
        assert!(remove_tree(&tree).is_err(), "the top is a link itself");
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn locked_files_are_unlocked() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("locked")).unwrap();
        fs::write(tree.join("locked/file"), "").unwrap();
        let lock = |path: &str| quota::make_immutable(fs::File::open(tree.join(path)).unwrap());
        if let Err(error) = lock("locked/file").and_then(|()| lock("locked")) {
            println!("SKIP: files cannot be locked here: {error}");
            return;
        }
        assert!(fs::remove_dir_all(&tree).is_err(), "they are locked");
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
