//! What each BPF program costs, by the kernel's own statistics.

use std::{collections::BTreeMap, fs, net::TcpListener};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::NetOptions;
use bulkhead_testkit::Cluster;
use libbpf_rs::query::ProgInfoIter;
use serde::Serialize;

use super::{
    Settings,
    shaped::{answer, task},
    wire::Wire,
};

/// Off by default: it adds two readings of the clock to each run, of which about one is in the result.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const CALLS: u32 = 50_000;
/// Kept, so that clocks run and nothing is dropped.
const CEILING_BITS_PER_SEC: u64 = 50_000_000_000;

/// A program while tasks bind, connect, send and receive with everything on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ProgramCost {
    pub(crate) program: String,
    pub(crate) runs: u64,
    pub(crate) ns_per_run: f64,
}

/// Switches the kernel's statistics on, and back when dropped.
struct Statistics(String);

impl Statistics {
    fn on() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS).context(STATISTICS)?;
        fs::write(STATISTICS, "1").context(STATISTICS)?;
        Ok(Self(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        drop(fs::write(STATISTICS, self.0.trim()));
    }
}

/// Runs of each program, and the time they took, by id.
fn read() -> BTreeMap<u32, (String, u64, u64)> {
    let name = |info: &libbpf_rs::query::ProgramInfo| info.name.to_string_lossy().into_owned();
    ProgInfoIter::default().map(|info| (info.id, (name(&info), info.run_cnt, info.run_time_ns))).collect()
}

/// Has a task bind, connect and ask, over loopback and the wire.
pub(crate) async fn measure(wire: &Wire, cluster: &Cluster, settings: &Settings) -> Result<Vec<ProgramCost>> {
    let framework = cluster.framework("cost").await?;
    let _statistics = Statistics::on()?;
    drop(wire.shape("fq"));
    let local = TcpListener::bind("127.0.0.1:0")?;
    let far = wire.listener(0)?;
    let before = read();
    let mut roles = vec![vec!["call".to_owned(), cluster.port(0).to_string(), CALLS.to_string()]];
    for listener in [local, far] {
        let to = listener.local_addr()?.to_string();
        roles.push(["ask", &to, &settings.seconds.to_string(), "false"].map(str::to_owned).to_vec());
        // It ends with its connection.
        std::thread::spawn(move || listener.accept().map(|(mut stream, _)| answer(&mut stream)));
    }
    for (n, role) in roles.iter().enumerate() {
        let everything = task(&format!("cost-{n}"), role)?.ports(&[cluster.port(0)]).granted(|grant| {
            grant.resources.get_or_insert_default().net_egress_bits_per_sec = CEILING_BITS_PER_SEC / 2;
            grant.net = Some(NetOptions {
                egress_ceiling_bits_per_sec: CEILING_BITS_PER_SEC,
                ingress_ceiling_bits_per_sec: CEILING_BITS_PER_SEC,
                rules: vec![super::rule()],
                ..NetOptions::default()
            });
        });
        let end = framework.run(everything).await?;
        ensure!(end.exit_code == Some(0), "a task ended: {end:?}");
    }
    let after = read();
    wire.shape("")?;
    framework.teardown().await?;
    Ok(costs(&before, &after))
}

/// Of those that ran often enough to say something.
fn costs(
    before: &BTreeMap<u32, (String, u64, u64)>,
    after: &BTreeMap<u32, (String, u64, u64)>,
) -> Vec<ProgramCost> {
    let mut costs: Vec<_> = after
        .iter()
        .filter_map(|(id, (name, runs, ns))| {
            let (_, runs_before, ns_before) = before.get(id).cloned().unwrap_or_default();
            let (runs, ns) = (runs - runs_before, ns - ns_before);
            let per_run = (ns as f64 / runs.max(1) as f64 * 10.0).round() / 10.0;
            (runs >= 1000).then(|| ProgramCost { program: name.clone(), runs, ns_per_run: per_run })
        })
        .collect();
    costs.sort_by(|a, b| a.program.cmp(&b.program));
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ran_meanwhile_counts() {
        let one = |runs, ns| BTreeMap::from([(1, ("net_egress".to_owned(), runs, ns))]);
        let costs = costs(&one(1000, 1_000_000), &one(3000, 1_100_000));
        assert_eq!((costs[0].runs, costs[0].ns_per_run), (2000, 50.0));
        assert!(super::costs(&one(0, 0), &one(10, 10)).is_empty());
    }
}
