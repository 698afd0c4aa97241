//! TCP connections of tasks: how many, what was sent twice, and how long round trips took. `observe` (C) and the agent
//! share these.

use crate::c::shared_with_c;

/// Buckets of the histogram of round trips, the last for whatever took longer than all bounds.
pub const RTT_BUCKETS: u32 = 18;
/// The bound of the first bucket; each further bound is twice the one before: 16 µs to about a second.
pub const RTT_FIRST_BOUND_USEC: u32 = 16;

shared_with_c! {
    /// What the connections of one task did, for each CPU. Programs write.
    pub struct ConnectionCounters as "connection_counters" {
        /// Connections that the task asked for and that were established.
        pub opened: u64,
        /// Connections that others asked for and that were established with a listening socket of the task, whether or
        /// not it has called accept() yet.
        pub accepted: u64,
        /// Segments that the task's kernel sent once more, those that begin a connection among them; as `ss -i` counts
        /// them.
        pub retransmitted: u64,
        /// Sum of all round trips in the histogram.
        pub rtt_sum_usec: u64,
        /// Round trips by bucket, each in one: those of at most [`rtt_bound_usec`], and more than the bound before.
        pub rtt: [u64; 18],
    }
}

/// The longest round trip that a bucket takes; `None` for the last, which takes all that are longer than those before.
#[must_use]
pub const fn rtt_bound_usec(bucket: u32) -> Option<u64> {
    if bucket + 1 < RTT_BUCKETS { Some((RTT_FIRST_BOUND_USEC as u64) << bucket) } else { None }
}

impl ConnectionCounters {
    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.opened += other.opened;
        self.accepted += other.accepted;
        self.retransmitted += other.retransmitted;
        self.rtt_sum_usec += other.rtt_sum_usec;
        for (sum, more) in self.rtt.iter_mut().zip(other.rtt) {
            *sum += more;
        }
        self
    }

    /// Round trips with the bounds of their buckets, as [`rtt_bound_usec`] has them.
    pub fn rtt_buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + use<> {
        (0..RTT_BUCKETS).map(rtt_bound_usec).zip(self.rtt)
    }
}

const _: () = {
    let counters =
        ConnectionCounters { opened: 0, accepted: 0, retransmitted: 0, rtt_sum_usec: 0, rtt: [0; 18] };
    assert!(counters.rtt.len() == RTT_BUCKETS as usize);
};

/// Sound because of the size asserted by the macro: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    // SAFETY: repr(C), integers only, and no padding (asserted where the type is made).
    unsafe impl aya::Pod for super::ConnectionCounters {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_a_second() {
        let counters = ConnectionCounters { rtt: core::array::from_fn(|i| i as u64), ..Default::default() };
        let mut buckets = counters.plus(&counters).rtt_buckets();
        assert_eq!(buckets.next(), Some((Some(16), 0)));
        assert_eq!(buckets.next(), Some((Some(32), 2)));
        assert_eq!(buckets.nth(14), Some((Some(1 << 20), 32)));
        assert_eq!(buckets.next(), Some((None, 34)));
        assert_eq!(buckets.next(), None);
    }
}
