//! What stands around a task besides its limits: what it is left with, as it sees it itself.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{LogStream, Rlimit, TaskReason, TaskState, TaskStatus};
use bulkhead_testkit::{Cluster, Framework, Options, Task, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        no_privileges_are_left,
        root_has_no_privileges_either,
        namespaces_of_its_own,
        a_dev_and_a_tmp_of_its_own,
        the_host_is_read_only,
        what_tells_of_the_host_is_hidden,
        other_sandboxes_are_out_of_reach,
        output_can_be_opened_again,
        dangerous_calls_are_refused,
        volumes_as_they_were_asked_for,
        volumes_lie_where_the_operator_says,
        root_of_its_own_user_namespace,
        loopback_of_its_own_network,
        name_mask_limits_and_directory,
        a_capability_for_a_trusted_task,
        trusted_tasks_have_no_fence_but_their_quota,
        weaker_fences_are_refused,
        a_step_that_fails_is_named,
    ]
}

/// Runs a script under the default profile; what it printed.
async fn shell(script: &str) -> Result<String> {
    let cluster = CLUSTER.get().await?;
    output(&cluster, Task::shell("t", script)).await
}

async fn output(cluster: &Cluster, task: Task) -> Result<String> {
    let framework = cluster.framework("confined").await?;
    let end = framework.run(task).await?;
    let text = cluster.output(framework.id(), "t", LogStream::Stdout).await;
    let error = cluster.output(framework.id(), "t", LogStream::Stderr).await;
    assert_eq!(end.state(), TaskState::Finished, "{end:?} {text:?} {error:?}");
    framework.teardown().await?;
    text
}

async fn trusting() -> Result<Cluster> {
    let options = Options { allow_root_tasks: true, allow_trusted_tasks: true, ..Options::default() };
    Cluster::start(options).await
}

async fn refused(cluster: &Cluster, task: Task) -> Result<TaskStatus> {
    let framework = cluster.framework("refused").await?;
    let end = framework.run(task).await?;
    framework.teardown().await?;
    Ok(end)
}

const PRIVILEGES: &str = "sed -nE 's/^(Cap[A-Za-z]*|NoNewPrivs|Seccomp):\\t/\\1 /p' /proc/self/status";

fn assert_no_privileges(output: &str) {
    for (name, value) in output.lines().filter_map(|line| line.split_once(' ')) {
        let expected = match name {
            "NoNewPrivs" => "1",
            "Seccomp" => "2",
            _ => "0000000000000000",
        };
        assert_eq!(value, expected, "{name}: {output}");
    }
    assert_eq!(output.lines().count(), 7, "{output}");
}

async fn no_privileges_are_left() -> Result<()> {
    assert_no_privileges(&shell(PRIVILEGES).await?);
    Ok(())
}

async fn root_has_no_privileges_either() -> Result<()> {
    let cluster = Cluster::start(Options { allow_root_tasks: true, ..Options::default() }).await?;
    assert_no_privileges(&output(&cluster, Task::shell("t", PRIVILEGES).user("root")).await?);
    let script = "for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /etc/hosts /sys/power/state; do \
        echo x 2>/dev/null >>$f && echo wrote $f; done; mkdir $0 2>/dev/null && echo made; \
        mknod disk b 254 0 2>/dev/null && echo node; mount -t tmpfs none . 2>/dev/null && echo mounted; true";
    let below = cluster.cgroup()?.join("escape").display().to_string();
    let argv = ["sh", "-c", script, &below];
    assert_eq!(output(&cluster, Task::new("t", argv).user("root")).await?, "");
    cluster.finish().await
}

async fn namespaces_of_its_own() -> Result<()> {
    let seen = shell(
        "for n in mnt pid ipc uts net user; do echo $n $(readlink /proc/self/ns/$n); done; echo pid $$",
    )
    .await?;
    for line in seen.lines().take(6) {
        let (name, inside) = line.split_once(' ').context("a name")?;
        let outside = fs::read_link(format!("/proc/self/ns/{name}"))?.display().to_string();
        assert_eq!(inside == outside, ["net", "user"].contains(&name), "{line}");
    }
    assert!(seen.ends_with("pid 1\n"), "{seen}");
    Ok(())
}

