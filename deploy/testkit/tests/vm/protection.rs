//! Guaranteed tasks that wait, and what revocable ones are held to meanwhile.

use std::fs;

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{FrameworkInfo, ResourceClass};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{Verdict, until},
    framework::is_last,
    http, trials,
};
use libtest_mimic::Trial;
use tokio::process::{Child, Command};

const BURN: &str = "while :; do :; done";

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        revocable_tasks_make_way_and_get_all_back_where_that_does_not_help,
        revocable_tasks_are_let_go_when_the_agent_stops_and_when_it_comes_back_from_a_crash
    ]
}

/// Steps of this kind so far.
async fn steps(cluster: &Cluster, step: &str) -> Result<u64> {
    let metrics = http::get(&cluster.agent_address().await?, "/metrics").await?;
    let name = format!("bulkhead_agent_qos_corrections_total{{resource=\"cpu\",step=\"{step}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(Ok(0), |count| count.trim().parse()).context("a count")
}

async fn until_step(cluster: &Cluster, step: &str) -> Result<()> {
    until(&format!("the step {step}"), || async {
        match steps(cluster, step).await {
            Ok(0) => Err(Verdict::NotYet(format!("none; the agent said:\n{}", cluster.agent_log()))),
            Ok(_) => Ok(()),
            Err(error) => Err(Verdict::Never(format!("{error:#}"))),
        }
    })
    .await
}

/// Starts a revocable task that burns all it may have, and then a guaranteed one that waits for a stranger, which no correction can
/// help; the stranger is gone when it is dropped.
async fn interfere(cluster: &Cluster) -> Result<(Framework, Child)> {
    let info = FrameworkInfo {
        name: "way".into(),
        classes: vec![ResourceClass::Guaranteed.into(), ResourceClass::Revocable.into()],
        ..FrameworkInfo::default()
    };
    let framework = Framework::subscribe_as(cluster.master_channel().await?, info, true).await?;
    framework.start(Task::shell("lent", BURN).cpu_milli(400).revocable()).await?;
    // Both on one processor, so that the other is left to the revocable task; and no cap.
    let waiting = Task::new("waiting", ["taskset", "-c", "0", "sh", "-c", BURN]);
    framework.start(waiting.cpu_milli(300).cpu_burst()).await?;
    let stranger = Command::new("taskset").args(["-c", "0", "sh", "-c", BURN]).kill_on_drop(true).spawn();
    Ok((framework, stranger.context("start a stranger")?))
}

/// So all corrections happen, one after the other, and are taken back.
async fn revocable_tasks_make_way_and_get_all_back_where_that_does_not_help() -> Result<()> {
    let cluster = Cluster::start(Options { qos: true, ..Options::default() }).await?;
    let (framework, _stranger) = interfere(&cluster).await?;
    for step in ["squeeze", "freeze", "absolve"] {
        until_step(&cluster, step).await?;
    }
    assert!(steps(&cluster, "squeeze").await? >= 1 && steps(&cluster, "kill").await? == 0);
    let lent = cluster.cgroup()?.join("revocable");
    assert_eq!(fs::read_to_string(lent.join("cgroup.freeze"))?.trim(), "0", "not to blame");
    let still = framework.statuses("lent");
    assert!(!still.iter().any(|seen| is_last(&seen.status)), "{still:?}");
    framework.teardown().await?;
    cluster.finish().await
}

async fn revocable_tasks_are_let_go_when_the_agent_stops_and_when_it_comes_back_from_a_crash() -> Result<()> {
    /// A twentieth of a CPU: where squeezing ends.
    const LEAST: &str = "5000 100000\n";
    let config = tempfile::NamedTempFile::new()?;
    // It never comes to the step behind the last squeeze.
    fs::write(config.path(), "[qos]\npatience_ms = 3600000\n")?;
    let agent_args = vec!["--config".to_owned(), config.path().display().to_string()];
    let mut cluster = Cluster::start(Options { qos: true, agent_args, ..Options::default() }).await?;
    let (framework, mut stranger) = interfere(&cluster).await?;
    let cgroup = cluster.cgroup()?;
    let cap = || fs::read_to_string(cgroup.join("revocable/cpu.max"));
    let squeezed = || async {
        match cap() {
            Ok(least) if least == LEAST => Ok(()),
            other => Err(Verdict::NotYet(format!("{other:?}"))),
        }
    };
    until("the last squeeze", squeezed).await?;
    cluster.stop_agent().await?;
    assert_ne!(cap()?, LEAST, "nobody would take it back");
    cluster.restart_agent().await?;
    until("the last squeeze, again", squeezed).await?;
    cluster.kill_agent_hard().await?;
    assert_eq!(cap()?, LEAST, "nobody was there to take it back");
    // Or they would be squeezed again.
    stranger.kill().await?;
    cluster.restart_agent().await?;
    assert_ne!(cap()?, LEAST, "the agent before was killed");
    framework.teardown().await?;
    cluster.finish().await
}
