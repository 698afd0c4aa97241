//! A program starts in exactly the surroundings it was promised, and its end is told as it was.

use anyhow::Result;
use bulkhead_proto::v1::{LogStream, TaskReason, TaskState};
use bulkhead_testkit::{Task, programs, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        output_and_exit_code,
        success_is_finished,
        a_signal_is_named,
        arguments_arrive_as_they_are,
        only_the_promised_variables,
        user_directory_and_descriptors,
        born_in_its_cgroup,
        closed_output_is_no_end,
        much_output_arrives_whole,
    ]
}

async fn output_and_exit_code() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("output").await?;
    let end = framework.run(Task::shell("t", "echo out; echo err >&2; exit 7")).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::Exited));
    assert_eq!((end.exit_code, end.signal), (Some(7), None));
    assert_eq!(cluster.output(framework.id(), "t", LogStream::Stdout).await?, "out\n");
    assert_eq!(cluster.output(framework.id(), "t", LogStream::Stderr).await?, "err\n");
    let steps: Vec<_> =
        framework.statuses("t").iter().map(|s| (s.status.sequence, s.status.state())).collect();
    assert_eq!(steps, [(1, TaskState::Staging), (2, TaskState::Running), (3, TaskState::Failed)]);
    framework.teardown().await
}

async fn success_is_finished() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("success").await?;
    let end = framework.run(Task::new("t", ["true"])).await?;
    assert_eq!((end.state(), end.exit_code), (TaskState::Finished, Some(0)));
    assert!(end.usage.as_ref().is_some_and(|u| u.cpu_usec > 0 && u.wall_usec > 0), "{end:?}");
    framework.teardown().await
}

async fn a_signal_is_named() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("signal").await?;
    let end = framework.run(Task::new("t", programs::FAULT)).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::Signaled));
    assert_eq!((end.exit_code, end.signal), (None, Some(11)));
    assert!(end.message.contains("SIGSEGV"), "{}", end.message);
    framework.teardown().await
}

async fn arguments_arrive_as_they_are() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("arguments").await?;
    framework.run(Task::new("t", ["printf", "%s|", "a b", "", "$HOME", "*", "\u{e9}\n", "-x"])).await?;
    assert_eq!(cluster.stdout(&framework, "t").await?, "a b||$HOME|*|\u{e9}\n|-x|");
    framework.teardown().await
}

async fn only_the_promised_variables() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("environment").await?;
    let port = cluster.port(0);
    let task = Task::new("t", ["cat", "/proc/self/environ"]).env("A", "1=2").env("HOME", "/h").ports(&[port]);
    framework.run(task).await?;
    let sandbox = cluster.task_dir(&framework, "t").display().to_string();
    let output = cluster.stdout(&framework, "t").await?;
    let mut variables: Vec<_> = output.split_terminator('\0').filter(|v| !v.starts_with("PATH=")).collect();
    variables.sort_unstable();
    assert_eq!(
        variables,
        [
            "A=1=2",
            "BULKHEAD_CLASS=guaranteed",
            "BULKHEAD_CPU_MILLI=400",
            "BULKHEAD_MEM_BYTES=67108864",
            &format!("BULKHEAD_PORTS={port}"),
            &format!("BULKHEAD_SANDBOX={sandbox}"),
            "BULKHEAD_TASK_ID=t",
            "HOME=/h",
        ]
    );
    framework.teardown().await
}

async fn user_directory_and_descriptors() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("surroundings").await?;
    let script = "\
        pwd; id -un; touch mine && stat -c %U mine; readlink /proc/self/fd/0; \
        sed -nE 's/^Sig(Blk|Ign):\\t//p' /proc/self/status; \
        for fd in $(seq 3 200); do [ -e /proc/$$/fd/$fd ] && echo \"inherited $fd\"; done; awk '{print $6 == $1}' /proc/$$/stat";
    framework.run(Task::shell("t", script)).await?;
    let output = cluster.stdout(&framework, "t").await?;
    let lines: Vec<_> = output.lines().collect();
    let directory = cluster.task_dir(&framework, "t").display().to_string();
    assert_eq!(lines[..4], [directory.as_str(), "nobody", "nobody", "/dev/null"]);
    for (what, mask) in [("blocked", lines[4]), ("ignored", lines[5])] {
        // From 32 on they are the C library's own.
        let signals = u64::from_str_radix(mask, 16)? & 0x7fff_ffff;
        assert_eq!(signals, 0, "{what} signals: {signals:#x}");
    }
    // Nothing is inherited but the three streams, and the task leads a session of its own.
    assert_eq!(lines[6..], ["1"]);
    framework.teardown().await
}

async fn born_in_its_cgroup() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("cgroup").await?;
    framework.run(Task::new("t", ["cat", "/proc/self/cgroup"])).await?;
    let output = cluster.stdout(&framework, "t").await?;
    let own = format!("/guaranteed/task@{}@t", framework.id());
    assert!(output.lines().any(|l| l.starts_with("0::") && l.ends_with(&own)), "{output}");
    assert!(!cluster.guaranteed(&framework, "t")?.exists());
    framework.teardown().await
}

async fn closed_output_is_no_end() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("closed").await?;
    let script = "echo before; exec >&- 2>&-; until [ -e go ]; do sleep 0.05; done; exit 4";
    framework.start(Task::shell("t", script)).await?;
    cluster.stdout_until(&framework, "t", "before").await?;
    std::fs::write(cluster.task_dir(&framework, "t").join("go"), "")?;
    assert_eq!(framework.end_of("t").await?.exit_code, Some(4));
    assert_eq!(cluster.stdout(&framework, "t").await?, "before\n");
    framework.teardown().await
}

async fn much_output_arrives_whole() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("much").await?;
    framework.launch(Task::shell("t", "seq 1 300000")).await?;
    framework.running("t").await?;
    let output = cluster.stdout(&framework, "t").await?;
    assert!(output.lines().zip(1..=300_000).all(|(line, n)| line == n.to_string()));
    assert_eq!(output.lines().count(), 300_000);
    framework.teardown().await
}
