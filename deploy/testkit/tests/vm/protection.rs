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

pub(crate) fn tests() -> Vec<Trial> {
    trials![revocable_tasks_make_way_and_get_all_back_where_that_does_not_help]
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

/// A guaranteed task keeps itself waiting, which no correction can help: so all of them happen, one after the other, and are
/// taken back.
async fn revocable_tasks_make_way_and_get_all_back_where_that_does_not_help() -> Result<()> {
    let cluster = Cluster::start(Options { qos: true, ..Options::default() }).await?;
    let info = FrameworkInfo {
        name: "way".into(),
        classes: vec![ResourceClass::Guaranteed.into(), ResourceClass::Revocable.into()],
        ..FrameworkInfo::default()
    };
    let framework = Framework::subscribe_as(cluster.master_channel().await?, info, true).await?;
    framework.start(Task::new("lent", ["sleep", "600"]).cpu_milli(100).revocable()).await?;
    let lent = cluster.cgroup()?.join("revocable");
    // More processes than there are processors, and no cap.
    let crowd = "for i in 1 2 3 4 5 6; do while :; do :; done & done; wait";
    framework.start(Task::shell("crowd", crowd).cpu_milli(300).cpu_burst()).await?;
    for step in ["squeeze", "freeze", "absolve"] {
        until_step(&cluster, step).await?;
    }
    assert!(steps(&cluster, "squeeze").await? >= 1 && steps(&cluster, "kill").await? == 0);
    assert_eq!(fs::read_to_string(lent.join("cgroup.freeze"))?.trim(), "0", "not to blame");
    let still = framework.statuses("lent");
    assert!(!still.iter().any(|seen| is_last(&seen.status)), "{still:?}");
    framework.teardown().await?;
    cluster.finish().await
}
