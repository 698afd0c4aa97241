//! Traffic: how fast a task may send and receive, and what it did. `enforce` and the agent share these.
//!
//! A byte is one of an Ethernet frame as interfaces count them: the IP packet and [`FRAME_BYTES`] of header for every
//! packet that goes over the wire, so that segments which the kernel or the card makes of one large packet are paid
//! for one by one. Checksum, preamble and gap between frames (24 bytes) are not in it, as in `ip -s link` and tc.
//!
//! A rate is kept by a *clock*: the time at which everything that was sent so far is paid for. Sending moves it on by
//! the packet's length at that rate; a packet's turn is where the clock stood before.
//!
//! What the agent writes ([`NetTask`], [`NetInterface`], [`NetLink`]) and what programs write ([`NetClocks`],
//! [`NetCounters`]) are maps apart, so that a rate changes by one write and nothing that is under way is lost.

/// Most tasks at one time whose traffic is held and counted. Slot 0 belongs to no task.
pub const MAX_NET_TASKS: u32 = 4096;
/// Places for interfaces; an interface's is its index modulo this.
pub const NET_INTERFACES: u32 = 256;
/// An Ethernet header.
pub const FRAME_BYTES: u64 = 14;
/// A [`NetRate::ns_per_byte`] is a fixed-point number with this many binary digits after the point.
pub const NS_PER_BYTE_SHIFT: u32 = 20;
/// Packets on a paced interface may make up for being late by this much.
pub const PACED_CREDIT_NS: u64 = 2_000_000;
/// Where nothing can wait, this much of a rate may come at once. TCP that found no room tries again after 200 ms; a
/// smaller bucket would have overflowed by then.
pub const POLICED_CREDIT_NS: u64 = 250_000_000;
/// From this wait on, senders are told of congestion.
pub const MARK_AFTER_NS: u64 = 20_000_000;
/// Nothing that is borrowed waits for longer; a task that floods the link makes others wait no longer either.
pub const BORROW_HORIZON_NS: u64 = 50_000_000;

/// Bits of [`NetInterface::flags`].
pub mod net_interface {
    /// Packets leave at the time that is written on them: its queueing discipline is fq.
    pub const PACED: u32 = 1;
    /// It leads to the link whose bandwidth is granted.
    pub const LINK: u32 = 2;
}

/// Bits of [`NetTask::flags`].
pub mod net_task {
    /// The ceiling is the guarantee: nothing is borrowed, and nobody is waited for.
    pub const CAPPED: u32 = 1;
    /// It has a network namespace of its own, whose interfaces are numbered apart.
    pub const OWN_NAMESPACE: u32 = 2;
    /// It has an entry in [`TALK_TASKS`](crate::names::TALK_TASKS).
    pub const RULES: u32 = 4;
    /// Rules there name tasks.
    pub const NAMES: u32 = 8;
}

/// A rate, as the time that a byte takes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetRate {
    /// Nanoseconds, see [`NS_PER_BYTE_SHIFT`]; 0 is no rate at all.
    pub ns_per_byte: u64,
    /// A packet that would have to wait for longer is dropped.
    pub horizon_ns: u64,
}

/// What a task may do. The agent writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetTask {
    /// Its place in the maps of clocks and counters.
    pub slot: u32,
    /// Of [`net_task`].
    pub flags: u32,
    /// What it may send whatever others do.
    pub guaranteed: NetRate,
    /// What it may send at most.
    pub ceiling: NetRate,
    /// What it may receive at most.
    pub ingress: NetRate,
}

/// What is known of an interface of the host. The agent writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetInterface {
    /// Its index; 0 in a place that is free.
    pub ifindex: u32,
    /// Of [`net_interface`].
    pub flags: u32,
    /// Longer packets are sent in fragments.
    pub mtu_bytes: u32,
    /// 0.
    pub reserved: u32,
}

/// The link whose bandwidth is granted. The agent writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetLink {
    /// What all tasks together may send; no rate where the link's is not known, and then nothing is borrowed or held.
    pub rate: NetRate,
}

/// The clocks of a task, CLOCK_MONOTONIC, each for itself; programs write. Slot 0 has the link's as `guaranteed_ns`.
/// As long as two cache lines, so that tasks do not wait for each other's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetClocks {
    /// Of the guarantee.
    pub guaranteed_ns: u64,
    /// Of the ceiling, on paced interfaces.
    pub paced_ns: u64,
    /// Of the ceiling, where nothing can wait.
    pub policed_ns: u64,
    /// Not used: fills the line of what senders write.
    pub sending_rest: [u64; 5],
    /// Of what is received.
    pub ingress_ns: u64,
    /// Not used.
    pub receiving_rest: [u64; 7],
}

/// What went one way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCount {
    /// Over the link, in bytes.
    pub link_bytes: u64,
    /// Over the link, in packets on the wire.
    pub link_packets: u64,
    /// Over other interfaces, the loopback among them.
    pub other_bytes: u64,
    /// As above, in packets.
    pub other_packets: u64,
    /// Packets that were dropped for a rate. They are in none of the above.
    pub dropped: u64,
    /// Packets whose sender was told of congestion.
    pub marked: u64,
}

/// What a task did, for each CPU. Programs write.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// By the task.
    pub sent: NetCount,
    /// By others.
    pub received: NetCount,
}

/// Packets of a task that were dropped because of its rules on whom it talks to, for each CPU. Programs write. They are in
/// nothing else that is counted here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetRuleDrops {
    /// On their way out.
    pub sent: u64,
    /// On their way in.
    pub received: u64,
}

impl NetRuleDrops {
    /// Both together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self { sent: self.sent + other.sent, received: self.received + other.received }
    }
}

impl NetCounters {
    /// Both together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self { sent: self.sent.plus(&other.sent), received: self.received.plus(&other.received) }
    }
}

impl NetCount {
    /// Both together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            link_bytes: self.link_bytes + other.link_bytes,
            link_packets: self.link_packets + other.link_packets,
            other_bytes: self.other_bytes + other.other_bytes,
            other_packets: self.other_packets + other.other_packets,
            dropped: self.dropped + other.dropped,
            marked: self.marked + other.marked,
        }
    }

    /// Over all interfaces.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.link_bytes + self.other_bytes
    }

    /// Over all interfaces.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.link_packets + self.other_packets
    }
}

const _: () = {
    assert!(size_of::<NetRate>() == 2 * 8);
    assert!(size_of::<NetTask>() == 2 * 4 + 3 * size_of::<NetRate>());
    assert!(size_of::<NetInterface>() == 4 * 4);
    assert!(size_of::<NetLink>() == size_of::<NetRate>());
    assert!(size_of::<NetClocks>() == 128);
    assert!(core::mem::offset_of!(NetClocks, ingress_ns) == 64);
    assert!(size_of::<NetCount>() == 6 * 8);
    assert!(size_of::<NetCounters>() == 2 * size_of::<NetCount>());
    assert!(size_of::<NetRuleDrops>() == 2 * 8);
    assert!(NET_INTERFACES.is_power_of_two());
};

/// Sound because of the sizes asserted above: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    use super::{NetClocks, NetCounters, NetInterface, NetLink, NetRuleDrops, NetTask};

    macro_rules! pod {
        ($($t:ty),+) => {$(
            // SAFETY: repr(C), integers only, and no padding (asserted in the parent module).
            unsafe impl aya::Pod for $t {}
        )+};
    }
    pod!(NetClocks, NetCounters, NetInterface, NetLink, NetRuleDrops, NetTask);
}