async fn a_dev_and_a_tmp_of_its_own() -> Result<()> {
    let mark = format!("bulkhead-{}", std::process::id());
    let script = format!(
        "ls /dev | tr '\\n' ' '; ls -A /tmp | wc -l; echo x >/tmp/{mark}; echo x >/dev/shm/x; \
         [ -c /dev/ptmx ] && head -c 3 /dev/zero | wc -c; stat -c %a /tmp /dev/null"
    );
    let seen = shell(&script).await?;
    let lines: Vec<&str> = seen.lines().collect();
    let (devices, tmp) = lines[0].rsplit_once(' ').context("devices")?;
    assert_eq!(devices, "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero");
    // The way to the sandbox, where that lies below /tmp itself.
    assert!(tmp.parse::<u32>()? <= 1, "{seen}");
    assert_eq!(lines[1..], ["3", "1777", "666"], "{seen}");
    assert!(!Path::new("/tmp").join(mark).exists());
    Ok(())
}

async fn the_host_is_read_only() -> Result<()> {
    let open = tempfile::Builder::new().prefix("bulkhead-open").tempdir_in("/var/tmp")?;
    fs::set_permissions(open.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let script = format!(
        "touch {0}/x 2>/dev/null || echo refused; mkdir /var/tmp/x 2>/dev/null || echo refused; touch mine && echo mine",
        open.path().display()
    );
    assert_eq!(shell(&script).await?, "refused\nrefused\nmine\n");
    Ok(())
}

async fn what_tells_of_the_host_is_hidden() -> Result<()> {
    // Not every kernel has each of them; where they are, they are empty.
    let script = "cat /proc/kcore 2>/dev/null | wc -c; find /proc/acpi /sys/firmware -mindepth 1 2>/dev/null | wc -l; ls -d /proc/[0-9]* | wc -l; \
        echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused; echo me >/proc/self/comm && echo named; grep -q MemTotal /proc/meminfo && echo there";
    let seen = shell(script).await?;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!((lines[0], lines[1]), ("0", "0"), "{seen}");
    assert!(lines[2].parse::<u32>()? <= 4, "{seen}");
    assert_eq!(lines[3..], ["refused", "named", "there"], "{seen}");
    Ok(())
}

/// Both run as the same user, who may read both.
async fn other_sandboxes_are_out_of_reach() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("neighbours").await?;
    framework
        .start(Task::shell("a", "echo secret >file; chmod 666 file; echo ready; exec sleep 600"))
        .await?;
    cluster.stdout_until(&framework, "a", "ready").await?;
    let file = cluster.task_dir(&framework, "a").join("file").display().to_string();
    let script = "cat $0 2>/dev/null || echo unread; echo x 2>/dev/null >$0 || echo unwritten";
    framework.run(Task::new("t", ["sh", "-c", script, &file])).await?;
    assert_eq!(cluster.stdout(&framework, "t").await?, "unread\nunwritten\n");
    assert_eq!(fs::read_to_string(file)?, "secret\n");
    framework.teardown().await
}

async fn output_can_be_opened_again() -> Result<()> {
    assert_eq!(
        shell("echo one >/dev/stdout; echo two >>/proc/self/fd/1; echo three").await?,
        "one\ntwo\nthree\n"
    );
    Ok(())
}

