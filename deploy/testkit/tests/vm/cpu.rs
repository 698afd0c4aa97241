//! CPU time per wall time, as the kernel counts both.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{FrameworkInfo, ResourceClass, ResourceReport};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{Verdict, until},
    trials,
};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        revocable_work_yields_to_guaranteed,
        half_a_cpu_is_half_a_cpu,
        a_cap_holds_in_every_period,
        idle_time_is_saved_up_for_a_burst,
        caps_and_bursts_change_in_both_directions,
        revocable_tasks_are_capped_together,
        several_processes_share_one_grant,
        contention_is_shared_by_grants,
        a_burst_uses_what_is_idle,
        limits_hold_while_the_agent_is_away,
    ]
}

/// Long against the 100 ms period of `cpu.max`.
const WINDOW: Duration = Duration::from_secs(4);
const BURN: &str = "while :; do :; done";

/// Burns on one processor only, so that two of these contend.
fn burn_on_first(id: &str) -> Task {
    Task::new(id, ["taskset", "-c", "0", "sh", "-c", BURN]).cpu_burst()
}

fn usage_usec(cgroup: &Path) -> Result<u64> {
    stat(cgroup, "usage_usec")
}

/// A number of `cpu.stat`.
fn stat(cgroup: &Path, key: &str) -> Result<u64> {
    let stat = fs::read_to_string(cgroup.join("cpu.stat"))?;
    let value = stat.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    Ok(value.with_context(|| key.to_owned())?.parse()?)
}

/// CPUs that each cgroup used over one common window.
async fn cpus_used<const N: usize>(cgroups: [&PathBuf; N]) -> Result<[f64; N]> {
    cpus_used_over(WINDOW, cgroups).await
}

async fn cpus_used_over<const N: usize>(window: Duration, cgroups: [&PathBuf; N]) -> Result<[f64; N]> {
    let read = || cgroups.map(|c| usage_usec(c));
    let (start, before) = (Instant::now(), read());
    tokio::time::sleep(window).await;
    let (wall, after) = (start.elapsed(), read());
    let mut used = [0.0; N];
    for (used, (before, after)) in used.iter_mut().zip(before.into_iter().zip(after)) {
        *used = Duration::from_micros(after? - before?).div_duration_f64(wall);
    }
    Ok(used)
}

fn assert_near(what: &str, is: f64, should: f64, percent: f64) {
    eprintln!("{what}: {is:.3}, expected {should:.3}");
    assert!((is / should - 1.0).abs() * 100.0 <= percent, "{what}: {is:.3}, expected {should:.3}");
}

async fn half_a_cpu_is_half_a_cpu() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("half").await?;
    framework.start(Task::shell("t", BURN).cpu_milli(500)).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    assert_eq!(fs::read_to_string(cgroup.join("cpu.max"))?, "50000 100000\n");
    let [used] = cpus_used([&cgroup]).await?;
    assert_near("CPUs", used, 0.5, 10.0);
    framework.kill("t", 0).await?;
    let usage = framework.end_of("t").await?.usage.context("a usage")?;
    assert!(usage.cpu_throttled_usec > 0 && usage.cpu_usec > 1_000_000, "{usage:?}");
    framework.teardown().await
}

/// Many periods, so that the one that is cut at each end does not matter.
const LONG_WINDOW: Duration = Duration::from_secs(12);

async fn a_cap_holds_in_every_period() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("cap").await?;
    let task = Task::shell("t", BURN).cpu_milli(300).cpu(|cpu| cpu.period_usec = 50_000);
    framework.start(task).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    assert_eq!(read(&cgroup, "cpu.max"), "15000 50000\n");
    let used = part_of_quota_used(&cgroup, Duration::from_millis(15)).await?;
    assert_near("the part of its quota that it used", used, 1.0, 2.0);
    framework.teardown().await
}

