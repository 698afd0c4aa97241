//! The child's side: plain pointers and numbers, raw system calls, nothing else.
//!
//! The wrappers of libc for setuid and its kin signal every thread of the process, which here would be the
//! agent's; so every call is made by number.

use std::{
    ffi::{CStr, c_char, c_int, c_long, c_ulong},
    marker::PhantomData,
    mem,
    os::fd::RawFd,
    ptr,
};

use nix::errno::Errno;

use super::overlay::mount_overlay;

/// One step as the child needs it. Pointers are valid until the parent's `spawn` returns.
#[derive(Clone, Copy)]
pub(super) enum Op {
    Session,
    Streams([RawFd; 3]),
    Hostname(*const c_char, usize),
    LoopbackUp,
    Mount {
        source: *const c_char,
        target: *const c_char,
        fstype: *const c_char,
        flags: u64,
        data: *const c_char,
    },
    Overlay {
        layers: *const c_char,
        count: usize,
        target: *const c_char,
    },
    MoveMount(RawFd, *const c_char),
    MountAttributes {
        path: *const c_char,
        recursive: bool,
        set: u64,
        clear: u64,
    },
    MakeDir(*const c_char, u32),
    MakeNode(*const c_char, u32, u64),
    Symlink(*const c_char, *const c_char),
    PivotRoot(*const c_char),
    Directory(*const c_char),
    Umask(u32),
    Limit(u32, libc::rlimit),
    CoreScheduling,
    KeepCapabilities,
    Identity {
        uid: u32,
        gid: u32,
        groups: (*const u32, usize),
    },
    UserNamespace {
        uid: u32,
        gid: u32,
        groups: (*const u32, usize),
        uid_map: (*const c_char, usize),
        gid_map: (*const c_char, usize),
    },
    BoundingSet(u64),
    Capabilities(u64),
    AmbientCapabilities(u64),
    NoNewPrivileges,
    LandlockAllow {
        ruleset: RawFd,
        path: *const c_char,
        access: u64,
    },
    Landlock(RawFd),
    Signals,
    Seccomp(*const libc::sock_filter, usize),
}

/// Everything the child reads, and the two words it writes.
pub(super) struct Prepared<'a> {
    ops: (*const Op, usize),
    programs: *const *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    failed_step: usize,
    failed_errno: c_int,
    lifetime: PhantomData<&'a Op>,
}

impl<'a> Prepared<'a> {
    /// The three lists of strings end with null.
    pub(super) fn new(
        ops: &'a [Op],
        programs: &'a [*const c_char],
        argv: &'a [*const c_char],
        env: &'a [*const c_char],
    ) -> Self {
        debug_assert!([programs, argv, env].iter().all(|list| list.last().is_some_and(|p| p.is_null())));
        Self {
            ops: (ops.as_ptr(), ops.len()),
            programs: programs.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            failed_step: 0,
            failed_errno: 0,
            lifetime: PhantomData,
        }
    }

    /// The step that failed (one past the last is the exec) and its errno.
    pub(super) fn failure(&self) -> Option<(usize, c_int)> {
        // Written through the pointer that the child was given.
        // SAFETY: a reference to an initialised word.
        let errno = unsafe { ptr::read_volatile(&raw const self.failed_errno) };
        // SAFETY: as above.
        let step = unsafe { ptr::read_volatile(&raw const self.failed_step) };
        (errno != 0).then_some((step, errno))
    }
}

/// The kernel's `struct sigaction`: handler, flags, restorer and mask, one word each. All zero is the default.
const SIGACTION_WORDS: usize = 4;
/// Those below have a meaning for every program.
const FIRST_REALTIME_SIGNAL: c_int = 32;
/// Descriptors from here on are not for the program.
const FIRST_PRIVATE_FD: u32 = 3;
/// Bits of a set of capabilities; the kernel refuses those that it has not with `EINVAL`.
const MAX_CAPABILITIES: c_int = 64;
/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The child's whole life before the program.
pub(super) extern "C" fn child(prepared: *mut Prepared<'_>) -> ! {
    // SAFETY: `spawn` passes a pointer that outlives this process' use of it, and its thread is suspended
    // by CLONE_VFORK, so nobody else touches it.
    let p = unsafe { &mut *prepared };
    let (ops, count) = p.ops;
    for index in 0..count {
        // SAFETY: `ops` has `count` elements, and what they point to comes from live values of `spawn`'s caller.
        let result = unsafe { perform(&*ops.add(index)) };
        if let Err(errno) = result {
            fail(p, index, errno);
        }
    }
    // SAFETY: null-terminated arrays of null-terminated strings.
    let errno = unsafe { exec(p) };
    fail(p, count, errno)
}

