//! Bounds of volumes hold whoever uses them, on ext4 and on XFS. Formats the guest's scratch disk.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{TaskReason, TaskState, TaskStatus};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{Verdict, until},
    trials,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::on_disk::{FILL, Kind, OnDisk, filled};

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        ext4_bounds_a_volume_for_all_who_use_it,
        xfs_bounds_a_volume_for_all_who_use_it,
        ext4_refuses_bounds_that_cannot_hold,
        xfs_refuses_bounds_that_cannot_hold,
        a_volume_without_quotas_cannot_be_bounded,
    ]
}

const SETTINGS: &str = "volume_dirs = [\"WORK/volumes\"]\ndisk_projects = \"7000-7099\"\n";

/// What tasks see of a volume.
const INSIDE: &str = "/tmp/volume";

struct Volumes {
    on: OnDisk,
    framework: Framework,
}

impl Volumes {
    async fn start(kind: Kind) -> Result<Self> {
        let on = OnDisk::with(kind, SETTINGS, Options::default()).await?;
        let framework = on.cluster.framework("volumes").await?;
        Ok(Self { on, framework })
    }

    /// A directory that everybody may write to.
    fn make(&self, name: &str) -> Result<PathBuf> {
        let dir = self.on.cluster.work_dir().join("volumes").join(name);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
        Ok(dir)
    }

    async fn run(&self, task: Task) -> Result<TaskStatus> {
        self.framework.run(task).await
    }

    fn cluster(&self) -> &Cluster {
        &self.on.cluster
    }

    async fn finish(self) -> Result<()> {
        self.framework.teardown().await?;
        self.on.finish().await
    }
}

/// The task has the volume, with this bound; 0 names none.
fn bounded(task: Task, volume: &Path, mib: u64, files: u64) -> Task {
    task.volume(volume, INSIDE, false).with(|spec| {
        for volume in &mut spec.volumes {
            (volume.max_bytes, volume.max_inodes) = (mib << 20, files);
        }
    })
}

/// Fills a file of the volume up to the bound; with `stay` it goes on running.
fn filler(id: &str, stay: bool) -> Task {
    let file = format!("{INSIDE}/{id}");
    let words = ["python3", "-ISc", FILL, &file, "stay"];
    Task::new(id, words.into_iter().take(if stay { 5 } else { 4 }))
}

/// The project of a directory, as e2fsprogs has it.
fn project(dir: &Path) -> Result<u32> {
    let listed = Command::new("lsattr").arg("-pd").arg(dir).output().context("lsattr")?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.status.success(), "lsattr: {}", String::from_utf8_lossy(&listed.stderr));
    Ok(text.split_whitespace().next().context("lsattr says nothing")?.parse()?)
}

async fn ext4_bounds_a_volume_for_all_who_use_it() -> Result<()> {
    bounds(Kind::Ext4).await
}

async fn xfs_bounds_a_volume_for_all_who_use_it() -> Result<()> {
    bounds(Kind::Xfs).await
}

async fn bounds(kind: Kind) -> Result<()> {
    let mut volumes = Volumes::start(kind).await?;
    let shared = volumes.make("shared")?;
    // What is there counts, however deep it lies.
    fs::create_dir_all(shared.join("a/b"))?;
    fs::write(shared.join("a/b/before"), vec![b'x'; 4 << 20])?;
    volumes.framework.start(bounded(filler("first", true), &shared, 20, 0)).await?;
    let (refusal, total) = filled(volumes.cluster(), &volumes.framework, "first").await?;
    assert_eq!(refusal, kind.refusal());
    assert!((15 << 20..=16 << 20).contains(&total), "{total} bytes were written");

    until("the event of a full volume", || async {
        let asked = volumes.cluster().run_cli(&["events", "--json", "first"]).await;
        let events = asked.and_then(|said| said.json_lines()).map_err(|e| Verdict::Never(e.to_string()))?;
        let words = [shared.display().to_string(), "20.0 MiB".to_owned()];
        let told = |event: &Value| {
            let message = event["message"].to_string();
            event["kind"] == "disk_full" && words.iter().all(|word| message.contains(word))
        };
        if events.iter().any(told) { Ok(()) } else { Err(Verdict::NotYet(format!("{events:?}"))) }
    })
    .await?;

    // Others are held to the same, whether they name it or not.
    for (id, mib) in [("same", 20), ("silent", 0)] {
        let end = volumes.run(bounded(filler(id, false), &shared, mib, 0)).await?;
        assert_eq!(end.state(), TaskState::Finished, "{end:?}");
        let (refusal, total) = filled(volumes.cluster(), &volumes.framework, id).await?;
        assert!(refusal == kind.refusal() && total < 256 << 10, "{id}: {refusal} after {total} bytes");
        let usage = end.usage.context("a usage")?;
        assert!((19 << 20..=20 << 20).contains(&usage.volume_bytes) && usage.volume_inodes >= 5, "{usage:?}");
    }
    // While one relies on it, nobody changes it, before and after a restart of the agent.
    for round in 0..2 {
        let id = format!("other-{round}");
        let end = volumes.run(bounded(Task::new(&id, ["true"]), &shared, 40, 0)).await?;
        assert_eq!(end.reason(), TaskReason::ConfinementRefused, "{end:?}");
        assert!(end.message.contains("first") && end.message.contains("20.0 MiB"), "{end:?}");
        if round == 0 {
            volumes.on.cluster.kill_agent_hard().await?;
            volumes.on.cluster.restart_agent().await?;
        }
    }
    volumes.framework.kill("first", 0).await?;
    volumes.framework.end_of("first").await?;
    // It stays when nobody uses the volume.
    let end = volumes.run(bounded(filler("later", false), &shared, 0, 0)).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    assert_eq!(filled(volumes.cluster(), &volumes.framework, "later").await?.0, kind.refusal());
    // And can be changed now: up, and down to what is in use.
    let end = volumes.run(bounded(filler("more", false), &shared, 24, 0)).await?;
    let (_, total) = filled(volumes.cluster(), &volumes.framework, "more").await?;
    assert!((3 << 20..=4 << 20).contains(&total), "{total} bytes were written: {end:?}");
    let end = volumes.run(bounded(Task::new("less", ["true"]), &shared, 10, 0)).await?;
    assert_eq!(end.reason(), TaskReason::ConfinementRefused, "{end:?}");
    assert!(end.message.contains("more than 10.0 MiB"), "{end:?}");
    fs::remove_file(shared.join("first"))?;
    let mut attempt = 0;
    until("the space of a removed file to be free", || {
        attempt += 1;
        let ended = volumes.run(bounded(Task::new(&format!("less-{attempt}"), ["true"]), &shared, 10, 0));
        async {
            let end = ended.await.map_err(|e| Verdict::Never(format!("{e:#}")))?;
            if end.state() == TaskState::Finished { Ok(()) } else { Err(Verdict::NotYet(end.message)) }
        }
    })
    .await?;
    volumes.finish().await
}

