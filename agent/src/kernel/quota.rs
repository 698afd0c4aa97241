//! Project quotas: which project a directory belongs to, what a project uses, and what it may use.
//!
//! A project is a number that every file below a directory inherits; the file system counts blocks and inodes by it
//! and refuses the write that would go over. ext4 and XFS have them. `quotactl_fd` takes any file of the file system,
//! so no device has to be found (Linux 5.14; fs/quota/quota.c, include/uapi/linux/quota.h, linux/dqblk_xfs.h).

use std::{
    ffi::CStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
    sys::statfs::{EXT4_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC, fstatfs},
};

mod requests;

use requests::FS_IOC_FSSETXATTR;
pub use requests::{FORBIDDEN_IOCTLS, SYS_FILE_SETATTR};

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct FsXattr {
    xflags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

/// `struct if_dqblk` of linux/quota.h. Limits are in units of [`LIMIT_UNIT_BYTES`], the use is in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Dqblk {
    hard_blocks: u64,
    soft_blocks: u64,
    space_bytes: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    space_time: u64,
    inode_time: u64,
    valid: u32,
}

/// `struct fs_quota_statv` of linux/dqblk_xfs.h; only the flags are of interest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct QuotaState {
    version: i8,
    pad: u8,
    flags: u16,
    rest: [u32; 39],
}

/// The ioctl that reads a [`FsXattr`].
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;

const FS_XFLAG_IMMUTABLE: u32 = 0x8;
const FS_XFLAG_APPEND: u32 = 0x10;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

pub(super) const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x0080_0007;
const Q_SETQUOTA: u32 = 0x0080_0008;
const Q_XGETQSTATV: u32 = 0x5808;
const QIF_LIMITS: u32 = 0b101;
const FS_QSTATV_VERSION1: i8 = 1;
/// Project quotas are counted, and held.
const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
/// Limits of space are set in this unit.
const LIMIT_UNIT_BYTES: u64 = 1024;

/// A call about quotas failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}", path.display())]
pub struct QuotaError {
    /// What was tried.
    pub op: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// What the file system counts for a project, and up to where it may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Space in use.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// The limit of space; 0 is none. A multiple of 1 KiB.
    pub max_bytes: u64,
    /// The limit of files; 0 is none.
    pub max_inodes: u64,
}

impl Record {
    /// Does no file belong to the project?
    pub fn is_unused(&self) -> bool {
        self.bytes == 0 && self.inodes == 0
    }
}

/// An open directory on a file system that may have project quotas.
#[derive(Debug)]
pub struct ProjectDir {
    file: File,
    path: PathBuf,
}

