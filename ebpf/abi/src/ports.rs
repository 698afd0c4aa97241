//! Ports: grants, use and denials. `enforce` and the agent share these.
//!
//! A task's grant is a bitmap of 65536 ports for each protocol, stored sparsely: 64 ports are a
//! *word*, and only words with a granted port exist. One index for each task says which those are.
//! A grant of a few ports costs some hundred bytes of kernel memory, and one of thousands little more
//! than its bits.
//!
//! Maps that the agent writes and maps that programs write are apart, so that nobody has to read,
//! change and write back what another may change in between.

/// Ports in one word.
pub const PORTS_PER_WORD: u32 = 64;
/// Words of an index: 1024 words of ports, a bit each.
pub const INDEX_WORDS: usize = 16;
/// Length of a task's name in the kernel.
pub const COMM_LEN: usize = 16;

/// Most tasks with a grant at one time.
pub const MAX_TASKS: u32 = 8192;
/// Most words of granted ports at one time, all tasks together.
pub const MAX_PORT_WORDS: u32 = 65_536;
/// Most bound sockets whose port is remembered; beyond it the least recently bound are forgotten,
/// and the kernel alone decides whether their port is free.
pub const MAX_SOCKETS: u32 = 32_768;
/// Most (task, protocol, IP version, port) with a denial at one time.
pub const MAX_DENIALS: u32 = 65_536;
/// Most keys of its own that one task gets in the denial map. Further ports are counted together,
/// so that a task that scans all ports can neither hide others' denials nor flood the events.
pub const MAX_DENIED_PORTS: u64 = 256;
/// Size of the ring buffer of events: over 3000 of them.
pub const EVENT_RING_BYTES: u32 = 256 * 1024;

/// What a port number belongs to, as an index into tables of two.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Stream sockets: TCP, and MPTCP through its subflows.
    Tcp = 0,
    /// Datagram sockets: UDP.
    Udp = 1,
}

impl Protocol {
    /// Both, in the order of their indexes.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The protocol's number in an IP header.
    pub const fn ip_number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Which words of a task's grant exist: a bit for each, by protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantIndex {
    /// Bit `w % 64` of `words[protocol][w / 64]` stands for the ports from `64 * w`.
    pub words: [[u64; INDEX_WORDS]; 2],
}

/// Names a word of one task's ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortWordKey {
    /// The task's cgroup.
    pub cgroup_id: u64,
    /// `port / 64`.
    pub word: u32,
    /// A [`Protocol`].
    pub protocol: u32,
}

/// Which ports of a word the task's sockets are bound to. It chooses ports for bind(0) and decides
/// nothing else: where it is wrong, the kernel still refuses a port that is taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// A bit for each port with at least one user.
    pub used: u64,
    /// Sockets bound to each port.
    pub users: [u64; 64],
}

/// What programs count and remember for one task.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounters {
    /// Binds that were denied, all of them.
    pub denied: u64,
    /// Keys of this task in the denial map, bounded by [`MAX_DENIED_PORTS`].
    pub denied_ports: u64,
    /// By [`Protocol`]: the port at which the next search for a free one starts.
    pub next_port: [u64; 2],
}

/// The port that a socket holds in [`PortUse`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPort {
    /// The task's cgroup.
    pub cgroup_id: u64,
    /// The port, host byte order.
    pub port: u32,
    /// A [`Protocol`].
    pub protocol: u32,
}

/// What was denied.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DenialKey {
    /// The task's cgroup.
    pub cgroup_id: u64,
    /// The port that was asked for, host byte order; 0 is bind(0) by a task without ports.
    pub port: u16,
    /// The protocol's number in an IP header.
    pub protocol: u16,
    /// 4 or 6: the family of the socket.
    pub ip_version: u16,
    /// 1: stands for all ports beyond [`MAX_DENIED_PORTS`], and `port` is 0.
    pub other: u16,
}

/// How often, and when. Times are CLOCK_MONOTONIC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Denial {
    /// Denied calls.
    pub count: u64,
    /// Time of the first.
    pub first_ns: u64,
    /// Time of the last.
    pub last_ns: u64,
}

/// Sent when a [`Denial::count`] reaches 1, 2, 4, 8 and so on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenialEvent<K = DenialKey> {
    /// What was denied: a [`DenialKey`] or a [`DeviceKey`](crate::DeviceKey).
    pub key: K,
    /// How often by now.
    pub count: u64,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The calling process, in the initial PID namespace.
    pub pid: u32,
    /// Its user, in the initial user namespace.
    pub uid: u32,
    /// Its name, filled up with zeros.
    pub comm: [u8; COMM_LEN],
}

impl GrantIndex {
    /// No word at all.
    pub const EMPTY: Self = Self { words: [[0; INDEX_WORDS]; 2] };
}

impl PortUse {
    /// No user at all.
    pub const UNUSED: Self = Self { used: 0, users: [0; 64] };
}

const _: () = {
    assert!(size_of::<GrantIndex>() == 2 * INDEX_WORDS * 8);
    assert!(size_of::<PortWordKey>() == 8 + 4 + 4);
    assert!(size_of::<PortUse>() == 8 + 64 * 8);
    assert!(size_of::<TaskCounters>() == 8 + 8 + 2 * 8);
    assert!(size_of::<SocketPort>() == 8 + 4 + 4);
    assert!(size_of::<DenialKey>() == 8 + 4 * 2);
    assert!(size_of::<Denial>() == 3 * 8);
    assert!(size_of::<DenialEvent>() == size_of::<DenialKey>() + 8 + 8 + 4 + 4 + COMM_LEN);
    assert!(core::mem::offset_of!(DenialEvent, comm) == 40);
    assert!(size_of::<DenialEvent<crate::DeviceKey>>() == size_of::<crate::DeviceKey>() + 24 + COMM_LEN);
    assert!(PORTS_PER_WORD as usize * INDEX_WORDS * 64 == 65_536);
    assert!(EVENT_RING_BYTES.is_power_of_two());
};

/// Sound because of the sizes asserted above: no padding, and every bit pattern is a value.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied to and from the kernel as bytes")]
mod pod {
    use super::{Denial, DenialEvent, DenialKey, GrantIndex, PortUse, PortWordKey, SocketPort, TaskCounters};

    macro_rules! pod {
        ($($t:ty),+) => {$(
            // SAFETY: repr(C), integers only, and no padding (asserted in the parent module).
            unsafe impl aya::Pod for $t {}
        )+};
    }
    pod!(Denial, DenialEvent, DenialKey, GrantIndex, PortUse, PortWordKey, SocketPort, TaskCounters);
}
