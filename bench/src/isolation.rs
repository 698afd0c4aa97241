//! A victim alone, next to an antagonist without isolation, and next to it with both held to grants.
//!
//! Victims and antagonists are this program again ([`victim`], [`antagonist`]). Without isolation they are plain
//! processes of one cgroup; with isolation they are tasks of an agent.

pub(crate) mod antagonist;
pub(crate) mod picture;
pub(crate) mod victim;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{Grant, ResourceReport};
use bulkhead_testkit::{Cluster, Options, Task};
use clap::{Args, ValueEnum as _};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::process::{Child, Command};

use self::{
    antagonist::Antagonist,
    victim::{Measured, Victim},
};

/// Until an antagonist is at full strength.
const WARM_UP: Duration = Duration::from_secs(1);
/// What the victim is granted: all that it needs. It may use idle CPU beyond that.
const VICTIM_CPU_MILLI: u64 = 1000;
const VICTIM_MEM_MIB: u64 = 192;
/// What the antagonist is granted, without a burst.
const ANTAGONIST_CPU_MILLI: u64 = 500;
const ANTAGONIST_MEM_MIB: u64 = 128;
const ANTAGONIST_PIDS: u64 = 32;
/// Share of the disk, out of the usual 100.
const ANTAGONIST_IO_WEIGHT: u32 = 10;
/// Part of the measured disk that the antagonist may use, where the agent can hold it to that.
const ANTAGONIST_DISK_PERCENT: u64 = 20;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Length of each measurement, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// Whom to disturb; all unless given
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) victims: Vec<Victim>,
    /// By what; everything unless given
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) antagonists: Vec<Antagonist>,
    /// What the disk can do, from `bulkhead-agent calibrate-disk`; without it the antagonist's share of the disk is not held
    #[arg(long, value_name = "FILE")]
    pub(crate) disk_model: Option<PathBuf>,
    /// Draw the result into this SVG file
    #[arg(long, value_name = "FILE")]
    pub(crate) picture: Option<PathBuf>,
}

/// All measurements of one victim.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) victim: Victim,
    pub(crate) alone: Measured,
    pub(crate) beside: Vec<Beside>,
}

/// A victim next to one antagonist.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Beside {
    pub(crate) antagonist: Antagonist,
    pub(crate) bare: Measured,
    pub(crate) isolated: Measured,
}

/// Measures every pair, and draws them where that was asked for.
pub(crate) async fn run(settings: &Settings) -> Result<Vec<Row>> {
    let victims = or_all(&settings.victims, Victim::value_variants());
    let antagonists = or_all(&settings.antagonists, Antagonist::value_variants());
    let lab = Lab::new(settings).await?;
    let steps = victims.len() * (1 + 2 * antagonists.len());
    let bar = ProgressBar::new(u64::try_from(steps)?);
    bar.set_style(ProgressStyle::with_template("{msg:40} {wide_bar} {pos}/{len}, {eta} left")?);
    let mut rows = Vec::new();
    for victim in victims {
        bar.set_message(format!("{} alone", victim.name()));
        let alone = lab.bare(victim, None).await?;
        bar.inc(1);
        let mut beside = Vec::new();
        for &antagonist in &antagonists {
            bar.set_message(format!("{} beside {}", victim.name(), antagonist.name()));
            let bare = lab.bare(victim, Some(antagonist)).await?;
            bar.inc(1);
            let isolated = lab.isolated(victim, antagonist).await?;
            bar.inc(1);
            beside.push(Beside { antagonist, bare, isolated });
        }
        rows.push(Row { victim, alone, beside });
    }
    bar.finish_and_clear();
    lab.cluster.finish().await?;
    if let Some(path) = &settings.picture {
        picture::draw(&rows, path)?;
    }
    Ok(rows)
}

fn or_all<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all.to_vec() } else { chosen.to_vec() }
}

/// Where pairs are brought together.
struct Lab {
    cluster: Cluster,
    program: PathBuf,
    seconds: u64,
}