impl ProjectDir {
    /// Opens a directory; a link in its place is an error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path) -> Result<Self, QuotaError> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => Ok(Self { file, path: path.to_owned() }),
            Err(source) => Err(QuotaError { op: "open", path: path.to_owned(), source }),
        }
    }

    /// A directory that is open already, perhaps with O_PATH; `path` is for messages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(directory: BorrowedFd<'_>, path: &Path) -> Result<Self, QuotaError> {
        Self::beside(directory, c".", path)
    }

    /// The directory above.
    ///
    /// # Errors
    /// The kernel's.
    pub fn parent(&self) -> Result<Self, QuotaError> {
        Self::beside(self.file.as_fd(), c"..", &self.path.join(".."))
    }

    fn beside(directory: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<Self, QuotaError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(directory, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { file: fd.into(), path: path.to_owned() }),
            Err(error) => Err(QuotaError { op: "open", path: path.to_owned(), source: error.into() }),
        }
    }

    /// Which directory it is, whatever its name: device and inode.
    ///
    /// # Errors
    /// The kernel's.
    pub fn id(&self) -> Result<(u64, u64), QuotaError> {
        self.file.metadata().map(|m| (m.dev(), m.ino())).map_err(|e| self.failed("look at", e))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The project that it belongs to; 0 is none.
    ///
    /// # Errors
    /// ENOTTY where the file system has no such attribute.
    pub fn project(&self) -> Result<u32, QuotaError> {
        project_of(&self.file).map_err(|e| self.failed("read the project of", e))
    }

    /// Moves the directory, without what is in it, to a project, which everything that is made in it inherits.
    /// 0 takes it out of any.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_project(&self, project: u32) -> Result<(), QuotaError> {
        set_project_of(&self.file, project, true).map_err(|e| self.failed("set the project of", e))
    }

    /// What its file system counts for a project.
    ///
    /// # Errors
    /// ENOSYS or ESRCH where project quotas are off.
    pub fn record(&self, project: u32) -> Result<Record, QuotaError> {
        read_record(&self.file, project).map_err(|e| self.failed("read the project quota below", e))
    }

    /// Limits a project, rounded up to 1 KiB; 0 is no limit.
    ///
    /// # Errors
    /// As [`ProjectDir::record`]; EPERM without CAP_SYS_ADMIN.
    pub fn limit(&self, project: u32, max_bytes: u64, max_inodes: u64) -> Result<(), QuotaError> {
        set_limits(&self.file, project, max_bytes, max_inodes)
            .map_err(|e| self.failed("set the project quota below", e))
    }

    /// The number of its file system's device.
    ///
    /// # Errors
    /// The kernel's.
    pub fn device(&self) -> Result<u64, QuotaError> {
        self.file.metadata().map(|m| m.dev()).map_err(|e| self.failed("look at", e))
    }

    /// Does its file system let CAP_SYS_RESOURCE write beyond a limit? ext4 does, XFS does not.
    pub fn exempts_resource_capability(&self) -> bool {
        fstatfs(&self.file).is_ok_and(|s| s.filesystem_type() == EXT4_SUPER_MAGIC)
    }

    fn failed(&self, op: &'static str, source: io::Error) -> QuotaError {
        QuotaError { op, path: self.path.clone(), source }
    }
}

impl AsFd for ProjectDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The project of an open file or directory.
///
/// # Errors
/// ENOTTY where the file system has none.
pub fn project_of(file: impl AsFd) -> io::Result<u32> {
    Ok(read_attributes(file)?.project)
}

/// Moves one open file or directory to a project; `inherit` is for directories.
///
/// # Errors
/// The kernel's: EDQUOT where the project has no room for it.
pub fn set_project_of(file: impl AsFd, project: u32, inherit: bool) -> io::Result<()> {
    let file = file.as_fd();
    let before = read_attributes(file)?;
    let inherit = if inherit && project != 0 { FS_XFLAG_PROJINHERIT } else { 0 };
    let xflags = before.xflags & !FS_XFLAG_PROJINHERIT | inherit;
    if (before.project, before.xflags) == (project, xflags) {
        return Ok(());
    }
    write_attributes(file, &FsXattr { xflags, project, ..before })
}

/// Takes away what keeps root from removing or moving a file: `chattr +i`, `chattr +a`, and the rule that what is
/// moved into a directory must be of its project. False where there was nothing of it.
///
/// # Errors
/// ENOTTY where the file system has no such flags; EPERM without CAP_LINUX_IMMUTABLE.
pub fn unlock(file: impl AsFd) -> io::Result<bool> {
    let file = file.as_fd();
    let before = read_attributes(file)?;
    let xflags = before.xflags & !(FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND | FS_XFLAG_PROJINHERIT);
    if xflags == before.xflags {
        return Ok(false);
    }
    write_attributes(file, &FsXattr { xflags, ..before }).map(|()| true)
}

/// Sets `chattr +i` on an open file, for tests of this crate.
#[cfg(test)]
pub(crate) fn make_immutable(file: impl AsFd) -> io::Result<()> {
    let before = read_attributes(&file)?;
    write_attributes(file, &FsXattr { xflags: before.xflags | FS_XFLAG_IMMUTABLE, ..before })
}

/// Does the file system below this directory hold projects to their quotas?
///
/// # Errors
/// Why not, and what to do about it, in words.
pub fn probe(dir: &Path) -> Result<String, String> {
    let there = dir.ancestors().find(|d| d.is_dir()).unwrap_or_else(|| Path::new("/"));
    ProjectDir::open(there).map_err(|e| crate::error_chain(&e))?.probe()
}

