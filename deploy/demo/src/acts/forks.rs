//! A fork bomb.

use anyhow::{Context as _, Result};

use super::Act;
use crate::{
    line::Line,
    stage::{Kind, Stage, usage},
};

pub(super) const ACT: Act = Act {
    name: "forks",
    title: "a fork bomb, limited to 32 processes",
    needs: Some(Kind::Processes),
    play: |stage| Box::pin(play(stage)),
};

const NAME: &str = "bomb";
const PIDS_MAX: u64 = 32;
const ATTEMPTS: u64 = 1000;
/// Its children stay, so that nothing makes room; the last line counts how often fork worked and how often not.
const BOMB: &str = "\
import errno, os, signal
made = refused = 0
for _ in range(1000):
    try:
        if os.fork() == 0:
            signal.pause()
        made += 1
    except OSError as e:
        assert e.errno == errno.EAGAIN, e
        refused += 1
print(made, refused)
";

async fn play(stage: &Stage) -> Result<Line> {
    let limit = PIDS_MAX.to_string();
    let output =
        stage.done(&["run", "--name", NAME, "--pids", &limit, "--", "python3", "-ISc", BOMB]).await?;
    let task = stage.ended(NAME).await?;
    let counted = usage(&task)?.pids_refused;
    let told = output.stdout.trim().split_once(' ').context("the program did not count")?;
    let (made, refused): (u64, u64) = (told.0.parse()?, told.1.parse()?);
    let left = stage.cgroup(&task)?.exists();

    let mut line = Line::new(
        ACT.name,
        format!("a fork bomb: {ATTEMPTS} forks\nrun --pids {PIDS_MAX} -- python3 -c '...'"),
        format!("{PIDS_MAX} processes"),
    );
    line.measured(format!("{} processes at once; none left after it", made + 1))
        .refused(format!("{counted} forks, with EAGAIN"))
        .figure("pids_max", PIDS_MAX)
        .figure("processes", made + 1)
        .figure("forks_refused", refused)
        .figure("pids_refused", counted)
        .check(made + 1 == PIDS_MAX, || format!("it had {} processes", made + 1))
        .check(made + refused == ATTEMPTS, || format!("only {} forks were tried", made + refused))
        .check(counted == refused, || {
            format!("the program was refused {refused} forks, the kernel counted {counted}")
        })
        .check(!left, || "its cgroup is still there".to_owned());
    Ok(line)
}
