//! Benchmarks that need cgroup controllers. What the figures are is not asserted.

mod run;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use bulkhead_testkit::{harness, host, trials};

fn main() -> ExitCode {
    let unfit = match host::has_controllers() {
        _ if !host::is_root() => Some("needs root"),
        false => Some("needs cgroup v2 controllers"),
        true => None,
    };
    harness::run(unfit, trials![oversub_measures_every_point_and_draws_them], || Ok(()))
}

/// Only with plain cgroups: agents take their time before they lend.
async fn oversub_measures_every_point_and_draws_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name).display().to_string();
    let (csv, pictures) = (place("points.csv"), place("pictures"));
    let only = ["--setups", "alone,weights", "--ratios", "0.5,1.5", "--onsets", "0"];
    let short = ["--seconds", "1", "--warm-up", "0", "--rounds", "1"];
    let arguments = [&["oversub", "--csv", &csv, "--pictures", &pictures], &only[..], &short[..]].concat();
    let report = run::report(&arguments).await?;
    let oversub = &report["oversub"];
    for (at, (ratio, setup)) in
        [(0.5, "alone"), (0.5, "weights"), (1.5, "alone"), (1.5, "weights")].iter().enumerate()
    {
        let point = &oversub["points"][at];
        ensure!(point["ratio"] == *ratio && point["setup"] == *setup, "{point:#}");
        let measured = &point["rounds"][0]["service"];
        ensure!(measured["requests"].as_u64() > Some(0), "{point:#}");
        ensure!(measured["p99_us"].as_u64() >= measured["p50_us"].as_u64(), "{point:#}");
        ensure!(point["busy_percent"].as_f64() > Some(0.0), "{point:#}");
    }
    ensure!(oversub["verdicts"][1]["reached"] == false, "{oversub:#}");
    ensure!(std::fs::read_to_string(csv)?.lines().count() == 5, "a line for each point and the header");
    for picture in ["latency.svg", "throughput.svg", "utilisation.svg"] {
        let text = std::fs::read_to_string(dir.path().join("pictures").join(picture))?;
        ensure!(text.contains("</svg>"), "{picture}");
    }
    Ok(())
}