async fn ext4_refuses_bounds_that_cannot_hold() -> Result<()> {
    refuses(Kind::Ext4).await
}

async fn xfs_refuses_bounds_that_cannot_hold() -> Result<()> {
    refuses(Kind::Xfs).await
}

async fn refuses(kind: Kind) -> Result<()> {
    let volumes = Volumes::start(kind).await?;
    let refused = async |task: Task, why: &str| -> Result<()> {
        let end = volumes.run(task).await?;
        ensure!(end.reason() == TaskReason::ConfinementRefused, "{end:?}");
        ensure!(end.message.contains(why), "{end:?}");
        Ok(())
    };
    let (outer, inner) = (volumes.make("outer")?, volumes.make("outer/inner")?);
    let within = volumes.make("outer/inner/within")?;
    let files = bounded(
        Task::shell(
            "files",
            &format!("i=0; while true >{INSIDE}/f$i; do i=$((i+1)); done 2>/dev/null; echo $i"),
        ),
        &inner,
        0,
        20,
    );
    let end = volumes.run(files).await?;
    // Two of the twenty are directories that were there.
    assert_eq!(volumes.cluster().stdout(&volumes.framework, "files").await?.trim(), "18", "{end:?}");
    refused(bounded(Task::new("around", ["true"]), &outer, 10, 0), "in it").await?;
    assert_eq!(project(&outer)?, 0, "a refused bound leaves nothing");
    refused(bounded(Task::new("within", ["true"]), &within, 10, 0), "above it").await?;

    // A launch that fails afterwards puts the bound back.
    let fresh = volumes.make("fresh")?;
    fs::write(fresh.join("file"), "x")?;
    let end = volumes.run(bounded(Task::new("missing", ["no-such-program"]), &fresh, 10, 0)).await?;
    assert_eq!(end.reason(), TaskReason::CommandNotFound, "{end:?}");
    assert_eq!(project(&fresh)?, 0);
    let end = volumes.run(bounded(Task::new("works", ["true"]), &fresh, 10, 0)).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    assert_ne!(project(&fresh)?, 0);

    // Of somebody else, which is lifted as the manual says.
    let foreign = volumes.make("foreign")?;
    let chattr = |arguments: &[&str]| Command::new("chattr").args(arguments).arg(&foreign).status();
    ensure!(chattr(&["-p", "12"])?.success());
    refused(bounded(Task::new("foreign", ["true"]), &foreign, 10, 0), "project 12").await?;
    ensure!(chattr(&["-R", "-p", "0"])?.success());
    let end = volumes.run(bounded(Task::new("lifted", ["true"]), &foreign, 10, 0)).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    volumes.finish().await
}

async fn a_volume_without_quotas_cannot_be_bounded() -> Result<()> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let agent_args = vec!["--volume-dir".to_owned(), dir.path().display().to_string()];
    let cluster = Cluster::start(Options { agent_args, ..Options::default() }).await?;
    let framework = cluster.framework("no-quota").await?;
    let end = framework.run(bounded(Task::new("t", ["true"]), dir.path(), 10, 0)).await?;
    assert_eq!(end.reason(), TaskReason::ConfinementRefused, "{end:?}");
    assert!(end.message.contains("prjquota"), "{end:?}");
    framework.teardown().await?;
    cluster.finish().await
}
