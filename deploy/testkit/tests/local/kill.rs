//! A task is asked to end, then made to, and no process of it is left.

use std::{fs, path::Path};

use anyhow::Result;
use bulkhead_proto::v1::{ListTasksRequest, StopTaskRequest, TaskReason, TaskState};
use bulkhead_testkit::{
    Task,
    cluster::{Verdict, until},
    trials,
};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        sigterm_is_handled,
        ignored_sigterm_ends_after_the_grace,
        processes_in_new_sessions_end_too,
        what_a_task_leaves_behind_ends_with_it,
        an_operator_stops_a_task,
        tasks_end_with_their_framework,
    ]
}

async fn sigterm_is_handled() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("handled").await?;
    let script = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    framework.launch(Task::shell("t", script).grace_ms(60_000)).await?;
    framework.running("t").await?;
    cluster.stdout_until(&framework, "t", "ready").await?;
    framework.kill("t", 0).await?;
    let end = framework.end_of("t").await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Killed, TaskReason::KilledByFramework));
    assert_eq!((end.exit_code, end.signal), (Some(9), None));
    assert_eq!(cluster.stdout(&framework, "t").await?, "ready\nbye\n");
    framework.teardown().await
}

async fn ignored_sigterm_ends_after_the_grace() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("ignored").await?;
    framework.start(Task::shell("t", "trap '' TERM; echo ready; sleep 600").grace_ms(600_000)).await?;
    cluster.stdout_until(&framework, "t", "ready").await?;
    // A later, more impatient order counts.
    framework.kill("t", 0).await?;
    framework.kill("t", 100).await?;
    let end = framework.end_of("t").await?;
    assert_eq!((end.state(), end.signal), (TaskState::Killed, Some(9)));
    assert!(end.usage.as_ref().is_some_and(|u| u.wall_usec >= 100_000), "{end:?}");
    framework.teardown().await
}

async fn processes_in_new_sessions_end_too() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("sessions").await?;
    let script = "\
        for i in 1 2 3; do setsid sh -c \"trap '' TERM; echo up; sleep 600\" & done; wait; sleep 600";
    framework.start(Task::shell("t", script).grace_ms(100)).await?;
    cluster.stdout_until(&framework, "t", "up\nup\nup\n").await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let processes = processes(&cgroup)?;
    assert!(processes.len() >= 4, "{processes:?}");
    framework.kill("t", 0).await?;
    assert_eq!(framework.end_of("t").await?.state(), TaskState::Killed);
    assert!(!cgroup.exists());
    for pid in processes {
        assert!(!Path::new("/proc").join(&pid).join("exe").exists(), "process {pid} is left");
    }
    framework.teardown().await
}

async fn what_a_task_leaves_behind_ends_with_it() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("daemon").await?;
    let end = framework.run(Task::shell("t", "setsid sleep 600 & exit 0")).await?;
    assert_eq!((end.state(), end.exit_code), (TaskState::Finished, Some(0)));
    assert!(!cluster.guaranteed(&framework, "t")?.exists());
    framework.teardown().await
}

async fn an_operator_stops_a_task() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("operator").await?;
    let mut operator = cluster.operator().await?;
    framework.start(Task::new("t", ["sleep", "600"])).await?;
    let request = |task_id: &str| StopTaskRequest {
        task_id: task_id.to_owned(),
        framework_id: framework.id().to_owned(),
        grace_ms: 0,
    };
    operator.stop_task(request("t")).await?;
    let end = framework.end_of("t").await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Killed, TaskReason::KilledByOperator));
    assert_eq!(end.signal, Some(15));
    let refused = operator.stop_task(request("nobody")).await;
    assert_eq!(refused.err().map(|e| e.code()), Some(tonic::Code::NotFound));
    framework.teardown().await
}

async fn tasks_end_with_their_framework() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("gone").await?;
    framework.start(Task::new("t-gone", ["sleep", "600"])).await?;
    let cgroup = cluster.guaranteed(&framework, "t-gone")?;
    framework.teardown().await?;
    let mut operator = cluster.operator().await?;
    let request = ListTasksRequest { task: "t-gone".into(), ..ListTasksRequest::default() };
    let end = until("the end of the task", || {
        let (mut operator, request) = (operator.clone(), request.clone());
        async move {
            let listed = operator.list_tasks(request).await.map_err(|e| Verdict::Never(e.to_string()))?;
            let status = listed.into_inner().tasks.pop().and_then(|t| t.status);
            status
                .filter(bulkhead_testkit::framework::is_last)
                .ok_or_else(|| Verdict::NotYet("it runs".into()))
        }
    })
    .await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Killed, TaskReason::FrameworkGone));
    assert!(!cgroup.exists());
    let listed = operator.list_frameworks(bulkhead_proto::v1::ListFrameworksRequest {}).await?.into_inner();
    assert!(!listed.frameworks.iter().any(|f| f.name == "gone"), "{listed:?}");
    Ok(())
}

fn processes(cgroup: &Path) -> Result<Vec<String>> {
    Ok(fs::read_to_string(cgroup.join("cgroup.procs"))?.lines().map(str::to_owned).collect())
}
