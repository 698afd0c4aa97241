//! What each BPF program costs, by the kernel's own statistics.

use std::{collections::BTreeMap, fs, net::TcpListener};

use anyhow::{Context as _, Result, ensure};
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

/// A program while a task works that has everything on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ProgramCost {
    #[serde(rename = "while")]
    pub(crate) work: Work,
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

/// What tasks do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Work {
    /// Bind and connect.
    Calls,
    /// A small request and its answer, one after the other, over loopback and the wire: each finds other things in the
    /// caches.
    Requests,
    /// One connection that sends as much as it can, over both.
    Bulk,
}

impl Work {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Requests => "requests",
            Self::Bulk => "bulk",
        }
    }
}

/// Has a task do each kind of work.
pub(crate) async fn measure(wire: &Wire, cluster: &Cluster, settings: &Settings) -> Result<Vec<ProgramCost>> {
    let framework = cluster.framework("cost").await?;
    let _statistics = Statistics::on()?;
    drop(wire.shape("fq"));
    let mut all = Vec::new();
    for work in [Work::Calls, Work::Requests, Work::Bulk] {
        let before = read();
        for (n, role) in roles(work, wire, cluster, settings.seconds)?.iter().enumerate() {
            let id = format!("{}-{n}", work.name());
            let everything = super::everything(task(&id, role)?, CEILING_BITS_PER_SEC);
            let end = framework.run(everything.ports(&[cluster.port(0)])).await?;
            ensure!(end.exit_code == Some(0), "a task ended: {end:?}");
        }
        all.extend(costs(work, &before, &read()));
    }
    wire.shape("")?;
    framework.teardown().await?;
    Ok(all)
}

fn roles(work: Work, wire: &Wire, cluster: &Cluster, seconds: u64) -> Result<Vec<Vec<String>>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    if work == Work::Calls {
        return Ok(vec![words(&["call", &cluster.port(0).to_string(), &CALLS.to_string()])]);
    }
    let mut roles = Vec::new();
    for listener in [TcpListener::bind("127.0.0.1:0")?, wire.listener(0)?] {
        let (to, seconds) = (listener.local_addr()?.to_string(), seconds.to_string());
        roles.push(match work {
            Work::Bulk => words(&["bulk", &to, "1", &seconds]),
            _ => words(&["ask", &to, &seconds, "false"]),
        });
        // It ends with its connection.
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            if work == Work::Bulk {
                std::io::copy(&mut stream, &mut std::io::sink())?;
            } else {
                answer(&mut stream);
            }
            Ok::<_, std::io::Error>(())
        });
    }
    Ok(roles)
}

/// Of those that ran often enough to say something.
fn costs(
    work: Work,
    before: &BTreeMap<u32, (String, u64, u64)>,
    after: &BTreeMap<u32, (String, u64, u64)>,
) -> Vec<ProgramCost> {
    let mut costs: Vec<_> = after
        .iter()
        .filter_map(|(id, (name, runs, ns))| {
            let (_, runs_before, ns_before) = before.get(id).cloned().unwrap_or_default();
            let (runs, ns) = (runs - runs_before, ns - ns_before);
            let per_run = (ns as f64 / runs.max(1) as f64 * 10.0).round() / 10.0;
            (runs >= 1000).then(|| ProgramCost { work, program: name.clone(), runs, ns_per_run: per_run })
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
        let costs = costs(Work::Bulk, &one(1000, 1_000_000), &one(3000, 1_100_000));
        assert_eq!((costs[0].runs, costs[0].ns_per_run), (2000, 50.0));
        assert!(super::costs(Work::Bulk, &one(0, 0), &one(10, 10)).is_empty());
    }
}