/// By the kernel's own count of periods: an emulator may be late with one, and then runs fewer.
async fn part_of_quota_used(cgroup: &Path, quota: Duration) -> Result<f64> {
    let counters = || Ok::<_, anyhow::Error>((stat(cgroup, "usage_usec")?, stat(cgroup, "nr_periods")?));
    let before = counters()?;
    tokio::time::sleep(LONG_WINDOW).await;
    let after = counters()?;
    let periods = u32::try_from(after.1 - before.1)?;
    Ok(Duration::from_micros(after.0 - before.0).div_duration_f64(quota * periods))
}

/// Wants 30 ms at once, now and then, of a cap of 20 ms in 100.
const SPURTS: &str = "\
import time
while True:
    time.sleep(0.4)
    end = time.process_time() + 0.03
    while time.process_time() < end:
        pass
";

async fn idle_time_is_saved_up_for_a_burst() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("spurts").await?;
    let task = Task::python("t", SPURTS).cpu_milli(200).cpu(|cpu| cpu.burst_usec = 20_000);
    framework.start(task).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    assert_eq!(read(&cgroup, "cpu.max.burst"), "20000\n");
    until("a burst", || async {
        match stat(&cgroup, "nr_bursts") {
            Ok(0) => Err(Verdict::NotYet(read(&cgroup, "cpu.stat"))),
            Ok(bursts) => Ok(bursts),
            Err(e) => Err(Verdict::Never(format!("{e:#}"))),
        }
    })
    .await?;
    framework.teardown().await
}

async fn caps_and_bursts_change_in_both_directions() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("change").await?;
    let task = |milli, period_usec, burst_usec| {
        let task = Task::new("t", ["sleep", "600"]).cpu_milli(milli);
        task.cpu(|cpu| (cpu.period_usec, cpu.burst_usec) = (period_usec, burst_usec))
    };
    let mut now = task(400, 0, 0);
    framework.start(now.clone()).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let steps = [
        (800, 0, 80_000, "80000 100000\n", "80000\n"),
        (200, 0, 10_000, "20000 100000\n", "10000\n"),
        (200, 20_000, 4000, "4000 20000\n", "4000\n"),
        (900, 200_000, 180_000, "180000 200000\n", "180000\n"),
        (100, 0, 0, "10000 100000\n", "0\n"),
    ];
    for (milli, period_usec, burst_usec, max, burst) in steps {
        let next = task(milli, period_usec, burst_usec);
        assert_eq!(framework.resize(&now, &next).await?.refusal, "", "to {milli} {period_usec} {burst_usec}");
        assert_eq!([read(&cgroup, "cpu.max"), read(&cgroup, "cpu.max.burst")], [max, burst]);
        now = next;
    }
    let exclusive = task(1000, 0, 0).cpu(|cpu| cpu.exclusive = true);
    let refusal = framework.resize(&now, &exclusive).await?.refusal;
    assert!(refusal.contains("restart"), "{refusal}");
    assert_eq!(read(&cgroup, "cpu.max"), "10000 100000\n", "a refusal changes nothing");
    framework.teardown().await
}

async fn revocable_tasks_are_capped_together() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("capped").await?;
    framework.start(Task::shell("firm", BURN).cpu_milli(1000)).await?;
    let parent = cluster.cgroup()?.join("revocable");
    let capacity = report(&cluster).await?.capacity.context("a capacity")?.cpu_milli;
    until("the cap to leave a CPU to the guaranteed task", || async {
        let cap = read(&parent, "cpu.max");
        let quota = cap.split_whitespace().next().and_then(|quota| quota.parse::<u64>().ok());
        match quota {
            Some(usec) if usec / 100 <= capacity.saturating_sub(900) => Ok(()),
            _ => Err(Verdict::NotYet(cap)),
        }
    })
    .await?;
    framework.teardown().await
}

