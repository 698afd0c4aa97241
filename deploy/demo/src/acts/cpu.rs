//! A program that wants two CPUs and is held to half of one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::Act;
use crate::{
    line::Line,
    stage::{Kind, Stage, granted, numbers},
};

pub(super) const ACT: Act = Act {
    name: "cpu",
    title: "two busy loops, held to half a CPU",
    needs: Some(Kind::Cpu),
    play: |stage| Box::pin(play(stage)),
};

const NAME: &str = "burner";
const LOOPS: &str = "while :; do :; done & while :; do :; done";
/// Thirty of the kernel's accounting periods.
const WINDOW: Duration = Duration::from_secs(3);
/// The window may catch one period more than it is long, and each CPU a slice: 5 % in all. This is twice that.
const TOLERANCE_PERCENT: u64 = 10;

async fn play(stage: &Stage) -> Result<Line> {
    stage.done(&["run", "--name", NAME, "--cpus", "0.5", "--detach", "--", "sh", "-c", LOOPS]).await?;
    let task = stage.task(NAME).await?;
    let stat = stage.cgroup(&task)?.join("cpu.stat");
    let (before, start) = (numbers(&stat)?, Instant::now());
    sleep(WINDOW).await;
    let (after, wall) = (numbers(&stat)?, start.elapsed());
    stage.done(&["kill", NAME]).await?;
    stage.ended(NAME).await?;

    let delta = |key: &str| -> Result<u64> {
        let read = |of: &std::collections::BTreeMap<String, u64>| of.get(key).copied();
        let (before, after) =
            read(&before).zip(read(&after)).with_context(|| format!("cpu.stat without {key}"))?;
        Ok(after - before)
    };
    let (used_usec, throttled, periods) =
        (delta("usage_usec")?, delta("nr_throttled")?, delta("nr_periods")?);
    let wall_usec = u64::try_from(wall.as_micros())?;
    let granted_milli = granted(&task)?.cpu_milli;
    let used_milli = used_usec * 1000 / wall_usec.max(1);
    let most_milli = granted_milli * (100 + TOLERANCE_PERCENT) / 100;

    let mut line = Line::new(
        ACT.name,
        "two busy loops\nrun --cpus 0.5 -- sh -c 'while :; ...'".to_owned(),
        format!("{} CPU", milli(granted_milli)),
    );
    line.measured(format!(
        "{} CPU: {} ms of CPU time in {} ms (up to {TOLERANCE_PERCENT} % over the grant counts as held)",
        milli(used_milli),
        used_usec / 1000,
        wall_usec / 1000,
    ))
    .refused(format!("to run on, in {throttled} of {periods} periods"))
    .figure("granted_cpu_milli", granted_milli)
    .figure("used_cpu_milli", used_milli)
    .figure("tolerance_percent", TOLERANCE_PERCENT)
    .figure("used_usec", used_usec)
    .figure("wall_usec", wall_usec)
    .figure("throttled_periods", throttled)
    .check(used_milli <= most_milli, || format!("{} CPU is more than granted", milli(used_milli)))
    .check(throttled > 0, || "it never reached its limit, so nothing was shown".to_owned());
    Ok(line)
}

/// `0.498`.
fn milli(cpu_milli: u64) -> String {
    format!("{}.{:03}", cpu_milli / 1000, cpu_milli % 1000)
}
