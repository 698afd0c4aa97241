//! What tasks use and wait for: measured, and nothing held. Needs nothing of a grant, and refuses none.

use std::{sync::Arc, time::Instant};

use bulkhead_proto::v1;

use super::{IsolateError, Isolator, TaskPlace, counted::Names};
use crate::{
    grant::{Class, Grant},
    kernel::bpf::{
        BlockIoCounters, BlockIoCounts, BpfError, RunqueueCounters, RunqueueCounts, latency_bound_ns,
        preempted_by,
    },
    measure::tasks::{Reading, Watched},
    offer::ledger::TaskKey,
};

/// Tells the sampler and the programs which tasks there are, and others what was measured of them.
#[derive(Default)]
pub struct Observed {
    watched: Arc<Watched>,
    /// By the BPF program of `ebpf/observe/runqueue.bpf.c`, where the kernel takes it.
    runqueue: Option<Arc<RunqueueCounts>>,
    /// By that of `ebpf/observe/block_io.bpf.c`.
    block_io: Option<Arc<BlockIoCounts>>,
    tasks: Names,
}

impl Observed {
    /// Counts by these programs, if this kernel has them.
    pub fn new(runqueue: Option<Arc<RunqueueCounts>>, block_io: Option<Arc<BlockIoCounts>>) -> Self {
        Self { runqueue, block_io, ..Self::default() }
    }

    /// The tasks, for the sampler.
    pub fn watched(&self) -> &Arc<Watched> {
        &self.watched
    }

    /// How long the threads of each task waited for a CPU, by few system calls whatever the number of tasks.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn waits(&self) -> Result<Vec<(TaskKey, RunqueueCounters)>, BpfError> {
        self.runqueue.as_ref().map_or(Ok(Vec::new()), |counts| Ok(self.tasks.name(counts.all()?)))
    }

    /// The same of requests for disks.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn disk_waits(&self) -> Result<Vec<(TaskKey, BlockIoCounters)>, BpfError> {
        self.block_io.as_ref().map_or(Ok(Vec::new()), |counts| Ok(self.tasks.name(counts.all()?)))
    }

    fn count(&self, task: &TaskPlace, class: Class) -> Result<(), BpfError> {
        if let Some(counts) = &self.runqueue {
            counts.watch(task.id, class == Class::Revocable)?;
        }
        self.block_io.as_ref().map_or(Ok(()), |counts| counts.watch(task.id))
    }
}

impl Isolator for Arc<Observed> {
    fn part(&self) -> &'static str {
        "observed"
    }

    fn features(&self) -> &'static [&'static str] {
        &["psi", "bpf_runqueue", "bpf_block_io"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.count(task, grant.class)?;
        self.tasks.insert(task);
        let watched = self.watched.insert(task.id, task.task.clone(), grant.class, &task.cgroup);
        if let Err(error) = watched {
            // A task that runs unmeasured is better than one that does not run.
            let error = crate::error_chain(&error);
            tracing::warn!(task = task.task.1, error, "measure a task; see the limit of open files");
        }
        self.watched.bound(task.id, grant.into());
        Ok(())
    }

    fn update(&self, task: &TaskPlace, _before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        self.watched.bound(task.id, after.into());
        Ok(())
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // What was counted before stays.
        self.prepare(task, grant)
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        if let Some(reading) = self.watched.read(task.id, Instant::now()) {
            tell(&reading, usage);
        }
        if let Some(waits) = self.runqueue.as_ref().and_then(|counts| counts.of(task.id).ok()?) {
            tell_waits(&waits, usage);
        }
        if let Some(waits) = self.block_io.as_ref().and_then(|counts| counts.of(task.id).ok()?) {
            usage.disk_read_buckets = buckets(&waits.reads);
            usage.disk_write_buckets = buckets(&waits.writes);
            usage.disk_read_wait_usec = waits.read_ns / NS_PER_USEC;
            usage.disk_write_wait_usec = waits.write_ns / NS_PER_USEC;
        }
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.watched.remove(task.id);
        self.tasks.remove(task);
        let waits = self.runqueue.as_ref().map_or(Ok(()), |counts| counts.forget(task.id));
        let disk_waits = self.block_io.as_ref().map_or(Ok(()), |counts| counts.forget(task.id));
        Ok(waits.and(disk_waits)?)
    }
}

const NS_PER_USEC: u64 = 1000;

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

fn tell_waits(waits: &RunqueueCounters, usage: &mut v1::TaskUsage) {
    usage.runqueue_buckets = buckets(&waits.waits);
    usage.runqueue_wait_usec = waits.wait_ns / NS_PER_USEC;
    usage.throttled_waits = waits.throttled_waits;
    usage.throttled_wait_usec = waits.throttled_wait_ns / NS_PER_USEC;
    let by = |by: u32| waits.preempted_by.get(by as usize).copied().unwrap_or(0);
    usage.preempted_by = Some(v1::Preemptions {
        guaranteed_tasks: by(preempted_by::GUARANTEED),
        revocable_tasks: by(preempted_by::REVOCABLE),
        strangers: by(preempted_by::STRANGERS),
        kernel_threads: by(preempted_by::KERNEL),
    });
}

fn buckets(counts: &[u64]) -> Vec<v1::LatencyBucket> {
    let bucket = |(bucket, count)| v1::LatencyBucket { up_to_nsec: latency_bound_ns(bucket), count };
    (0..).zip(counts.iter().copied()).filter(|(_, count)| *count > 0).map(bucket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_buckets_with_anything_in_them_are_told() {
        let mut waits = RunqueueCounters { wait_ns: 5_500, preempted_by: [1, 2, 3, 4], ..Default::default() };
        (waits.waits[0], waits.waits[21]) = (7, 1);
        let mut usage = v1::TaskUsage::default();
        tell_waits(&waits, &mut usage);
        let bucket = |up_to_nsec, count| v1::LatencyBucket { up_to_nsec, count };
        assert_eq!(usage.runqueue_buckets, [bucket(Some(1024), 7), bucket(None, 1)]);
        assert_eq!((usage.runqueue_wait_usec, usage.preempted_by.unwrap().strangers), (5, 3));
    }
}
