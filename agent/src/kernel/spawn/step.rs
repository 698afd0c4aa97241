//! What a child does between clone and exec, as data.

use std::{
    ffi::{CStr, CString},
    fmt,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

use super::{Identity, child::Op};

/// A call of mount(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What to mount: a device, a directory for a bind mount, or any word.
    pub source: CString,
    /// Where.
    pub target: CString,
    /// Of the file system; `None` for a bind mount and for a change of propagation.
    pub fstype: Option<CString>,
    /// `MS_...`
    pub flags: u64,
    /// Options of the file system.
    pub data: Option<CString>,
}

/// Directories that are laid over each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// Their paths, each with its NUL byte.
    paths: Vec<u8>,
    count: usize,
}

impl Layers {
    /// One more, below those that are there.
    pub fn push(&mut self, path: &CStr) {
        self.paths.extend_from_slice(path.to_bytes_with_nul());
        self.count += 1;
    }
}

/// One step of the child. Each is a few system calls on what was prepared before; its display names what it does
/// to what, for the error.
#[derive(Clone, Debug)]
pub enum ChildStep<'a> {
    /// Start a new session.
    Session,
    /// Make these descriptors 0, 1 and 2, and keep every other from the program.
    Streams([BorrowedFd<'a>; 3]),
    /// The host name of a new uts namespace.
    Hostname(CString),
    /// Take the loopback interface of a new network namespace up.
    LoopbackUp,
    /// mount(2).
    Mount(Mount),
    /// Mount a read-only overlay of directories, without device files. Leaves the process in another directory.
    Overlay {
        /// The highest first; at least two.
        layers: Layers,
        /// Where.
        target: CString,
    },
    /// Attach a mount that the parent made with open_tree(2).
    MoveMount {
        /// From open_tree with `OPEN_TREE_CLONE`.
        tree: BorrowedFd<'a>,
        /// Where.
        target: CString,
    },
    /// mount_setattr(2).
    MountAttributes {
        /// The mount.
        path: CString,
        /// Also of every mount below it.
        recursive: bool,
        /// `MOUNT_ATTR_...` to set.
        set: u64,
        /// `MOUNT_ATTR_...` to clear.
        clear: u64,
    },
    /// mkdir(2); one that is there is taken as it is.
    MakeDir {
        /// The directory.
        path: CString,
        /// Its permissions.
        mode: u32,
    },
    /// mknod(2).
    MakeNode {
        /// The file.
        path: CString,
        /// Kind and permissions.
        mode: u32,
        /// Major and minor number.
        device: u64,
    },
    /// symlink(2).
    Symlink {
        /// What it says.
        to: CString,
        /// The link.
        path: CString,
    },
    /// Make this mount the root, and let go of the root before.
    PivotRoot(CString),
    /// chdir(2).
    Directory(CString),
    /// umask(2).
    Umask(u32),
    /// setrlimit(2).
    Limit {
        /// `RLIMIT_...`
        resource: u32,
        /// Its name, for the error.
        name: &'static str,
        /// The limit.
        soft: u64,
        /// How far the program may raise it.
        hard: u64,
    },
    /// A core scheduling cookie of its own: no other task runs on the same physical core at the same time.
    CoreScheduling,
    /// Keep the permitted capabilities when the user changes.
    KeepCapabilities,
    /// Groups, group and user, in this order.
    Identity(Identity),
    /// Become this user, then root of a new user namespace in which there is nobody else.
    UserNamespace {
        /// Who its root is outside.
        outside: Identity,
        /// `0 UID 1`.
        uid_map: CString,
        /// `0 GID 1`.
        gid_map: CString,
    },
    /// Drop all but these from the bounding set; bit n is capability n.
    BoundingSet(u64),
    /// The permitted, effective and inheritable capabilities; a set of [`ChildStep::BoundingSet`]'s form.
    Capabilities(u64),
    /// What exec keeps for a user that is not root.
    AmbientCapabilities(u64),
    /// No program that is executed gains privileges any more.
    NoNewPrivileges,
    /// Allow what lies below a path that only the child sees.
    LandlockAllow {
        /// Of landlock_create_ruleset.
        ruleset: BorrowedFd<'a>,
        /// The directory or file.
        path: CString,
        /// `LANDLOCK_ACCESS_FS_...`
        access: u64,
    },
    /// Hold this process and its children to a Landlock ruleset.
    Landlock(BorrowedFd<'a>),
    /// Default action for every signal, and none blocked.
    Signals,
    /// Hold this process and its children to a filter of system calls. What follows must be allowed by it.
    Seccomp(&'a [libc::sock_filter]),
}

impl ChildStep<'static> {
    /// Shows `source` at `target` too.
    pub fn bind(source: CString, target: CString) -> Self {
        Self::Mount(Mount { source, target, fstype: None, flags: libc::MS_BIND, data: None })
    }

    /// Become root of a new user namespace, as seen from outside this user.
    ///
    /// # Errors
    /// Never: numbers have no NUL bytes.
    pub fn user_namespace(outside: Identity) -> Result<Self, std::ffi::NulError> {
        let map = |id: u32| CString::new(format!("0 {id} 1"));
        let (uid_map, gid_map) = (map(outside.uid)?, map(outside.gid)?);
        Ok(Self::UserNamespace { outside, uid_map, gid_map })
    }
}

impl ChildStep<'_> {
    /// Plain pointers and numbers for the child, valid as long as `self` is.
    pub(super) fn op(&self) -> Op {
        match self {
            Self::Session => Op::Session,
            Self::Streams(fds) => Op::Streams(fds.map(|fd| fd.as_raw_fd())),
            Self::Hostname(name) => Op::Hostname(name.as_ptr(), name.as_bytes().len()),
            Self::LoopbackUp => Op::LoopbackUp,
            Self::Mount(mount) => Op::Mount {
                source: mount.source.as_ptr(),
                target: mount.target.as_ptr(),
                fstype: mount.fstype.as_deref().map_or(ptr::null(), CStr::as_ptr),
                flags: mount.flags,
                data: mount.data.as_deref().map_or(ptr::null(), CStr::as_ptr),
            },
            Self::Overlay { layers, target } => Op::Overlay {
                layers: layers.paths.as_ptr().cast(),
                count: layers.count,
                target: target.as_ptr(),
            },
            Self::MoveMount { tree, target } => Op::MoveMount(tree.as_raw_fd(), target.as_ptr()),
            Self::MountAttributes { path, recursive, set, clear } => {
                Op::MountAttributes { path: path.as_ptr(), recursive: *recursive, set: *set, clear: *clear }
            }
            Self::MakeDir { path, mode } => Op::MakeDir(path.as_ptr(), *mode),
            Self::MakeNode { path, mode, device } => Op::MakeNode(path.as_ptr(), *mode, *device),
            Self::Symlink { to, path } => Op::Symlink(to.as_ptr(), path.as_ptr()),
            Self::PivotRoot(root) => Op::PivotRoot(root.as_ptr()),
            Self::Directory(path) => Op::Directory(path.as_ptr()),
            Self::Umask(mask) => Op::Umask(*mask),
            Self::Limit { resource, soft, hard, .. } => {
                Op::Limit(*resource, libc::rlimit { rlim_cur: *soft, rlim_max: *hard })
            }
            Self::CoreScheduling => Op::CoreScheduling,
            Self::KeepCapabilities => Op::KeepCapabilities,
            Self::Identity(id) => {
                Op::Identity { uid: id.uid, gid: id.gid, groups: (id.groups.as_ptr(), id.groups.len()) }
            }
            Self::UserNamespace { outside: id, uid_map, gid_map } => Op::UserNamespace {
                uid: id.uid,
                gid: id.gid,
                groups: (id.groups.as_ptr(), id.groups.len()),
                uid_map: (uid_map.as_ptr(), uid_map.as_bytes().len()),
                gid_map: (gid_map.as_ptr(), gid_map.as_bytes().len()),
            },
            Self::BoundingSet(kept) => Op::BoundingSet(*kept),
            Self::Capabilities(set) => Op::Capabilities(*set),
            Self::AmbientCapabilities(set) => Op::AmbientCapabilities(*set),
            Self::NoNewPrivileges => Op::NoNewPrivileges,
            Self::LandlockAllow { ruleset, path, access } => {
                Op::LandlockAllow { ruleset: ruleset.as_raw_fd(), path: path.as_ptr(), access: *access }
            }
            Self::Landlock(ruleset) => Op::Landlock(ruleset.as_raw_fd()),
            Self::Signals => Op::Signals,
            Self::Seccomp(filter) => Op::Seccomp(filter.as_ptr(), filter.len()),
        }
    }
}

impl fmt::Display for ChildStep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |s: &CStr| s.to_string_lossy().into_owned();
        match self {
            Self::Session => f.write_str("start a session"),
            Self::Streams(_) => f.write_str("place stdin, stdout and stderr"),
            Self::Hostname(name) => write!(f, "set the host name {}", text(name)),
            Self::LoopbackUp => f.write_str("take the loopback interface up"),
            Self::Mount(mount) => mount.fmt(f),
            Self::Overlay { layers, target } => {
                write!(f, "mount an overlay of {} directories on {}", layers.count, text(target))
            }
            Self::MoveMount { target, .. } => write!(f, "attach a mount to {}", text(target)),
            Self::MountAttributes { path, recursive, .. } => {
                let below = if *recursive { " and of all below it" } else { "" };
                write!(f, "set the attributes of the mount {}{below}", text(path))
            }
            Self::MakeDir { path, .. } => write!(f, "make the directory {}", text(path)),
            Self::MakeNode { path, .. } => write!(f, "make the device {}", text(path)),
            Self::Symlink { path, .. } => write!(f, "make the link {}", text(path)),
            Self::PivotRoot(root) => write!(f, "make {} the root", text(root)),
            Self::Directory(path) => write!(f, "enter the directory {}", text(path)),
            Self::Umask(mask) => write!(f, "set the umask {mask:03o}"),
            Self::Limit { name, soft, hard, .. } => write!(f, "set the limit {name} to {soft} of {hard}"),
            Self::CoreScheduling => f.write_str("take physical cores of its own (core scheduling)"),
            Self::KeepCapabilities => f.write_str("keep capabilities over the change of user"),
            Self::Identity(id) => write!(f, "become user {} of group {}", id.uid, id.gid),
            Self::UserNamespace { outside, .. } => {
                write!(f, "enter a user namespace as user {} of group {}", outside.uid, outside.gid)
            }
            Self::BoundingSet(kept) => write!(f, "bound the capabilities to {kept:#x}"),
            Self::Capabilities(set) => write!(f, "set the capabilities {set:#x}"),
            Self::AmbientCapabilities(set) => write!(f, "set the ambient capabilities {set:#x}"),
            Self::NoNewPrivileges => f.write_str("give up gaining privileges"),
            Self::LandlockAllow { path, .. } => write!(f, "allow {} by Landlock", text(path)),
            Self::Landlock(_) => f.write_str("confine the files by Landlock"),
            Self::Signals => f.write_str("reset the signals"),
            Self::Seccomp(_) => f.write_str("filter the system calls"),
        }
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, target) = (self.source.to_string_lossy(), self.target.to_string_lossy());
        match &self.fstype {
            Some(fstype) => write!(f, "mount {} on {target}", fstype.to_string_lossy()),
            None if self.flags & libc::MS_BIND != 0 => write!(f, "show {source} at {target}"),
            None => write!(f, "keep the mounts below {target} to itself"),
        }
    }
}
