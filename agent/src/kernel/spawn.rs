//! A program started straight inside a cgroup, with a pidfd, at a cost that does not grow with the
//! agent's memory.
//!
//! clone3(2) with `CLONE_INTO_CGROUP` (Linux 5.7) puts the child into its cgroup before it runs one
//! instruction, so none of its work is ever charged elsewhere. `CLONE_VM | CLONE_VFORK` shares
//! the agent's memory until the exec instead of copying its page tables; only the calling thread waits.
//!
//! Between clone and exec the child runs [`child`] on a stack of its own. It must not allocate, lock or
//! unwind, since it shares memory with the agent's other threads: everything it needs is prepared in
//! [`Prepared`], and what failed comes back through the same memory.

use std::{
    arch::asm,
    ffi::{CString, NulError, c_char, c_int},
    fmt, io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, pthread_sigmask},
    unistd::Pid,
};

use crate::kernel::{limits, stack::Stack};

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "spawn.rs enters the child through x86-64 assembly; other processors need their own few lines"
);

/// Who the program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, all of them.
    pub groups: Vec<u32>,
}

/// What to start. All descriptors must stay open until [`spawn`] returns.
#[derive(Debug)]
pub struct Command<'a> {
    /// Files to try in order, the way execvp(3) goes through `PATH`.
    pub programs: Vec<CString>,
    /// The arguments, the program's name first.
    pub argv: Vec<CString>,
    /// `NAME=value`.
    pub env: Vec<CString>,
    /// The directory to start in; entered before the identity changes.
    pub cwd: CString,
    /// Becomes descriptor 0.
    pub stdin: BorrowedFd<'a>,
    /// Becomes descriptor 1.
    pub stdout: BorrowedFd<'a>,
    /// Becomes descriptor 2.
    pub stderr: BorrowedFd<'a>,
    /// The directory of the cgroup to start in.
    pub cgroup: BorrowedFd<'a>,
    /// `None` keeps the agent's own.
    pub identity: Option<Identity>,
}

/// A program that was executed.
#[derive(Debug)]
pub struct Spawned {
    /// The process, which is also the leader of a new session.
    pub pid: Pid,
    /// Readable once the process has ended; closed on exec.
    pub pidfd: OwnedFd,
}

/// What the child was doing when it failed, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    /// Start a new session.
    Session = 1,
    /// Put stdin, stdout and stderr into place.
    Streams = 2,
    /// Enter the working directory.
    Directory = 3,
    /// Give up gaining privileges.
    Privileges = 8,
    /// Set the limit of open files.
    Limits = 9,
    /// Set the supplementary groups.
    Groups = 4,
    /// Set the group.
    Group = 5,
    /// Set the user.
    User = 6,
    /// Execute the program.
    Exec = 7,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "start a session",
            Self::Streams => "place stdin, stdout and stderr",
            Self::Directory => "enter the working directory",
            Self::Privileges => "give up gaining privileges",
            Self::Limits => "set the limit of open files",
            Self::Groups => "set the supplementary groups",
            Self::Group => "set the group",
            Self::User => "set the user",
            Self::Exec => "execute the program",
        })
    }
}

