//! A program started straight inside a cgroup and its namespaces, with a pidfd, at a cost that does not grow
//! with the agent's memory.
//!
//! clone3(2) with `CLONE_INTO_CGROUP` (Linux 5.7) puts the child into its cgroup before it runs one
//! instruction, so none of its work is ever charged elsewhere. `CLONE_VM | CLONE_VFORK` shares
//! the agent's memory until the exec instead of copying its page tables; only the calling thread waits.
//!
//! What happens between clone and exec is data: a list of [`ChildStep`]s. The child goes through their plain
//! form in `child`, on a stack of its own. It must not allocate, lock or unwind, since it shares memory
//! with the agent's other threads; what failed comes back through the same memory.

use std::{
    arch::asm,
    ffi::{CString, NulError, c_char},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, pthread_sigmask},
    unistd::Pid,
};

use self::child::{Prepared, child};
pub use self::step::{ChildStep, Layers, Mount};
use crate::kernel::stack::Stack;

mod child;
mod overlay;
mod step;

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

/// Namespaces of the child's own, made with it. A user namespace is none of them: it is a step
/// ([`ChildStep::UserNamespace`]), because mounts are made before it with the agent's privileges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Mounts.
    pub mount: bool,
    /// Process ids; the program is number 1.
    pub pid: bool,
    /// System V and POSIX message queues, semaphores, shared memory.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// Network interfaces, down at first.
    pub network: bool,
}

impl Namespaces {
    /// Every one of them.
    pub const ALL: Self = Self { mount: true, pid: true, ipc: true, uts: true, network: true };

    fn clone_flags(self) -> u64 {
        let flags = [
            (self.mount, libc::CLONE_NEWNS),
            (self.pid, libc::CLONE_NEWPID),
            (self.ipc, libc::CLONE_NEWIPC),
            (self.uts, libc::CLONE_NEWUTS),
            (self.network, libc::CLONE_NEWNET),
        ];
        flags
            .iter()
            .filter(|(wanted, _)| *wanted)
            .fold(0, |all, (_, flag)| all | u64::from(flag.cast_unsigned()))
    }
}

/// What to start. All descriptors must stay open until [`spawn`] returns.
#[derive(Debug)]
pub struct Command<'a> {
    /// The directory of the cgroup to start in.
    pub cgroup: BorrowedFd<'a>,
    /// Made with the child.
    pub namespaces: Namespaces,
    /// What the child does before it executes the program, in this order.
    pub steps: Vec<ChildStep<'a>>,
    /// Files to try in order, the way execvp(3) goes through `PATH`.
    pub programs: Vec<CString>,
    /// The arguments, the program's name first.
    pub argv: Vec<CString>,
    /// `NAME=value`.
    pub env: Vec<CString>,
}

/// A program that was executed.
#[derive(Debug)]
pub struct Spawned {
    /// The process, which is also the leader of a new session where the steps say so.
    pub pid: Pid,
    /// Readable once the process has ended; closed on exec.
    pub pidfd: OwnedFd,
}

/// The program does not run, and nothing of the attempt is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A string with a NUL byte inside.
    #[error("an argument or variable has a NUL byte in it")]
    Nul(#[from] NulError),
    /// The child could not be made: `EAGAIN` at pids.max, `EBUSY` or `EOPNOTSUPP` for an unusable cgroup,
    /// `ENOSPC` at a limit of namespaces (/proc/sys/user).
    #[error("clone3 into the cgroup and namespaces")]
    Clone(#[source] io::Error),
    /// No memory for the child's stack.
    #[error("map a stack for the child")]
    Stack(#[source] io::Error),
    /// A step failed in the child; the program did not run.
    #[error("{step} in the new process")]
    Step {
        /// Its place in [`Command::steps`].
        index: usize,
        /// What it was to do, to what.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// None of the files could be executed.
    #[error("execute the program in the new process")]
    Exec(#[source] io::Error),
}

impl SpawnError {
    /// Why the program's own file could not be executed, where that is what failed.
    pub fn exec_errno(&self) -> Option<Errno> {
        match self {
            Self::Exec(source) => source.raw_os_error().map(Errno::from_raw),
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
    let pointers = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect::<Vec<*const c_char>>()
    };
    let (programs, argv, env) =
        (pointers(&command.programs), pointers(&command.argv), pointers(&command.env));
    let ops: Vec<_> = command.steps.iter().map(ChildStep::op).collect();
    let mut prepared = Prepared::new(&ops, &programs, &argv, &env);
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let flags = u64::from(flags.cast_unsigned()) | CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND;
    let args = CloneArgs {
        flags: flags | command.namespaces.clone_flags(),
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
    // `pidfd` and everything that they and `command` point to outlive the child's use of them.
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
    let Some((index, errno)) = prepared.failure() else { return Ok(Spawned { pid, pidfd }) };
    // It has called _exit, so this does not block.
    let reaped = nix::sys::wait::waitpid(pid, None);
    debug_assert!(reaped.is_ok(), "our own child, not waited for elsewhere");
    let source = io::Error::from_raw_os_error(errno);
    Err(match command.steps.get(index) {
        Some(step) => SpawnError::Step { index, step: step.to_string(), source },
        None => SpawnError::Exec(source),
    })
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// clone3, and in the child a call of [`child`] with `prepared`. Returns the pid, or minus errno, in the parent.
///
/// # Safety
/// `args` must name a mapped stack and use CLONE_VFORK; `prepared`, and what it points to, must stay valid
/// until this returns.
unsafe fn clone_and_enter(args: &CloneArgs, prepared: *mut Prepared<'_>) -> i64 {
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
            in("r13") child as extern "C" fn(*mut Prepared<'_>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
