//! What the agent's metrics say of how it protects guaranteed tasks.

use anyhow::Result;
use bulkhead_testkit::{Cluster, http};

const CORRECTIONS: &str = "bulkhead_agent_qos_corrections_total{";
/// Steps that take; the others give back.
const TAKING: [&str; 3] = ["step=\"squeeze\"", "step=\"freeze\"", "step=\"kill\""];
/// Gauges, and what they show while nothing is held.
const FREE: [(&str, &str); 3] = [
    ("bulkhead_agent_qos_revocable_cpus ", "inf"),
    ("bulkhead_agent_qos_revocable_memory_high_bytes ", "inf"),
    ("bulkhead_agent_qos_revocable_frozen ", "0"),
];

/// At one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Protection {
    /// Steps that took something, since the agent began.
    pub(crate) corrections: u64,
    /// Nothing is held.
    pub(crate) calm: bool,
}

impl Protection {
    /// Asks the agent.
    pub(crate) async fn read(cluster: &Cluster) -> Result<Self> {
        Ok(Self::parse(&http::get(&cluster.agent_address().await?, "/metrics").await?))
    }

    fn parse(text: &str) -> Self {
        let value = |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<u64>().ok());
        let takes = |line: &&str| line.starts_with(CORRECTIONS) && TAKING.iter().any(|s| line.contains(s));
        let free = |line: &str| {
            let gauge = FREE.iter().find_map(|(name, free)| Some((line.strip_prefix(name)?, *free)));
            gauge.is_none_or(|(value, free)| value.trim_start_matches('+').eq_ignore_ascii_case(free))
        };
        Self { corrections: text.lines().filter(takes).filter_map(value).sum(), calm: text.lines().all(free) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_that_take_are_counted() {
        let text = "# TYPE bulkhead_agent_qos_corrections_total counter\n\
                    bulkhead_agent_qos_corrections_total{resource=\"cpu\",step=\"ease\"} 9\n\
                    bulkhead_agent_qos_corrections_total{resource=\"cpu\",step=\"squeeze\"} 3\n\
                    bulkhead_agent_qos_corrections_total{resource=\"io\",step=\"freeze\"} 1\n\
                    bulkhead_agent_qos_revocable_cpus +Inf\n\
                    bulkhead_agent_qos_revocable_frozen 0\n";
        assert_eq!(Protection::parse(text), Protection { corrections: 4, calm: true });
        assert!(!Protection::parse("bulkhead_agent_qos_revocable_cpus 0.4\n").calm);
        assert!(!Protection::parse("bulkhead_agent_qos_revocable_frozen 1\n").calm);
    }
}
