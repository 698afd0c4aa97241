//! TCP connections of tasks: counted, and nothing more. Needs nothing of a grant, and refuses none.

use std::sync::Arc;

use bulkhead_proto::v1;

use super::{IsolateError, Isolator, TaskPlace, counted::Names};
use crate::{
    grant::Grant,
    kernel::bpf::{BpfError, ConnectionCounters, ConnectionCounts},
    offer::ledger::TaskKey,
};

/// Counts by the BPF program `count_connections` of `ebpf/observe`, where the kernel takes it.
pub struct Connections {
    counts: Option<Arc<ConnectionCounts>>,
    tasks: Names,
}

impl Connections {
    /// Counts by `counts`, if this kernel has them.
    pub fn new(counts: Option<Arc<ConnectionCounts>>) -> Self {
        Self { counts, tasks: Names::default() }
    }

    /// What the connections of all tasks did so far, by few system calls whatever the number of tasks.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn all(&self) -> Result<Vec<(TaskKey, ConnectionCounters)>, BpfError> {
        self.counts.as_ref().map_or(Ok(Vec::new()), |counts| Ok(self.tasks.name(counts.all()?)))
    }
}

impl Isolator for Arc<Connections> {
    fn part(&self) -> &'static str {
        "connections"
    }

    fn features(&self) -> &'static [&'static str] {
        &["bpf_connections"]
    }

    fn prepare(&self, task: &TaskPlace, _grant: &Grant) -> Result<(), IsolateError> {
        let Some(counts) = &self.counts else { return Ok(()) };
        counts.watch(task.id)?;
        self.tasks.insert(task);
        Ok(())
    }

    fn update(&self, _task: &TaskPlace, _before: &Grant, _after: &Grant) -> Result<(), IsolateError> {
        Ok(())
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // What was counted before stays. A newer agent may have brought the first program that counts.
        self.prepare(task, grant)
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Some(counts) = &self.counts else { return };
        let Ok(Some(counted)) = counts.of(task.id) else { return };
        usage.connections_opened = counted.opened;
        usage.connections_accepted = counted.accepted;
        usage.tcp_retransmitted = counted.retransmitted;
        usage.rtt_sum_usec = counted.rtt_sum_usec;
        let seen = counted.rtt_buckets().filter(|(_, round_trips)| *round_trips > 0);
        let bucket = |(up_to_usec, round_trips)| v1::RttBucket { up_to_usec, round_trips };
        usage.rtt_buckets = seen.map(bucket).collect();
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.tasks.remove(task);
        self.counts.as_ref().map_or(Ok(()), |counts| Ok(counts.forget(task.id)?))
    }
}