async fn dangerous_calls_are_refused() -> Result<()> {
    let script = "\
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
calls = {'unshare': (272, 0x10000000), 'ptrace': (101, 16, 1), 'bpf': (321, 0, 0, 0), 'reboot': (169, 0, 0, 0),
    'init_module': (175, 0, 0, 0), 'mount': (165, 0, 0, 0, 0, 0), 'kexec_load': (246, 0, 0, 0, 0), 'keyctl': (250, 0, 0)}
for name, call in calls.items():
    result = libc.syscall(*call)
    print(name, result, errno.errorcode[ctypes.get_errno()])";
    let cluster = CLUSTER.get().await?;
    let seen = output(&cluster, Task::python("t", script)).await?;
    for line in seen.lines() {
        assert!(line.ends_with("-1 EPERM") || line.ends_with("-1 ESRCH"), "{seen}");
    }
    assert_eq!(seen.lines().count(), 8, "{seen}");
    Ok(())
}

async fn volumes_as_they_were_asked_for() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("bulkhead-volumes").tempdir_in("/var/tmp")?;
    let (data, reference) = (dir.path().join("data"), dir.path().join("reference"));
    for volume in [&data, &reference] {
        fs::create_dir(volume)?;
        fs::write(volume.join("in"), "here\n")?;
        fs::set_permissions(volume, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    }
    symlink("/etc", dir.path().join("link"))?;
    let agent_args = vec!["--volume-dir".to_owned(), dir.path().display().to_string()];
    let cluster = Cluster::start(Options { agent_args, ..Options::default() }).await?;
    let script = "cat /tmp/d/in /tmp/r/in; echo out >/tmp/d/out && echo wrote; echo out 2>/dev/null >/tmp/r/out || echo refused";
    let task = Task::shell("t", script);
    let task = task.volume(&data, "/tmp/d", false).volume(&reference, "/tmp/r", true);
    assert_eq!(output(&cluster, task).await?, "here\nhere\nwrote\nrefused\n");
    assert_eq!(fs::read_to_string(data.join("out"))?, "out\n");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains("bulkhead-volumes"), "{mounts}");
    let linked = Task::new("t", ["true"]).volume(&dir.path().join("link"), "/tmp/d", false);
    let end = refused(&cluster, linked).await?;
    assert!(end.state() == TaskState::Failed && end.message.contains("link"), "{end:?}");
    let nowhere = Task::new("t", ["true"]).volume(&data, "/nowhere", false);
    let end = refused(&cluster, nowhere).await?;
    assert!(end.message.contains("attach a mount to /nowhere"), "{end:?}");
    cluster.finish().await
}

async fn volumes_lie_where_the_operator_says() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let end = refused(&cluster, Task::new("t", ["true"]).volume(Path::new("/etc"), "/tmp/e", true)).await?;
    assert_eq!(end.reason(), TaskReason::ConfinementRefused, "{end:?}");
    assert!(end.message.contains("volume_dirs"), "{end:?}");
    Ok(())
}

async fn root_of_its_own_user_namespace() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let script = format!(
        "id -u; id -g; cat /proc/self/uid_map | tr -s ' '; touch mine; stat -c %u mine; {PRIVILEGES}"
    );
    let framework = cluster.framework("root").await?;
    let task = Task::shell("t", &script).confined(|c| c.user_namespace = Some(true));
    let end = framework.run(task).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    let seen = cluster.stdout(&framework, "t").await?;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..4], ["0", "0", " 0 65534 1", "0"], "{seen}");
    assert_no_privileges(&lines[4..].join("\n"));
    let owner =
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(cluster.task_dir(&framework, "t").join("mine"))?);
    assert_eq!(owner, 65534);
    framework.teardown().await
}

async fn loopback_of_its_own_network() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let script = "\
import socket
print(sorted(name for _, name in socket.if_nameindex()))
sender, receiver = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
print(sender.connect_ex(('127.0.0.1', 9)), sender.connect_ex(('192.0.2.1', 9)) != 0)";
    let task = Task::python("t", script).confined(|c| c.network_namespace = Some(true));
    let seen = output(&cluster, task).await?;
    assert!(seen.contains("'lo'") && !seen.contains("eth"), "{seen}");
    assert!(seen.ends_with("0 True\n"), "{seen}");
    Ok(())
}

