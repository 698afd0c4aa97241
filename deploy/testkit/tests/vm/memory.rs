//! Memory: limits to the page, protection up to the grant, and ends that say why.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{MemOptions, TaskReason, TaskState, TaskStatus};
use bulkhead_testkit::{Framework, Task, framework::is_last, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

mod disk;
mod oom;
mod pressure;
mod resize;

pub(crate) fn tests() -> Vec<Trial> {
    let limits = trials![
        the_limit_is_set_to_the_page,
        a_burst_is_limited_and_not_protected,
        revocable_tasks_are_not_protected,
        a_protected_task_keeps_what_another_reads_for,
    ];
    [limits, oom::tests(), pressure::tests(), resize::tests()].into_iter().flatten().collect()
}

/// With these options of its memory.
fn with_mem(task: Task, change: impl FnOnce(&mut MemOptions)) -> Task {
    task.granted(|grant| change(grant.mem.get_or_insert_default()))
}

fn read(cgroup: &Path, file: &str) -> Result<String> {
    let path = cgroup.join(file);
    Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
}

fn number(cgroup: &Path, file: &str) -> Result<u64> {
    Ok(read(cgroup, file)?.parse()?)
}

/// A line of `memory.stat` or `memory.events`.
fn line(cgroup: &Path, file: &str, key: &str) -> Result<u64> {
    let text = read(cgroup, file)?;
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("{key} in {text}"))?.parse()?)
}

fn whole_pages(bytes: u64) -> u64 {
    bytes / procfs::page_size() * procfs::page_size()
}

async fn the_limit_is_set_to_the_page() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("page").await?;
    let asked = 50_000_001;
    framework.start(Task::new("t", ["sleep", "600"]).mem_bytes(asked)).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    for file in ["memory.max", "memory.min", "memory.low"] {
        assert_eq!(number(&cgroup, file)?, whole_pages(asked), "{file}");
    }
    assert_eq!(read(&cgroup, "memory.high")?, "max");
    assert_eq!(read(&cgroup, "memory.oom.group")?, "1");
    if cgroup.join("memory.swap.max").exists() {
        assert_eq!(read(&cgroup, "memory.swap.max")?, "0");
    }
    protected_above(&cluster.cgroup()?, whole_pages(asked))?;
    framework.teardown().await?;
    // The agent itself stays protected.
    assert!(
        number(&cluster.cgroup()?, "memory.min")? >= number(&cluster.cgroup()?.join("agent"), "memory.min")?
    );
    Ok(())
}

/// Protection holds only as far as the cgroups above have it too.
fn protected_above(root: &Path, bytes: u64) -> Result<()> {
    for cgroup in [root.to_owned(), root.join("guaranteed")] {
        for file in ["memory.min", "memory.low"] {
            let above = number(&cgroup, file)?;
            assert!(above >= bytes, "{} {file}: {above} above {bytes}", cgroup.display());
        }
    }
    assert!(number(&root.join("agent"), "memory.min")? > 0);
    Ok(())
}

async fn a_burst_is_limited_and_not_protected() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("burst").await?;
    let task = with_mem(Task::new("t", ["sleep", "600"]).mem_mib(32), |mem| {
        mem.limit_bytes = 96 << 20;
        mem.high_bytes = (80 << 20) + 1;
        mem.oom_one_process = true;
    });
    framework.start(task).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let files = ["memory.max", "memory.high", "memory.low", "memory.min", "memory.oom.group"];
    let is = files.map(|file| number(&cgroup, file).unwrap_or_default());
    assert_eq!(is, [96 << 20, 80 << 20, 32 << 20, 32 << 20, 0]);
    framework.teardown().await
}

async fn revocable_tasks_are_not_protected() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = lent(&cluster).await?;
    // What is lent changes with every measurement, and an offer of it may be gone before it is accepted.
    let mut tries = 0;
    let id = loop {
        let id = format!("t-{tries}");
        framework.launch(Task::new(&id, ["sleep", "600"]).cpu_milli(10).revocable()).await?;
        let begun = |s: &TaskStatus| s.state() == TaskState::Running || is_last(s);
        let status = framework.wait_status(&id, begun).await?;
        tries += 1;
        match status.reason() {
            TaskReason::OfferGone if tries < 20 => {}
            _ if status.state() == TaskState::Running => break id,
            _ => anyhow::bail!("{status:?}"),
        }
    };
    let cgroup = cluster.task_cgroup("revocable", framework.id(), &id)?;
    let is = ["memory.max", "memory.low", "memory.min"].map(|file| number(&cgroup, file).unwrap_or_default());
    assert_eq!(is, [64 << 20, 0, 0]);
    assert_eq!(number(&cluster.cgroup()?.join("revocable"), "memory.min")?, 0);
    framework.teardown().await
}

async fn lent(cluster: &bulkhead_testkit::Cluster) -> Result<Framework> {
    use bulkhead_proto::v1::{FrameworkInfo, ResourceClass};
    let classes = vec![ResourceClass::Guaranteed.into(), ResourceClass::Revocable.into()];
    let info = FrameworkInfo { name: "lent".into(), classes, ..FrameworkInfo::default() };
    Framework::subscribe_as(cluster.master_channel().await?, info, true).await
}

/// Both live in one parent that is too small for them; the one that was granted its memory keeps it.
async fn a_protected_task_keeps_what_another_reads_for() -> Result<()> {
    let files = disk::Files::make()?;
    let (kept, churned) = (files.file("kept", 40 << 20)?, files.file("churned", 300 << 20)?);
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("protected").await?;
    let keeper = format!("cat {} >/dev/null; echo kept; exec sleep 600", kept.display());
    framework.start(Task::shell("keeper", &keeper).mem_mib(64)).await?;
    cluster.stdout_until(&framework, "keeper", "kept").await?;
    let keeper = cluster.guaranteed(&framework, "keeper")?;
    let before = line(&keeper, "memory.stat", "file")?;
    assert!(before >= 38 << 20, "{before} bytes in its page cache");

    let parent = Narrow::set(cluster.cgroup()?.join("guaranteed"), 120 << 20)?;
    let churn = format!("for round in 1 2 3; do cat {} >/dev/null; done; echo churned", churned.display());
    let greedy = Task::shell("greedy", &format!("{churn}; exec sleep 600")).mem_mib(16).cpu_milli(1000);
    framework.start(with_mem(greedy, |mem| mem.limit_bytes = 400 << 20)).await?;
    cluster.stdout_until(&framework, "greedy", "churned").await?;
    let greedy = cluster.guaranteed(&framework, "greedy")?;
    let [kept, taken] = [&keeper, &greedy].map(|cgroup| line(cgroup, "memory.stat", "pgsteal"));
    assert!(taken? > 10_000, "the other one was reclaimed from");
    let after = line(&keeper, "memory.stat", "file")?;
    assert!(after >= before / 100 * 98, "{after} of {before} bytes kept, {} pages taken", kept?);
    drop(parent);
    framework.teardown().await
}

/// A cgroup with a limit that goes with the test.
struct Narrow(PathBuf);

impl Narrow {
    fn set(cgroup: PathBuf, bytes: u64) -> Result<Self> {
        fs::write(cgroup.join("memory.max"), bytes.to_string())?;
        Ok(Self(cgroup))
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        // The next test says what it did not get.
        let _ = fs::write(self.0.join("memory.max"), "max");
    }
}