impl ProjectDir {
    /// Does its file system hold projects to their quotas?
    ///
    /// # Errors
    /// Why not, and what to do about it, in words.
    pub fn probe(&self) -> Result<String, String> {
        let at = self.path.display();
        let kind = fstatfs(&self.file).map_err(|e| format!("{at}: {e}"))?.filesystem_type();
        let remedy = match kind {
            EXT4_SUPER_MAGIC => {
                "unmount it, run `tune2fs -O quota,project -Q prjquota DEVICE`, and mount it with -o prjquota"
            }
            XFS_SUPER_MAGIC => {
                "mount it with -o prjquota (for the root file system boot with rootflags=prjquota)"
            }
            _ => "choose a directory on ext4 or XFS, mounted with -o prjquota",
        };
        let name = name_of(kind);
        let mut state = QuotaState { version: FS_QSTATV_VERSION1, pad: 0, flags: 0, rest: [0; 39] };
        match quotactl(&self.file, Q_XGETQSTATV, 0, &mut state) {
            Ok(()) if state.flags & FS_QUOTA_PDQ_ENFD != 0 => {
                self.project().map_err(|e| crate::error_chain(&e))?;
                Ok(format!("{name} at {at}, mounted with prjquota"))
            }
            Ok(()) => Err(format!("{name} at {at} holds no project quotas: {remedy}")),
            Err(error) => Err(format!("{name} at {at} has no project quotas ({error}): {remedy}")),
        }
    }
}

fn name_of(kind: FsType) -> &'static str {
    match kind {
        EXT4_SUPER_MAGIC => "ext4",
        XFS_SUPER_MAGIC => "XFS",
        _ => "the file system",
    }
}

fn read_attributes(file: impl AsFd) -> io::Result<FsXattr> {
    let mut attributes = FsXattr::default();
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the kernel writes one struct fsxattr, whose layout FsXattr has, and which lives through the call; the
    // descriptor is borrowed, so it stays open.
    Errno::result(unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR, &raw mut attributes) })?;
    Ok(attributes)
}

fn write_attributes(file: impl AsFd, attributes: &FsXattr) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one struct fsxattr, whose layout FsXattr has, and which lives through the call; the
    // descriptor is borrowed, so it stays open.
    Errno::result(unsafe { libc::ioctl(fd, FS_IOC_FSSETXATTR, std::ptr::from_ref(attributes)) })?;
    Ok(())
}

fn read_record(file: &File, project: u32) -> io::Result<Record> {
    let mut record = Dqblk::default();
    match quotactl(file, Q_GETQUOTA, project, &mut record) {
        // XFS has no record of a project that was never used.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Record::default()),
        Err(e) => Err(e),
        Ok(()) => Ok(Record {
            bytes: record.space_bytes,
            inodes: record.inodes,
            max_bytes: record.hard_blocks.saturating_mul(LIMIT_UNIT_BYTES),
            max_inodes: record.hard_inodes,
        }),
    }
}

fn set_limits(file: &File, project: u32, max_bytes: u64, max_inodes: u64) -> io::Result<()> {
    let mut limits = Dqblk {
        hard_blocks: max_bytes.div_ceil(LIMIT_UNIT_BYTES),
        hard_inodes: max_inodes,
        valid: QIF_LIMITS,
        ..Dqblk::default()
    };
    quotactl(file, Q_SETQUOTA, project, &mut limits)
}

/// What the calls above hand to the kernel: a plain C struct as large as the command expects.
trait Argument {}
impl Argument for Dqblk {}
impl Argument for QuotaState {}

fn quotactl<A: Argument>(file: &File, command: u32, project: u32, argument: &mut A) -> io::Result<()> {
    let command = command << 8 | PRJQUOTA;
    // SAFETY: the kernel reads and writes at most the struct that belongs to the command; callers pair the quota
    // commands with Dqblk and the state command with QuotaState, which have the kernel's layout and size. It lives
    // through the call, as does the descriptor.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            file.as_raw_fd(),
            command,
            project,
            std::ptr::from_mut(argument).cast::<libc::c_void>(),
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<FsXattr>(), 28);
        assert_eq!(size_of::<Dqblk>(), 72);
        assert_eq!(size_of::<QuotaState>(), 160);
    }

    #[test]
    fn a_file_system_without_quotas_is_named_with_a_remedy() {
        let refused = probe(Path::new("/proc")).unwrap_err();
        assert!(refused.contains("/proc") && refused.contains("prjquota"), "{refused}");
    }
}