pub(super) type Done = Result<(), c_int>;

/// Whether a raw system call succeeded; else its errno.
pub(super) fn done(result: c_long) -> Done {
    if result < 0 { Err(Errno::last_raw()) } else { Ok(()) }
}

/// # Safety
/// Only in the child. Every pointer in `op` is valid.
unsafe fn perform(op: &Op) -> Done {
    // SAFETY: system calls that read the memory they are pointed to, which the caller vouches for, and change
    // only this process, its namespaces and the files that are named.
    unsafe {
        match *op {
            Op::Session => done(libc::syscall(libc::SYS_setsid)),
            Op::Streams(fds) => place_streams(fds),
            Op::Hostname(name, length) => done(libc::syscall(libc::SYS_sethostname, name, length)),
            Op::LoopbackUp => loopback_up(),
            Op::Mount { source, target, fstype, flags, data } => {
                done(libc::syscall(libc::SYS_mount, source, target, fstype, flags, data))
            }
            Op::Overlay { layers, count, target } => mount_overlay(layers, count, target),
            Op::MoveMount(tree, target) => {
                let (here, empty) = (libc::AT_FDCWD, c"".as_ptr());
                let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
                done(libc::syscall(libc::SYS_move_mount, tree, empty, here, target, flags))
            }
            Op::MountAttributes { path, recursive, set, clear } => {
                let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
                let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
                let size = size_of::<libc::mount_attr>();
                done(libc::syscall(
                    libc::SYS_mount_setattr,
                    libc::AT_FDCWD,
                    path,
                    flags,
                    &raw const attr,
                    size,
                ))
            }
            Op::MakeDir(path, mode) => match done(libc::syscall(libc::SYS_mkdir, path, mode)) {
                Err(libc::EEXIST) => Ok(()),
                other => other,
            },
            Op::MakeNode(path, mode, device) => done(libc::syscall(libc::SYS_mknod, path, mode, device)),
            Op::Symlink(to, path) => done(libc::syscall(libc::SYS_symlink, to, path)),
            Op::PivotRoot(root) => pivot_root(root),
            Op::Directory(path) => done(libc::syscall(libc::SYS_chdir, path)),
            Op::Umask(mask) => done(libc::syscall(libc::SYS_umask, mask)),
            Op::Limit(resource, limit) => {
                done(libc::syscall(libc::SYS_setrlimit, resource, &raw const limit))
            }
            Op::CoreScheduling => {
                let (create, process) = (libc::PR_SCHED_CORE_CREATE, PIDTYPE_TGID);
                done(libc::syscall(libc::SYS_prctl, libc::PR_SCHED_CORE, create, 0, process, 0))
            }
            Op::KeepCapabilities => done(libc::syscall(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)),
            Op::Identity { uid, gid, groups } => {
                done(libc::syscall(libc::SYS_setgroups, groups.1, groups.0))?;
                done(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
                done(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
            }
            Op::UserNamespace { uid, gid, groups, uid_map, gid_map } => {
                user_namespace(uid, gid, groups, uid_map, gid_map)
            }
            Op::BoundingSet(kept) => bounding_set(kept),
            Op::Capabilities(set) => capabilities(set),
            Op::AmbientCapabilities(set) => ambient_capabilities(set),
            Op::NoNewPrivileges => {
                done(libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            }
            Op::LandlockAllow { ruleset, path, access } => landlock_allow(ruleset, path, access),
            Op::Landlock(ruleset) => done(libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0)),
            Op::Signals => reset_signals(),
            Op::Seccomp(filter, length) => {
                let len = u16::try_from(length).map_err(|_| libc::E2BIG)?;
                let program = libc::sock_fprog { len, filter: filter.cast_mut() };
                let mode = libc::SECCOMP_SET_MODE_FILTER;
                done(libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program))
            }
        }
    }
}

/// Of linux/pid.h: the cookie is for the whole process.
const PIDTYPE_TGID: c_int = 1;

/// Moves the three streams to descriptors 0 to 2, and keeps every other descriptor from the program.
///
/// # Safety
/// Only in the child.
unsafe fn place_streams(mut fds: [RawFd; 3]) -> Done {
    for fd in &mut fds {
        // Above 2 first, so that placing one stream does not close another.
        // SAFETY: fcntl on a descriptor that the parent holds open.
        let high = unsafe { libc::syscall(libc::SYS_fcntl, *fd, libc::F_DUPFD_CLOEXEC, FIRST_PRIVATE_FD) };
        done(high)?;
        *fd = RawFd::try_from(high).unwrap_or(-1);
    }
    for (wanted, fd) in fds.iter().enumerate() {
        // SAFETY: dup2 of a descriptor made above; without CLOEXEC the copy is what the program gets.
        done(unsafe { libc::syscall(libc::SYS_dup2, *fd, wanted) })?;
    }
    let close_on_exec = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: only sets flags in this process' own table. All descriptors of the agent are close-on-exec
    // already; this holds it for those that a library opened otherwise, and may fail on older kernels.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST_PRIVATE_FD, u32::MAX, close_on_exec) };
    Ok(())
}

/// # Safety
/// Only in the child.
unsafe fn loopback_up() -> Done {
    // SAFETY: `request` is plain data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    let up = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(libc::c_short::MAX);
    request.ifr_ifru.ifru_flags = up;
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: a new descriptor in this process' own table, closed below or by exec.
    let socket = unsafe { libc::syscall(libc::SYS_socket, libc::AF_INET, kind, 0) };
    done(socket)?;
    // SAFETY: the kernel reads one ifreq, which lives through the call.
    let result =
        done(unsafe { libc::syscall(libc::SYS_ioctl, socket, libc::SIOCSIFFLAGS, &raw const request) });
    // SAFETY: made above.
    unsafe { libc::syscall(libc::SYS_close, socket) };
    result
}

/// The old root is put below the new one at the same place, and then let go of: no directory for it is needed.
///
/// # Safety
/// Only in the child; `root` is valid.
unsafe fn pivot_root(root: *const c_char) -> Done {
    let here = c".".as_ptr();
    // SAFETY: strings that live through the calls.
    unsafe {
        done(libc::syscall(libc::SYS_chdir, root))?;
        done(libc::syscall(libc::SYS_pivot_root, here, here))?;
        done(libc::syscall(libc::SYS_umount2, here, libc::MNT_DETACH))?;
        done(libc::syscall(libc::SYS_chdir, c"/".as_ptr()))
    }
}

/// The kernel lets a process map its own id, once, into a namespace that it owns; so it becomes that user first.
/// It still opens the map as root (the saved user, through the file system's user id): because the memory that it
/// shares with the agent is closed to its new user, as it must be, its files in /proc are root's.
///
/// # Safety
/// Only in the child; the pointers are valid.
unsafe fn user_namespace(
    uid: u32,
    gid: u32,
    groups: (*const u32, usize),
    uid_map: (*const c_char, usize),
    gid_map: (*const c_char, usize),
) -> Done {
    // SAFETY: system calls on this process alone; the strings live through the calls.
    unsafe {
        done(libc::syscall(libc::SYS_setgroups, groups.1, groups.0))?;
        done(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        done(libc::syscall(libc::SYS_setresuid, uid, uid, 0))?;
        libc::syscall(libc::SYS_setfsuid, 0);
        done(libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER))?;
        let deny = c"deny";
        write_file(c"/proc/self/setgroups", (deny.as_ptr(), deny.count_bytes()))?;
        write_file(c"/proc/self/gid_map", gid_map)?;
        write_file(c"/proc/self/uid_map", uid_map)?;
        done(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        done(libc::syscall(libc::SYS_setresuid, 0, 0, 0))
    }
}

/// # Safety
/// Only in the child; `text` is valid for its length.
unsafe fn write_file(path: &CStr, text: (*const c_char, usize)) -> Done {
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    // SAFETY: the path and the text live through the calls; the descriptor is this function's own.
    unsafe {
        let fd = libc::syscall(libc::SYS_open, path.as_ptr(), flags);
        done(fd)?;
        let result = done(libc::syscall(libc::SYS_write, fd, text.0, text.1));
        libc::syscall(libc::SYS_close, fd);
        result
    }
}

/// # Safety
/// Only in the child.
unsafe fn bounding_set(kept: u64) -> Done {
    for capability in 0..MAX_CAPABILITIES {
        if kept & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: takes numbers.
        match done(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            // Beyond the kernel's last one.
            Err(libc::EINVAL) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// # Safety
/// Only in the child.
unsafe fn capabilities(set: u64) -> Done {
    // `struct __user_cap_header_struct` and two of `__user_cap_data_struct`, for the low and the high bits:
    // effective, permitted, inheritable.
    let header = [CAPABILITY_VERSION, 0];
    let [low, high] = [set & u64::from(u32::MAX), set >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    let data = [low, low, low, high, high, high];
    // SAFETY: both arrays have the layout that the version says, and live through the call.
    done(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })
}

/// # Safety
/// Only in the child.
unsafe fn ambient_capabilities(set: u64) -> Done {
    for capability in (0..MAX_CAPABILITIES).filter(|c| set & (1 << c) != 0) {
        let raise = libc::PR_CAP_AMBIENT_RAISE;
        // SAFETY: takes numbers.
        done(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, raise, capability, 0, 0) })?;
    }
    Ok(())
}

/// `struct landlock_path_beneath_attr` of linux/landlock.h.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// `LANDLOCK_RULE_PATH_BENEATH`
const RULE_PATH_BENEATH: c_int = 1;

/// # Safety
/// Only in the child; `path` is valid.
unsafe fn landlock_allow(ruleset: RawFd, path: *const c_char, access: u64) -> Done {
    // SAFETY: the path and the rule live through the calls; the descriptor is this function's own.
    unsafe {
        let fd = libc::syscall(libc::SYS_open, path, libc::O_PATH | libc::O_CLOEXEC);
        done(fd)?;
        let parent_fd = RawFd::try_from(fd).unwrap_or(-1);
        let rule = PathBeneath { allowed_access: access, parent_fd };
        let kind = RULE_PATH_BENEATH;
        let result = done(libc::syscall(libc::SYS_landlock_add_rule, ruleset, kind, &raw const rule, 0));
        libc::syscall(libc::SYS_close, fd);
        result
    }
}

/// # Safety
/// Only in the child.
unsafe fn reset_signals() -> Done {
    // What the agent ignores (Rust sees to SIGPIPE, nohup to SIGHUP) would stay ignored in the program.
    let default = [0_u64; SIGACTION_WORDS];
    for signal in 1..FIRST_REALTIME_SIGNAL {
        let nowhere = ptr::null_mut::<u64>();
        // SAFETY: the kernel reads one sigaction; it refuses SIGKILL and SIGSTOP, which have no other action.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, nowhere, 8usize) };
    }
    let none: u64 = 0;
    let (nowhere, how) = (ptr::null_mut::<u64>(), libc::SIG_SETMASK);
    // SAFETY: the kernel reads one mask of eight bytes.
    done(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, nowhere, 8usize) })
}

/// Tries each program in turn; the errno of the failure. "Found but not allowed" wins over "not found", as in
/// execvp(3).
///
/// # Safety
/// Only in the child; the lists of `p` end with null.
unsafe fn exec(p: &Prepared<'_>) -> c_int {
    let mut errno = libc::ENOENT;
    let mut next = p.programs;
    // SAFETY: the list ends with null, and null-terminated arrays of null-terminated strings are executed.
    unsafe {
        while !(*next).is_null() {
            libc::syscall(libc::SYS_execve, *next, p.argv, p.env);
            match Errno::last_raw() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => errno = libc::EACCES,
                other => return other,
            }
            next = next.add(1);
        }
    }
    errno
}

fn fail(p: &mut Prepared<'_>, step: usize, errno: c_int) -> ! {
    p.failed_step = step;
    p.failed_errno = errno;
    let code: c_ulong = 127;
    // SAFETY: ends this process only, without running destructors or atexit handlers of the shared memory. A
    // filter of system calls may keep it from exiting; an undefined instruction ends it all the same.
    unsafe {
        libc::syscall(libc::SYS_exit_group, code);
        std::arch::asm!("ud2", options(noreturn));
    }
}
