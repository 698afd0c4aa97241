//! A stack for a child that shares the agent's memory until it executes.

use std::{io, ptr};

/// Room for the few frames between clone and exec, signals blocked.
const STACK_BYTES: usize = 64 * 1024;
/// Below the stack: running over it faults instead of writing into somebody's memory.
const GUARD_BYTES: usize = 4096;

/// A private mapping with a guard page below, unmapped on drop.
pub(super) struct Stack {
    map: *mut libc::c_void,
}

impl Stack {
    /// Maps a stack.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn map() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no other memory.
        let map = unsafe { libc::mmap(ptr::null_mut(), GUARD_BYTES + STACK_BYTES, access, flags, -1, 0) };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { map };
        // SAFETY: the first page of the mapping made above, which nothing refers to yet.
        if unsafe { libc::mprotect(map, GUARD_BYTES, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// The lowest usable address, page aligned.
    pub(super) fn base(&self) -> *mut u8 {
        self.map.cast::<u8>().wrapping_add(GUARD_BYTES)
    }

    /// How many bytes are usable from there; a multiple of 16.
    pub(super) fn len(&self) -> usize {
        STACK_BYTES
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; the child that used it has executed or exited.
        let result = unsafe { libc::munmap(self.map, GUARD_BYTES + STACK_BYTES) };
        debug_assert_eq!(result, 0, "the mapping is ours");
    }
}
