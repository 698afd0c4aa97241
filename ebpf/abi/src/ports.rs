//! Ports: grants, use and denials. `enforce` and the agent share these.
//!
//! A task's grant is a bitmap of 65536 ports for each protocol, stored sparsely: 64 ports are a
//! *word*, and only words with a granted port exist. So one lookup answers for any port, whatever the
//! size of the grant; a grant of a few ports costs some hundred bytes of kernel memory, and one of
//! thousands little more than its bits. One value for each task says which words there are, and what the
//! task may do besides binding them.
//!
//! What the agent alone writes decides. What programs write is counts and hints; a hint shares its value with
//! the granted bits of a word, so that one lookup finds both, and one that is lost while the agent
//! changes the word costs nothing but the order in which ports are chosen.

use crate::c::shared_with_c;

/// Version of the layouts in this module, part of the name of the pin directory. Maps of [`OLDEST_PORTS_VERSION`] and
/// later are converted when they are taken over.
///
/// - 1: grants and use in maps of their own, no policy, no sockets but TCP and UDP.
/// - 2: one word of ports has both, and each task has a policy.
/// - 3: the ports of sockets are in sets, no longer in a table that sorts them by use.
pub const PORTS_VERSION: u32 = 3;
/// The oldest version that is converted.
pub const OLDEST_PORTS_VERSION: u32 = 1;

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
/// Sets of sockets that the port they were given is remembered of; see [`SocketSet`].
pub const SOCKET_SETS: u32 = 8192;
/// Sockets in a set.
pub const SOCKET_WAYS: usize = 4;
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

/// Bits of [`TaskPorts::choice`]: what a port that the kernel is asked to choose may be. Where no bit allows it, the call
/// is refused.
pub mod port_choice {
    /// bind(0) is answered with a granted port.
    pub const BIND_GRANTED: u32 = 1;
    /// bind(0) is answered by the kernel, from its own range. [`BIND_GRANTED`] comes first.
    pub const BIND_EPHEMERAL: u32 = 1 << 1;
    /// connect() without bind is given a granted port; UDP that is sent without bind is refused.
    pub const CLIENT_GRANTED: u32 = 1 << 2;
    /// connect() and sendto() without bind take a port of the kernel's own range. Comes before [`CLIENT_GRANTED`].
    pub const CLIENT_EPHEMERAL: u32 = 1 << 3;
    /// listen() without bind takes a port of the kernel's own range.
    pub const LISTEN_EPHEMERAL: u32 = 1 << 4;

    /// Of tasks that name nothing: clients as on any host, servers on granted ports.
    pub const DEFAULT: u32 = BIND_GRANTED | CLIENT_EPHEMERAL;
}

/// Bits of [`TaskPorts::sockets`]: sockets besides TCP, UDP and ping ones.
pub mod socket_kind {
    /// Raw IP sockets.
    pub const RAW: u32 = 1;
    /// SCTP, of either style.
    pub const SCTP: u32 = 1 << 1;
    /// Packet and XDP sockets: whole frames of an interface.
    pub const PACKET: u32 = 1 << 2;
    /// All that can be granted.
    pub const ALL: [u32; 3] = [RAW, SCTP, PACKET];
}

shared_with_c! {
    /// What one task may do with ports. The agent writes.
    pub struct TaskPorts as "task_ports" {
        /// Which words of its grant exist: bit `w % 64` of `words[protocol][w / 64]` stands for the ports from `64 * w`.
        pub words: [[u64; 16]; 2],
        /// By [`Protocol`]: steps of a search that goes round the words once.
        pub round: [u32; 2],
        /// Bits of [`port_choice`].
        pub choice: u32,
        /// Bits of [`socket_kind`].
        pub sockets: u32,
    }
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

/// 64 ports of one task, a bit each. The hints choose ports for bind(0) and decide nothing else: where they are wrong, the
/// kernel still refuses a port that is taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortWord {
    /// May be bound. The agent writes.
    pub granted: u64,
    /// Hint: a socket holds it that was given it by the programs.
    pub used: u64,
    /// Hint: was bound by number at some time, so others are chosen first.
    pub numbered: u64,
}

shared_with_c! {
    /// What programs count and remember for one task.
    pub struct TaskCounters as "task_counters" {
        /// Calls that were denied, all of them.
        pub denied: u64,
        /// Keys of this task in the denial map, bounded by [`MAX_DENIED_PORTS`].
        pub denied_ports: u64,
        /// By [`Protocol`]: the port at which the next search for a free one starts.
        pub next_port: [u64; 2],
    }
}

