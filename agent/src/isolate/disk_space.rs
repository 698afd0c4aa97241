//! Disk space: each sandbox is a project of its own with a quota of bytes and files (ext4, XFS).
//!
//! Everything below the sandbox counts: `work/`, private directories, the output. What would go over the quota is
//! refused in the task's own call, with EDQUOT (ext4) or ENOSPC (XFS). Nothing is walked through to measure it.
//!
//! # What a task must not be able to do
//! - Hold CAP_SYS_RESOURCE on ext4, which ignores the quota for it; see [`FORBIDDEN_CAPABILITY`].
//! - Give its files to another project. Their owner may, in the first user namespace: [`FORBIDDEN_IOCTLS`]
//!   and [`SYS_FILE_SETATTR`] are the calls for it, which a task's seccomp filter refuses.
//!
//! [`FORBIDDEN_IOCTLS`]: crate::kernel::quota::FORBIDDEN_IOCTLS
//! [`SYS_FILE_SETATTR`]: crate::kernel::quota::SYS_FILE_SETATTR

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bulkhead_proto::v1::{self, EventKind};
use bytesize::ByteSize;
use nix::unistd::Pid;

use super::{IsolateError, Isolator, TaskPlace};
use crate::{
    event::{EventKey, EventLog},
    grant::Grant,
    kernel::{
        quota::{ProjectDir, QuotaError, Record},
        quota_warnings::{QuotaWarnings, Warning},
    },
    offer::ledger::TaskKey,
    unix_time_ms,
};

mod projects;
mod volumes;
mod walk;

pub use projects::ProjectError;
use projects::Projects;
pub use volumes::{Bound, BoundChange, BoundError, VolumeBounds};

/// CAP_SYS_RESOURCE: whoever has it writes beyond the quotas of ext4. The launch drops it from every set of a task
/// that is held by a quota, root's too; [`DiskSpace`] looks once more when the program runs.
pub const FORBIDDEN_CAPABILITY: u32 = 24;

/// Needs a work directory on a file system that holds projects to their quotas.
#[derive(Debug)]
pub struct DiskSpace {
    projects: Projects,
    /// Any directory of the file system.
    work_dir: ProjectDir,
    /// The projects of the tasks that run, by the ids of their cgroups.
    running: Mutex<BTreeMap<u64, Running>>,
    /// As warnings name it.
    device: u64,
}

#[derive(Debug)]
struct Running {
    project: u32,
    task: TaskKey,
    /// How often the kernel told of a refusal.
    refused: u64,
}

/// Between two readings of warnings: what a flood of refusals says is the same each time.
const TELL_EVERY: Duration = Duration::from_millis(50);

impl DiskSpace {
    /// Gives out project ids of this range; other agents on the file system may have the same.
    ///
    /// # Errors
    /// When the work directory cannot be opened.
    pub fn open(work_dir: &Path, projects: RangeInclusive<u32>) -> Result<Self, QuotaError> {
        let work_dir = ProjectDir::open(work_dir)?;
        let (projects, device) = (Projects::new(projects), work_dir.device()?);
        Ok(Self { projects, work_dir, running: Mutex::new(BTreeMap::new()), device })
    }

    /// What the sandboxes of all running tasks hold, in bytes.
    pub fn used_bytes(&self) -> u64 {
        let projects: Vec<u32> = self.running().values().map(|r| r.project).collect();
        projects.iter().filter_map(|p| self.work_dir.record(*p).ok()).map(|record| record.bytes).sum()
    }

    /// The sandbox's directory and its project.
    fn project_of(&self, sandbox: &Path) -> Result<(ProjectDir, u32), IsolateError> {
        let dir = ProjectDir::open(sandbox)?;
        let project = dir.project()?;
        if self.projects.owns(project) {
            return Ok((dir, project));
        }
        let message = format!("{} has no quota: it was made while this agent set none", sandbox.display());
        Err(IsolateError::Refused(message))
    }

    /// From now on the task is one that runs.
    fn run(&self, task: &TaskPlace, project: u32) {
        self.running().insert(task.id, Running { project, task: task.task.clone(), refused: 0 });
    }

    /// What refusals mean for the tasks that run.
    fn refused(&self, refusals: &Refusals) -> Vec<(EventKey, u64, String)> {
        let mut told = Vec::new();
        for (cgroup_id, running) in self.running().iter_mut() {
            let Some((count, inodes)) = refusals.get(&(self.device, running.project)) else { continue };
            running.refused += count;
            let key = EventKey::of_run(&running.task, *cgroup_id, EventKind::DiskFull);
            let record = self.work_dir.record(running.project).unwrap_or_default();
            let full = full_at(&record, *inodes);
            told.push((key, running.refused, format!("its sandbox is full at {full}: ask for more disk")));
        }
        told
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        // Every change is one insertion or removal.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<QuotaError> for IsolateError {
    fn from(error: QuotaError) -> Self {
        Self::Disk(ProjectError::Quota(error))
    }
}

/// Shared with whoever measures the disk.
impl Isolator for Arc<DiskSpace> {
    fn part(&self) -> &'static str {
        "disk"
    }

