//! Tasks that mean harm, under the default profile: what each attempt got, and that nobody else noticed.

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{TaskReason, TaskState};
use bulkhead_testkit::{Cluster, Framework, Options, Task, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        a_fork_bomb_fills_only_its_own_limit,
        a_memory_bomb_ends_alone,
        nothing_leads_out,
        nothing_leads_out_for_root_either,
        descendants_in_sessions_of_their_own_end_with_the_task,
    ]
}

/// One more task of the same node works as ever.
async fn neighbour_is_well(framework: &Framework, id: &str) -> Result<()> {
    let end = framework.run(Task::shell(id, "for i in 1 2 3; do true & done; wait")).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    Ok(())
}

async fn a_fork_bomb_fills_only_its_own_limit() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("fork-bomb").await?;
    let bomb = "\
import errno, os, signal
while True:
    try:
        os.fork()
    except OSError as e:
        os.write(1, b'refused ' + errno.errorcode[e.errno].encode() + b'\\n')
        signal.pause()
";
    framework.launch(Task::python("bomb", bomb).pids_max(20).mem_mib(256)).await?;
    framework.running("bomb").await?;
    cluster.stdout_until(&framework, "bomb", &"refused EAGAIN\n".repeat(20)).await?;
    neighbour_is_well(&framework, "neighbour").await?;
    framework.kill("bomb", 0).await?;
    let end = framework.end_of("bomb").await?;
    assert_eq!((end.state(), end.usage.context("a usage")?.pids_refused), (TaskState::Killed, 20));
    assert!(!cluster.guaranteed(&framework, "bomb")?.exists());
    framework.teardown().await
}

async fn a_memory_bomb_ends_alone() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("memory-bomb").await?;
    let bomb = "held = []\nwhile True:\n    held.append(b'x' * (1 << 20))";
    let end = framework.run(Task::python("bomb", bomb).mem_mib(48)).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::OutOfMemory), "{end:?}");
    let usage = end.usage.context("a usage")?;
    assert!(usage.oom_kills > 0 && usage.mem_peak_bytes <= 48 << 20, "{usage:?}");
    neighbour_is_well(&framework, "neighbour").await?;
    framework.teardown().await
}

/// Prints the name of each attempt and what it got. Arguments: the agent's process, a disk, a file of a neighbour.
const ATTEMPTS: &str = "\
import ctypes, errno, fcntl, os, signal, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
agent, disk, file = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
def attempt(name, call, *arguments):
    try:
        call(*arguments)
        print(name, 'ok')
    except OSError as e:
        print(name, errno.errorcode[e.errno])
