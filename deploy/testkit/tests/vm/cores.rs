//! Cores of a task's own: nobody else runs there, and whoever does all the same is counted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{TaskReason, TaskState};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{Verdict, until},
    framework::is_last,
    harness::skip,
    host, http, trials,
};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        exclusive_cores_are_nobody_elses,
        an_intruder_is_counted,
        isolated_cores_are_out_of_load_balancing,
        core_scheduling_is_refused_where_the_kernel_has_none,
        exclusive_cores_outlive_the_agent,
        a_resize_neither_takes_nor_gives_cores_of_its_own,
    ]
}

const BURN: &str = "while :; do :; done";

/// CPUs of one core: what the smallest exclusive grant has.
fn threads() -> Result<u64> {
    let siblings = fs::read_to_string("/sys/devices/system/cpu/cpu0/topology/core_cpus_list")?;
    Ok(cpus(&siblings).len() as u64)
}

/// `0-2,5`
fn cpus(list: &str) -> Vec<u32> {
    let number = |text: &str| text.trim().parse().unwrap_or(u32::MAX);
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        number(first)..=number(last)
    };
    list.trim().split(',').filter(|part| !part.is_empty()).flat_map(range).collect()
}

fn read(cgroup: &Path, file: &str) -> Result<String> {
    let path = cgroup.join(file);
    Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
}

fn effective(cgroup: &Path) -> Result<Vec<u32>> {
    Ok(cpus(&read(cgroup, "cpuset.cpus.effective")?))
}

fn exclusive(cluster: &Cluster, framework: &Framework, task: &str) -> Result<PathBuf> {
    cluster.task_cgroup("exclusive", framework.id(), task)
}

/// A task with a core of its own.
fn own_core(id: &str, script: &str) -> Result<Task> {
    Ok(Task::shell(id, script).cpu_milli(threads()? * 1000).cpu(|cpu| cpu.exclusive = true))
}

fn has_partitions(cgroup: &Path) -> bool {
    cgroup.join("cpuset.cpus.exclusive").exists()
}

async fn exclusive_cores_are_nobody_elses() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let beside = Beside::new("bulkhead-beside")?;
    let framework = cluster.framework("exclusive").await?;
    framework.start(Task::new("shared", ["sleep", "600"])).await?;
    let parents = ["agent", "guaranteed", "revocable"].map(|name| cluster.cgroup().map(|c| c.join(name)));
    framework.start(own_core("own", BURN)?).await?;
    let own = exclusive(&cluster, &framework, "own")?;
    let cores = effective(&own)?;
    assert_eq!(cores.len() as u64, threads()?);
    assert!(!cores.contains(&0), "the first core stays with the system: {cores:?}");
    assert_eq!(read(&own, "cpuset.mems")?, "0");
    for other in parents {
        let others = effective(&other?)?;
        assert!(!others.is_empty() && !others.iter().any(|cpu| cores.contains(cpu)), "{others:?} {cores:?}");
    }
    assert!(!effective(&beside.0)?.iter().any(|cpu| cores.contains(cpu)), "the rest of the host");
    let partitions = has_partitions(&own);
    if partitions {
        assert_eq!(read(&own, "cpuset.cpus.partition")?, "root");
        assert_eq!(read(&beside.0, "cpuset.cpus")?, "", "the kernel does it, and undoes it");
    }
    framework.kill("own", 0).await?;
    let usage = framework.end_of("own").await?.usage.context("a usage")?;
    assert!(usage.cpu_usec > 0, "{usage:?}");
    // Without partitions the root cgroup is not kept off, where the test and the master are.
    assert!(!partitions || usage.foreign_cpu_usec < usage.cpu_usec / 4, "{usage:?}");
    // All of it is shared again.
    for freed in ["agent", "guaranteed", "revocable"] {
        until("the core to be shared", || async {
            let cpus = cluster.cgroup().and_then(|c| effective(&c.join(freed))).unwrap_or_default();
            if cpus.contains(&cores[0]) { Ok(()) } else { Err(Verdict::NotYet(format!("{freed}: {cpus:?}"))) }
        })
        .await?;
    }
    assert!(effective(&beside.0)?.contains(&cores[0]));
    assert_eq!(read(&beside.0, "cpuset.cpus")?, "");
    framework.teardown().await
}

