//! Processes and threads: `pids.max`, so that a fork bomb ends at its own task's limit.

use bulkhead_proto::v1;
use cgroups_rs::fs::{MaxValue, pid::PidController};

use super::{IsolateError, Isolator, TaskPlace};
use crate::grant::Grant;

/// Needs the pids controller.
#[derive(Debug)]
pub struct Pids;

impl Isolator for Pids {
    fn part(&self) -> &'static str {
        "pids"
    }

    fn features(&self) -> &'static [&'static str] {
        &["cgroup_pids"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let path = task.cgroup.path();
        let limit = MaxValue::Value(i64::try_from(grant.pids_max).unwrap_or(i64::MAX));
        PidController::new(path.to_owned(), path.to_owned(), true)
            .set_pid_max(limit)
            .map_err(|source| IsolateError::Controller { part: "pids", cgroup: path.to_owned(), source })
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        if before.pids_max == after.pids_max { Ok(()) } else { self.prepare(task, after) }
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let refused = task.cgroup.read_key("pids.events", "max").ok().flatten();
        usage.pids_refused = refused.unwrap_or(usage.pids_refused);
    }

    fn cleanup(&self, _task: &TaskPlace) -> Result<(), IsolateError> {
        Ok(())
    }
}
