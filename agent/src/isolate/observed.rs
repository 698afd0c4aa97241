//! What tasks use and wait for: measured, and nothing held. Needs nothing of a grant, and refuses none.

use std::{sync::Arc, time::Instant};

use bulkhead_proto::v1;

use super::{IsolateError, Isolator, TaskPlace};
use crate::{
    grant::Grant,
    measure::tasks::{Reading, Watched},
};

/// Tells the sampler which tasks there are, and others what was measured of them.
pub struct Observed {
    watched: Arc<Watched>,
}

impl Observed {
    /// For the sampler that has the same `watched`.
    pub fn new(watched: Arc<Watched>) -> Self {
        Self { watched }
    }
}

impl Isolator for Observed {
    fn part(&self) -> &'static str {
        "observed"
    }

    fn features(&self) -> &'static [&'static str] {
        &["psi"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let watched = self.watched.insert(task.id, task.task.clone(), grant.class, &task.cgroup);
        if let Err(error) = watched {
            // A task that runs unmeasured is better than one that does not run.
            let error = crate::error_chain(&error);
            tracing::warn!(task = task.task.1, error, "measure a task; see the limit of open files");
        }
        Ok(())
    }

    fn update(&self, _task: &TaskPlace, _before: &Grant, _after: &Grant) -> Result<(), IsolateError> {
        Ok(())
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.prepare(task, grant)
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        if let Some(reading) = self.watched.read(task.id, Instant::now()) {
            tell(&reading, usage);
        }
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.watched.remove(task.id);
        Ok(())
    }
}

fn tell(reading: &Reading, usage: &mut v1::TaskUsage) {
    if let Some(mem) = &reading.mem {
        usage.mem_bytes = mem.all_bytes;
        usage.mem_anon_bytes = mem.anon_bytes;
        usage.mem_file_bytes = mem.file_bytes;
        usage.mem_active_file_bytes = mem.active_file_bytes;
        usage.mem_swap_bytes = mem.swap_bytes;
        usage.mem_kernel_bytes = mem.kernel_bytes;
    }
    let stalls = reading.stalls.map(|stall| (stall.some_usec, stall.full_usec));
    (usage.cpu_some_stall_usec, usage.cpu_full_stall_usec) = stalls.cpu.unwrap_or_default();
    // That of all processes at once is told by the memory part.
    usage.mem_some_stall_usec = stalls.mem.unwrap_or_default().0;
    (usage.io_some_stall_usec, usage.io_full_stall_usec) = stalls.io.unwrap_or_default();
}
