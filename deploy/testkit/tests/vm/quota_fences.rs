//! What would lead a task out of its disk quota, and what becomes of it. Formats the guest's scratch disk.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::TaskState;
use bulkhead_testkit::{Options, Task, trials};
use libtest_mimic::Trial;

use crate::on_disk::{FILL, Kind, OnDisk, filled};

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        ext4_holds_root_to_its_quota,
        ext4_keeps_trusted_tasks_in_their_project,
        xfs_keeps_trusted_tasks_in_their_project,
    ]
}

const SETTINGS: &str = "disk_projects = \"7000-7099\"\n";

fn trusting() -> Options {
    Options { allow_trusted_tasks: true, ..Options::default() }
}

fn trusted(task: Task) -> Task {
    task.confined(|fences| fences.profile = "trusted".to_owned())
}

/// CAP_SYS_RESOURCE, which ext4 lets write beyond any quota.
const SYS_RESOURCE: u32 = 24;

async fn ext4_holds_root_to_its_quota() -> Result<()> {
    let on = OnDisk::with(Kind::Ext4, SETTINGS, trusting()).await?;
    let framework = on.cluster.framework("root").await?;
    let fill = |id: &str| Task::new(id, ["python3", "-ISc", FILL, "filled"]).user("root").disk_mib(12);
    // As wide as a task of each kind can be.
    let every = |task: Task| task.confined(|fences| fences.add_capabilities = vec!["ALL".to_owned()]);
    for (id, task) in
        [("default", fill("default")), ("all", every(fill("all"))), ("trusted", trusted(fill("trusted")))]
    {
        let end = framework.run(task).await?;
        assert_eq!(end.state(), TaskState::Finished, "{end:?}");
        let (refusal, total) = filled(&on.cluster, &framework, id).await?;
        assert_eq!(refusal, "EDQUOT", "{id}");
        assert!((11 << 20..=12 << 20).contains(&total), "{id} wrote {total} bytes");
    }
    let show = Task::shell("show", "grep ^Cap /proc/self/status").user("root");
    framework.run(trusted(show)).await?;
    let shown = on.cluster.stdout(&framework, "show").await?;
    let sets: Vec<u64> = shown
        .lines()
        .map(|line| Ok(u64::from_str_radix(line.split_whitespace().last().context("a set")?, 16)?))
        .collect::<Result<_>>()?;
    assert_eq!(sets.len(), 5, "{shown}");
    assert!(sets.iter().all(|set| set & (1 << SYS_RESOURCE) == 0), "{shown}");
    assert!(sets.iter().any(|set| set.count_ones() > 30), "root has the others: {shown}");
    framework.teardown().await?;
    on.finish().await
}

/// Python: makes a file of its own and takes it out of its project, by each call there is for that. Then it writes on.
const LEAVE: &str = "\
import ctypes, errno, fcntl, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try:
        act()
        print(name, 'done', flush=True)
    except OSError as e:
        print(name, errno.errorcode[e.errno], flush=True)
def system(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), '')
f = os.open('mine', os.O_CREAT | os.O_RDWR)
attributes = bytearray(28)
fcntl.ioctl(f, 0x801c581f, attributes)
struct.pack_into('I', attributes, 12, 0)
attempt('fssetxattr', lambda: fcntl.ioctl(f, 0x401c5820, bytes(attributes)))
d = os.open('.', os.O_RDONLY)
attempt('setflags', lambda: fcntl.ioctl(d, 0x40086602, struct.pack('l', 0)))
attempt('file_setattr', lambda: system(469, f, b'', 0, 0, 0))
";

/// What the calls get in a task.
const KEPT: &str = "fssetxattr EPERM\nsetflags EPERM\nfile_setattr EPERM\n";

async fn ext4_keeps_trusted_tasks_in_their_project() -> Result<()> {
    keeps(Kind::Ext4).await
}

async fn xfs_keeps_trusted_tasks_in_their_project() -> Result<()> {
    keeps(Kind::Xfs).await
}

async fn keeps(kind: Kind) -> Result<()> {
    let on = OnDisk::with(kind, SETTINGS, trusting()).await?;
    let framework = on.cluster.framework("leave").await?;
    // What the kernel lets the owner of a file do who is no task.
    let open = on.cluster.work_dir().join("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    ensure!(Command::new("chattr").args(["-p", "77", "+P"]).arg(&open).status()?.success(), "chattr");
    let mut outside = Command::new("setpriv");
    outside.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "python3", "-ISc", LEAVE]);
    let said = outside.current_dir(&open).output().context("setpriv")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.starts_with("fssetxattr done\n"), "{said}");

    let leave = |id: &str| Task::python(id, LEAVE);
    let unfiltered = leave("unfiltered").confined(|fences| fences.seccomp = "unconfined".to_owned());
    let lax =
        leave("lax").confined(|fences| fences.seccomp = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#.to_owned());
    for (id, task) in [
        ("default", leave("default")),
        ("unfiltered", unfiltered),
        ("lax", lax),
        ("trusted", trusted(leave("trusted"))),
        ("root", trusted(leave("root").user("root"))),
        ("inside", trusted(leave("inside").confined(|fences| fences.user_namespace = Some(true)))),
    ] {
        let end = framework.run(task).await?;
        assert_eq!(end.state(), TaskState::Finished, "{end:?}");
        assert_eq!(on.cluster.stdout(&framework, id).await?, KEPT, "{id}");
    }
    framework.teardown().await?;
    on.finish().await
}
