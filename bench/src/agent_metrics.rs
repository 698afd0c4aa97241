//! The agent's own word on launches: its Prometheus histogram, from one moment to another.

use anyhow::{Context as _, Result};
use bulkhead_testkit::{Cluster, http};
use serde::Serialize;

const LAUNCH_SECONDS: &str = "bulkhead_agent_launch_seconds";

/// A histogram as Prometheus has it: buckets count everything up to their bound.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Buckets {
    /// Bound in seconds, and how many were at most that.
    up_to: Vec<(f64, u64)>,
    sum_seconds: f64,
    count: u64,
}

/// Launches as the agent counted them: from the arrival of the launch to the execution of the program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct AgentLaunches {
    pub(crate) samples: u64,
    pub(crate) mean_us: f64,
    /// The bound of the bucket with the percentile; none above the last bound.
    pub(crate) p50_at_most_us: Option<f64>,
    pub(crate) p99_at_most_us: Option<f64>,
}

impl Buckets {
    /// What the agent shows now.
    pub(crate) async fn read(cluster: &Cluster) -> Result<Self> {
        Self::parse(&http::get(&cluster.agent_address().await?, "/metrics").await?)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut buckets = Self::default();
        for line in text.lines().filter_map(|line| line.strip_prefix(LAUNCH_SECONDS)) {
            let (name, number) = line.rsplit_once(' ').context("a metric without a value")?;
            match name {
                "_sum" => buckets.sum_seconds = number.parse()?,
                "_count" => buckets.count = number.parse()?,
                name => {
                    let bound = name.strip_prefix("_bucket{le=\"").and_then(|rest| rest.strip_suffix("\"}"));
                    // "+Inf" is the count once more.
                    if let Some(Ok(bound)) = bound.filter(|b| *b != "+Inf").map(str::parse) {
                        buckets.up_to.push((bound, number.parse()?));
                    }
                }
            }
        }
        Ok(buckets)
    }

    /// What came between an earlier moment and this one.
    pub(crate) fn since(&self, earlier: &Self) -> AgentLaunches {
        let before =
            |bound: f64| earlier.up_to.iter().find(|(b, _)| *b == bound).map_or(0, |(_, count)| *count);
        let samples = self.count.saturating_sub(earlier.count);
        let at_most_us = |percent: u64| {
            let enough = |&&(bound, count): &&(f64, u64)| (count - before(bound)) * 100 >= samples * percent;
            self.up_to.iter().find(enough).map(|(bound, _)| bound * 1e6)
        };
        let mean = (self.sum_seconds - earlier.sum_seconds) * 1e6 / precise(samples.max(1));
        AgentLaunches {
            samples,
            mean_us: (mean * 10.0).round() / 10.0,
            p50_at_most_us: at_most_us(50),
            p99_at_most_us: at_most_us(99),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "nobody launches 2^53 tasks")]
fn precise(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(counts: [u64; 3], sum: f64) -> Buckets {
        let [one, two, all] = counts;
        let text = format!(
            "# TYPE bulkhead_agent_launch_seconds histogram\n\
             bulkhead_agent_launch_seconds_bucket{{le=\"0.001\"}} {one}\n\
             bulkhead_agent_launch_seconds_bucket{{le=\"0.002\"}} {two}\n\
             bulkhead_agent_launch_seconds_bucket{{le=\"+Inf\"}} {all}\n\
             bulkhead_agent_launch_seconds_sum {sum}\n\
             bulkhead_agent_launch_seconds_count {all}\n\
             bulkhead_agent_tasks_ended_total 3\n"
        );
        Buckets::parse(&text).unwrap()
    }

    #[test]
    fn percentiles_are_those_of_the_time_between() {
        let launches = page([10, 100, 101], 0.2).since(&page([10, 10, 10], 0.01));
        assert_eq!(launches.samples, 91);
        assert!((launches.mean_us - 2087.9).abs() < 0.01, "{launches:?}");
        assert_eq!((launches.p50_at_most_us, launches.p99_at_most_us), (Some(2000.0), None));
    }
}
