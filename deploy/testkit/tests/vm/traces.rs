//! Tasks that have ended leave nothing in the kernel and nothing in the agent.

use anyhow::Result;
use bulkhead_proto::v1::{ResourceClass, Resources, TaskState};
use bulkhead_testkit::{
    Cluster, Framework, Task,
    cluster::{Verdict, until},
    traces::Traces,
    trials,
};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![a_hundred_tasks_leave_nothing]
}

async fn a_hundred_tasks_leave_nothing() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("hundred").await?;
    // The first tasks bring connections and threads that stay.
    run_tasks(&cluster, &framework, 0).await?;
    let before = Traces::count(&cluster)?;
    assert_eq!((before.cgroups, before.zombies), (0, 0), "{before:?}");
    assert!(!before.map_entries.is_empty(), "no pinned map was found");
    for batch in 1..=10 {
        run_tasks(&cluster, &framework, batch).await?;
    }
    // Threads that closed a descriptor may still be about to do so when the last status comes.
    until("everything to be as before", || async {
        let after = Traces::count(&cluster).map_err(|e| Verdict::Never(format!("{e:#}")))?;
        if after == before { Ok(()) } else { Err(Verdict::NotYet(format!("{before:?}, now {after:?}"))) }
    })
    .await?;
    framework.teardown().await
}

async fn run_tasks(cluster: &Cluster, framework: &Framework, batch: u16) -> Result<()> {
    let tasks: Vec<_> = (0..10)
        .map(|n| {
            let task = Task::new(&format!("t-{batch}-{n}"), ["sh", "-c", "sleep 0 & exit 1"]);
            task.cpu_milli(20).mem_mib(8).ports(&[cluster.port(n)])
        })
        .collect();
    let all = tasks.iter().filter_map(|t| t.spec().grant.as_ref()?.resources.clone());
    let all = all.fold(Resources::default(), |sum, more| sum.plus(&more));
    let offers = framework.offers_for(ResourceClass::Guaranteed, &all).await?;
    let ids: Vec<_> = tasks.iter().map(|t| t.id().to_owned()).collect();
    framework.accept(&offers, tasks).await?;
    for id in ids {
        let end = framework.end_of(&id).await?;
        assert_eq!((end.state(), end.exit_code), (TaskState::Failed, Some(1)), "{end:?}");
    }
    Ok(())
}
