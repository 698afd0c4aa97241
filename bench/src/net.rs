//! Bandwidth of tasks next to the kernel's own shapers, and what holding it costs.
//!
//! ```text
//! pacing       a flood at a rate             departure times, HTB, TBF
//! round trips  a small request beside bulk   departure times with a guarantee, HTB with classes
//! throughput   iperf3, loopback and veth     everything on, everything off
//! programs     the kernel's own statistics   time of each run
//! ```
//!
//! The link is a veth pair into a network namespace. Senders are this program again ([`role`]), as tasks of an agent.

pub(crate) mod cost;
pub(crate) mod role;
pub(crate) mod shaped;
pub(crate) mod throughput;
pub(crate) mod wire;

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{NetAction, NetOptions, NetRule};
use bulkhead_testkit::{Cluster, Options, Task};
use clap::Args;
use serde::Serialize;

use self::{
    cost::ProgramCost,
    shaped::{Paced, RoundTrips},
    throughput::Throughput,
    wire::Wire,
};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// Length of each measurement, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,
    /// Rates to pace at, in Mbit/s
    #[arg(long, value_name = "RATES", value_delimiter = ',', default_values_t = [10, 100, 1000])]
    pub(crate) rates: Vec<u64>,
    /// Rounds of iperf3 with everything on and off
    #[arg(long, value_name = "NUMBER", default_value = "3", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rounds: u64,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Net {
    pub(crate) pacing: Vec<Paced>,
    pub(crate) round_trips: Vec<RoundTrips>,
    pub(crate) throughput: Vec<Throughput>,
    pub(crate) programs: Vec<ProgramCost>,
    /// What could not be measured here, and why.
    pub(crate) skipped: Vec<String>,
}

/// Measures everything that this machine can.
pub(crate) async fn run(settings: &Settings) -> Result<Net> {
    let mut net = Net {
        pacing: Vec::new(),
        round_trips: Vec::new(),
        throughput: Vec::new(),
        programs: Vec::new(),
        skipped: Vec::new(),
    };
    let wire = Wire::new()?;
    let cluster = cluster("100Gbit").await?;
    shaped::pacing(&wire, &cluster, settings, &mut net).await?;
    throughput::measure(&wire, &cluster, settings, &mut net).await?;
    net.programs = cost::measure(&wire, &cluster, settings).await?;
    cluster.finish().await?;
    shaped::round_trips(&wire, settings, &mut net).await?;
    Ok(net)
}

/// An agent whose link is the wire. What is on its queue is this program's business.
async fn cluster(bandwidth: &str) -> Result<Cluster> {
    let program = program()?;
    // Tasks may execute this program, wherever it is.
    let dir = program.parent().context("this program's directory")?.display().to_string();
    let place = ["--readable-path", &dir, "--net-interface", wire::NEAR, "--net-bandwidth", bandwidth];
    let rules = ["--net-offer-percent", "100", "--net-qdisc", "leave"];
    let agent_args = place.into_iter().chain(rules).map(str::to_owned).collect();
    Cluster::start(Options { agent_args, measure_strangers: false, ..Options::default() }).await
}

/// A guarantee of half the ceiling, ceilings, and a rule that refuses somebody who is not there.
fn everything(task: Task, ceiling_bits_per_sec: u64) -> Task {
    let prefix = "192.0.2.0/24".to_owned();
    let rule = NetRule { action: NetAction::Deny.into(), prefix, ..NetRule::default() };
    task.granted(|grant| {
        grant.resources.get_or_insert_default().net_egress_bits_per_sec = ceiling_bits_per_sec / 2;
        grant.net = Some(NetOptions {
            egress_ceiling_bits_per_sec: ceiling_bits_per_sec,
            ingress_ceiling_bits_per_sec: ceiling_bits_per_sec,
            rules: vec![rule],
            ..NetOptions::default()
        });
    })
}

fn program() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("find this program's own file")
}
