//! What dividing a large cluster costs: the allocator alone, and the master's whole core around it.
//!
//! ```text
//! shapes -> bare   the allocator, told by hand what is free          -> Row
//!        -> whole  the core, one simulated event after the other     -> Row
//! ```
//!
//! The shapes are those of Mesos's own benchmarks. Nothing is sent anywhere: no network, no agents.

mod bare;
mod whole;

use std::time::{Duration, Instant};

use anyhow::Result;
use bulkhead_proto::v1::{PortRange, Resources};
use clap::Args;
use serde::Serialize;

use crate::{
    latency::{Latencies, Summary},
    tables,
};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// How often each shape is built and measured
    #[arg(long, value_name = "NUMBER", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Agents and frameworks are this many times fewer, for a quick look
    #[arg(long, value_name = "TIMES", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    smaller: u32,
}

/// How large a cluster is.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) agents: u32,
    pub(crate) roles: u32,
    pub(crate) frameworks: u32,
}

impl Shape {
    fn of(agents: u32, roles: u32, frameworks: u32, settings: &Settings) -> Self {
        let fewer = |count: u32| (count / settings.smaller).max(1);
        Self { agents: fewer(agents), roles: roles.min(fewer(frameworks)), frameworks: fewer(frameworks) }
    }

    fn role(&self, framework: u32) -> String {
        format!("team-{}/web", framework % self.roles)
    }
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The allocator alone, or the master's core.
    pub(crate) of: &'static str,
    /// What was timed.
    pub(crate) what: &'static str,
    #[serde(flatten)]
    pub(crate) shape: Shape,
    /// Offers that came of it, over all samples.
    pub(crate) offers: u64,
    pub(crate) times: Summary,
}

/// Times of one kind of thing.
struct Timing {
    latencies: Latencies,
    offers: u64,
}

impl Timing {
    fn new() -> Result<Self> {
        Ok(Self { latencies: Latencies::new()?, offers: 0 })
    }

    /// Times work that answers how many offers came of it.
    fn time(&mut self, work: impl FnOnce() -> usize) {
        let begun = Instant::now();
        let offers = work();
        self.add(begun.elapsed(), offers);
    }

    fn add(&mut self, took: Duration, offers: usize) {
        self.latencies.add(took);
        self.offers += offers as u64;
    }

    fn row(&self, of: &'static str, what: &'static str, shape: Shape) -> Row {
        Row { of, what, shape, offers: self.offers, times: self.latencies.summary() }
    }
}

/// What every agent has.
fn machine() -> Resources {
    Resources {
        cpu_milli: 16_000,
        mem_bytes: 64 << 30,
        disk_bytes: 1 << 40,
        disk_read_ops_per_sec: 10_000,
        net_egress_bits_per_sec: 10_000_000_000,
        ports: vec![PortRange { first: 31_000, last: 32_000, protocol: 0 }],
        ..Resources::default()
    }
}

/// Measures all shapes.
pub(crate) fn run(settings: &Settings) -> Result<Vec<Row>> {
    let shape = |agents, roles, frameworks| Shape::of(agents, roles, frameworks, settings);
    let mut rows = Vec::new();
    for shape in [shape(10_000, 1, 1_000), shape(10_000, 100, 1_000), shape(50_000, 100, 3_000)] {
        rows.push(bare::full(shape, settings.rounds)?);
    }
    rows.push(bare::declines(shape(10_000, 100, 3_000), settings.rounds)?);
    rows.extend(bare::quota(shape(3_000, 3_000, 3_000), settings.rounds)?);
    rows.extend(bare::single(shape(50_000, 100, 3_000))?);
    rows.extend(whole::cluster(shape(10_000, 100, 3_000))?);
    rows.extend(whole::cluster(shape(50_000, 100, 3_000))?);
    Ok(rows)
}

/// The rows as people read them.
pub(crate) fn render(rows: &[Row]) -> String {
    let header =
        ["OF", "WHAT", "AGENTS", "ROLES", "FRAMEWORKS", "TIMES", "OFFERS", "P50 ms", "P99 ms", "MAX ms"];
    let row = |row: &Row| {
        let Shape { agents, roles, frameworks } = row.shape;
        let mut cells = vec![row.of.to_owned(), row.what.to_owned()];
        cells.extend([agents, roles, frameworks].map(|n| n.to_string()));
        cells.extend([row.times.samples, row.offers].map(|n| n.to_string()));
        cells.extend([row.times.p50_us, row.times.p99_us, row.times.max_us].map(tables::ms));
        cells
    };
    tables::table(&header, rows.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_dealt_out() {
        let rows = run(&Settings { rounds: 1, smaller: 100 }).unwrap();
        let offers =
            |what: &str| rows.iter().filter(|r| r.what == what).map(|r| r.offers).collect::<Vec<_>>();
        assert_eq!(offers("everything is free"), [100, 100, 500]);
        assert_eq!(offers("nothing changed"), [0]);
        assert_eq!(offers("more is free, and every quota is used up"), [0]);
        assert!(offers("all offers are declined").iter().all(|&n| n > 0), "{rows:?}");
        assert!(render(&rows).contains("everything is free"));
    }
}
