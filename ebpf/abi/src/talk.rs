//! Who may talk to whom: compiled rules and denials. `enforce` and the agent share these.
//!
//! A task's rules are compiled into *cells*: one verdict for each direction and class of protocol. There are cells
//! for each prefix that a rule names, and four more for the peers that rules call by name. What the cells of a prefix
//! say already counts in all shorter prefixes around it, so one lookup of the longest prefix is the whole decision.
//!
//! All that belongs to one version of a task's rules has the number of its *set* in its keys. A changed version is
//! written under another number, and comes into force as a whole when the task's entry names that number.

/// Length of an address and the set before it, in the table of IPv4 prefixes.
pub const V4_KEY_BYTES: usize = 4 + 4;
/// The same for IPv6.
pub const V6_KEY_BYTES: usize = 4 + 16;
/// Bits of the set's number, which every prefix in the tables begins with.
pub const SET_BITS: u32 = 32;

/// Directions times classes, and a power of two.
pub const CELLS: usize = 8;
/// The bit of a cell's index that says the peer opened.
pub const INGRESS_CELL: u32 = 4;

/// What a protocol counts as: the rest of a cell's index.
pub mod class {
    /// TCP, and MPTCP through its subflows.
    pub const TCP: u32 = 0;
    /// UDP and UDP-Lite.
    pub const UDP: u32 = 1;
    /// Everything else, which has no ports.
    pub const OTHER: u32 = 2;
}

/// What a cell holds: one of these for all ports, or the number of a [`PortVerdicts`].
pub mod verdict {
    /// Refused.
    pub const DENY: u32 = 0;
    /// Allowed.
    pub const ALLOW: u32 = 1;
    /// No rule here: the next wider kind of rule decides.
    pub const PASS: u32 = 2;
    /// Numbers of port verdicts begin here.
    pub const FIRST_PORTS: u32 = 16;
}

/// Bits of [`TalkTask::flags`]: lookups that are not needed are left out.
pub mod talk_flag {
    /// Some rule names an IPv4 prefix.
    pub const V4: u32 = 1;
    /// Some rule names an IPv6 prefix.
    pub const V6: u32 = 2;
    /// Some rule names the tasks of a framework or a role.
    pub const NAMES: u32 = 4;
    /// This node and the outside are not treated alike.
    pub const NODE: u32 = 8;
}

/// Stretches of ports with one verdict each that one cell can tell apart. A power of two.
pub const MAX_STRETCHES: usize = 64;
/// Most prefixes of each family at one time, all tasks together.
pub const MAX_PREFIXES: u32 = 1 << 20;
/// Most [`PortVerdicts`] at one time, all tasks together.
pub const MAX_PORT_VERDICTS: u32 = 65_536;
/// Most addresses of the node itself.
pub const MAX_NODE_ADDRESSES: u32 = 4096;
/// Most prefixes of ports that tasks hold at one time. Any ranges without overlap take fewer.
pub const MAX_HELD_PORTS: u32 = 1 << 17;
/// Bits of the class, before the port, in the table of held ports.
pub const HELD_CLASS_BITS: u32 = 16;
/// Length of both.
pub const HELD_PORT_BYTES: usize = 4;
/// Most openings that are remembered until the peer hears of them.
pub const MAX_OPENINGS: u32 = 16_384;
/// A packet that is on its way within the node for longer is nobody's.
pub const OPENING_NS: u64 = 1_000_000_000;
/// Most conversations over sockets without a connection that are remembered, for the answers that no rule allows.
pub const MAX_CONVERSATIONS: u32 = 16_384;
/// Most [`TalkKey`]s with a denial at one time.
pub const MAX_TALK_DENIALS: u32 = 65_536;
/// Most keys of its own that one task gets in the map of denials; further ones are counted together.
pub const MAX_DENIED_PEERS: u64 = 256;
/// Size of the ring buffer of events: some 2500 of them.
pub const TALK_RING_BYTES: u32 = 256 * 1024;

/// A verdict for each direction and class: see [`verdict`].
pub type Cells = [u32; CELLS];

/// The rules of one task, without those that are about prefixes. A task without an entry may talk to everybody.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TalkTask {
    /// Names the entries of this version in the other maps. First, so that a reader who finds it the same after all
    /// others has read one version: a number is never used again.
    pub set: u32,
    /// Bits of [`talk_flag`].
    pub flags: u32,
    /// Stands for its framework: tasks with the same number are of the same.
    pub framework: u64,
    /// Stands for its role.
    pub role: u64,
    /// For tasks of the same framework.
    pub of_framework: Cells,
    /// For tasks of the same role.
    pub of_role: Cells,
    /// For this node, where nothing before decided. Never [`verdict::PASS`].
    pub node: Cells,
    /// For everybody else. Never [`verdict::PASS`].
    pub outside: Cells,
}

