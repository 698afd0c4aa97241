//! A full disk stops new work, and nothing else.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{TaskReason, TaskState};
use bulkhead_testkit::{
    Cluster, Options, Task,
    cluster::{Verdict, until},
    trials,
};
use libtest_mimic::Trial;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::ports::http_get;

pub(crate) fn tests() -> Vec<Trial> {
    trials![a_full_disk_offers_nothing_until_there_is_room]
}

/// A file system of 1 MiB, for as long as this lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount_on(dir: &Path) -> Result<Self> {
        let options = Some("size=1m");
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), options).context("mount a tmpfs")?;
        Ok(Self(dir.to_owned()))
    }

    /// Leaves no byte.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path)?;
        while file.write_all(&[b'x'; 512]).is_ok() {}
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.0.display());
        }
    }
}

async fn a_full_disk_offers_nothing_until_there_is_room() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.stop_agent().await?;
    let disk = SmallDisk::mount_on(&cluster.work_dir())?;
    cluster.restart_agent().await?;
    let api = cluster.agent_address().await?;
    let framework = cluster.framework("disk").await?;
    framework.start(Task::new("before", ["sleep", "600"])).await?;

    let filler = disk.fill()?;
    // The last page of the journal has room for a few records.
    let mut launches = 0;
    while http_get(&api, "/healthz").await.is_ok() {
        launches += 1;
        ensure!(launches <= 100, "the agent is healthy on a full disk");
        let id = format!("t{launches}");
        framework.launch(Task::new(&id, ["true"])).await?;
        let end = framework.end_of(&id).await?;
        if end.state() != TaskState::Finished {
            assert_eq!(end.reason(), TaskReason::LaunchFailed, "{end:?}");
            assert!(end.message.contains("No space left"), "{end:?}");
        }
    }
    ensure!(launches > 0, "the agent is not healthy before anything was tried");
    let report = cluster.agent_info().await?.report.context("a report")?;
    assert!(report.free.as_ref().is_none_or(|free| free.is_empty()), "{report:?}");

    fs::remove_file(filler)?;
    until("offers again", || async {
        http_get(&api, "/healthz").await.map(drop).map_err(|e| Verdict::NotYet(e.to_string()))
    })
    .await?;
    assert_eq!(framework.run(Task::new("after", ["true"])).await?.state(), TaskState::Finished);
    framework.kill("before", 0).await?;
    assert_eq!(framework.end_of("before").await?.state(), TaskState::Killed);
    framework.teardown().await?;
    cluster.stop_agent().await?;
    drop(disk);
    cluster.finish().await
}
