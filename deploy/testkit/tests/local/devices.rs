//! A device that was not granted is refused in the task's own call, even to a trusted task as root, and everybody can
//! see it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{Device, TaskReason, TaskState};
use bulkhead_testkit::{Cluster, Options, Task, harness::skip, trials};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    trials![a_device_outside_the_grant_is_refused]
}

/// Opens the kernel's log and a disk, and makes their files: what it got, a line each.
const TRY: &str = "\
import errno, os, stat, sys
def attempt(call, *arguments):
    try:
        call(*arguments)
        print('ok')
    except OSError as e:
        print(errno.errorcode[e.errno])
disk = sys.argv[1]
attempt(os.open, disk, os.O_RDONLY)
attempt(os.open, disk, os.O_RDWR)
attempt(os.mknod, 'disk', stat.S_IFBLK | 0o600, os.stat(disk).st_rdev)
attempt(os.mknod, 'null', stat.S_IFCHR | 0o600, os.makedev(1, 3))
attempt(os.open, '/dev/null', os.O_RDWR)
attempt(os.open, '/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK)
attempt(os.open, '/dev/kmsg', os.O_WRONLY)
";

fn attempt(id: &str, disk: &str, granted: &[(&str, &str)]) -> Task {
    let devices =
        granted.iter().map(|(path, access)| Device { path: (*path).into(), access: (*access).into() });
    let devices: Vec<_> = devices.collect();
    Task::new(id, ["python3", "-ISc", TRY, disk])
        .user("root")
        .confined(|c| c.profile = "trusted".into())
        .granted(|grant| grant.devices = devices)
}

/// The file of a block device of this machine.
fn disk() -> Result<String> {
    let partitions = fs::read_to_string("/proc/partitions")?;
    let names = partitions.lines().filter_map(|line| line.split_whitespace().nth(3));
    let found = names.map(|name| format!("/dev/{name}")).find(|path| Path::new(path).exists());
    found.context("this machine has a disk with a file")
}

async fn a_device_outside_the_grant_is_refused() -> Result<()> {
    let disk = disk()?;
    let settings = tempfile::NamedTempFile::new()?;
    fs::write(settings.path(), "allow_devices = [\"/dev/kmsg\", \"/dev/no*\"]\n")?;
    let file = settings.path().display().to_string();
    let agent_args = vec!["--config".to_owned(), file];
    let cluster = Cluster::start(Options {
        allow_root_tasks: true,
        allow_trusted_tasks: true,
        agent_args,
        ..Options::default()
    })
    .await?;
    let probe = cluster.run_agent(&["probe".into(), "--json".into()]).await?;
    let probed: serde_json::Value = serde_json::from_str(&probe.stderr).context(probe.stderr)?;
    let features = probed["features"].as_array().context("features")?;
    if !features.iter().any(|f| f["name"] == "bpf_devices" && f["available"] == true) {
        cluster.finish().await?;
        return skip("needs a kernel that takes BPF programs on devices");
    }
    let framework = cluster.framework("devices").await?;
    let end = framework.run(attempt("none", &disk, &[])).await?;
    let refused = ["EPERM", "EPERM", "EPERM", "ok", "ok", "EPERM", "EPERM"].join("\n");
    assert_eq!(cluster.stdout(&framework, "none").await?.trim_end(), refused);
    assert_eq!(end.usage.map(|u| u.devices_refused), Some(5));
    let events = cluster.run_cli(&["events", "--json", "none"]).await?.json_lines()?;
    let denied: Vec<_> = events.iter().filter(|e| e["kind"] == "device_denied").collect();
    let told =
        |words: &str| denied.iter().any(|e| e["message"].as_str().is_some_and(|m| m.starts_with(words)));
    assert_eq!(denied.len(), 5, "{events:?}");
    assert!(told("write character device 1:11") && told("make block device"), "{events:?}");

    let end = framework.run(attempt("granted", &disk, &[("/dev/kmsg", "r")])).await?;
    let read_only = ["EPERM", "EPERM", "EPERM", "ok", "ok", "ok", "EPERM"].join("\n");
    assert_eq!(cluster.stdout(&framework, "granted").await?.trim_end(), read_only);
    assert_eq!(end.usage.map(|u| u.devices_refused), Some(4));

    // Neither what the operator did not allow nor what is not there is granted.
    for (id, path, why) in
        [("disk", disk.as_str(), "allow_devices"), ("missing", "/dev/nothing", "No such file")]
    {
        let end = framework.run(attempt(id, &disk, &[(path, "r")])).await?;
        assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::InvalidGrant));
        assert!(end.message.contains(path) && end.message.contains(why), "{}", end.message);
    }
    framework.teardown().await?;
    cluster.finish().await
}
