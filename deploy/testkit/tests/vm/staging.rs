//! What a task brings along counts towards its disk quota: its artifacts, and what it writes in an image.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{Artifact, DiskOptions, Image, TaskReason, TaskState};
use bulkhead_testkit::{Options, Task, trials};
use libtest_mimic::Trial;
use serde_json::json;

use crate::{
    image,
    on_disk::{Kind, OnDisk},
};

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        ext4_refuses_artifacts_that_do_not_fit,
        xfs_refuses_artifacts_that_do_not_fit,
        ext4_refuses_archives_that_do_not_fit,
        xfs_refuses_archives_that_do_not_fit,
        ext4_holds_a_task_in_an_image,
        xfs_holds_a_task_in_an_image,
    ]
}

const QUOTA_MIB: u64 = 8;

async fn ext4_refuses_artifacts_that_do_not_fit() -> Result<()> {
    refuses(Kind::Ext4).await
}

async fn xfs_refuses_artifacts_that_do_not_fit() -> Result<()> {
    refuses(Kind::Xfs).await
}

async fn refuses(kind: Kind) -> Result<()> {
    let host = tempfile::tempdir()?;
    // The first leaves room for little but the directories, the last not even that.
    let sizes = [("fits", QUOTA_MIB - 1), ("large", QUOTA_MIB * 2), ("exact", QUOTA_MIB)];
    for (name, mib) in sizes {
        fs::write(host.path().join(name), vec![b'x'; usize::try_from(mib << 20)?])?;
    }
    let settings = format!("artifact_dirs = [{:?}]\ndisk_projects = \"7000-7001\"\n", host.path());
    let on = OnDisk::with(kind, &settings, Options::default()).await?;
    let framework = on.cluster.framework("staging").await?;
    let task = |id: &str, name: &str| {
        let uri = host.path().join(name).display().to_string();
        let artifact = Artifact { uri, ..Artifact::default() };
        Task::new(id, ["stat", "-c", "%s", name])
            .disk_mib(QUOTA_MIB)
            .with(|spec| spec.artifacts.push(artifact))
    };
    // There are two project ids: each refused launch must have given its own back.
    for round in 0..3 {
        for name in ["large", "exact"] {
            let id = format!("{name}-{round}");
            let end = framework.run(task(&id, name)).await?;
            assert_eq!(end.state(), TaskState::Failed, "{end:?}");
            // XFS keeps small directories in their inodes, so that the last fits, and leaves nothing for the output.
            let late = kind == Kind::Xfs && name == "exact";
            let reason = if late { TaskReason::LaunchFailed } else { TaskReason::ArtifactFailed };
            assert_eq!(end.reason(), reason, "{end:?}");
            let words = [name, "ask for more disk"];
            ensure!(words.iter().all(|word| end.message.contains(word)), "{}", end.message);
            let sandbox = on.cluster.task_dir(&framework, &id);
            ensure!(!sandbox.exists(), "{} is left", sandbox.display());
        }
    }
    let end = framework.run(task("fits", "fits")).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    framework.teardown().await?;
    on.finish().await
}

async fn ext4_refuses_archives_that_do_not_fit() -> Result<()> {
    refuses_archives(Kind::Ext4).await
}

async fn xfs_refuses_archives_that_do_not_fit() -> Result<()> {
    refuses_archives(Kind::Xfs).await
}

/// Files of a byte each: they have few bytes together, and take a block each.
const CRUMBS: u64 = 3000;

