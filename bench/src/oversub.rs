//! A guaranteed service beside work that fills the machine, at several ratios of what is asked for to what there is.
//!
//! ```text
//! for each round, ratio and set-up:
//!   service (open loop)  +  batch (asks for the rest of the ratio)
//!        |                       |
//!     latency                  units          /proc/stat, the agent's corrections
//!        +-----------+-----------+----------------------+
//!                 Sample -> Point (medians) -> Verdict of each ratio
//! ```
//!
//! Set-ups differ only in who holds whom: nobody, plain weights, or an agent. They alternate, so that what the machine does
//! besides meets all of them.

mod arrivals;
mod batch;
mod csv;
mod lab;
mod onset;
mod picture;
mod point;
mod service;
mod table;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub(crate) use self::table::render;
use self::{
    lab::{Lab, Setup},
    onset::Onsets,
    point::{Point, Sample, Verdict},
};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Sums of what is asked for, in parts of the machine's CPUs
    #[arg(long, value_name = "RATIOS", value_delimiter = ',', value_parser = ratio,
        default_values_t = [0.5, 1.0, 1.25, 1.5, 2.0, 3.0])]
    pub(crate) ratios: Vec<f64>,
    /// Who holds whom
    #[arg(long, value_name = "NAMES", value_delimiter = ',',
        default_values_t = [Setup::Alone, Setup::Weights, Setup::LeastWeight, Setup::Lent, Setup::Bulkhead])]
    pub(crate) setups: Vec<Setup>,
    /// Length of each measurement
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// Before each measurement, with everything running
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u64).range(0..=600))]
    pub(crate) warm_up: u64,
    /// How often everything is measured; figures are medians over the rounds
    #[arg(long, value_name = "NUMBER", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) rounds: u64,
    /// CPU time of a request, in microseconds
    #[arg(long, value_name = "US", default_value = "1000", value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    pub(crate) request_us: u64,
    /// Of the machine's CPU, what the service uses
    #[arg(long, value_name = "PERCENT", default_value = "25", value_parser = clap::value_parser!(u64).range(1..=90))]
    pub(crate) load_percent: u64,
    /// Of the machine's CPU, what the service is granted
    #[arg(long, value_name = "PERCENT", default_value = "40", value_parser = clap::value_parser!(u64).range(1..=90))]
    pub(crate) granted_percent: u64,
    /// How often to measure the time from the onset of interference to the first squeeze; 0 is not
    #[arg(long, value_name = "NUMBER", default_value = "20", value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub(crate) onsets: u64,
    /// Of the arrivals of requests
    #[arg(long, value_name = "NUMBER", default_value = "42")]
    pub(crate) seed: u64,
    /// Write every point into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Draw latency.svg, throughput.svg and utilisation.svg into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) pictures: Option<PathBuf>,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Oversub {
    pub(crate) window_seconds: u64,
    pub(crate) rounds: u64,
    pub(crate) service_granted_milli: u64,
    pub(crate) request_us: u64,
    pub(crate) requests_per_second: f64,
    pub(crate) points: Vec<Point>,
    pub(crate) verdicts: Vec<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time_to_squeeze: Option<Onsets>,
}

/// A part in the measurement.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Role {
    /// Answers requests
    Service(service::Service),
    /// Fills the machine
    Batch(batch::Batch),
}

impl Role {
    /// Plays it until it is killed.
    pub(crate) fn play(&self) -> Result<()> {
        match self {
            Self::Service(service) => service.run(),
            Self::Batch(batch) => batch.run(),
        }
    }
}

/// A number above zero.
fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if ratio > 0.0 && ratio <= 100.0 => Ok(ratio),
        _ => Err("a ratio is a number above 0, at most 100, such as 1.25".to_owned()),
    }
}

/// Sweeps the ratios, and writes what was asked for.
pub(crate) async fn run(settings: &Settings) -> Result<Oversub> {
    let lab = Lab::new(settings).await?;
    let order: Vec<_> =
        settings.ratios.iter().flat_map(|ratio| settings.setups.iter().map(move |s| (*ratio, *s))).collect();
    let steps = u64::try_from(order.len())? * settings.rounds + settings.onsets;
    let bar = ProgressBar::new(steps);
    bar.set_style(ProgressStyle::with_template("{msg:30} {wide_bar} {pos}/{len}, {eta} left")?);
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); order.len()];
    for round in 0..settings.rounds {
        for place in in_turn(order.len(), round) {
            let (ratio, setup) = order[place];
            bar.set_message(format!("{} at {ratio}", setup.name()));
            let measured = lab.measure(setup, ratio, Duration::from_secs(settings.seconds)).await;
            samples[place].push(measured.with_context(|| format!("{} at {ratio}", setup.name()))?);
            bar.inc(1);
        }
    }
    let plan = lab.plan().clone();
    lab.finish().await?;
    let points: Vec<_> =
        order.iter().zip(samples).map(|((ratio, setup), rounds)| Point::of(*ratio, *setup, rounds)).collect();
    let time_to_squeeze = match settings.onsets {
        0 => None,
        count => Some(onset::measure(&plan, count, &bar).await?),
    };
    bar.finish_and_clear();
    let verdicts = point::verdicts(&points);
    let oversub = Oversub {
        window_seconds: settings.seconds,
        rounds: settings.rounds,
        service_granted_milli: plan.granted_milli,
        request_us: settings.request_us,
        requests_per_second: plan.requests_per_second(),
        points,
        verdicts,
        time_to_squeeze,
    };
    if let Some(path) = &settings.csv {
        std::fs::write(path, csv::text(&oversub.points))
            .with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(dir) = &settings.pictures {
        picture::draw(&oversub.points, dir)?;
    }
    Ok(oversub)
}

/// Every second round the other way round: what comes first and what comes after it changes.
fn in_turn(count: usize, round: u64) -> Vec<usize> {
    let places = 0..count;
    if round.is_multiple_of(2) { places.collect() } else { places.rev().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_round_goes_backwards() {
        assert_eq!(in_turn(3, 0), [0, 1, 2]);
        assert_eq!(in_turn(3, 1), [2, 1, 0]);
    }

    #[test]
    fn ratios_are_numbers_above_zero() {
        assert_eq!(ratio("1.25"), Ok(1.25));
        assert!(["0", "-1", "NaN", "101", "x"].iter().all(|text| ratio(text).is_err()));
    }
}