async fn a_resize_neither_takes_nor_gives_cores_of_its_own() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("resize-cores").await?;
    let own = own_core("own", "sleep 600")?;
    let shared = Task::shell("shared", "sleep 600").cpu_milli(100);
    for task in [&own, &shared] {
        framework.start(task.clone()).await?;
    }
    let cgroup = exclusive(&cluster, &framework, "own")?;
    let cores = effective(&cgroup)?;
    let not_own = own.clone().cpu(|cpu| cpu.exclusive = false);
    let none = shared.clone().cpu(|cpu| cpu.exclusive = true);
    for (before, after, why) in [
        (&own, &not_own, "from its start, or never"),
        (&own, &own.clone().cpu_milli(threads()? * 1000 - 500), "whole"),
        (&shared, &none, "whole"),
    ] {
        let answer = framework.resize(before, after).await?;
        assert!(answer.refusal.contains(why), "{why:?} in {answer:?}");
    }
    assert_eq!(effective(&cgroup)?, cores, "it keeps what it had");
    for task in ["own", "shared"] {
        assert!(!framework.statuses(task).iter().any(|seen| is_last(&seen.status)), "{task} runs on");
    }
    framework.teardown().await
}

/// A process from outside that gets onto the core by the same means as an operator: where the kernel keeps the core
/// apart, that is switched off first.
async fn an_intruder_is_counted() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("intruder").await?;
    framework.start(own_core("own", BURN)?).await?;
    let own = exclusive(&cluster, &framework, "own")?;
    let core = effective(&own)?[0].to_string();
    if has_partitions(&own) {
        fs::write(own.join("cpuset.cpus.partition"), "member")?;
    }
    let _intruder = Running(Command::new("taskset").args(["-c", &core, "sh", "-c", BURN]).spawn()?);
    let used = until("the intruder to be counted", || async {
        let text = metrics(&cluster).await.map_err(|e| Verdict::Never(format!("{e:#}")))?;
        let name = "bulkhead_agent_exclusive_foreign_cpu_seconds_total{by=\"others\"} ";
        let seconds = text.lines().find_map(|l| l.strip_prefix(name)).and_then(|n| n.parse::<f64>().ok());
        match seconds {
            Some(seconds) if seconds > 0.5 => Ok(seconds),
            other => Err(Verdict::NotYet(format!("{other:?} s"))),
        }
    })
    .await?;
    framework.kill("own", 0).await?;
    let usage = framework.end_of("own").await?.usage.context("a usage")?;
    ensure!(usage.foreign_cpu_usec as f64 >= used * 0.9e6, "{used} s, in the end {usage:?}");
    framework.teardown().await
}

async fn isolated_cores_are_out_of_load_balancing() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("isolated").await?;
    let task = own_core("own", BURN)?.cpu(|cpu| cpu.isolated = true);
    if !has_partitions(&cluster.cgroup()?.join("exclusive")) {
        let end = framework.run(task).await?;
        assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::InvalidGrant));
        assert!(end.message.contains("cpuset.cpus.exclusive"), "{}", end.message);
        framework.teardown().await?;
        return skip("this kernel has no cpuset.cpus.exclusive; that isolated cores are refused was tested");
    }
    framework.start(task).await?;
    let own = exclusive(&cluster, &framework, "own")?;
    assert_eq!(read(&own, "cpuset.cpus.partition")?, "isolated");
    let isolated = cpus(&read(&host::cgroup2_mount()?, "cpuset.cpus.isolated")?);
    assert_eq!(isolated, effective(&own)?);
    framework.teardown().await
}

async fn core_scheduling_is_refused_where_the_kernel_has_none() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("scheduling").await?;
    let end = framework.run(Task::new("t", ["true"]).cpu(|cpu| cpu.core_scheduling = true)).await?;
    if end.state() == TaskState::Finished {
        framework.teardown().await?;
        return skip("this kernel has core scheduling");
    }
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::InvalidGrant));
    assert!(end.message.contains("core scheduling"), "{}", end.message);
    framework.teardown().await
}

async fn exclusive_cores_outlive_the_agent() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("outlive").await?;
    framework.start(own_core("own", "sleep 600")?).await?;
    let own = exclusive(&cluster, &framework, "own")?;
    let guaranteed = cluster.cgroup()?.join("guaranteed");
    let before = (effective(&own)?, read(&own, "cpuset.cpus.partition")?, effective(&guaranteed)?);
    cluster.kill_agent_hard().await?;
    cluster.restart_agent().await?;
    let after = (effective(&own)?, read(&own, "cpuset.cpus.partition")?, effective(&guaranteed)?);
    assert_eq!(before, after);
    framework.kill("own", 0).await?;
    framework.end_of("own").await?;
    until("the core to be shared", || async {
        let cpus = effective(&guaranteed).unwrap_or_default();
        if cpus.contains(&before.0[0]) { Ok(()) } else { Err(Verdict::NotYet(format!("{cpus:?}"))) }
    })
    .await?;
    framework.teardown().await?;
    cluster.finish().await
}

async fn metrics(cluster: &Cluster) -> Result<String> {
    let address = cluster.agent_address().await?;
    http::get(&address, "/metrics").await
}

/// A cgroup beside the agent's, as a system has them.
struct Beside(PathBuf);

impl Beside {
    fn new(name: &str) -> Result<Self> {
        let path = host::cgroup2_mount()?.join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Ends with its scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
