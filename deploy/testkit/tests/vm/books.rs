//! What is offered, held back and granted adds up to what the machine has, at every moment that can be seen.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{
    ListAgentsRequest, ListTasksRequest, ResourceReport, Resources, operator_client::OperatorClient,
};
use bulkhead_testkit::{Cluster, Task, trials};
use libtest_mimic::Trial;
use tonic::transport::Channel;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![books_balance_while_tasks_come_and_go]
}

/// Fewer samples would see too little of what happens.
const SAMPLES: usize = 20;

async fn books_balance_while_tasks_come_and_go() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let over = AtomicBool::new(false);
    let work = async {
        let worked = work(&cluster).await;
        over.store(true, Ordering::Relaxed);
        worked
    };
    let watch = async {
        let mut operator = cluster.operator().await?;
        let (mut samples, mut most) = (0, 0);
        while !over.load(Ordering::Relaxed) || samples < SAMPLES {
            let report = cluster.agent_info().await?.report.context("a report")?;
            assert_balances(&report);
            most = most.max(report.allocated.map_or(0, |a| a.ports.len()));
            samples += usize::from(assert_no_double_offer(&mut operator).await?);
        }
        ensure!(most > 0, "no sample saw a task");
        Ok(())
    };
    let (worked, watched) = tokio::join!(work, watch);
    worked.and(watched)
}

/// Tasks of all lengths, side by side.
async fn work(cluster: &Cluster) -> Result<()> {
    let framework = cluster.framework("books").await?;
    for round in 0..6_u16 {
        let long = format!("long-{round}");
        framework.start(Task::new(&long, ["sleep", "600"]).ports(&[cluster.port(round)])).await?;
        let short = Task::new(format!("short-{round}").as_str(), ["true"]).ports(&[cluster.port(20)]);
        framework.run(short.cpu_milli(300)).await?;
        if let Some(before) = round.checked_sub(2) {
            framework.kill(&format!("long-{before}"), 0).await?;
        }
    }
    framework.teardown().await
}

fn part(resources: Option<&Resources>) -> (u64, u64, usize) {
    let nothing = Resources::default();
    let resources = resources.unwrap_or(&nothing);
    (resources.cpu_milli, resources.mem_bytes, resources.port_set().unwrap_or_default().len())
}

fn assert_balances(report: &ResourceReport) {
    let parts = [&report.reserve, &report.allocated, &report.free].map(|p| part(p.as_ref()));
    let sum = parts.iter().fold((0, 0, 0), |s, p| (s.0 + p.0, s.1 + p.1, s.2 + p.2));
    assert_eq!(part(report.capacity.as_ref()), sum, "{report:?}");
}

/// False where tasks changed while the master was asked, so that its answers are of different moments.
async fn assert_no_double_offer(operator: &mut OperatorClient<Channel>) -> Result<bool> {
    let before = live_grants(operator).await?;
    let agents = operator.list_agents(ListAgentsRequest {}).await?.into_inner().agents;
    if live_grants(operator).await? != before {
        return Ok(false);
    }
    let agent = agents.first().context("an agent")?;
    let report = agent.report.as_ref().context("a report")?;
    let granted = before.iter().fold(Resources::default(), |sum, (_, grant)| sum.plus(grant));
    let parts = [report.reserve.as_ref(), agent.offered.as_ref(), Some(&granted)];
    let sum = parts.into_iter().map(part).fold((0, 0, 0), |s, p| (s.0 + p.0, s.1 + p.1, s.2 + p.2));
    let has = part(report.capacity.as_ref());
    assert!(sum.0 <= has.0 && sum.1 <= has.1 && sum.2 <= has.2, "{sum:?} of {has:?}: {agent:?} {before:?}");
    Ok(true)
}

async fn live_grants(operator: &mut OperatorClient<Channel>) -> Result<Vec<(String, Resources)>> {
    let request = ListTasksRequest { live_only: true, ..ListTasksRequest::default() };
    let tasks = operator.list_tasks(request).await?.into_inner().tasks;
    let grant = |t: bulkhead_proto::v1::Task| {
        let spec = t.spec.unwrap_or_default();
        (spec.task_id, spec.grant.and_then(|g| g.resources).unwrap_or_default())
    };
    Ok(tasks.into_iter().map(grant).collect())
}
