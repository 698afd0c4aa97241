//! Mounts that are attached nowhere until a task's process takes them.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::errno::Errno;

/// A new mount of a directory, without what is mounted below it. Attached by [`ChildStep::MoveMount`], or gone
/// with the descriptor.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
///
/// # Minimum kernel version
/// 5.2
///
/// [`ChildStep::MoveMount`]: super::spawn::ChildStep::MoveMount
pub fn clone_tree(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: an open descriptor and an empty string that live through the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), c"".as_ptr(), flags) };
    let fd = RawFd::try_from(Errno::result(fd)?).unwrap_or(-1);
    // SAFETY: the descriptor was just made for us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets `MOUNT_ATTR_...` of a mount.
///
/// # Errors
/// The kernel's.
///
/// # Minimum kernel version
/// 5.12
pub fn set_attributes(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let (fd, empty, flags) = (mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: the kernel reads one mount_attr and one string, which live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            empty,
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
