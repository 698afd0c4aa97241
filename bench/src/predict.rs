//! How well a predictor of peaks does on recorded days.
//!
//! ```text
//! traces -> machines of k tasks -> Score of each file and of all
//! ```
//!
//! The predictors are the agent's own ([`bulkhead_agent::estimate::peak`]).

mod score;
mod traces;

use std::path::PathBuf;

use anyhow::Result;
use bulkhead_agent::estimate::peak::{DEFAULT_ERROR_BUDGET, Kind, Method, Peak};
use clap::{Args, ValueEnum as _};
use serde::Serialize;

pub(crate) use self::score::Score;
use self::{
    score::{LIMIT, Tally},
    traces::{Day, machines},
};

/// What to score on what.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Files with a row a task and a number a sample, in percent of the task's limit
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    traces: Vec<PathBuf>,
    /// Tasks on each machine
    #[arg(long, value_name = "K", default_value = "10", value_parser = clap::value_parser!(u16).range(1..))]
    tasks_per_machine: u16,
    /// Which predictor
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    predictor: Kind,
    /// All predictors, side by side
    #[arg(long, conflicts_with = "predictor")]
    compare: bool,
    /// Share of predictions that may be too low
    #[arg(long, value_name = "SHARE", default_value_t = DEFAULT_ERROR_BUDGET)]
    error_budget: f64,
    /// Deals the tasks out to machines
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Outcome {
    /// Of one predictor.
    One(Predictions),
    /// Of all of them.
    Compared { predictors: Vec<Predictions> },
}

/// How one predictor did.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Predictions {
    pub(crate) predictor: &'static str,
    pub(crate) tasks_per_machine: u16,
    pub(crate) error_budget: f64,
    pub(crate) seed: u64,
    /// Over all files together.
    #[serde(flatten)]
    pub(crate) all: Score,
    pub(crate) files: Vec<FileScore>,
}

/// Of one file.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FileScore {
    pub(crate) file: String,
    #[serde(flatten)]
    pub(crate) score: Score,
}

/// Scores one predictor or all.
pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let days = settings.traces.iter().map(|path| Day::read(path)).collect::<Result<Vec<_>>>()?;
    for day in &days {
        let (tasks, path) = (day.tasks.len(), day.path.display());
        let enough = usize::from(settings.tasks_per_machine) <= tasks;
        anyhow::ensure!(enough, "{path}: {tasks} tasks make no machine of {}", settings.tasks_per_machine);
    }
    if settings.compare {
        let predictors = Kind::value_variants().iter().map(|kind| score(settings, *kind, &days));
        return Ok(Outcome::Compared { predictors: predictors.collect::<Result<_>>()? });
    }
    Ok(Outcome::One(score(settings, settings.predictor, &days)?))
}

/// The files are worked through side by side.
fn score(settings: &Settings, predictor: Kind, days: &[Day]) -> Result<Predictions> {
    let method = Method { predictor, error_budget: settings.error_budget, ..Method::default() };
    let capacity = f64::from(settings.tasks_per_machine) * LIMIT;
    let of_day = |day: &Day| {
        let mut tally = Tally::default();
        for machine in machines(day, settings.tasks_per_machine.into(), settings.seed) {
            tally.walk(&machine, &mut Peak::new(&method, capacity));
        }
        tally
    };
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let running: Vec<_> = days.iter().map(|day| scope.spawn(|| of_day(day))).collect();
        running.into_iter().map(|day| day.join()).collect::<Result<_, _>>()
    })
    .map_err(|_| anyhow::anyhow!("scoring panicked"))?;
    let mut all = Tally::default();
    tallies.iter().for_each(|tally| all.add(tally));
    let files = days.iter().zip(&tallies);
    Ok(Predictions {
        predictor: method.predictor().name(),
        tasks_per_machine: settings.tasks_per_machine,
        error_budget: settings.error_budget,
        seed: settings.seed,
        all: all.score(),
        files: files
            .map(|(day, tally)| FileScore { file: day.path.display().to_string(), score: tally.score() })
            .collect(),
    })
}
