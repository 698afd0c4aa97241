//! Project quotas hold sandboxes to their space, on ext4 and on XFS. Formats the guest's scratch disk.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{DiskOptions, LogStream, TaskReason, TaskState};
use bulkhead_testkit::{
    Task,
    cluster::{Verdict, until},
    trials,
};
use libtest_mimic::Trial;

use crate::on_disk::{FILL, Kind, OnDisk, filled, filler};

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        ext4_refuses_what_is_over_the_quota,
        xfs_refuses_what_is_over_the_quota,
        ext4_frees_project_ids_with_their_sandboxes,
        xfs_frees_project_ids_with_their_sandboxes,
        ext4_keeps_the_end_of_an_output,
        xfs_keeps_the_end_of_an_output,
    ]
}

async fn ext4_refuses_what_is_over_the_quota() -> Result<()> {
    refuses(Kind::Ext4).await
}

async fn xfs_refuses_what_is_over_the_quota() -> Result<()> {
    refuses(Kind::Xfs).await
}

async fn refuses(kind: Kind) -> Result<()> {
    let mut on = OnDisk::keeping(kind, 10).await?;
    let framework = on.cluster.framework("quota").await?;
    let report = on.cluster.agent_info().await?.report.context("a report")?;
    ensure!(report.enforced.is_some_and(|e| e.disk), "{report:?}");

    let limit = 20 << 20;
    let end = framework.run(filler("bytes", &[]).disk_mib(20)).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    let (refusal, total) = filled(&on.cluster, &framework, "bytes").await?;
    let usage = end.usage.context("a usage")?;
    assert_eq!(refusal, kind.refusal());
    assert!(usage.disk_bytes <= limit && usage.disk_bytes + 4096 >= limit, "{usage:?}");
    // The rest is what the file system needs for itself: directories and the map of the file's blocks.
    assert!(total <= limit && total + (128 << 10) >= limit, "{total} bytes were written");

    let touch = "i=0; while true >f$i; do i=$((i+1)); done 2>/dev/null; echo $i";
    let few = Task::shell("files", touch).disk_mib(20).granted(|g| {
        g.disk = Some(DiskOptions { inodes: 50, ..DiskOptions::default() });
    });
    let end = framework.run(few).await?;
    assert_eq!(end.usage.as_ref().context("a usage")?.disk_inodes, 50, "{end:?}");
    // The others are the sandbox's own: its directories, its outputs, what its /dev is made of.
    let made: u64 = on.cluster.stdout(&framework, "files").await?.trim().parse()?;
    assert!((30..50).contains(&made), "{made} files: {end:?}");

    // One that fills its sandbox takes nothing from another, and a restart of the agent nothing from the limit.
    framework.start(filler("hog", &["stay"])).await?;
    assert_eq!(filled(&on.cluster, &framework, "hog").await?.0, kind.refusal());
    until("the event of a full disk", || async {
        let asked = on.cluster.run_cli(&["events", "--json", "hog"]).await;
        let events = asked.and_then(|said| said.json_lines()).map_err(|e| Verdict::Never(e.to_string()))?;
        let told =
            events.iter().any(|e| e["kind"] == "disk_full" && e["message"].to_string().contains("8.0 MiB"));
        if told { Ok(()) } else { Err(Verdict::NotYet(format!("{events:?}"))) }
    })
    .await?;
    let wait = "while [ ! -e go ]; do sleep 0.05; done; exec python3 -ISc \"$0\" filled stay";
    let victim = Task::new("victim", ["sh", "-c", wait, FILL]).disk_mib(16);
    framework.start(victim.clone()).await?;
    on.cluster.kill_agent_hard().await?;
    on.cluster.restart_agent().await?;
    fs::write(on.cluster.task_dir(&framework, "victim").join("go"), "")?;
    let (refusal, total) = filled(&on.cluster, &framework, "victim").await?;
    assert_eq!(refusal, kind.refusal());
    assert!((15 << 20..=16 << 20).contains(&total), "{total} bytes were written");

    let lower = framework.resize(&victim, &victim.clone().disk_mib(4)).await?;
    assert!(lower.refusal.contains("more than 4.0 MiB"), "{lower:?}");
    let higher = framework.resize(&victim, &victim.clone().disk_mib(32)).await?;
    assert_eq!(higher.refusal, "");
    let more = on.cluster.task_dir(&framework, "victim").join("more");
    fs::write(&more, vec![b'x'; 8 << 20]).context("write into a sandbox that was enlarged")?;
    fs::remove_file(more)?;
    // XFS gives the space of a removed file back in the background.
    until("a limit that is above what is left", || async {
        let (from, to) = (victim.clone().disk_mib(32), victim.clone().disk_mib(17));
        let back = framework.resize(&from, &to).await.map_err(|e| Verdict::Never(format!("{e:#}")))?;
        if back.refusal.is_empty() { Ok(()) } else { Err(Verdict::NotYet(back.refusal)) }
    })
    .await?;
    // The agent is stopped next, and tasks outlive it: these would keep the disk busy.
    for task in ["hog", "victim"] {
        framework.kill(task, 0).await?;
        framework.end_of(task).await?;
    }
    framework.teardown().await?;
    on.finish().await
}

