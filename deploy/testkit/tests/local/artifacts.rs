//! A task's files are there before its program starts, or it does not start.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Stdio, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{Artifact, ListLocalTasksRequest, LogStream, TaskReason, TaskState};
use bulkhead_stage::{Digest, digest::Algorithm};
use bulkhead_testkit::{
    Cluster, Framework, HANG, Options, Task,
    cluster::{Verdict, until},
    trials,
};
use libtest_mimic::Trial;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::watch,
};

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        a_task_runs_a_fetched_script,
        another_content_is_refused,
        a_path_that_leaves_the_sandbox_is_refused,
        files_of_the_host_only_where_they_are_opened,
        a_kill_ends_staging,
        a_kill_amid_a_file_leaves_nothing,
        a_terminal_shows_how_far_staging_is,
    ]
}

const SCRIPT: &str = "#!/bin/sh\nid -un; stat -c '%U %a' run.sh; ls -A\n";

/// Answers every request with the same content; `/silent` never, and `/half` never to its end.
struct Server {
    base: String,
    asked: watch::Receiver<u32>,
}

impl Server {
    async fn start(content: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let (count, asked) = watch::channel(0);
        let count = Arc::new(count);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let mut lines = BufReader::new(&mut stream).lines();
                    let request = lines.next_line().await?.unwrap_or_default();
                    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
                    count.send_modify(|n| *n += 1);
                    if request.contains("/silent") {
                        std::future::pending::<()>().await;
                    }
                    let length = content.len();
                    let head =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    stream.write_all(head.as_bytes()).await?;
                    if request.contains("/half") {
                        stream.write_all(&content.as_bytes()[..length / 2]).await?;
                        std::future::pending::<()>().await;
                    }
                    stream.write_all(content.as_bytes()).await
                });
            }
        });
        Ok(Self { base, asked })
    }

    fn artifact(&self, path: &str, content: &str) -> Artifact {
        let digest = Digest::of(Algorithm::Sha256, content.as_bytes()).to_string();
        Artifact { uri: format!("{}{path}", self.base), digest, ..Artifact::default() }
    }
}

fn with(task: Task, artifact: Artifact) -> Task {
    task.with(|spec| spec.artifacts.push(artifact))
}

/// The task fails for its artifact, without having run, and leaves nothing of it; what it was told.
async fn refused(cluster: &Cluster, framework: &Framework, task: Task) -> Result<String> {
    let id = task.id().to_owned();
    let end = framework.run(task).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::ArtifactFailed), "{end:?}");
    let steps: Vec<_> = framework.statuses(&id).iter().map(|s| s.status.state()).collect();
    assert_eq!(steps, [TaskState::Staging, TaskState::Failed]);
    let work = cluster.task_dir(framework, &id).join("work");
    if let Ok(mut entries) = fs::read_dir(&work) {
        assert!(entries.next().is_none(), "something is left in {}", work.display());
    }
    Ok(end.message)
}

async fn a_task_runs_a_fetched_script() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("artifacts").await?;
    let server = Server::start(SCRIPT).await?;
    for id in ["first", "second"] {
        let script = Artifact { executable: true, ..server.artifact("/run.sh", SCRIPT) };
        let end = framework.run(with(Task::new(id, ["./run.sh"]), script).user("daemon")).await?;
        assert_eq!(end.state(), TaskState::Finished, "{end:?}");
        let output = cluster.output(framework.id(), id, LogStream::Stdout).await?;
        assert_eq!(output, "daemon\ndaemon 755\nrun.sh\n");
    }
    assert_eq!(*server.asked.borrow(), 1, "the second task's file is in the cache");
    framework.teardown().await
}

async fn another_content_is_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("digests").await?;
    let server = Server::start("changed").await?;
    let wrong = server.artifact("/run.sh", "what was published");
    let message = refused(&cluster, &framework, with(Task::new("t", ["true"]), wrong.clone())).await?;
    assert!(message.contains(&wrong.uri) && message.contains(&wrong.digest), "{message}");
    let none = Artifact { digest: String::new(), ..wrong };
    let message = refused(&cluster, &framework, with(Task::new("u", ["true"]), none)).await?;
    assert!(message.contains("http needs a digest"), "{message}");
    framework.teardown().await
}

async fn a_path_that_leaves_the_sandbox_is_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("paths").await?;
    let server = Server::start("x").await?;
    for (id, path) in [("up", "../x"), ("further-up", "a/../../../x"), ("absolute", "/tmp/x")] {
        let leaves = Artifact { path: path.into(), ..server.artifact("/x", "x") };
        let message = refused(&cluster, &framework, with(Task::new(id, ["true"]), leaves)).await?;
        assert!(message.contains(path) && message.contains("leave"), "{message}");
    }
    assert_eq!(*server.asked.borrow(), 0);
    framework.teardown().await
}