/// The program does not run, and nothing of the attempt is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A string with a NUL byte inside.
    #[error("an argument or variable has a NUL byte in it")]
    Nul(#[from] NulError),
    /// The child could not be made: `EAGAIN` at pids.max, `EBUSY` or `EOPNOTSUPP` for an unusable cgroup.
    #[error("clone3 into the cgroup")]
    Clone(#[source] io::Error),
    /// No memory for the child's stack.
    #[error("map a stack for the child")]
    Stack(#[source] io::Error),
    /// The child failed before the program ran.
    #[error("{step} in the new process")]
    Child {
        /// What it was doing.
        step: Step,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl SpawnError {
    /// The child's failing step and errno, where the child got that far.
    pub fn child_errno(&self) -> Option<(Step, Errno)> {
        match self {
            Self::Child { step, source } => Some((*step, Errno::from_raw(source.raw_os_error()?))),
            _ => None,
        }
    }
}

/// `struct clone_args` of linux/sched.h, up to the fields of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Everything the child reads, in plain pointers and numbers, and the two words it writes.
struct Prepared {
    programs: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: *const c_char,
    streams: [RawFd; 3],
    identity: Option<(u32, u32, *const u32, usize)>,
    open_files: Option<libc::rlimit>,
    failed_step: c_int,
    failed_errno: c_int,
}

/// Descriptors from here on are not for the program.
const FIRST_PRIVATE_FD: u32 = 3;

/// The kernel's `struct sigaction`: handler, flags, restorer and mask, one word each. All zero is the default.
const SIGACTION_WORDS: usize = 4;
/// Those below have a meaning for every program.
const FIRST_REALTIME_SIGNAL: c_int = 32;

/// Starts the program. Returns when it was executed, or with the step that failed.
///
/// Blocks the calling thread until the exec, well under a millisecond as a rule.
///
/// # Errors
/// [`SpawnError`]; a child that failed was waited for.
///
/// # Minimum kernel version
/// 5.7
pub fn spawn(command: &Command<'_>) -> Result<Spawned, SpawnError> {
    let stack = Stack::map().map_err(SpawnError::Stack)?;
    let mut prepared = prepare(command);
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let args = CloneArgs {
        flags: u64::from(flags.cast_unsigned()) | CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: stack.base() as u64,
        stack_size: stack.len() as u64,
        cgroup: u64::from(command.cgroup.as_raw_fd().cast_unsigned()),
        ..CloneArgs::default()
    };
    // A signal handler of the agent must never run in the child, which shares its memory.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))
        .map_err(|e| SpawnError::Clone(e.into()))?;
    // SAFETY: `args` asks for a child on `stack`, which is mapped until this function returns; with
    // CLONE_VFORK the kernel holds this thread until the child has executed or exited, so `prepared`,
    // `pidfd` and everything `command` points to outlive the child's use of them.
    let result = unsafe { clone_and_enter(&args, &raw mut prepared) };
    let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    debug_assert!(restored.is_ok(), "a mask that was in force is valid");

    let pid = i32::try_from(result).unwrap_or(i32::MIN);
    if pid < 0 {
        return Err(SpawnError::Clone(io::Error::from_raw_os_error(-pid)));
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(pid);
    match step_from(prepared.failed_step) {
        None => Ok(Spawned { pid, pidfd }),
        Some(step) => {
            // It has called _exit, so this does not block.
            let reaped = nix::sys::wait::waitpid(pid, None);
            debug_assert!(reaped.is_ok(), "our own child, not waited for elsewhere");
            Err(SpawnError::Child { step, source: io::Error::from_raw_os_error(prepared.failed_errno) })
        }
    }
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn prepare(command: &Command<'_>) -> Prepared {
    let pointers = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect::<Vec<*const c_char>>()
    };
    Prepared {
        programs: pointers(&command.programs),
        argv: pointers(&command.argv),
        env: pointers(&command.env),
        cwd: command.cwd.as_ptr(),
        streams: [command.stdin, command.stdout, command.stderr].map(|fd| fd.as_raw_fd()),
        identity: command.identity.as_ref().map(|i| (i.uid, i.gid, i.groups.as_ptr(), i.groups.len())),
        open_files: limits::inherited_open_files(),
        failed_step: 0,
        failed_errno: 0,
    }
}

fn step_from(raw: c_int) -> Option<Step> {
    use Step::{Directory, Exec, Group, Groups, Limits, Privileges, Session, Streams, User};
    [Session, Streams, Directory, Privileges, Limits, Groups, Group, User, Exec]
        .into_iter()
        .find(|s| *s as c_int == raw)
}

/// clone3, and in the child a call of [`child`] with `prepared`. Returns the pid, or minus errno, in the parent.
///
/// # Safety
/// `args` must name a mapped stack and use CLONE_VFORK; `prepared` must stay valid until this returns.
unsafe fn clone_and_enter(args: &CloneArgs, prepared: *mut Prepared) -> i64 {
    let mut result: i64 = libc::SYS_clone3;
    // SAFETY: the parent comes out behind label 2 with only the registers that syscall clobbers changed.
    // The child starts at the same instruction on its own stack (16-byte aligned, as `call` wants it) and
    // never returns from `child`. r12 and r13 are preserved by the system call.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") result,
            in("rdi") ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") prepared,
            in("r13") child as extern "C" fn(*mut Prepared) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The child's whole life before the program. Raw system calls only: the wrappers of libc for setuid and
/// its kin signal every thread of the process, which here would be the agent's.
extern "C" fn child(prepared: *mut Prepared) -> ! {
    // SAFETY: `spawn` passes a pointer that outlives this process' use of it, and its thread is suspended
    // by CLONE_VFORK, so nobody else touches it.
    let p = unsafe { &mut *prepared };
    // SAFETY: every pointer in `p` comes from a live CString or Vec of `spawn`'s caller; the calls are
    // async-signal-safe system calls.
    unsafe {
        check(p, Step::Session, libc::syscall(libc::SYS_setsid));
        place_streams(p);
        check(p, Step::Directory, libc::syscall(libc::SYS_chdir, p.cwd));
        if let Some(limit) = p.open_files {
            check(p, Step::Limits, libc::syscall(libc::SYS_setrlimit, libc::RLIMIT_NOFILE, &raw const limit));
        }
        if let Some((uid, gid, groups, count)) = p.identity {
            if uid != 0 {
                // No setuid program lends a task what its user has not.
                check(
                    p,
                    Step::Privileges,
                    libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                );
            }
            check(p, Step::Groups, libc::syscall(libc::SYS_setgroups, count, groups));
            check(p, Step::Group, libc::syscall(libc::SYS_setresgid, gid, gid, gid));
            check(p, Step::User, libc::syscall(libc::SYS_setresuid, uid, uid, uid));
        }
        // What the agent ignores (Rust sees to SIGPIPE, nohup to SIGHUP) would stay ignored in the program.
        let default = [0_u64; SIGACTION_WORDS];
        for signal in 1..FIRST_REALTIME_SIGNAL {
            let nowhere = ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, nowhere, 8usize);
        }
        let none: u64 = 0;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut::<u64>(),
            8usize,
        );
        exec(p)
    }
}

/// Moves the three streams to descriptors 0 to 2, and keeps every other descriptor from the program.
///
/// # Safety
/// Only in the child.
unsafe fn place_streams(p: &mut Prepared) {
    for wanted in 0..3 {
        let fd = p.streams[wanted];
        // Above 2 first, so that placing one stream does not close another.
        // SAFETY: fcntl on a descriptor that the parent holds open.
        let high = unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, FIRST_PRIVATE_FD) };
        check(p, Step::Streams, high);
        p.streams[wanted] = RawFd::try_from(high).unwrap_or(-1);
    }
    for wanted in 0..3 {
        // SAFETY: dup2 of a descriptor made above; without CLOEXEC the copy is what the program gets.
        let placed = unsafe { libc::syscall(libc::SYS_dup2, p.streams[wanted], wanted) };
        check(p, Step::Streams, placed);
    }
    let close_on_exec = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: only sets flags in this process' own table. All descriptors of the agent are close-on-exec
    // already; this holds it for those that a library opened otherwise, and may fail on older kernels.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST_PRIVATE_FD, u32::MAX, close_on_exec) };
}

/// Tries each program in turn. "Found but not allowed" wins over "not found", as in execvp(3).
///
/// # Safety
/// Only in the child; the vectors of `p` end with null.
unsafe fn exec(p: &mut Prepared) -> ! {
    let mut errno = libc::ENOENT;
    for &program in p.programs.iter().take_while(|p| !p.is_null()) {
        // SAFETY: null-terminated arrays of null-terminated strings.
        unsafe { libc::syscall(libc::SYS_execve, program, p.argv.as_ptr(), p.env.as_ptr()) };
        match Errno::last_raw() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => errno = libc::EACCES,
            other => fail(p, Step::Exec, other),
        }
    }
    fail(p, Step::Exec, errno)
}

fn check(p: &mut Prepared, step: Step, result: libc::c_long) {
    if result < 0 {
        fail(p, step, Errno::last_raw());
    }
}

fn fail(p: &mut Prepared, step: Step, errno: c_int) -> ! {
    p.failed_step = step as c_int;
    p.failed_errno = errno;
    // SAFETY: ends this process only, without running destructors or atexit handlers of the shared memory.
    unsafe {
        libc::syscall(libc::SYS_exit_group, 127);
    }
    // exit_group does not return.
    loop {
        std::hint::spin_loop();
    }
}