/// A verdict by port. Each word is the first port of a stretch above its verdict (16 bits each), in ascending order
/// from port 0; the last one is repeated to the end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortVerdicts {
    /// The stretches.
    pub stretches: [u32; MAX_STRETCHES],
}

/// Which tasks a task belongs with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TalkGroups {
    /// As [`TalkTask::framework`].
    pub framework: u64,
    /// As [`TalkTask::role`].
    pub role: u64,
}

/// A peer that a socket without a connection talks with, and may go on with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The socket.
    pub cookie: u64,
    /// The peer; IPv4 as mapped into IPv6.
    pub address: [u8; 16],
    /// Its port, host byte order; 0 for protocols without.
    pub port: u32,
    /// Always 0.
    pub unused: u32,
}

/// A packet within the node that opens something, as its receiver sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Where it comes from; IPv4 as mapped into IPv6.
    pub from: [u8; 16],
    /// Where it goes.
    pub to: [u8; 16],
    /// The port there, host byte order.
    pub from_port: u16,
    /// The port that it goes to.
    pub to_port: u16,
    /// TCP or UDP, as a [`class`].
    pub class: u32,
}

/// Whose an [`Opening`] is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opener {
    /// The task's cgroup.
    pub cgroup_id: u64,
    /// When it was last sent, on the monotonic clock.
    pub sent_ns: u64,
}

/// What programs count for one task.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TalkCounters {
    /// Calls that were refused: connects and sends.
    pub refused: u64,
    /// Packets that were dropped.
    pub dropped: u64,
    /// Keys of this task in the map of denials, bounded by [`MAX_DENIED_PEERS`].
    pub keys: u64,
}

/// What was denied.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TalkKey {
    /// The task's cgroup.
    pub cgroup_id: u64,
    /// A [`denied`].
    pub what: u16,
    /// The protocol's number in an IP header.
    pub protocol: u16,
    /// The port that was to be reached, host byte order: the peer's, or the task's own for what comes in.
    pub port: u16,
    /// 1: stands for all beyond [`MAX_DENIED_PEERS`]; address and port are 0.
    pub other: u16,
    /// The peer; IPv4 as mapped into IPv6.
    pub address: [u8; 16],
}

/// What [`TalkKey::what`] says.
pub mod denied {
    /// A connect or a send, refused with EPERM.
    pub const CALL: u16 = 0;
    /// A packet on its way out.
    pub const PACKET_OUT: u16 = 1;
    /// A packet on its way in.
    pub const PACKET_IN: u16 = 2;
}

const _: () = {
    assert!(size_of::<TalkTask>() == 4 + 4 + 8 + 8 + 4 * CELLS * 4);
    assert!(core::mem::offset_of!(TalkTask, set) == 0);
    assert!(size_of::<PortVerdicts>() == MAX_STRETCHES * 4 && MAX_STRETCHES.is_power_of_two());
    assert!(size_of::<TalkGroups>() == 2 * 8);
    assert!(size_of::<Conversation>() == 8 + 16 + 4 + 4);
    assert!(size_of::<Opening>() == 2 * 16 + 2 * 2 + 4);
    assert!(size_of::<Opener>() == 2 * 8);
    assert!(size_of::<TalkCounters>() == 3 * 8);
    assert!(size_of::<TalkKey>() == 8 + 4 * 2 + 16);
    assert!(size_of::<crate::DenialEvent<TalkKey>>() == size_of::<TalkKey>() + 24 + crate::COMM_LEN);
    assert!(CELLS.is_power_of_two() && INGRESS_CELL as usize * 2 == CELLS && class::OTHER < INGRESS_CELL);
    assert!(TALK_RING_BYTES.is_power_of_two());
};

/// Sound because of the sizes asserted above: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    use super::{Conversation, Opener, Opening, PortVerdicts, TalkCounters, TalkGroups, TalkKey, TalkTask};

    macro_rules! pod {
        ($($t:ty),+) => {$(
            // SAFETY: repr(C), integers only, and no padding (asserted in the parent module).
            unsafe impl aya::Pod for $t {}
        )+};
    }
    pod!(Conversation, Opener, Opening, PortVerdicts, TalkCounters, TalkGroups, TalkKey, TalkTask);
}