async fn files_of_the_host_only_where_they_are_opened() -> Result<()> {
    let opened = tempfile::tempdir()?;
    let script = opened.path().join("run.sh");
    fs::write(&script, "#!/bin/sh\necho from the host\n")?;
    // The agent reads it, and not the task.
    fs::set_permissions(opened.path(), fs::Permissions::from_mode(0o700))?;
    let agent_args = vec!["--artifact-dir".to_owned(), opened.path().display().to_string()];
    let cluster = Cluster::start(Options { agent_args, ..Options::default() }).await?;
    let artifact = format!("{},executable", script.display());
    let done = cluster.run_cli(&["run", "--artifact", &artifact, "--", "./run.sh"]).await?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "from the host\n"), "{}", done.stderr);
    let done = cluster.run_cli(&["run", "--artifact", "/etc/shadow", "--", "cat", "shadow"]).await?;
    assert_eq!((done.code, done.stdout.as_str()), (125, ""), "{}", done.stderr);
    assert!(done.stderr.contains("artifact_dirs") && done.stderr.contains("/etc/shadow"), "{}", done.stderr);
    cluster.finish().await
}

async fn a_kill_ends_staging() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("kills").await?;
    let mut server = Server::start("x").await?;
    framework.launch(with(Task::new("t", ["true"]), server.artifact("/silent", "x"))).await?;
    server.asked.wait_for(|n| *n > 0).await.context("nobody asks")?;
    until("the agent says how far it is", || async {
        let mut agent = cluster.agent_api().await.map_err(|e| Verdict::Never(e.to_string()))?;
        let tasks = agent.list_local_tasks(ListLocalTasksRequest {}).await;
        let tasks = tasks.map_err(|e| Verdict::Never(e.to_string()))?.into_inner().tasks;
        match tasks.iter().find(|t| t.staging.contains("0 of 1 artifact")) {
            Some(_) => Ok(()),
            None => Err(Verdict::NotYet(format!("{tasks:?}"))),
        }
    })
    .await?;
    framework.kill("t", 0).await?;
    let end = framework.end_of("t").await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Killed, TaskReason::KilledByFramework), "{end:?}");
    framework.teardown().await
}

async fn a_kill_amid_a_file_leaves_nothing() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("kills-amid").await?;
    let server = Server::start(SCRIPT).await?;
    let whole = Artifact { path: "whole".into(), ..server.artifact("/whole", SCRIPT) };
    // Another digest, so that it is not the file that is there.
    let half = Artifact { path: "half".into(), ..server.artifact("/half", "what does not come") };
    framework.launch(with(with(Task::new("t", ["true"]), whole), half)).await?;
    let cache = cluster.work_dir().join("cache/tmp");
    let unfinished = || fs::read_dir(&cache).map(|dir| dir.flatten().count()).unwrap_or_default();
    until("half a file", || async {
        if unfinished() == 1 { Ok(()) } else { Err(Verdict::NotYet(format!("{} files", unfinished()))) }
    })
    .await?;
    framework.kill("t", 0).await?;
    let end = framework.end_of("t").await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Killed, TaskReason::KilledByFramework), "{end:?}");
    assert_eq!(unfinished(), 0, "files on their way in {}", cache.display());
    let sandbox = cluster.task_dir(&framework, "t");
    assert!(!sandbox.exists(), "{} is left", sandbox.display());
    framework.teardown().await
}

async fn a_terminal_shows_how_far_staging_is() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let server = Server::start(SCRIPT).await?;
    let half = server.artifact("/half", "what does not come");
    let artifact = format!("{},digest={}", half.uri, half.digest);
    let run = cluster.cli(["run", "--artifact", artifact.as_str(), "--", "true"]);
    // script(1) gives the command a terminal of its own, and ends with it. A shell that stays in between
    // gets Ctrl-C as well, and some then end by it, whatever the command ends with.
    let words = std::iter::once(run.as_std().get_program()).chain(run.as_std().get_args());
    let quoted: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let command = format!("exec {}", quoted.join(" "));
    let mut terminal = tokio::process::Command::new("script");
    terminal.args(["--quiet", "--flush", "--return", "--command", &command, "/dev/null"]);
    terminal.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut shown = terminal.spawn().context("script")?;
    let mut screen = shown.stdout.take().context("an output")?;
    let mut text = String::new();
    let reading = async {
        let mut chunk = [0; 1024];
        while !text.contains("0 of 1 artifact") {
            let count = screen.read(&mut chunk).await?;
            ensure!(count > 0, "the command ended");
            text += &String::from_utf8_lossy(&chunk[..count]);
        }
        Ok(())
    };
    let read = tokio::time::timeout(HANG, reading).await;
    read.with_context(|| format!("nothing of it on the terminal: {text:?}"))?
        .with_context(|| text.clone())?;
    // Ctrl-C, as the terminal hands it on.
    let mut keys = shown.stdin.take().context("an input")?;
    keys.write_all(b"\x03").await?;
    let status = tokio::time::timeout(HANG, shown.wait()).await.context("Ctrl-C ends it")??;
    assert_eq!(status.code(), Some(137), "as for any task that was killed: {text:?}");
    Ok(())
}
