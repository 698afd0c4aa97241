//! Tasks and calls that cannot work: each gets a status or an error that says why, and nothing is lost.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{
    LogStream, Offer, ReadLogRequest, ResourceClass, Resources, TaskReason, TaskState, TaskStatus,
};
use bulkhead_testkit::{Cluster, Framework, Options, Task, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        a_command_that_is_not_there,
        a_command_that_cannot_be_executed,
        a_user_that_is_not_there,
        root_is_not_for_tasks,
        a_task_without_a_command,
        an_id_that_is_taken,
        ports_outside_the_offer,
        more_than_was_offered,
        an_offer_accepted_twice,
        an_offer_declined_before,
        an_offer_that_was_rescinded,
        an_offer_that_never_was,
        a_task_that_nobody_knows,
        output_of_a_task_that_is_not_there,
    ]
}

async fn run(task: Task) -> Result<TaskStatus> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("bad").await?;
    let end = framework.run(task).await?;
    framework.teardown().await?;
    Ok(end)
}

fn assert_end(end: &TaskStatus, state: TaskState, reason: TaskReason, words: &[&str]) {
    assert_eq!((end.state(), end.reason()), (state, reason), "{end:?}");
    for word in words {
        assert!(end.message.contains(word), "{word:?} in {:?}", end.message);
    }
}

async fn offers(framework: &Framework) -> Result<Vec<Offer>> {
    let little =
        Resources { cpu_milli: 1000, mem_bytes: 64 << 20, ports: Vec::new(), ..Resources::default() };
    framework.offers_for(ResourceClass::Guaranteed, &little).await
}

/// The framework and its cluster still work.
async fn assert_works(framework: &Framework) -> Result<()> {
    let end = framework.run(Task::new("afterwards", ["true"])).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    Ok(())
}

async fn a_command_that_is_not_there() -> Result<()> {
    for command in ["no-such-program", "/no/such/program", "./none"] {
        let end = run(Task::new("t", [command])).await?;
        assert_end(&end, TaskState::Failed, TaskReason::CommandNotFound, &[command, "install it"]);
    }
    Ok(())
}

async fn a_command_that_cannot_be_executed() -> Result<()> {
    let dir = CLUSTER.get().await?.readable_dir();
    let file = dir.join("text");
    fs::write(&file, "no program\n")?;
    for (path, mode) in [(file.as_path(), 0o644), (file.as_path(), 0o755), (dir.as_path(), 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        let path = path.display().to_string();
        let end = run(Task::new("t", [path.as_str()])).await?;
        assert_end(&end, TaskState::Failed, TaskReason::CommandNotExecutable, &[&path, "execute"]);
    }
    Ok(())
}

async fn a_user_that_is_not_there() -> Result<()> {
    for user in ["no-such-user", "4294967"] {
        let end = run(Task::new("t", ["true"]).user(user)).await?;
        assert_end(&end, TaskState::Failed, TaskReason::UserUnknown, &[user, "--user"]);
    }
    Ok(())
}

async fn root_is_not_for_tasks() -> Result<()> {
    for user in ["root", "0"] {
        let end = run(Task::new("t", ["true"]).user(user)).await?;
        assert_end(&end, TaskState::Failed, TaskReason::UserNotAllowed, &[user, "allow_root_tasks"]);
    }
    Ok(())
}

async fn a_task_without_a_command() -> Result<()> {
    let end = run(Task::new("t", Vec::<String>::new())).await?;
    assert_eq!(end.reason(), TaskReason::InvalidTask, "{end:?}");
    assert!(end.message.contains("command"), "{end:?}");
    let end = run(Task::new("../../t", ["true"])).await?;
    assert_end(&end, TaskState::Rejected, TaskReason::InvalidTask, &["id", "'/'"]);
    Ok(())
}

async fn an_id_that_is_taken() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("taken").await?;
    framework.start(Task::new("t", ["sleep", "600"])).await?;
    framework.launch(Task::new("t", ["true"])).await?;
    // Not a status, which would be taken for one of the task that runs.
    let error = framework.next_error().await?;
    assert!(error.contains("\"t\"") && error.contains("id"), "{error}");
    framework.kill("t", 0).await?;
    framework.wait_status("t", |s| s.state() == TaskState::Killed).await?;
    framework.teardown().await
}