/// One archive holds more bytes than were granted; of the other only the file system can tell that it has no room.
async fn refuses_archives(kind: Kind) -> Result<()> {
    let host = tempfile::tempdir()?;
    let whole = host.path().join("whole");
    fs::create_dir_all(whole.join("crumbs"))?;
    fs::write(whole.join("bomb"), vec![0; usize::try_from(QUOTA_MIB << 23)?])?;
    for n in 0..CRUMBS {
        fs::write(whole.join(format!("crumbs/{n}")), "x")?;
    }
    pack(&whole, "bomb", &host.path().join("bomb.tar.gz"))?;
    pack(&whole, "crumbs", &host.path().join("crumbs.tar.gz"))?;
    let settings = format!("artifact_dirs = [{:?}]\ndisk_projects = \"7000-7001\"\n", host.path());
    let on = OnDisk::with(kind, &settings, Options::default()).await?;
    let framework = on.cluster.framework("archives").await?;
    // There are two project ids: each refused launch must have given its own back.
    for round in 0..3 {
        for name in ["bomb", "crumbs"] {
            let id = format!("{name}-{round}");
            let uri = host.path().join(format!("{name}.tar.gz")).display().to_string();
            let task = Task::shell(&id, "echo started")
                .disk_mib(QUOTA_MIB)
                .granted(|g| g.disk = Some(DiskOptions { inodes: 2 * CRUMBS, ..DiskOptions::default() }))
                .with(|spec| spec.artifacts.push(Artifact { uri, ..Artifact::default() }));
            let end = framework.run(task).await?;
            assert_eq!(
                (end.state(), end.reason()),
                (TaskState::Failed, TaskReason::ArtifactFailed),
                "{end:?}"
            );
            let words = [name, "ask for more disk"];
            ensure!(words.iter().all(|word| end.message.contains(word)), "{}", end.message);
            let sandbox = on.cluster.task_dir(&framework, &id);
            ensure!(!sandbox.exists(), "{} is left", sandbox.display());
        }
    }
    framework.teardown().await?;
    on.finish().await
}

fn pack(dir: &Path, name: &str, archive: &Path) -> Result<()> {
    let packed = Command::new("tar").arg("-czf").arg(archive).arg("-C").arg(dir).arg(name).status()?;
    ensure!(packed.success(), "tar: {packed}");
    Ok(())
}

async fn ext4_holds_a_task_in_an_image() -> Result<()> {
    holds(Kind::Ext4).await
}

async fn xfs_holds_a_task_in_an_image() -> Result<()> {
    holds(Kind::Xfs).await
}

async fn holds(kind: Kind) -> Result<()> {
    image::need_busybox()?;
    let dir = tempfile::tempdir()?;
    let layout = image::make_image(dir.path(), &json!({"User": "app", "Env": ["PATH=/bin"]}), &[])?;
    let settings = format!("image_dirs = [{:?}]\ndisk_projects = \"7000-7099\"\n", dir.path());
    let on = OnDisk::with(kind, &settings, Options::default()).await?;
    let framework = on.cluster.framework("image").await?;
    // All that it can write to, its sandbox and its /tmp, is of one quota; the image itself is nobody's to change. The
    // output counts too: its first block must be there before the rest is gone.
    let fill = "\
echo filling
dd if=/dev/zero of=/mnt/sandbox/half bs=1048576 count=4 2>/dev/null
dd if=/dev/zero of=/tmp/rest bs=4096 2>&1
busybox wc -c /mnt/sandbox/half /tmp/rest
touch /bin/new 2>&1 || true";
    let reference = format!("oci:{}", layout.display());
    let task = Task::new("t", ["sh", "-c", fill])
        .disk_mib(QUOTA_MIB)
        .with(|spec| spec.image = Some(Image { reference }));
    let end = framework.run(task).await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    let said = on.cluster.stdout(&framework, "t").await?;
    let refusal = if kind == Kind::Ext4 { "quota exceeded" } else { "No space left" };
    ensure!(said.contains(refusal) && said.contains("Read-only file system"), "{said}");
    let total = said.lines().find_map(|line| line.trim().strip_suffix(" total")?.parse::<u64>().ok());
    let total = total.with_context(|| said.clone())?;
    ensure!(total <= QUOTA_MIB << 20 && total + (256 << 10) >= QUOTA_MIB << 20, "{said}");
    let usage = end.usage.context("a usage")?;
    assert!(
        usage.disk_bytes <= QUOTA_MIB << 20 && usage.disk_bytes + (64 << 10) >= QUOTA_MIB << 20,
        "{usage:?}"
    );
    framework.teardown().await?;
    on.finish().await
}
