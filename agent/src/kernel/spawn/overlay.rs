//! The child's side of an overlay of many layers.
//!
//! mount(2) takes a page of options, which the paths of forty layers would fill. So the child opens the layers, in its
//! own mount namespace as the kernel wants it, and names them by the numbers of their descriptors, looked up from
//! /proc/self/fd: of these names as many fit as overlayfs takes layers.

use std::ffi::{c_char, c_int};

use super::child::{Done, done};

/// As much as mount(2) takes, with the NUL byte.
const MOST_OPTIONS: usize = 4096;
const LOWER: &[u8] = b"lowerdir=";

/// # Safety
/// Only in the child. `layers` are `count` strings, one behind the other; they and `target` are valid.
pub(super) unsafe fn mount_overlay(layers: *const c_char, count: usize, target: *const c_char) -> Done {
    let mut options = Options { bytes: [0; MOST_OPTIONS], len: 0 };
    options.push(LOWER)?;
    let mut path = layers;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    for layer in 0..count {
        // SAFETY: `path` is at the begin of one of the strings, which live through the call. The descriptor is closed
        // by exec.
        let fd = unsafe { libc::syscall(libc::SYS_open, path, flags) };
        done(fd)?;
        if layer > 0 {
            options.push(b":")?;
        }
        options.number(fd.cast_unsigned())?;
        // SAFETY: there is another string behind this one, or it was the last and the pointer is not used.
        path = unsafe { path.add(libc::strlen(path) + 1) };
    }
    let (word, flags) = (c"overlay".as_ptr(), libc::MS_RDONLY | libc::MS_NODEV);
    // SAFETY: strings that live through the calls; the options end with a NUL byte.
    unsafe {
        done(libc::syscall(libc::SYS_chdir, c"/proc/self/fd".as_ptr()))?;
        done(libc::syscall(libc::SYS_mount, word, target, word, flags, options.bytes.as_ptr()))
    }
}

/// Text on the stack: nothing may be allocated here, and nothing may panic.
struct Options {
    bytes: [u8; MOST_OPTIONS],
    len: usize,
}

impl Options {
    /// The last byte stays NUL.
    fn push(&mut self, text: &[u8]) -> Result<(), c_int> {
        let room = self.bytes.get_mut(self.len..MOST_OPTIONS - 1).unwrap_or_default();
        let Some(room) = room.get_mut(..text.len()) else { return Err(libc::E2BIG) };
        room.copy_from_slice(text);
        self.len += text.len();
        Ok(())
    }

    fn number(&mut self, number: u64) -> Result<(), c_int> {
        if number >= 10 {
            self.number(number / 10)?;
        }
        self.push(&[b'0' + u8::try_from(number % 10).unwrap_or(0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_names_fit_as_overlayfs_takes_layers() {
        let mut options = Options { bytes: [0; MOST_OPTIONS], len: 0 };
        options.push(LOWER).unwrap();
        for layer in 0..500 {
            options.push(b":").unwrap();
            options.number(65_036 + layer).unwrap();
        }
        assert!(options.bytes[..options.len].ends_with(b":65535") && options.bytes[options.len] == 0);
        while options.push(b"x").is_ok() {}
        assert_eq!((options.len, options.bytes[MOST_OPTIONS - 1]), (MOST_OPTIONS - 1, 0));
        assert_eq!(options.push(b"x"), Err(libc::E2BIG));
    }
}