async fn ports_outside_the_offer() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("ports").await?;
    let offers = offers(&framework).await?;
    let (inside, outside) = (cluster.port(3), cluster.port(3) + 1000);
    framework.accept(&offers, [Task::new("t", ["true"]).ports(&[inside, outside])]).await?;
    let end = framework.end_of("t").await?;
    let word = outside.to_string();
    assert_end(&end, TaskState::Rejected, TaskReason::ExceedsOffer, &[&word, "ports"]);
    assert_works(&framework).await?;
    framework.teardown().await
}

async fn more_than_was_offered() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("more").await?;
    let offers = offers(&framework).await?;
    let tasks = [
        Task::new("fits", ["true"]),
        Task::new("cpu", ["true"]).cpu_milli(1_000_000),
        Task::new("mem", ["true"]).mem_bytes(1 << 60),
        Task::new("fits-too", ["true"]),
    ];
    framework.accept(&offers, tasks).await?;
    for task in ["cpu", "mem"] {
        let end = framework.end_of(task).await?;
        assert_end(&end, TaskState::Rejected, TaskReason::ExceedsOffer, &["left"]);
    }
    for task in ["fits", "fits-too"] {
        assert_eq!(framework.end_of(task).await?.state(), TaskState::Finished);
    }
    framework.teardown().await
}

async fn an_offer_accepted_twice() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("twice").await?;
    let offers = offers(&framework).await?;
    framework.accept(&offers, [Task::new("first", ["true"])]).await?;
    framework.accept(&offers, [Task::new("second", ["true"])]).await?;
    assert_eq!(framework.end_of("first").await?.state(), TaskState::Finished);
    assert_offer_gone(&framework, "second", &offers).await?;
    framework.teardown().await
}

async fn an_offer_declined_before() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("declined").await?;
    let offers = offers(&framework).await?;
    framework.decline(&offers, 1).await?;
    framework.accept(&offers, [Task::new("t", ["true"])]).await?;
    assert_offer_gone(&framework, "t", &offers).await?;
    framework.teardown().await
}

async fn an_offer_that_was_rescinded() -> Result<()> {
    let master_args = ["--offer-timeout", "200ms"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(Options { master_args, ..Options::default() }).await?;
    let framework = cluster.framework("rescinded").await?;
    let offers = offers(&framework).await?;
    framework.rescinded(&offers[0]).await?;
    framework.accept(&offers, [Task::new("t", ["true"])]).await?;
    assert_offer_gone(&framework, "t", &offers).await?;
    framework.teardown().await?;
    cluster.finish().await
}

async fn an_offer_that_never_was() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("never").await?;
    let offer = Offer { offer_id: "my-own".into(), ..Offer::default() };
    framework.accept(std::slice::from_ref(&offer), [Task::new("t", ["true"])]).await?;
    assert_offer_gone(&framework, "t", &[offer]).await?;
    framework.teardown().await
}

async fn assert_offer_gone(framework: &Framework, task: &str, offers: &[Offer]) -> Result<()> {
    let end = framework.end_of(task).await?;
    assert_end(&end, TaskState::Rejected, TaskReason::OfferGone, &[&offers[0].offer_id, "wait for the next"]);
    assert_works(framework).await
}

async fn a_task_that_nobody_knows() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("unknown").await?;
    framework.kill("none", 0).await?;
    let told = framework.end_of("none").await?;
    assert_end(&told, TaskState::Lost, TaskReason::UnknownTask, &[]);
    assert_works(&framework).await?;
    framework.teardown().await
}

async fn output_of_a_task_that_is_not_there() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let request = ReadLogRequest {
        framework_id: "f".into(),
        task_id: "none".into(),
        stream: LogStream::Stdout.into(),
        ..ReadLogRequest::default()
    };
    let error = cluster.agent_api().await?.read_log(request).await.err().context("no such task")?;
    assert_eq!(error.code(), tonic::Code::NotFound);
    assert!(error.message().contains("none"), "{error}");
    Ok(())
}
