//! TCP connections of tasks.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use prometheus::{
    IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::{Histogram, MetricFamily},
};

use super::{
    Metrics,
    histograms::{family, histogram, labelled},
    precise,
};
use crate::{kernel::bpf::ConnectionCounters, offer::ledger::TaskKey};

const COUNTS: [(&str, &str); 3] = [
    ("bulkhead_agent_task_connections_opened_total", "TCP connections that a task opened, when established."),
    ("bulkhead_agent_task_connections_accepted_total", "TCP connections that others opened to a task."),
    ("bulkhead_agent_task_tcp_retransmitted_segments_total", "Segments that a task's kernel sent once more."),
];
const RTT: (&str, &str) = (
    "bulkhead_agent_task_rtt_seconds",
    "The kernel's estimate of the round trip, once each round trip of a task's connections.",
);
const LABELS: [&str; 2] = ["framework", "task"];
const USEC_PER_SEC: f64 = 1e6;

/// Reads the connections of all tasks.
pub type ReadConnections = Box<dyn Fn() -> Vec<(TaskKey, ConnectionCounters)> + Send + Sync>;

/// Reads the kernel's counts of all tasks when it is asked; tasks that are over are no longer told.
struct Connections {
    counters: Mutex<[IntCounterVec; 3]>,
    descs: Vec<Desc>,
    read: ReadConnections,
}

impl Metrics {
    /// Tells of the connections of tasks, read at each scrape.
    ///
    /// # Errors
    /// When it was told before.
    pub fn connections(&self, read: ReadConnections) -> Result<(), prometheus::Error> {
        let counter = |(name, help)| IntCounterVec::new(Opts::new(name, help), &LABELS);
        let [opened, accepted, retransmitted] = COUNTS.map(counter);
        let counters = Mutex::new([opened?, accepted?, retransmitted?]);
        let labels = LABELS.map(str::to_owned).to_vec();
        let desc = |(name, help): (&str, &str)| {
            Desc::new(name.to_owned(), help.to_owned(), labels.clone(), HashMap::new())
        };
        let descs = COUNTS.into_iter().chain([RTT]).map(desc).collect::<Result<_, _>>()?;
        self.registry.register(Box::new(Connections { counters, descs, read }))
    }
}

impl Collector for Connections {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.iter().for_each(IntCounterVec::reset);
        let mut round_trips = Vec::new();
        for (task, counted) in (self.read)() {
            let values = [counted.opened, counted.accepted, counted.retransmitted];
            for (counter, value) in counters.iter().zip(values) {
                counter.with_label_values(&[&task.0, &task.1]).inc_by(value);
            }
            let labels = [(LABELS[0], task.0.as_str()), (LABELS[1], &task.1)];
            round_trips.extend(round_trip_histogram(&counted).map(|histogram| labelled(&labels, histogram)));
        }
        let mut families: Vec<_> = counters.iter().flat_map(Collector::collect).collect();
        families.push(family(RTT, round_trips));
        families
    }
}

/// In seconds.
fn round_trip_histogram(counted: &ConnectionCounters) -> Option<Histogram> {
    let seconds = |usec| precise(usec) / USEC_PER_SEC;
    let counts = counted.rtt_buckets().map(|(up_to, count)| (up_to.map(seconds), count));
    histogram(counts, seconds(counted.rtt_sum_usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_a_histogram_of_each_task_that_had_any() {
        let metrics = Metrics::new().unwrap();
        let mut busy = ConnectionCounters { opened: 3, rtt_sum_usec: 2_000_030, ..Default::default() };
        (busy.rtt[0], busy.rtt[1], busy.rtt[17]) = (1, 2, 1);
        let read = move || {
            let task = |name: &str| ("f".to_owned(), name.to_owned());
            vec![(task("busy"), busy), (task("idle"), ConnectionCounters::default())]
        };
        metrics.connections(Box::new(read)).unwrap();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for line in [
            "bulkhead_agent_task_connections_opened_total{framework=\"f\",task=\"busy\"} 3\n",
            "bulkhead_agent_task_connections_accepted_total{framework=\"f\",task=\"idle\"} 0\n",
            "# TYPE bulkhead_agent_task_rtt_seconds histogram\n",
            "bulkhead_agent_task_rtt_seconds_bucket{framework=\"f\",task=\"busy\",le=\"0.000016\"} 1\n",
            "bulkhead_agent_task_rtt_seconds_bucket{framework=\"f\",task=\"busy\",le=\"1.048576\"} 3\n",
            "bulkhead_agent_task_rtt_seconds_bucket{framework=\"f\",task=\"busy\",le=\"+Inf\"} 4\n",
            "bulkhead_agent_task_rtt_seconds_count{framework=\"f\",task=\"busy\"} 4\n",
            "bulkhead_agent_task_rtt_seconds_sum{framework=\"f\",task=\"busy\"} 2.00003\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("rtt_seconds_count{framework=\"f\",task=\"idle\"}"), "{text}");
    }
}