async fn several_processes_share_one_grant() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("several").await?;
    let script = format!("for i in 1 2 3; do setsid sh -c '{BURN}' & done; wait");
    framework.start(Task::shell("t", &script).cpu_milli(500)).await?;
    let used = part_of_quota_used(&cluster.guaranteed(&framework, "t")?, Duration::from_millis(50)).await?;
    assert_near("the part of its quota that three processes used", used, 1.0, 2.0);
    framework.teardown().await
}

async fn contention_is_shared_by_grants() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("contention").await?;
    framework.start(burn_on_first("small").cpu_milli(200)).await?;
    framework.start(burn_on_first("large").cpu_milli(600)).await?;
    let [small, large] = ["small", "large"].map(|t| cluster.guaranteed(&framework, t));
    let [small, large] = cpus_used_over(LONG_WINDOW, [&small?, &large?]).await?;
    assert_near("the ratio of a grant three times as large", large / small, 3.0, 5.0);
    framework.teardown().await
}

async fn a_burst_uses_what_is_idle() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("burst").await?;
    framework.start(Task::shell("t", BURN).cpu_milli(200).cpu_burst()).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    assert_eq!(fs::read_to_string(cgroup.join("cpu.max"))?, "max 100000\n");
    let [used] = cpus_used([&cgroup]).await?;
    assert!(used > 0.5, "{used:.3} CPUs of a grant of 0.2 on an idle machine");
    framework.teardown().await
}

async fn report(cluster: &Cluster) -> Result<ResourceReport> {
    cluster.agent_info().await?.report.context("a report")
}

async fn revocable_work_yields_to_guaranteed() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let info = FrameworkInfo {
        name: "lent".into(),
        classes: vec![ResourceClass::Guaranteed.into(), ResourceClass::Revocable.into()],
        ..FrameworkInfo::default()
    };
    let framework = Framework::subscribe_as(cluster.master_channel().await?, info, true).await?;
    let before = report(&cluster).await?;
    framework.start(burn_on_first("lent").cpu_milli(300).revocable()).await?;
    let after = report(&cluster).await?;
    assert_eq!(after.revocable_allocated_cpu_milli, before.revocable_allocated_cpu_milli + 300);
    let guaranteed = |r: &ResourceReport| r.allocated.as_ref().map(|a| (a.cpu_milli, a.mem_bytes));
    let with_memory = guaranteed(&before).map(|(cpu, mem)| (cpu, mem + (64 << 20)));
    assert_eq!(guaranteed(&after), with_memory, "CPU is lent, memory is not");

    let lent = cluster.task_cgroup("revocable", framework.id(), "lent")?;
    let [alone] = cpus_used([&lent]).await?;
    assert!(alone > 0.5, "{alone:.3} CPUs while nobody else wants any");
    framework.start(burn_on_first("firm").cpu_milli(300)).await?;
    let [lent, firm] = cpus_used([&lent, &cluster.guaranteed(&framework, "firm")?]).await?;
    assert!(lent < 0.1 * firm, "lent {lent:.3}, guaranteed {firm:.3}");
    framework.teardown().await
}

async fn limits_hold_while_the_agent_is_away() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("away").await?;
    framework.start(Task::shell("t", BURN).cpu_milli(300).pids_max(17)).await?;
    let cgroup = cluster.guaranteed(&framework, "t")?;
    let limits = || ["cpu.max", "cpu.weight", "memory.max", "pids.max"].map(|f| read(&cgroup, f));
    let before = limits();
    ensure!(before.iter().all(|l| !l.starts_with("max") && !l.is_empty()), "{before:?}");
    cluster.kill_agent_hard().await?;
    let [used] = cpus_used([&cgroup]).await?;
    assert_near("CPUs without an agent", used, 0.3, 10.0);
    cluster.restart_agent().await?;
    assert_eq!(limits(), before);
    framework.kill("t", 0).await?;
    framework.end_of("t").await?;
    assert!(!cgroup.exists());
    framework.teardown().await?;
    cluster.finish().await
}

fn read(cgroup: &Path, file: &str) -> String {
    fs::read_to_string(cgroup.join(file)).unwrap_or_default()
}