/// The port that a socket was given: a bit of [`PortWord::used`].
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

/// Sockets that were given a port, and which one. A socket belongs into the set at [`socket_set`]; the kernel numbers
/// sockets in order, so sets fill evenly. Where a set is full one socket is forgotten: its port stays noted as used, and the
/// kernel alone decides whether it is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketSet {
    /// Cookies of sockets, 0 where there is none.
    pub cookies: [u64; SOCKET_WAYS],
    /// What the socket with the cookie at the same place was given.
    pub ports: [SocketPort; SOCKET_WAYS],
}

/// The index of the [`SocketSet`] that the socket with this cookie belongs into.
#[inline(always)]
pub const fn socket_set(cookie: u64) -> u32 {
    let [a, b, c, d, ..] = cookie.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) & (SOCKET_SETS - 1)
}

/// What a [`DenialKey::call`] says.
pub mod denied_call {
    /// bind().
    pub const BIND: u16 = 0;
    /// Whatever is counted together beyond [`MAX_DENIED_PORTS`](super::MAX_DENIED_PORTS).
    pub const OTHERS: u16 = 1;
    /// connect() of a socket that is not bound.
    pub const CONNECT: u16 = 2;
    /// UDP sent on a socket that nobody bound.
    pub const SEND: u16 = 3;
    /// listen() on a socket that is not bound.
    pub const LISTEN: u16 = 4;
    /// socket() of a kind that is not granted.
    pub const SOCKET: u16 = 5;
}

shared_with_c! {
    /// What was denied.
    pub struct DenialKey as "denial_key" {
        /// The task's cgroup.
        pub cgroup_id: u64,
        /// The port that was asked for, host byte order; 0 is one of the kernel's choice. For socket() its type.
        pub port: u16,
        /// The protocol's number in an IP header.
        pub protocol: u16,
        /// 4 or 6: the family of the socket. 0 for a packet socket.
        pub ip_version: u16,
        /// A [`denied_call`]. With `OTHERS`, `port` is 0.
        pub call: u16,
    }
}

shared_with_c! {
    /// How often, and when. Times are CLOCK_MONOTONIC.
    pub struct Denial as "denial" {
        /// Denied calls.
        pub count: u64,
        /// Time of the first.
        pub first_ns: u64,
        /// Time of the last.
        pub last_ns: u64,
    }
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

/// The event of a port in C.
pub(crate) const C_DENIAL_EVENT: &str = "struct denial_event {\n\tstruct denial_key key;\n\t__u64 count;\n\t\
    __u64 time_ns;\n\t__u32 pid;\n\t__u32 uid;\n\t__u8 comm[16];\n};\n";

impl TaskPorts {
    /// No port at all, and the default policy.
    pub const EMPTY: Self =
        Self { words: [[0; INDEX_WORDS]; 2], round: [0; 2], choice: port_choice::DEFAULT, sockets: 0 };
}

const _: () = {
    assert!(INDEX_WORDS == 16 && COMM_LEN == 16, "as they are written out above");
    assert!(size_of::<TaskPorts>() == 2 * INDEX_WORDS * 8 + 2 * 4 + 4 + 4);
    assert!(size_of::<PortWordKey>() == 8 + 4 + 4);
    assert!(size_of::<PortWord>() == 3 * 8);
    assert!(size_of::<TaskCounters>() == 8 + 8 + 2 * 8);
    assert!(size_of::<SocketPort>() == 8 + 4 + 4);
    assert!(size_of::<SocketSet>() == SOCKET_WAYS * (8 + size_of::<SocketPort>()));
    assert!(SOCKET_SETS.is_power_of_two());
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
    use super::{
        Denial, DenialEvent, DenialKey, PortWord, PortWordKey, SocketPort, SocketSet, TaskCounters, TaskPorts,
    };

    macro_rules! pod {
        ($($t:ty),+) => {$(
            // SAFETY: repr(C), integers only, and no padding (asserted in the parent module).
            unsafe impl aya::Pod for $t {}
        )+};
    }
    pod!(
        Denial,
        DenialEvent,
        DenialKey,
        PortWord,
        PortWordKey,
        SocketPort,
        SocketSet,
        TaskCounters,
        TaskPorts
    );
}
