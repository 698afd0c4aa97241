//! The default profile, as data: what a program that was not written for this node needs, and nothing by which it
//! could reach beyond itself. What is not named here fails with EPERM.
//!
//! Left out on purpose, besides what only the node's operator does (mounting, modules, clocks, swap, reboot):
//! io_uring (it makes calls that no filter sees), bpf and perf_event_open, userfaultfd, the kernel's keyrings,
//! io port access, opening files by handle, and namespaces of its own.

use syscalls::Sysno::{self, *};

/// Always allowed.
#[rustfmt::skip]
pub(super) const ALLOWED: &[Sysno] = &[
    // Files and directories, by name and by descriptor.
    access, chdir, chmod, chown, creat, faccessat, faccessat2, fchdir, fchmod, fchmodat, fchmodat2, fchown,
    fchownat, fstat, fstatfs, futimesat, getcwd, getdents, getdents64, lchown, link, linkat, lstat, mkdir,
    mkdirat, mknod, mknodat, name_to_handle_at, newfstatat, open, openat, openat2, readlink, readlinkat,
    rename, renameat, renameat2, rmdir, stat, statfs, statx, symlink, symlinkat, truncate, umask, unlink,
    unlinkat, utime, utimensat, utimes, ustat, fgetxattr, flistxattr, fremovexattr, fsetxattr, getxattr,
    getxattrat, lgetxattr, listxattr, listxattrat, llistxattr, lremovexattr, lsetxattr, removexattr,
    removexattrat, setxattr, setxattrat, file_getattr, inotify_add_watch, inotify_init, inotify_init1,
    inotify_rm_watch, fanotify_mark,
    // Input and output.
    cachestat, close, close_range, copy_file_range, dup, dup2, dup3, fadvise64, fallocate, fcntl, fdatasync,
    flock, fsync, ftruncate, lseek, pipe, pipe2, pread64, preadv, preadv2, pwrite64, pwritev, pwritev2, read,
    readahead, readv, sendfile, splice, sync, sync_file_range, syncfs, tee, vmsplice, write, writev,
    io_cancel, io_destroy, io_getevents, io_pgetevents, io_setup, io_submit,
    // Waiting.
    epoll_create, epoll_create1, epoll_ctl, epoll_ctl_old, epoll_pwait, epoll_pwait2, epoll_wait,
    epoll_wait_old, eventfd, eventfd2, poll, ppoll, pselect6, select, signalfd, signalfd4,
    // Sockets; which families: see RULES.
    accept, accept4, bind, connect, getpeername, getsockname, getsockopt, listen, recvfrom, recvmmsg, recvmsg,
    sendmmsg, sendmsg, sendto, setsockopt, shutdown, socketpair,
    // Memory.
    brk, get_mempolicy, madvise, map_shadow_stack, membarrier, memfd_create, memfd_secret, mincore, mlock,
    mlock2, mlockall, mmap, mprotect, mremap, mseal, msync, munlock, munlockall, munmap, pkey_alloc,
    pkey_free, pkey_mprotect, process_madvise, process_mrelease, remap_file_pages,
    // Between processes of one IPC namespace.
    mq_getsetattr, mq_notify, mq_open, mq_timedreceive, mq_timedsend, mq_unlink, msgctl, msgget, msgrcv,
    msgsnd, semctl, semget, semop, semtimedop, shmat, shmctl, shmdt, shmget,
    // Processes and threads; clone: see RULES. ptrace and its kin reach only what the task may signal anyway, and
    // since Linux 4.8 a traced call is filtered after the tracer has changed it.
    execve, execveat, exit, exit_group, fork, getpgid, getpgrp, getpid, getppid, getsid, gettid, kcmp, kill,
    pidfd_getfd, pidfd_open, pidfd_send_signal, process_vm_readv, process_vm_writev, ptrace, setpgid, setsid,
    tgkill, tkill, vfork, wait4, waitid, arch_prctl, modify_ldt, prctl, set_thread_area, get_thread_area,
    set_tid_address, futex, futex_requeue, futex_wait, futex_waitv, futex_wake, get_robust_list, rseq,
    set_robust_list,
    // Signals.
    pause, restart_syscall, rt_sigaction, rt_sigpending, rt_sigprocmask, rt_sigqueueinfo, rt_sigreturn,
    rt_sigsuspend, rt_sigtimedwait, rt_tgsigqueueinfo, sigaltstack,
    // Scheduling and limits, within what the cgroup and the capabilities allow.
    getcpu, getpriority, getrlimit, getrusage, ioprio_get, ioprio_set, prlimit64, sched_get_priority_max,
    sched_get_priority_min, sched_getaffinity, sched_getattr, sched_getparam, sched_getscheduler,
    sched_rr_get_interval, sched_setaffinity, sched_setattr, sched_setparam, sched_setscheduler, sched_yield,
    setpriority, setrlimit,
    // Who it is; the capabilities decide.
    capget, capset, getegid, geteuid, getgid, getgroups, getresgid, getresuid, getuid, setfsgid, setfsuid,
    setgid, setgroups, setregid, setresgid, setresuid, setreuid, setuid,
    // Time; setting it needs a capability.
    adjtimex, alarm, clock_getres, clock_gettime, clock_nanosleep, getitimer, gettimeofday, nanosleep,
    setitimer, time, timer_create, timer_delete, timer_getoverrun, timer_gettime, timer_settime,
    timerfd_create, timerfd_gettime, timerfd_settime, times,
    // Fences of its own.
    landlock_add_rule, landlock_create_ruleset, landlock_restrict_self, lsm_get_self_attr, lsm_list_modules,
    seccomp,
    // The rest.
    getrandom, sysinfo, uname,
];