    fn features(&self) -> &'static [&'static str] {
        &["disk_quota"]
    }

    /// A crash at any point leaves a sandbox that no program was started in. Removing it frees the id.
    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let dir = ProjectDir::open(&task.sandbox)?;
        let project = self.projects.take(&dir)?;
        walk::assign_all(&dir, project)?;
        dir.limit(project, grant.disk.bytes, grant.disk.inodes)?;
        self.run(task, project);
        Ok(())
    }

    fn attach(&self, task: &TaskPlace, _grant: &Grant, process: Pid) -> Result<(), IsolateError> {
        if self.work_dir.exempts_resource_capability() && is_exempt(process) {
            return Err(IsolateError::Refused(format!(
                "process {process} of task {} has CAP_SYS_RESOURCE, for which ext4 ignores quotas: choose a profile \
                 that drops it, or put work_dir on XFS",
                task.task.1
            )));
        }
        Ok(())
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        let limits = |grant: &Grant| (grant.disk.bytes, grant.disk.inodes);
        if limits(before) == limits(after) {
            return Ok(());
        }
        let (dir, project) = self.project_of(&task.sandbox)?;
        let set = |(bytes, inodes)| dir.limit(project, bytes, inodes);
        set(limits(after))?;
        // Looked at afterwards: the task may be writing at this moment.
        match excess("the sandbox", dir.record(project)?) {
            None => Ok(()),
            Some(why) => {
                set(limits(before))?;
                Err(IsolateError::Refused(why))
            }
        }
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let (dir, project) = self.project_of(&task.sandbox)?;
        self.run(task, project);
        Ok(dir.limit(project, grant.disk.bytes, grant.disk.inodes)?)
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Ok((dir, project)) = self.project_of(&task.sandbox) else { return };
        if let Ok(record) = dir.record(project) {
            (usage.disk_bytes, usage.disk_inodes) = (record.bytes, record.inodes);
        }
    }

    /// The sandbox stays, with its quota, for the output; its project is freed with it.
    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.running().remove(&task.id);
        Ok(())
    }

    /// Without its limits the project's record vanishes with the last file, and the id is free.
    fn discard(&self, sandbox: &Path) -> Result<(), IsolateError> {
        let dir = ProjectDir::open(sandbox)?;
        let project = dir.project()?;
        if self.projects.owns(project) { Ok(dir.limit(project, 0, 0)?) } else { Ok(()) }
    }
}

/// How often projects were refused something, by device and project, and whether it was files at last.
type Refusals = BTreeMap<(u64, u32), (u64, bool)>;

fn refusals(warnings: &[Warning]) -> Refusals {
    let mut refusals = Refusals::new();
    for warning in warnings {
        let (count, inodes) = refusals.entry((warning.device, warning.project)).or_default();
        (*count, *inodes) = (*count + 1, warning.inodes);
    }
    refusals
}

/// The limit that was reached, for people.
fn full_at(record: &Record, inodes: bool) -> String {
    if inodes { format!("{} files", record.max_inodes) } else { ByteSize::b(record.max_bytes).to_string() }
}

/// Puts refusals into the log as the kernel tells of them: of sandboxes, where quotas hold them, and of volumes. Ends only
/// when they cannot be read.
pub async fn follow(
    disk: Option<Arc<DiskSpace>>,
    volumes: Arc<VolumeBounds>,
    mut warnings: QuotaWarnings,
    events: Arc<EventLog>,
) {
    loop {
        match warnings.next().await {
            Ok(warnings) => {
                let refusals = refusals(&warnings);
                let of_sandboxes = disk.as_ref().map(|disk| disk.refused(&refusals));
                let of_volumes = volumes.refused(&refusals);
                for (key, count, message) in of_sandboxes.into_iter().flatten().chain(of_volumes) {
                    events.record(key, count, message, unix_time_ms());
                }
            }
            Err(error) => {
                tracing::error!(%error, "read refusals at quotas from the kernel");
                return;
            }
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

/// What is used beyond the limits, for people.
fn excess(what: &str, record: Record) -> Option<String> {
    let advice = "remove files first, or ask for more";
    if record.max_bytes > 0 && record.bytes > record.max_bytes {
        let (used, limit) = (ByteSize::b(record.bytes), ByteSize::b(record.max_bytes));
        return Some(format!("{what} holds {used}, which is more than {limit}: {advice}"));
    }
    let over = record.max_inodes > 0 && record.inodes > record.max_inodes;
    over.then(|| {
        let (used, limit) = (record.inodes, record.max_inodes);
        format!("{what} holds {used} files, which is more than {limit}: {advice}")
    })
}

/// Does ext4 let the process, or what it executes, write beyond a quota? A process that has ended writes nothing.
fn is_exempt(process: Pid) -> bool {
    let Ok(process) = procfs::process::Process::new(process.as_raw()) else { return false };
    let Ok(status) = process.status() else { return false };
    // Capabilities of another user namespace count for nothing here.
    let user_namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    if user_namespace(&process.pid.to_string()) != user_namespace("self") {
        return false;
    }
    let gains = if status.nonewprivs == Some(1) { 0 } else { status.capbnd.unwrap_or(u64::MAX) };
    (status.capeff | status.capprm | gains) & (1 << FORBIDDEN_CAPABILITY) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_a_limit_is_told() {
        let record = Record { bytes: 3 << 20, inodes: 7, max_bytes: 3 << 20, max_inodes: 7 };
        assert_eq!(excess("it", record), None);
        assert_eq!(excess("it", Record { max_bytes: 0, max_inodes: 0, ..record }), None);
        assert!(excess("it", Record { max_bytes: 1 << 20, ..record }).unwrap().contains("1.0 MiB"));
        assert!(excess("it", Record { max_inodes: 6, ..record }).unwrap().contains("7 files"));
    }

    #[test]
    fn refusals_are_counted_by_device_and_project() {
        let warning = |device, project, inodes| Warning { device, project, inodes };
        let told = refusals(&[warning(1, 7, false), warning(2, 7, false), warning(1, 7, true)]);
        assert_eq!(told, Refusals::from([((1, 7), (2, true)), ((2, 7), (1, false))]));
        let record = Record { bytes: 0, inodes: 0, max_bytes: 8 << 20, max_inodes: 50 };
        assert_eq!(
            (full_at(&record, false).as_str(), full_at(&record, true).as_str()),
            ("8.0 MiB", "50 files")
        );
    }
}
