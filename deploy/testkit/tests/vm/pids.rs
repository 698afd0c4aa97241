//! A fork bomb ends at its own task's limit.

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::TaskState;
use bulkhead_testkit::{Task, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![ten_thousand_forks]
}

async fn ten_thousand_forks() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("forks").await?;
    let forks = "\
import errno, os, time
made = refused = 0
for _ in range(10000):
    try:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
    except OSError as e:
        assert e.errno == errno.EAGAIN
        refused += 1
print(made, refused)
";
    framework.launch(Task::python("t-forks", forks).pids_max(24).mem_mib(256).cpu_milli(1000)).await?;
    framework.running("t-forks").await?;
    let other = framework.run(Task::shell("other", "for i in 1 2 3; do true & done; wait")).await?;
    assert_eq!(other.state(), TaskState::Finished, "a neighbour forks as it likes");
    let end = framework.end_of("t-forks").await?;
    assert_eq!(cluster.stdout(&framework, "t-forks").await?, "23 9977\n");
    assert_eq!(end.state(), TaskState::Finished);
    assert_eq!(end.usage.context("a usage")?.pids_refused, 9977);
    let events = cluster.run_cli(&["events", "--json", "t-forks"]).await?.json_lines()?;
    assert!(events.iter().any(|e| e["kind"] == "pids_limit" && e["count"] == 9977), "{events:?}");
    assert!(!cluster.guaranteed(&framework, "t-forks")?.exists());
    framework.teardown().await
}
