//! Is the BPF LSM among those that the kernel asks? Its programs can be loaded and attached where it is not, and are
//! never run then.

use std::{fs, io};

/// Where securityfs is mounted.
const ACTIVE: &str = "/sys/kernel/security/lsm";
/// `lsm_list_modules(2)`, Linux 6.8.
const SYS_LSM_LIST_MODULES: libc::c_long = 461;
/// `LSM_ID_BPF`.
const ID_BPF: u64 = 111;
/// More than there are in any kernel.
const MOST_MODULES: usize = 64;

/// Whether it is.
///
/// # Errors
/// Why it cannot be used, and what would change that.
pub(super) fn active() -> Result<(), String> {
    let found = match listed() {
        Ok(ids) => ids.contains(&ID_BPF),
        Err(_) => match fs::read_to_string(ACTIVE) {
            Ok(names) => names.trim().split(',').any(|name| name == "bpf"),
            Err(e) => return Err(format!("read {ACTIVE}: {e}; mount securityfs on /sys/kernel/security")),
        },
    };
    let why = "bpf is not among the active security modules: it needs CONFIG_BPF_LSM, and its name in the kernel's \
               lsm= parameter";
    if found { Ok(()) } else { Err(why.to_owned()) }
}

/// The ids of those that are active, of the kernels that number them.
fn listed() -> io::Result<Vec<u64>> {
    let mut ids = [0u64; MOST_MODULES];
    let mut bytes = u32::try_from(size_of_val(&ids)).unwrap_or(u32::MAX);
    // SAFETY: the kernel writes at most `bytes` bytes to `ids`, which has as many, and the size of what it wrote.
    let answer = unsafe { libc::syscall(SYS_LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut bytes, 0) };
    match usize::try_from(answer) {
        Ok(count) => Ok(ids.into_iter().take(count).collect()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
