//! How long it takes from the onset of interference until revocable tasks are held to less.
//!
//! The onset is the moment in which a task that burns on all CPUs is thawed. The squeeze is the first write to the cgroup above all
//! revocable tasks that leaves them less, and that the agent counts as a correction: what it does with the idle CPU that it
//! lends, once a second, is none.

pub(crate) mod protection;
mod watch;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bulkhead_testkit::{
    Cluster,
    cluster::{Verdict, until},
};
use clap::ValueEnum;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout_at},
};

use self::{protection::Protection, watch::Watch};
use super::{
    batch::Batch,
    lab::{Plan, end, framework},
};
use crate::latency::{Latencies, Summary};

/// Who begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum By {
    /// Revocable threads, while the service works. Where the scheduler keeps all of them off, there is nothing to squeeze for.
    Revocable,
    /// Guaranteed threads, all on one CPU that a stranger has too, while revocable ones fill the others: guaranteed tasks wait at once,
    /// whatever the scheduler does, and it could be for the revocable ones. Not on a machine of one CPU.
    Guaranteed,
}

impl By {
    /// In the table.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// All onsets.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Onsets {
    pub(crate) kinds: Vec<Kind>,
}

/// Those by one of the two.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Kind {
    pub(crate) by: By,
    /// Followed by a squeeze.
    pub(crate) answered: u64,
    /// Not, within three seconds.
    pub(crate) unanswered: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_onset: Option<Summary>,
}

/// Who waits for longer was not interfered with.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Recovery is made quick, so that the next onset can come. On the first squeeze this has no bearing.
const QUICK: &str = "[qos]\ncalm_ms = 100\nabsolved_ms = 100\n";
/// Onsets shall not come in step with anything that the agent does.
const STAGGER: Duration = Duration::from_millis(37);
const STAGGERS: u64 = 29;
/// The service works so many times less than in the sweep: its own threads shall not keep each other waiting.
const SELDOM: u64 = 10;
/// Threads for each CPU.
const CROWD: u64 = 3;

/// This many onsets of each kind.
pub(super) async fn measure(plan: &Plan, count: u64, bar: &ProgressBar) -> Result<Onsets> {
    let dir = tempfile::tempdir().context("make a directory")?;
    let config = dir.path().join("agent.toml");
    fs::write(&config, QUICK).with_context(|| format!("write {}", config.display()))?;
    let cluster = plan.cluster(true, vec!["--config".to_owned(), config.display().to_string()]).await?;
    let mut kinds = Vec::new();
    let both = [By::Revocable, By::Guaranteed];
    for by in both.into_iter().filter(|by| plan.cpus > 1 || *by == By::Revocable) {
        bar.set_message(format!("onsets by {} tasks", by.name()));
        let share = count / 2 + count % 2 * u64::from(by == By::Guaranteed);
        kinds.push(of_kind(plan, (&cluster, dir.path()), by, share, bar).await?);
    }
    cluster.finish().await?;
    Ok(Onsets { kinds })
}

async fn of_kind(
    plan: &Plan,
    (cluster, dir): (&Cluster, &Path),
    by: By,
    count: u64,
    bar: &ProgressBar,
) -> Result<Kind> {
    let framework = framework(cluster).await?;
    framework.start(plan.seldom(SELDOM).service_task(cluster.port(0))).await?;
    let crowd_milli = plan.cpus * CROWD * 1000;
    framework.start(plan.batch_task(crowd_milli)).await?;
    let mut running = vec!["batch", "service"];
    let class = match by {
        By::Revocable => "revocable",
        By::Guaranteed => "guaranteed",
    };
    let _stranger = match by {
        By::Revocable => None,
        By::Guaranteed => Some(stranger(plan, dir)?),
    };
    if by == By::Guaranteed {
        let crowd = Batch { on_one_cpu: true, ..plan.batch(CROWD * 1000) };
        let crowd = plan.task("crowd", crowd.arguments());
        framework.start(crowd.cpu_milli(100).cpu_burst()).await?;
        running.insert(0, "crowd");
    }
    let burner = Burner(cluster.task_cgroup(class, framework.id(), running[0])?);
    let mut watch = Watch::begin(cluster.cgroup()?.join("revocable"))?;
    let mut times = Latencies::new()?;
    let mut answered = 0;
    for number in 0..count {
        burner.freeze(true)?;
        let before = calm(cluster).await?;
        sleep(STAGGER * u32::try_from(number % STAGGERS)?).await;
        if let Some(taken) = onset(cluster, &mut watch, &burner, before).await? {
            times.add(taken);
            answered += 1;
        }
        bar.inc(1);
    }
    burner.freeze(false)?;
    drop(watch);
    end(&framework, &running).await?;
    framework.teardown().await?;
    let from_onset = (answered > 0).then(|| times.summary());
    Ok(Kind { by, answered, unanswered: count - answered, from_onset })
}

/// No task, on the CPU that guaranteed threads will want; it works in this directory, and ends when it is dropped.
fn stranger(plan: &Plan, dir: &Path) -> Result<Child> {
    let work = Batch { on_one_cpu: true, ..plan.batch(1000) };
    let mut command = Command::new(env::current_exe().context("find this program")?);
    command.args(work.arguments()).current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    command.spawn().context("start a stranger")
}

/// Thaws it, and waits for the squeeze.
async fn onset(
    cluster: &Cluster,
    watch: &mut Watch,
    burner: &Burner,
    corrections: u64,
) -> Result<Option<Duration>> {
    let left = watch.now();
    let begun = Instant::now();
    burner.freeze(false)?;
    let deadline = tokio::time::Instant::from_std(begun + ANSWER_WITHIN);
    while let Ok(written) = timeout_at(deadline, watch.next()).await {
        let written = written?;
        let less = left.iter().any(|(file, before)| *file == written.file && written.leaves < *before);
        if less && Protection::read(cluster).await?.corrections > corrections {
            return Ok(Some(written.at.saturating_duration_since(begun)));
        }
    }
    Ok(None)
}

/// Waits until nothing is held; corrections so far.
async fn calm(cluster: &Cluster) -> Result<u64> {
    let look = || async {
        match Protection::read(cluster).await {
            Ok(now) if now.calm => Ok(now.corrections),
            Ok(_) => Err(Verdict::NotYet("revocable tasks are held".to_owned())),
            Err(error) => Err(Verdict::Never(format!("{error:#}"))),
        }
    };
    until("the agent to hold nothing", look).await
}

/// The cgroup of the task that burns.
struct Burner(PathBuf);

impl Burner {
    fn freeze(&self, frozen: bool) -> Result<()> {
        let path: &Path = &self.0;
        fs::write(path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
            .with_context(|| format!("freeze {}", path.display()))
    }
}
