//! Links and pins by their plain system calls, where aya gives no handle away.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use libbpf_rs::libbpf_sys;

/// Attaches a program to a cgroup, and pins the link. `kind` is a `BPF_CGROUP_..` of linux/bpf.h.
pub(super) fn attach_and_pin(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    kind: u32,
    path: &Path,
) -> io::Result<()> {
    let (program, cgroup) = (program.as_raw_fd(), cgroup.as_raw_fd());
    // SAFETY: both descriptors are open, and without options nothing is read.
    let link = answer(unsafe { libbpf_sys::bpf_link_create(program, cgroup, kind, std::ptr::null()) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    pin(&unsafe { OwnedFd::from_raw_fd(link) }, path)
}

/// Puts a program in the place of the one that a pinned link has, at once for the next packet, and pins the link here
/// too.
pub(super) fn replace_and_pin(link: &Path, program: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let link = open(link)?;
    // SAFETY: both descriptors are open, and without options nothing is read.
    answer(unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) })?;
    pin(&link, path)
}

/// Pins what is pinned there here too.
pub(super) fn pin_again(there: &Path, here: &Path) -> io::Result<()> {
    pin(&open(there)?, here)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a string that ends with a NUL byte.
    let object = answer(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an open descriptor, and a string that ends with a NUL byte.
    answer(unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// libbpf returns a negative errno.
fn answer(number: i32) -> io::Result<i32> {
    if number < 0 { Err(io::Error::from_raw_os_error(-number)) } else { Ok(number) }
}
