//! Is what an agent offers really there? A probe takes exactly that, and tries to use all of it.
//!
//! ```text
//! the same seed, once for each agent:
//!   guaranteed tasks (use a changing part of their grants)     strangers (come and go: CPU, memory, a port)
//!                  \                                             /
//!   at random moments: what is offered -> a task of exactly that -> Trial -> Shares
//! ```
//!
//! The agents are one that measures strangers, as they all do by default, and one that only keeps books: capacity minus
//! reserve minus what it granted. Bandwidth is not tried: a link within one machine has no limit that somebody else could
//! take from, so every offer of it would be true; `net` measures how exactly it is held.

mod honesty;
mod replay;
mod role;
mod schedule;
mod table;

use anyhow::Result;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::honesty::{Shares, Trial};
pub(crate) use self::{role::Role, table::render};
use crate::plain::ensure_controllers;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Offers to try, for each agent
    #[arg(long, value_name = "NUMBER", default_value = "20", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) trials: u64,
    /// For how long the probe uses what it was offered
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,
    /// Whose offers
    #[arg(long, value_name = "NAMES", value_delimiter = ',',
        default_values_t = [Books::Measured, Books::Plain])]
    pub(crate) books: Vec<Books>,
    /// Of everything that happens
    #[arg(long, value_name = "NUMBER", default_value = "42")]
    pub(crate) seed: u64,
}

/// How an agent knows what is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Books {
    /// It measures what strangers use
    Measured,
    /// Capacity minus reserve minus what it granted (`--measure-strangers false`)
    Plain,
}

impl std::fmt::Display for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// What came of the offers of one agent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Offers {
    pub(crate) books: Books,
    #[serde(flatten)]
    pub(crate) shares: Shares,
    /// Moments in which nothing was offered that a task could be made of.
    pub(crate) nothing_offered: u64,
    /// Offers that were accepted and taken back by the master before the probe ran.
    pub(crate) withdrawn: u64,
    pub(crate) tried: Vec<Trial>,
}

/// Replays the load once for each agent.
pub(crate) async fn run(settings: &Settings) -> Result<Vec<Offers>> {
    ensure_controllers()?;
    let bar = ProgressBar::new(settings.trials * u64::try_from(settings.books.len())?);
    bar.set_style(ProgressStyle::with_template("{msg:30} {wide_bar} {pos}/{len}, {eta} left")?);
    let mut all = Vec::new();
    for books in &settings.books {
        bar.set_message(format!("offers of {books} books"));
        all.push(replay::run(settings, *books, &bar).await?);
    }
    bar.finish_and_clear();
    Ok(all)
}
