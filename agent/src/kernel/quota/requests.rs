//! The calls that give a file to another project. Its owner may make them, so a task under a quota must not be able to.

/// The ioctl that sets a `struct fsxattr`, the project among it.
pub(super) const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
/// The ioctl that sets the older flags; it can take the inheritance of the project away.
const FS_IOC_SETFLAGS: libc::c_ulong = 0x4008_6602;
/// The same of a 32-bit program.
const FS_IOC32_SETFLAGS: libc::c_ulong = 0x4004_6602;

/// The requests of `ioctl` that a task under a quota must not make.
pub const FORBIDDEN_IOCTLS: [libc::c_ulong; 3] = [FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS];
/// `file_setattr` (Linux 6.17) does what [`FS_IOC_FSSETXATTR`] does.
pub const SYS_FILE_SETATTR: u32 = 469;
