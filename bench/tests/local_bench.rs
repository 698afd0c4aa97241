//! The benchmarks measure what they say, and leave nothing behind. What the figures are is not asserted.

mod run;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use bulkhead_testkit::{harness, host, trials};

use crate::run::{output, report};

fn main() -> ExitCode {
    let unfit = match host::cgroup2_mount() {
        _ if !host::is_root() => Some("needs root"),
        Err(_) => Some("needs a cgroup2 mount"),
        Ok(_) => None,
    };
    harness::run(
        unfit,
        trials![
            launch_counts_every_task,
            overhead_counts_every_window,
            churn_leaves_nothing,
            isolation_measures_every_pair_and_draws_them,
            without_controllers_what_needs_them_is_refused_with_the_remedy,
        ],
        || Ok(()),
    )
}

async fn launch_counts_every_task() -> Result<()> {
    let report = report(&["launch", "--tasks", "1,3", "--samples", "6"]).await?;
    ensure!(report["machine"]["cpus"].as_u64() > Some(0), "{report:#}");
    // Six of one task; of three tasks the least number of bursts, which is five.
    for (burst, (tasks, bursts)) in [(1, 6), (3, 5)].into_iter().enumerate() {
        let burst = &report["launch"][burst];
        let samples = [&burst["accept_to_running"], &burst["fork_exec"], &burst["agent_launch"]];
        ensure!(burst["tasks"] == tasks && burst["bursts"] == bursts, "{burst:#}");
        ensure!(samples.iter().all(|s| s["samples"] == tasks * bursts), "{burst:#}");
        ensure!(burst["accept_to_running"]["p50_us"].as_u64() > Some(0), "{burst:#}");
    }
    Ok(())
}

async fn overhead_counts_every_window() -> Result<()> {
    let report = report(&["overhead", "--tasks", "3", "--seconds", "1"]).await?;
    let windows = &report["overhead"]["windows"];
    ensure!(windows[0]["tasks"] == 0 && windows[1]["tasks"] == 3, "{windows:#}");
    let files = |window: usize| windows[window]["agent"]["open_files"].as_u64();
    ensure!(files(1) > files(0), "a task costs a descriptor: {windows:#}");
    ensure!(windows[1]["agent"]["cgroup_cpu_percent"].as_f64() > Some(0.0), "{windows:#}");
    ensure!(windows[1]["master"]["resident_bytes"].as_u64() > Some(0), "{windows:#}");
    Ok(())
}

async fn churn_leaves_nothing() -> Result<()> {
    let report = report(&["churn", "--tasks", "12", "--at-once", "5"]).await?;
    let churn = &report["churn"];
    ensure!(churn["accept_to_end"]["samples"] == 12, "{churn:#}");
    ensure!(churn["tasks_per_second"].as_f64() > Some(0.0), "{churn:#}");
    ensure!(churn["before"]["task_cgroups"] == 0 && churn["before"] == churn["after"], "{churn:#}");
    Ok(())
}

async fn isolation_measures_every_pair_and_draws_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let picture = dir.path().join("isolation.svg");
    let path = picture.display().to_string();
    let only = ["--victims", "memory", "--antagonists", "cpu,fork", "--seconds", "1"];
    let report = report(&[&["isolation", "--picture", &path], &only[..]].concat()).await?;
    let row = &report["isolation"][0];
    ensure!(row["victim"] == "memory" && row["alone"]["per_second"].as_f64() > Some(0.0), "{row:#}");
    for (pair, antagonist) in ["cpu", "fork"].into_iter().enumerate() {
        let pair = &row["beside"][pair];
        ensure!(pair["antagonist"] == antagonist, "{row:#}");
        for measured in [&pair["bare"], &pair["isolated"]] {
            ensure!(measured["p99_us"].as_u64() >= measured["p50_us"].as_u64(), "{pair:#}");
            ensure!(measured["per_second"].as_f64() > Some(0.0), "{pair:#}");
        }
    }
    ensure!(std::fs::read_to_string(picture)?.contains("</svg>"), "no picture");
    Ok(())
}

async fn without_controllers_what_needs_them_is_refused_with_the_remedy() -> Result<()> {
    if host::has_controllers() {
        return harness::skip("this machine has the controllers: vm_bench measures");
    }
    for benchmark in [&["oversub", "--ratios", "1"][..], &["offers", "--trials", "1"]] {
        let refused = output(benchmark).await?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(1) && said.contains("deploy/vm/run"), "{benchmark:?}: {said}");
    }
    Ok(())
}
