//! How long threads of tasks waited for a CPU, and their requests for a disk. `observe` (C) and the agent share these.

use crate::c::shared_with_c;

/// Buckets of a histogram, the last for whatever took longer than all bounds.
pub const LATENCY_BUCKETS: u32 = 22;
/// The bound of the first bucket is two to this power, in nanoseconds; each further bound is twice the one before:
/// about a microsecond to about a second.
pub const LATENCY_FIRST_BOUND_BITS: u32 = 10;

/// Indexes of [`RunqueueCounters::preempted_by`].
pub mod preempted_by {
    /// Another guaranteed task.
    pub const GUARANTEED: u32 = 0;
    /// A revocable task.
    pub const REVOCABLE: u32 = 1;
    /// A process that is no task's.
    pub const STRANGERS: u32 = 2;
    /// A thread of the kernel.
    pub const KERNEL: u32 = 3;
}

shared_with_c! {
    /// How long the threads of one task waited for a CPU, for each CPU. Programs write, but for the first word.
    pub struct RunqueueCounters as "runqueue_counters" {
        /// Not 0 for a revocable task. The agent writes it.
        pub revocable: u64,
        /// Sum of all waits in the histogram.
        pub wait_ns: u64,
        /// Waits by bucket, each in one: those of at most [`latency_bound_ns`], and more than the bound before.
        pub waits: [u64; 22],
        /// Waits in which the task was throttled for a while, at its CPU cap or that of all revocable tasks. They are in
        /// no bucket: nobody else was in the way.
        pub throttled_waits: u64,
        /// Sum of those.
        pub throttled_wait_ns: u64,
        /// How often one of its threads that would have gone on had to leave its CPU to another: see [`preempted_by`].
        pub preempted_by: [u64; 4],
    }
}

shared_with_c! {
    /// How long the requests of one task for disks took, for each CPU. Programs write.
    pub struct BlockIoCounters as "block_io_counters" {
        /// Sum of all reads in the histogram.
        pub read_ns: u64,
        /// Sum of all writes in the histogram.
        pub write_ns: u64,
        /// Reads by bucket, as [`RunqueueCounters::waits`].
        pub reads: [u64; 22],
        /// Writes by bucket.
        pub writes: [u64; 22],
    }
}

/// The longest time that a bucket takes; `None` for the last, which takes all that are longer than those before.
#[must_use]
pub const fn latency_bound_ns(bucket: u32) -> Option<u64> {
    if bucket + 1 < LATENCY_BUCKETS { Some(1 << (LATENCY_FIRST_BOUND_BITS + bucket)) } else { None }
}

const _: () = {
    let counters = RunqueueCounters {
        revocable: 0,
        wait_ns: 0,
        waits: [0; 22],
        throttled_waits: 0,
        throttled_wait_ns: 0,
        preempted_by: [0; 4],
    };
    assert!(counters.waits.len() == LATENCY_BUCKETS as usize);
    assert!(counters.preempted_by.len() == preempted_by::KERNEL as usize + 1);
};

fn add<const N: usize>(sum: &mut [u64; N], more: [u64; N]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

impl RunqueueCounters {
    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.revocable |= other.revocable;
        self.wait_ns += other.wait_ns;
        add(&mut self.waits, other.waits);
        self.throttled_waits += other.throttled_waits;
        self.throttled_wait_ns += other.throttled_wait_ns;
        add(&mut self.preempted_by, other.preempted_by);
        self
    }
}

impl BlockIoCounters {
    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.read_ns += other.read_ns;
        self.write_ns += other.write_ns;
        add(&mut self.reads, other.reads);
        add(&mut self.writes, other.writes);
        self
    }
}

/// Sound because of the size asserted by the macro: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    // SAFETY: repr(C), integers only, and no padding (asserted where the type is made).
    unsafe impl aya::Pod for super::RunqueueCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::BlockIoCounters {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_from_a_microsecond_to_a_second() {
        assert_eq!(latency_bound_ns(0), Some(1024));
        assert_eq!(latency_bound_ns(1), Some(2048));
        assert_eq!(latency_bound_ns(20), Some(1 << 30));
        assert_eq!(latency_bound_ns(21), None);
    }

    #[test]
    fn processors_add_up() {
        let one = RunqueueCounters { waits: [1; 22], preempted_by: [1, 2, 3, 4], ..Default::default() };
        let both = one.plus(&RunqueueCounters { revocable: 1, wait_ns: 5, ..one });
        assert_eq!((both.waits[3], both.preempted_by, both.revocable, both.wait_ns), (2, [2, 4, 6, 8], 1, 5));
        let io = BlockIoCounters { reads: [1; 22], write_ns: 3, ..Default::default() };
        assert_eq!((io.plus(&io).reads[21], io.plus(&io).write_ns), (2, 6));
    }
}