impl Lab {
    async fn new(settings: &Settings) -> Result<Self> {
        let program = std::env::current_exe().context("find this program's own file")?;
        // Tasks may execute this program, wherever it is.
        let dir = program.parent().context("this program's directory")?;
        let mut agent_args = vec!["--readable-path".to_owned(), dir.display().to_string()];
        if let Some(model) = &settings.disk_model {
            agent_args.extend(["--disk-model".to_owned(), model.display().to_string()]);
        }
        let cluster = Cluster::start(Options { agent_args, ..Options::default() }).await?;
        Ok(Self { cluster, program, seconds: settings.seconds })
    }

    /// Plain processes, side by side.
    async fn bare(&self, victim: Victim, antagonist: Option<Antagonist>) -> Result<Measured> {
        let dir = tempfile::tempdir().context("make a directory")?;
        let _antagonist = match antagonist {
            Some(antagonist) => Some(self.spawn(&antagonist.arguments(), dir.path())?),
            None => None,
        };
        tokio::time::sleep(WARM_UP).await;
        let victim = self.spawn(&victim.arguments(self.seconds), dir.path())?;
        let output = victim.wait_with_output().await.context("wait for the victim")?;
        ensure!(output.status.success(), "the victim ended with {}", output.status);
        serde_json::from_slice(&output.stdout).context("what the victim measured")
    }

    /// Killed when dropped.
    fn spawn(&self, arguments: &[String], dir: &Path) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().with_context(|| format!("start {}", self.program.display()))
    }

    /// Tasks of an agent, each with its grant.
    async fn isolated(&self, victim: Victim, antagonist: Antagonist) -> Result<Measured> {
        let framework = self.cluster.framework("isolation").await?;
        let report = self.cluster.agent_info().await?.report.unwrap_or_default();
        let noise = self.task("antagonist", antagonist.arguments());
        let noise =
            noise.cpu_milli(ANTAGONIST_CPU_MILLI).mem_mib(ANTAGONIST_MEM_MIB).pids_max(ANTAGONIST_PIDS);
        let noise = noise.granted(|grant| hold_disk(grant, &report));
        // It may be ended at one of its limits while the victim is measured: that is isolation, too.
        framework.start(noise).await?;
        tokio::time::sleep(WARM_UP).await;
        let task = self.task("victim", victim.arguments(self.seconds));
        let port = self.cluster.port(0);
        let task = task.ports(&[port]).env("PORT", &port.to_string());
        let end = framework.run(task.cpu_milli(VICTIM_CPU_MILLI).cpu_burst().mem_mib(VICTIM_MEM_MIB)).await?;
        ensure!(end.exit_code == Some(0), "the victim ended: {end:?}");
        let output = self.cluster.stdout(&framework, "victim").await?;
        framework.teardown().await?;
        serde_json::from_str(&output).context("what the victim measured")
    }

    fn task(&self, id: &str, arguments: Vec<String>) -> Task {
        Task::new(id, [self.program.display().to_string()].into_iter().chain(arguments))
    }
}

/// A small share of the disk and, where the agent knows what its disk can do, a part of that.
fn hold_disk(grant: &mut Grant, report: &ResourceReport) {
    if !report.enforced.is_some_and(|by| by.disk_io) {
        return;
    }
    grant.disk.get_or_insert_default().io_weight = ANTAGONIST_IO_WEIGHT;
    let capacity = report.capacity.clone().unwrap_or_default();
    let share = |all: u64| all / 100 * ANTAGONIST_DISK_PERCENT;
    let amounts = grant.resources.get_or_insert_default();
    amounts.disk_read_bytes_per_sec = share(capacity.disk_read_bytes_per_sec);
    amounts.disk_write_bytes_per_sec = share(capacity.disk_write_bytes_per_sec);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_chosen_is_everything() {
        assert_eq!(or_all(&[], &[1, 2]), [1, 2]);
        assert_eq!(or_all(&[2], &[1, 2]), [2]);
    }
}