async fn name_mask_limits_and_directory() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let limit = Rlimit { name: "nofile".into(), soft: 100, hard: 200 };
    let task = Task::shell("t", "uname -n; umask; ulimit -Sn; ulimit -Hn; pwd; id -G").confined(|c| {
        c.hostname = "inner".into();
        c.umask = Some(0o027);
        c.rlimits = vec![limit];
        c.groups = vec!["nogroup".into()];
    });
    let seen = output(&cluster, task.working_dir("/usr")).await?;
    assert_eq!(seen, "inner\n0027\n100\n200\n/usr\n65534\n");
    Ok(())
}

async fn a_capability_for_a_trusted_task() -> Result<()> {
    let cluster = trusting().await?;
    let add = |c: &mut bulkhead_proto::v1::Confinement| c.add_capabilities = vec!["CAP_NET_ADMIN".into()];
    let seen = output(&cluster, Task::shell("t", PRIVILEGES).confined(add)).await?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(seen.contains(&format!("{set} 0000000000001000\n")), "{seen}");
    }
    cluster.finish().await
}

async fn trusted_tasks_have_no_fence_but_their_quota() -> Result<()> {
    let cluster = trusting().await?;
    let trusted = |script: &str| Task::shell("t", script).confined(|c| c.profile = "trusted".into());
    let seen =
        output(&cluster, trusted("for n in mnt pid ipc uts; do readlink /proc/self/ns/$n; done")).await?;
    for (line, name) in seen.lines().zip(["mnt", "pid", "ipc", "uts"]) {
        assert_eq!(line, fs::read_link(format!("/proc/self/ns/{name}"))?.display().to_string());
    }
    let seen = output(&cluster, trusted(PRIVILEGES)).await?;
    // The one filter keeps its files in the project whose quota bounds them.
    assert!(seen.contains("Seccomp 2\n") && seen.contains("NoNewPrivs 1\n"), "{seen}");
    assert!(seen.contains("CapEff 0000000000000000\n"), "{seen}");
    let seen = output(&cluster, trusted(PRIVILEGES).user("root")).await?;
    assert!(seen.contains("NoNewPrivs 0\n") && !seen.contains("CapEff 0000000000000000\n"), "{seen}");
    cluster.finish().await
}

async fn weaker_fences_are_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework: Framework = cluster.framework("weaker").await?;
    let tasks = [
        Task::new("profile", ["true"]).confined(|c| c.profile = "trusted".into()),
        Task::new("pid", ["true"]).confined(|c| c.pid_namespace = Some(false)),
        Task::new("caps", ["true"]).confined(|c| c.add_capabilities = vec!["SYS_ADMIN".into()]),
        Task::new("seccomp", ["true"]).confined(|c| c.seccomp = "unconfined".into()),
        Task::new("privs", ["true"]).confined(|c| c.no_new_privs = Some(false)),
        Task::new("paths", ["true"]).confined(|c| c.readable_paths = vec!["/root".into()]),
    ];
    for task in tasks {
        let end = framework.run(task).await?;
        assert_eq!(
            (end.state(), end.reason()),
            (TaskState::Failed, TaskReason::ConfinementRefused),
            "{end:?}"
        );
        assert!(end.message.contains("allow_trusted_tasks"), "{end:?}");
    }
    let end =
        framework.run(Task::new("groups", ["true"]).confined(|c| c.groups = vec!["disk".into()])).await?;
    assert_eq!(end.reason(), TaskReason::ConfinementRefused, "{end:?}");
    framework.teardown().await
}

async fn a_step_that_fails_is_named() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let end = refused(&cluster, Task::new("t", ["true"]).working_dir("/no/such")).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::LaunchFailed), "{end:?}");
    for words in ["enter the directory /no/such", "No such file"] {
        assert!(end.message.contains(words), "{words:?} in {end:?}");
    }
    Ok(())
}