/// uretprobe and uprobe: made by the kernel itself in a program that an operator traces.
pub(super) const PROBES: [u32; 2] = [335, 336];

/// Allowed to who holds one of the capabilities; the kernel asks for them again.
pub(super) const BY_CAPABILITY: &[(&[&str], &[Sysno])] = &[
    (
        &["SYS_ADMIN"],
        &[
            clone,
            clone3,
            fanotify_init,
            file_setattr,
            fsconfig,
            fsmount,
            fsopen,
            fspick,
            listmount,
            mount,
            mount_setattr,
            move_mount,
            open_tree,
            open_tree_attr,
            quotactl,
            quotactl_fd,
            setdomainname,
            sethostname,
            setns,
            statmount,
            umount2,
            unshare,
        ],
    ),
    (&["SYS_ADMIN", "BPF"], &[bpf]),
    (&["SYS_ADMIN", "PERFMON"], &[perf_event_open]),
    (&["SYS_ADMIN", "SYSLOG"], &[syslog]),
    (&["DAC_READ_SEARCH"], &[open_by_handle_at]),
    (&["SYS_BOOT"], &[reboot]),
    (&["SYS_CHROOT"], &[chroot]),
    (&["SYS_MODULE"], &[delete_module, finit_module, init_module]),
    (&["SYS_NICE"], &[mbind, migrate_pages, move_pages, set_mempolicy, set_mempolicy_home_node]),
    (&["SYS_PACCT"], &[acct]),
    (&["SYS_RAWIO"], &[ioperm, iopl]),
    (&["SYS_TIME"], &[clock_adjtime, clock_settime, settimeofday]),
    (&["SYS_TTY_CONFIG"], &[vhangup]),
];

/// The flags of clone(2) that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
pub(super) const NAMESPACES: u64 = 0x7E02_0000;

/// Execution domains that change nothing but what uname(2) says; the last one only asks.
pub(super) const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET. The port rules do not see what other families bind.
pub(super) const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];
/// The two of them that have ports.
pub(super) const INET: [u64; 2] = [2, 10];
/// `IPPROTO_SCTP`, whose binds no port rule sees; also what SOCK_SEQPACKET means there.
pub(super) const SCTP: u64 = 132;
pub(super) const SEQPACKET: u64 = 5;
/// The bits of a socket's type that are no flags.
pub(super) const TYPE_MASK: u64 = 0xf;

/// Requests of ioctl(2) that fail: `TIOCSTI` and `TIOCLINUX`, which type into a terminal for others. Besides those that
/// the quota of a sandbox forbids.
pub(super) const TERMINAL_IOCTLS: [libc::c_ulong; 2] = [0x5412, 0x541C];