def system(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), '')
def write(path):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b'0')
attempt('cgroup_mkdir', os.mkdir, '/sys/fs/cgroup/escape')
attempt('cgroup_move', write, '/sys/fs/cgroup/cgroup.procs')
attempt('mount', system, 165, b'none', b'/tmp', b'tmpfs', 0, 0)
attempt('umount', system, 166, b'/proc', 2)
attempt('pivot_root', system, 155, b'/', b'/tmp')
attempt('chroot', os.chroot, '/tmp')
attempt('unshare_user', system, 272, 0x10000000)
attempt('clone_user', system, 56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
attempt('clone3', system, 435, 0, 0)
attempt('setns', system, 308, os.open('/proc/self/ns/net', os.O_RDONLY), 0)
attempt('ptrace_agent', system, 101, 16, agent, 0, 0)
buffer = ctypes.create_string_buffer(8)
piece = ctypes.byref((ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 8))
attempt('read_agent_memory', system, 310, agent, piece, 1, piece, 1, 0)
attempt('kill_agent', os.kill, agent, signal.SIGKILL)
attempt('open_disk', os.open, disk, os.O_RDWR)
attempt('make_disk', os.mknod, 'disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))
attempt('sysctl', write, '/proc/sys/kernel/panic')
attempt('sysrq', write, '/proc/sysrq-trigger')
attempt('neighbours_file', write, file)
attempt('reboot', system, 169, 0xfee1dead, 672274793, 0x1234567, 0)
attempt('load_module', system, 175, 0, 0, b'')
attempt('kexec', system, 246, 0, 0, 0, 0)
attempt('bpf', system, 321, 0, 0, 0)
attempt('io_uring', system, 425, 8, 0)
attempt('keyctl', system, 250, 0, 0)
attempt('userfaultfd', system, 323, 0)
attempt('perf', system, 298, 0, 0, -1, -1, 0)
attempt('no_randomization', system, 135, 0x40000)
attempt('leave_project', fcntl.ioctl, os.open('.', os.O_RDONLY), 0x401c5820, bytes(28))
attempt('sctp', system, 41, 2, 1, 132)
attempt('vsock', system, 41, 40, 1, 0)
attempt('raise_limit', system, 160, 7, ctypes.byref((ctypes.c_uint64 * 2)(1 << 40, 1 << 40)))
attempt('realtime', os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(10))
";

/// What each attempt gets from the kernel. Other processes and files are not refused but not there.
const REFUSED: &[(&str, &str)] = &[
    ("cgroup_mkdir", "EROFS"),
    ("cgroup_move", "EACCES"),
    ("mount", "EPERM"),
    ("umount", "EPERM"),
    ("pivot_root", "EPERM"),
    ("chroot", "EPERM"),
    ("unshare_user", "EPERM"),
    ("clone_user", "EPERM"),
    ("clone3", "ENOSYS"),
    ("setns", "EPERM"),
    ("ptrace_agent", "ESRCH"),
    ("read_agent_memory", "ESRCH"),
    ("kill_agent", "ESRCH"),
    ("open_disk", "ENOENT"),
    ("make_disk", "EPERM"),
    ("sysctl", "EACCES"),
    ("sysrq", "EACCES"),
    ("neighbours_file", "ENOENT"),
    ("reboot", "EPERM"),
    ("load_module", "EPERM"),
    ("kexec", "EPERM"),
    ("bpf", "EPERM"),
    ("io_uring", "EPERM"),
    ("keyctl", "EPERM"),
    ("userfaultfd", "EPERM"),
    ("perf", "EPERM"),
    ("no_randomization", "EPERM"),
    ("leave_project", "EPERM"),
    ("sctp", "EPROTONOSUPPORT"),
    ("vsock", "EPERM"),
    ("raise_limit", "EPERM"),
    ("realtime", "EPERM"),
];
/// Root inside owns these files; it is the mount that cannot be written.
const READ_ONLY_FOR_ROOT: [&str; 3] = ["cgroup_move", "sysctl", "sysrq"];

async fn attempts(cluster: &Cluster, user: &str) -> Result<()> {
    let framework = cluster.framework("hostile").await?;
    let quiet =
        Task::shell("quiet", "echo mine >file; chmod 666 file; echo ready; exec sleep 600").user(user);
    framework.start(quiet).await?;
    cluster.stdout_until(&framework, "quiet", "ready").await?;
    let file = cluster.task_dir(&framework, "quiet").join("file");
    let arguments = [cluster.agent_pid()?.to_string(), "/dev/vda".to_owned(), file.display().to_string()];
    let argv = ["python3", "-ISc", ATTEMPTS].map(str::to_owned).into_iter().chain(arguments);
    let end = framework.run(Task::new("t", argv).user(user)).await?;
    let seen = cluster.stdout(&framework, "t").await?;
    let got: Vec<_> = seen.lines().filter_map(|line| line.split_once(' ')).collect();
    let expected: Vec<_> = REFUSED
        .iter()
        .map(|&(name, errno)| {
            let read_only = user == "root" && READ_ONLY_FOR_ROOT.contains(&name);
            (name, if read_only { "EROFS" } else { errno })
        })
        .collect();
    assert_eq!(got, expected, "{end:?}");
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    assert_eq!(std::fs::read_to_string(&file)?, "mine\n");
    neighbour_is_well(&framework, "neighbour").await?;
    framework.teardown().await
}

async fn nothing_leads_out() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    attempts(&cluster, "").await
}

async fn nothing_leads_out_for_root_either() -> Result<()> {
    let cluster = Cluster::start(Options { allow_root_tasks: true, ..Options::default() }).await?;
    attempts(&cluster, "root").await?;
    cluster.finish().await
}

async fn descendants_in_sessions_of_their_own_end_with_the_task() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("daemons").await?;
    let daemons = "\
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            os.write(1, b'away\\n')
            time.sleep(600)
        os._exit(0)
";
    framework
        .launch(Task::python("leaves", format!("{daemons}while True: time.sleep(600)").as_str()))
        .await?;
    framework.running("leaves").await?;
    cluster.stdout_until(&framework, "leaves", &"away\n".repeat(5)).await?;
    let cgroup = cluster.guaranteed(&framework, "leaves")?;
    framework.kill("leaves", 0).await?;
    assert_eq!(framework.end_of("leaves").await?.state(), TaskState::Killed);
    assert!(!cgroup.exists(), "what was left of the task ended with it");
    // The same when the program itself ends first.
    let end = framework.run(Task::python("ends", daemons)).await?;
    assert_eq!(end.state(), TaskState::Finished);
    assert!(!cluster.guaranteed(&framework, "ends")?.exists());
    framework.teardown().await
}
