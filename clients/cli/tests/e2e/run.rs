//! `bulkhead run` where all goes well, and where the task does not.

use bulkhead_proto::v1::{
    ResourceClass, TaskReason, TaskSpec, TaskState, TaskStatus, TaskUsage, scheduler_call::Call,
};

use crate::{
    fake_agent::{Cut, FakeAgent},
    fake_master::{FakeMaster, Session, offer, status},
    process::{Bulkhead, bulkhead, output},
};

/// A run whose task has been accepted and runs.
pub(crate) struct Running {
    pub(crate) master: FakeMaster,
    pub(crate) agent: FakeAgent,
    pub(crate) session: Session,
    pub(crate) cli: Bulkhead,
    pub(crate) task: TaskSpec,
}

impl Running {
    pub(crate) async fn start(args: &[&str]) -> Self {
        let agent = FakeAgent::start().await;
        let mut master = FakeMaster::start().await;
        let cli = bulkhead(&master.address, args);
        let mut session = master.session().await;
        session.subscribed("f-1").await;
        session.offer(vec![offer("o-1", &agent.address, 4000, 4096)]).await;
        let task = session.accept().await.tasks.remove(0);
        session.status(status(&task.task_id, TaskState::Running, TaskReason::Unspecified, 1)).await;
        session.acknowledged(1).await;
        Self { master, agent, session, cli, task }
    }

    pub(crate) fn last(&self, state: TaskState, reason: TaskReason) -> TaskStatus {
        status(&self.task.task_id, state, reason, 2)
    }

    /// Ends the task with this status; how the command ended.
    async fn finish(mut self, last: TaskStatus) -> crate::process::Ended {
        self.agent.set(|s| s.ended = true);
        // A pipe that nobody reads would hold the command up.
        let cli = tokio::spawn(self.cli.end());
        self.session.status(last).await;
        self.session.acknowledged(2).await;
        self.session.torn_down().await;
        cli.await.unwrap()
    }
}

#[tokio::test]
async fn output_and_exit_code_are_the_tasks() {
    let run = Running::start(&["run", "--", "prog", "arg"]).await;
    run.agent.set(|s| {
        s.stdout = b"to out\n".to_vec();
        s.stderr = b"to err\n".to_vec();
    });
    let failed = TaskStatus { exit_code: Some(3), ..run.last(TaskState::Failed, TaskReason::Exited) };
    let ended = run.finish(failed).await;
    assert_eq!((ended.code, ended.text(), ended.stderr.as_str()), (3, "to out\n", "to err\n"));
}

#[tokio::test]
async fn the_launch_carries_what_was_asked_and_chosen() {
    let args = "run --cpus 1.5 --mem 64MiB --ports 2 --env A=1 --name web --class guaranteed --user nobody \
                --pids 9 --cpu-burst --grace 3s -- prog --flag";
    let run = Running::start(&args.split_whitespace().collect::<Vec<_>>()).await;
    let task = run.task.clone();
    assert_eq!((task.name.as_str(), task.user.as_str(), task.kill_grace_ms), ("web", "nobody", 3000));
    assert_eq!(task.argv, ["prog", "--flag"]);
    assert!(task.task_id.starts_with("web-"), "{}", task.task_id);
    let grant = task.grant.unwrap();
    assert_eq!((grant.class(), grant.cpu_burst, grant.pids_max), (ResourceClass::Guaranteed, true, 9));
    let granted = grant.resources.unwrap();
    assert_eq!((granted.cpu_milli, granted.mem_bytes), (1500, 64 << 20));
    assert_eq!(granted.port_set().unwrap().to_string(), "31000-31001");
    let env = |name: &str| task.env.get(name).map(String::as_str);
    assert_eq!((env("A"), env("PORT"), env("PORT1")), (Some("1"), Some("31000"), Some("31001")));
    let minimum = run.session.framework.minimum.clone().unwrap();
    assert_eq!((minimum.cpu_milli, minimum.mem_bytes, minimum.ports.len()), (1500, 64 << 20, 0));
    let finished = run.last(TaskState::Finished, TaskReason::Unspecified);
    assert_eq!(run.finish(finished).await.code, 0);
}

#[tokio::test]
async fn output_written_after_the_last_status_is_not_lost() {
    let Running { agent, mut session, cli, task, .. } = Running::start(&["run", "--", "prog"]).await;
    session.status(status(&task.task_id, TaskState::Finished, TaskReason::Unspecified, 2)).await;
    agent.asked(1).await;
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    agent.set(|s| {
        s.stdout.clone_from(&bytes);
        s.ended = true;
    });
    let cli = tokio::spawn(cli.end());
    session.acknowledged(2).await;
    session.torn_down().await;
    let ended = cli.await.unwrap();
    assert!(ended.stdout == bytes, "{} of {} bytes", ended.stdout.len(), bytes.len());
}