async fn ext4_frees_project_ids_with_their_sandboxes() -> Result<()> {
    frees(Kind::Ext4).await
}

async fn xfs_frees_project_ids_with_their_sandboxes() -> Result<()> {
    frees(Kind::Xfs).await
}

/// Python: directories within directories, far deeper than a path can name.
const NEST: &str = "\
import os
for level in range(3000):
    os.mkdir('d')
    os.chdir('d')
open('file', 'w').close()
";

async fn frees(kind: Kind) -> Result<()> {
    let mut on = OnDisk::keeping(kind, 0).await?;
    let framework = on.cluster.framework("ids").await?;
    let nested = Task::python("t-0", NEST).disk_mib(32).granted(|g| {
        g.disk = Some(DiskOptions { inodes: 4000, ..DiskOptions::default() });
    });
    assert_eq!(framework.run(nested).await?.state(), TaskState::Finished);
    for n in 1..4 {
        let end = framework.run(Task::new(&format!("t-{n}"), ["true"])).await?;
        assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    }
    let end = framework.run(Task::new("too-many", ["true"])).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::LaunchFailed), "{end:?}");
    assert!(end.message.contains("disk_projects"), "{end:?}");

    // Sandboxes that nobody knows are left alone at first: they may be of a launch.
    on.cluster.stop_agent().await?;
    let sandboxes = on.cluster.work_dir().join("sandboxes").join(framework.id());
    let long_ago = SystemTime::now() - Duration::from_secs(7 * 24 * 3600);
    for sandbox in fs::read_dir(&sandboxes)? {
        let sandbox = sandbox?.path();
        let output = sandbox.join("stdout");
        let dated = if output.exists() { output } else { sandbox };
        fs::File::open(dated)?.set_modified(long_ago)?;
    }
    on.cluster.restart_agent().await?;
    until("the old sandboxes to be removed", || async {
        if sandboxes.exists() { Err(Verdict::NotYet("they are there".into())) } else { Ok(()) }
    })
    .await?;
    for n in 4..8 {
        let (framework, mut attempt) = (&framework, 0);
        // XFS counts a removed file for a moment longer.
        until("an id to be free", || {
            attempt += 1;
            let task = Task::new(&format!("t-{n}-{attempt}"), ["true"]);
            async move {
                let end = framework.run(task).await.map_err(|e| Verdict::Never(e.to_string()))?;
                if end.state() == TaskState::Finished { Ok(()) } else { Err(Verdict::NotYet(end.message)) }
            }
        })
        .await?;
    }
    framework.teardown().await?;
    on.finish().await
}

async fn ext4_keeps_the_end_of_an_output() -> Result<()> {
    keeps_the_end(Kind::Ext4).await
}

async fn xfs_keeps_the_end_of_an_output() -> Result<()> {
    keeps_the_end(Kind::Xfs).await
}

async fn keeps_the_end(kind: Kind) -> Result<()> {
    let on = OnDisk::keeping(kind, 10).await?;
    let framework = on.cluster.framework("output").await?;
    let keep: u64 = 1 << 20;
    // Five times its whole sandbox, in lines of 64 bytes, as fast as a small program goes.
    let lines: u64 = ((5 * 16) << 20) / 64;
    let script = format!(
        "import sys\nfor n in range({}):\n    sys.stdout.write(''.join('%063d\\n' % (n * 256 + i) for i in range(256)))",
        lines / 256
    );
    let talker = Task::python("talker", &script).disk_mib(16).granted(|g| {
        g.disk = Some(DiskOptions { output_bytes: keep, ..DiskOptions::default() });
    });
    let end = framework.run(talker).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    let work = on.cluster.task_dir(&framework, "talker");
    let stdout = work.parent().context("a sandbox")?.join("stdout");
    let metadata = fs::metadata(&stdout)?;
    assert_eq!(metadata.size(), lines * 64, "offsets stay");
    let held = metadata.blocks() * 512;
    // XFS holds space ready behind the end of a file that grows.
    let most = if kind == Kind::Xfs { keep * 4 } else { keep * 2 };
    assert!((keep..most).contains(&held), "{held} bytes are held");
    let text = on.cluster.output(framework.id(), "talker", LogStream::Stdout).await?;
    assert!(text.len() as u64 >= keep && !text.contains('\0'), "{} bytes", text.len());
    assert!(text.ends_with(&format!("{:063}\n", lines - 1)), "the end is there");
    let events = on.cluster.run_cli(&["events", "--json", "talker"]).await?.json_lines()?;
    assert!(events.iter().any(|e| e["kind"] == "output_truncated"), "{events:?}");
    let shown = on.cluster.run_cli(&["logs", "talker"]).await?;
    assert!(shown.stderr.contains("bytes of stdout are gone"), "{}", shown.stderr);
    framework.teardown().await?;
    on.finish().await
}
