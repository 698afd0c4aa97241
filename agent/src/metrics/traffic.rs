//! What tasks sent and received.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use prometheus::{
    IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::Metrics;
use crate::{isolate::network::Traffic, offer::ledger::TaskKey};

const BYTES: (&str, &str) =
    ("bulkhead_agent_task_net_bytes_total", "Bytes of Ethernet frames that a task sent or received.");
const PACKETS: (&str, &str) = ("bulkhead_agent_task_net_packets_total", "Packets on the wire.");
const MARKED: (&str, &str) =
    ("bulkhead_agent_task_net_marked_packets_total", "Packets whose sender was told of congestion.");
const DROPPED: (&str, &str) = (
    "bulkhead_agent_task_net_dropped_packets_total",
    "Packets that were dropped, for the task's rates or because of its rules.",
);
const LABELS: [&str; 3] = ["framework", "task", "direction"];
/// Of what was dropped.
const LABELS_WITH_REASON: [&str; 4] = ["framework", "task", "direction", "reason"];

/// Reads the traffic of all tasks.
pub type ReadTraffic = Box<dyn Fn() -> Vec<(TaskKey, Traffic)> + Send + Sync>;

struct Counters {
    bytes: IntCounterVec,
    packets: IntCounterVec,
    marked: IntCounterVec,
    dropped: IntCounterVec,
}

/// Reads the kernel's counts of all tasks when it is asked; tasks that are over are no longer told.
struct TaskTraffic {
    counters: Mutex<Counters>,
    descs: Vec<Desc>,
    read: ReadTraffic,
}

impl Metrics {
    /// Tells of the traffic of tasks, read at each scrape.
    ///
    /// # Errors
    /// When it was told before.
    pub fn traffic(&self, read: ReadTraffic) -> Result<(), prometheus::Error> {
        let counter =
            |(name, help): (&str, &str), labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let counters = Counters {
            bytes: counter(BYTES, &LABELS)?,
            packets: counter(PACKETS, &LABELS)?,
            marked: counter(MARKED, &LABELS)?,
            dropped: counter(DROPPED, &LABELS_WITH_REASON)?,
        };
        let desc = |(name, help): (&str, &str), labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())
        };
        let descs = [BYTES, PACKETS, MARKED].into_iter().map(|metric| desc(metric, &LABELS));
        let descs = descs.chain([desc(DROPPED, &LABELS_WITH_REASON)]).collect::<Result<_, _>>()?;
        self.registry.register(Box::new(TaskTraffic { counters: Mutex::new(counters), descs, read }))
    }
}

impl Collector for TaskTraffic {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Counters { bytes, packets, marked, dropped } =
            &*self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let all = [bytes, packets, marked, dropped];
        all.into_iter().for_each(IntCounterVec::reset);
        for ((framework, task), Traffic { counters, rule_drops }) in (self.read)() {
            let ways = [
                ("sent", counters.sent, rule_drops.sent),
                ("received", counters.received, rule_drops.received),
            ];
            for (direction, count, by_rules) in ways {
                let labels = [framework.as_str(), &task, direction];
                bytes.with_label_values(&labels).inc_by(count.bytes());
                packets.with_label_values(&labels).inc_by(count.packets());
                marked.with_label_values(&labels).inc_by(count.marked);
                for (reason, packets) in [("rate", count.dropped), ("rules", by_rules)] {
                    dropped.with_label_values(&[&framework, &task, direction, reason]).inc_by(packets);
                }
            }
        }
        all.into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_and_both_reasons_are_told_apart() {
        let metrics = Metrics::new().unwrap();
        let mut traffic = Traffic::default();
        traffic.counters.sent.link_bytes = 7;
        traffic.counters.received.dropped = 5;
        traffic.rule_drops.sent = 3;
        let task = ("f".to_owned(), "t".to_owned());
        metrics.traffic(Box::new(move || vec![(task.clone(), traffic)])).unwrap();
        // Each scrape tells what is counted then, and adds nothing to what it told before.
        metrics.render().unwrap();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let dropped = "bulkhead_agent_task_net_dropped_packets_total";
        for line in [
            "bulkhead_agent_task_net_bytes_total{direction=\"sent\",framework=\"f\",task=\"t\"} 7\n"
                .to_owned(),
            format!("{dropped}{{direction=\"sent\",framework=\"f\",reason=\"rules\",task=\"t\"}} 3\n"),
            format!("{dropped}{{direction=\"sent\",framework=\"f\",reason=\"rate\",task=\"t\"}} 0\n"),
            format!("{dropped}{{direction=\"received\",framework=\"f\",reason=\"rate\",task=\"t\"}} 5\n"),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