#[tokio::test]
async fn every_byte_comes_once_over_broken_and_falsely_ended_streams() {
    let run = Running::start(&["run", "--", "prog"]).await;
    let out: Vec<u8> = (0..50_000u32).map(|i| (i % 253) as u8).collect();
    let err: String = (0..5_000).map(|i| format!("{i}\n")).collect();
    run.agent.asked(1).await;
    run.agent.set(|s| {
        s.cuts = [Cut::Break(0), Cut::Break(3), Cut::Break(1), Cut::End(2)].into();
        // The stream that is open ends first, without a byte.
        s.ended = true;
    });
    run.agent.set(|s| {
        s.stdout.clone_from(&out);
        s.stderr = err.clone().into_bytes();
    });
    let last = run.last(TaskState::Finished, TaskReason::Unspecified);
    let ended = run.finish(last).await;
    assert!(ended.stdout == out, "{} of {} bytes", ended.stdout.len(), out.len());
    assert_eq!(ended.stderr, err);
}

#[tokio::test]
async fn a_kill_at_the_memory_limit_is_137_with_the_limit_and_the_peak() {
    let run = Running::start(&["run", "--mem", "64MiB", "--", "hog"]).await;
    let usage = Some(TaskUsage { mem_peak_bytes: 64 << 20, oom_kills: 1, ..TaskUsage::default() });
    let last = TaskStatus { signal: Some(9), usage, ..run.last(TaskState::Failed, TaskReason::OutOfMemory) };
    let ended = run.finish(last).await;
    assert_eq!(ended.code, 137);
    assert!(
        ended.stderr.contains("killed by the kernel at its memory limit of 64 MiB (peak 64 MiB)"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn a_launch_that_fails_has_the_shells_codes() {
    for (reason, code) in [
        (TaskReason::CommandNotFound, 127),
        (TaskReason::CommandNotExecutable, 126),
        (TaskReason::UserUnknown, 125),
    ] {
        let run = Running::start(&["run", "--", "prog"]).await;
        run.agent.set(|s| s.unknown = true);
        let last =
            TaskStatus { message: "said by the agent".to_owned(), ..run.last(TaskState::Failed, reason) };
        let ended = run.finish(last).await;
        assert_eq!(ended.code, code, "{reason:?}");
        assert!(ended.stderr.contains("said by the agent"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn detach_prints_the_id_and_leaves_the_task() {
    let Running { mut session, cli, task, .. } = Running::start(&["run", "--detach", "--", "prog"]).await;
    assert!(matches!(session.call().await, Some(Call::Detach(_))));
    drop(session);
    let ended = cli.end().await;
    assert_eq!((ended.code, ended.text()), (0, format!("{}\n", task.task_id).as_str()));
}

#[tokio::test]
async fn json_is_one_line_for_each_thing_that_happens() {
    let run = Running::start(&["--json", "run", "--", "prog"]).await;
    run.agent.set(|s| s.stdout = "hé\n".into());
    let last = TaskStatus { exit_code: Some(2), ..run.last(TaskState::Failed, TaskReason::Exited) };
    let ended = run.finish(last).await;
    assert_eq!(ended.code, 2);
    let lines = ended.json_lines();
    let of = |kind: &str| lines.iter().filter(|l| l["type"] == kind).collect::<Vec<_>>();
    assert_eq!(of("launched")[0]["spec"]["grant"]["resources"]["cpu_milli"], 500);
    assert_eq!(
        of("status").iter().map(|s| s["state"].as_str().unwrap()).collect::<Vec<_>>(),
        ["running", "failed"]
    );
    let text: String = of("output").iter().map(|o| o["text"].as_str().unwrap()).collect();
    assert_eq!(text, "hé\n");
    assert_eq!(lines.last().unwrap()["type"], "ended");
    assert_eq!(lines.last().unwrap()["exit_code"], 2);
}

#[tokio::test]
async fn a_bad_command_line_is_125_and_says_what_to_write() {
    for (args, says) in [
        (["--mem", "12parsecs"], "64MiB"),
        (["--cpus", "nan"], "0.5"),
        (["--ports", "70000"], "65535"),
        (["--no-such-flag", "x"], "--no-such-flag"),
    ] {
        let ended = output("127.0.0.1:1", &[&["run"], &args[..], &["--", "true"]].concat()).await;
        assert_eq!(ended.code, 125, "{args:?}");
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
    }
}
