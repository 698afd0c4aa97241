//! Memory: a hard limit (`memory.max`), no swap, and the whole task ends when one process of it has to.

use bulkhead_proto::v1;
use cgroups_rs::fs::memory::MemController;

use super::{IsolateError, Isolator, TaskPlace};
use crate::grant::Grant;

/// Needs the memory controller.
#[derive(Debug)]
pub struct Memory;

impl Isolator for Memory {
    fn part(&self) -> &'static str {
        "memory"
    }

    fn features(&self) -> &'static [&'static str] {
        &["cgroup_memory"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let path = task.cgroup.path();
        let failed = |source| IsolateError::Controller { part: "memory", cgroup: path.to_owned(), source };
        let controller = MemController::new(path.to_owned(), path.to_owned(), true);
        let limit = i64::try_from(grant.mem.max_bytes).unwrap_or(i64::MAX);
        controller.set_limit(limit).map_err(failed)?;
        // A grant is memory, not disk traffic. Kernels without swap have no such file.
        if task.cgroup.has("memory.swap.max") {
            controller.set_memswap_limit(0).map_err(failed)?;
        }
        // Half a task is worse than none: its other processes would wait for the one that is gone.
        task.cgroup.write("memory.oom.group", "1")?;
        Ok(())
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        let part = |grant: &Grant| (grant.mem_bytes, grant.mem);
        if part(before) == part(after) { Ok(()) } else { self.prepare(task, after) }
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        // memory.peak came with Linux 5.19; before, what is used now is the best there is.
        let peak =
            ["memory.peak", "memory.current"].iter().find_map(|f| task.cgroup.read_number(f).ok().flatten());
        usage.mem_peak_bytes = peak.unwrap_or(0).max(usage.mem_peak_bytes);
        let kills = task.cgroup.read_key("memory.events", "oom_kill").ok().flatten();
        usage.oom_kills = kills.unwrap_or(usage.oom_kills);
    }

    fn cleanup(&self, _task: &TaskPlace) -> Result<(), IsolateError> {
        Ok(())
    }
}
