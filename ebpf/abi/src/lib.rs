//! The types that BPF programs and the agent share, each defined once.
//!
//! `enforce` (Rust) and the agent use them directly; `observe` (C) includes a header that
//! [`C_HEADER`] is written to at build time. Every type is plain integers without padding, so that
//! each byte of a map's value has one meaning; the layout is asserted below, at compile time.
//!
//! Pinned maps outlive the agent that made them. Whoever changes a layout, or what a field means,
//! raises [`ABI_VERSION`]; agents then load anew instead of adopting what they would misread.
#![no_std]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

mod c;
mod connections;
mod devices;
mod exits;
mod foreign;
mod latency;
mod net;
mod ooms;
mod ports;
mod talk;

pub use connections::{ConnectionCounters, RTT_BUCKETS, RTT_FIRST_BOUND_USEC, rtt_bound_usec};
pub use devices::{
    DEVICE_RING_BYTES, DeviceCounters, DeviceKey, HARMLESS_DEVICES, MAX_DENIED_DEVICES, MAX_DEVICE_DENIALS,
    MAX_DEVICES, PTS_MAJORS, device_access, device_kind,
};
pub use exits::{ExitRecord, MAX_EXITS};
pub use foreign::{ForeignTime, MAX_OWNERS};
pub use latency::{
    BlockIoCounters, LATENCY_BUCKETS, LATENCY_FIRST_BOUND_BITS, RunqueueCounters, latency_bound_ns,
    preempted_by,
};
pub use net::{
    BORROW_HORIZON_NS, FRAME_BYTES, MARK_AFTER_NS, MAX_NET_TASKS, NET_INTERFACES, NS_PER_BYTE_SHIFT,
    NetClocks, NetCount, NetCounters, NetInterface, NetLink, NetRate, NetRuleDrops, NetTask, PACED_CREDIT_NS,
    POLICED_CREDIT_NS, net_interface, net_task,
};
pub use ooms::{MAX_OOMS, OomRecord};
pub use ports::{
    COMM_LEN, Denial, DenialEvent, DenialKey, EVENT_RING_BYTES, INDEX_WORDS, MAX_DENIALS, MAX_DENIED_PORTS,
    MAX_PORT_WORDS, MAX_TASKS, OLDEST_PORTS_VERSION, PORTS_PER_WORD, PORTS_VERSION, PortWord, PortWordKey,
    Protocol, SOCKET_SETS, SOCKET_WAYS, SocketPort, SocketSet, TaskCounters, TaskPorts, denied_call,
    port_choice, socket_kind, socket_set,
};
pub use talk::{
    CELLS, Cells, Conversation, HELD_CLASS_BITS, HELD_PORT_BYTES, INGRESS_CELL, MAX_CONVERSATIONS,
    MAX_DENIED_PEERS, MAX_HELD_PORTS, MAX_NODE_ADDRESSES, MAX_OPENINGS, MAX_PORT_VERDICTS, MAX_PREFIXES,
    MAX_STRETCHES, MAX_TALK_DENIALS, OPENING_NS, Opener, Opening, PortVerdicts, SET_BITS, TALK_RING_BYTES,
    TalkCounters, TalkGroups, TalkKey, TalkTask, V4_KEY_BYTES, V6_KEY_BYTES, class, denied, talk_flag,
    verdict,
};

/// Version of every layout in this crate but those of ports ([`PORTS_VERSION`]), part of the name of the pin directories.
pub const ABI_VERSION: u32 = 1;

/// The C declarations of the types that `observe` uses. They expect `__u8`, `__u32` and `__u64` to be defined.
pub const C_HEADER: [&str; 11] = [
    BlockIoCounters::C_DECLARATION,
    ConnectionCounters::C_DECLARATION,
    ExitRecord::C_DECLARATION,
    ForeignTime::C_DECLARATION,
    OomRecord::C_DECLARATION,
    RunqueueCounters::C_DECLARATION,
    TaskPorts::C_DECLARATION,
    TaskCounters::C_DECLARATION,
    DenialKey::C_DECLARATION,
    Denial::C_DECLARATION,
    ports::C_DENIAL_EVENT,
];

/// Numbers that `observe` uses, as macros of C.
pub const C_CONSTANTS: [(&str, u32); 16] = [
    ("MAX_TASKS", MAX_TASKS),
    ("MAX_DENIALS", MAX_DENIALS),
    ("EVENT_RING_BYTES", EVENT_RING_BYTES),
    ("RTT_BUCKETS", RTT_BUCKETS),
    ("RTT_FIRST_BOUND_USEC", RTT_FIRST_BOUND_USEC),
    ("LATENCY_BUCKETS", LATENCY_BUCKETS),
    ("LATENCY_FIRST_BOUND_BITS", LATENCY_FIRST_BOUND_BITS),
    ("PREEMPTED_BY_GUARANTEED", preempted_by::GUARANTEED),
    ("PREEMPTED_BY_REVOCABLE", preempted_by::REVOCABLE),
    ("PREEMPTED_BY_STRANGERS", preempted_by::STRANGERS),
    ("PREEMPTED_BY_KERNEL", preempted_by::KERNEL),
    ("PORT_CHOICE_DEFAULT", port_choice::DEFAULT),
    ("PORT_CHOICE_LISTEN_EPHEMERAL", port_choice::LISTEN_EPHEMERAL),
    ("SOCKET_KIND_PACKET", socket_kind::PACKET),
    ("DENIED_LISTEN", denied_call::LISTEN as u32),
    ("DENIED_SOCKET", denied_call::SOCKET as u32),
];

/// Names of maps, programs and globals: the identifiers in `enforce` and `observe`, and the names
/// under which they are pinned.
pub mod names {
    /// Read-only global of `enforce`: the level, below the root of the hierarchy, of task cgroups.
    pub const TASK_LEVEL: &str = "TASK_LEVEL";

    /// Read-only global of `enforce`: the cookie of the network namespace in which ports are held, 0 for every one.
    pub const HOST_NETNS: &str = "HOST_NETNS";

    /// Cgroup id of a task -> [`TaskPorts`](crate::TaskPorts). The agent writes.
    pub const TASK_PORTS: &str = "TASK_PORTS";
    /// [`PortWordKey`](crate::PortWordKey) -> [`PortWord`](crate::PortWord). The agent makes, programs write hints.
    pub const PORTS: &str = "PORTS";
    /// Cgroup id of a task -> [`TaskCounters`](crate::TaskCounters). The agent makes, programs write.
    pub const COUNTERS: &str = "COUNTERS";
    /// [`socket_set`](crate::socket_set) -> [`SocketSet`](crate::SocketSet). Programs write.
    pub const SOCKETS: &str = "SOCKETS";
    /// [`DenialKey`](crate::DenialKey) -> [`Denial`](crate::Denial). Programs write.
    pub const DENIALS: &str = "DENIALS";
    /// Ring buffer of [`DenialEvent`](crate::DenialEvent).
    pub const EVENTS: &str = "EVENTS";
    /// The maps of `enforce` that are about ports.
    pub const ENFORCE_MAPS: [&str; 6] = [TASK_PORTS, PORTS, COUNTERS, SOCKETS, DENIALS, EVENTS];

    /// The programs of `enforce` that are about ports, each attached once to the root of the tasks' cgroups.
    pub const ENFORCE_PROGRAMS: [&str; 8] = [
        "bind4",
        "bind6",
        "port_connect4",
        "port_connect6",
        "port_sendmsg4",
        "port_sendmsg6",
        "sock_create",
        "sock_release",
    ];

    /// The programs of `observe/listen` and their pinned links. They use maps of [`ENFORCE_MAPS`].
    pub const LISTEN_PROGRAMS: [&str; 2] = ["socket_listen", "socket_create"];

    /// [`DeviceKey`](crate::DeviceKey) -> bits of [`device_access`](crate::device_access). The agent writes.
    pub const DEVICES: &str = "DEVICES";
    /// Cgroup id of a task -> [`DeviceCounters`](crate::DeviceCounters). The agent makes, programs write.
    pub const DEVICE_COUNTERS: &str = "DEVICE_COUNTERS";
    /// [`DeviceKey`](crate::DeviceKey) -> [`Denial`](crate::Denial). Programs write.
    pub const DEVICE_DENIALS: &str = "DEVICE_DENIALS";
    /// Ring buffer of [`DenialEvent`](crate::DenialEvent)s about a [`DeviceKey`](crate::DeviceKey).
    pub const DEVICE_EVENTS: &str = "DEVICE_EVENTS";
    /// The maps of `enforce` that are about devices; pinned by themselves.
    pub const DEVICE_MAPS: [&str; 4] = [DEVICES, DEVICE_COUNTERS, DEVICE_DENIALS, DEVICE_EVENTS];
    /// The program of `enforce` that is about devices, and its pinned link.
    pub const DEVICE_PROGRAM: &str = "device";

    /// Cgroup id of a task -> [`NetTask`](crate::NetTask). The agent writes.
    pub const NET_TASKS: &str = "NET_TASKS";
    /// Index of an interface modulo [`NET_INTERFACES`](crate::NET_INTERFACES) -> [`NetInterface`](crate::NetInterface).
    /// The agent writes.
    pub const NET_DEVICES: &str = "NET_DEVICES";
    /// 0 -> [`NetLink`](crate::NetLink). The agent writes.
    pub const NET_LINK: &str = "NET_LINK";
    /// Slot -> [`NetClocks`](crate::NetClocks). Programs write.
    pub const NET_CLOCKS: &str = "NET_CLOCKS";
    /// Slot -> [`NetCounters`](crate::NetCounters) of each CPU. Programs write.
    pub const NET_COUNTERS: &str = "NET_COUNTERS";
    /// Slot -> [`NetRuleDrops`](crate::NetRuleDrops) of each CPU. Programs write.
    pub const NET_RULE_DROPS: &str = "NET_RULE_DROPS";
    /// The maps of `enforce` that are about traffic; pinned by themselves.
    pub const NET_MAPS: [&str; 6] =
        [NET_TASKS, NET_DEVICES, NET_LINK, NET_CLOCKS, NET_COUNTERS, NET_RULE_DROPS];
    /// The programs of `enforce` that are about traffic, and their pinned links.
    pub const NET_PROGRAMS: [&str; 2] = ["net_egress", "net_ingress"];
    /// Cgroup id of a task -> [`TalkTask`](crate::TalkTask). The agent writes.
    pub const TALK_TASKS: &str = "TALK_TASKS";
    /// Longest prefix of a set's number (big endian) and an IPv4 address -> [`Cells`](crate::Cells). The agent writes.
    pub const TALK_V4: &str = "TALK_V4";
    /// The same for IPv6 addresses.
    pub const TALK_V6: &str = "TALK_V6";
    /// A number in a cell -> [`PortVerdicts`](crate::PortVerdicts). The agent writes.
    pub const TALK_PORTS: &str = "TALK_PORTS";
    /// Address of this node, IPv4 as mapped into IPv6 -> 1. The agent writes.
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
    /// Cgroup id of a task, with rules or without -> [`TalkGroups`](crate::TalkGroups). The agent writes.
    pub const TALK_GROUPS: &str = "TALK_GROUPS";
    /// Longest prefix of a [`class`](crate::class) (16 bits) and a port of the host, both big endian -> cgroup id of the
    /// task that it was granted to. The agent writes.
    pub const PORT_HOLDERS: &str = "PORT_HOLDERS";
    /// 0 -> how many tasks have rules that name tasks. The agent writes.
    pub const TALK_NAMING: &str = "TALK_NAMING";
    /// [`Opening`](crate::Opening) -> [`Opener`](crate::Opener), while any rules name tasks. Programs write.
    pub const OPENINGS: &str = "OPENINGS";
    /// [`Conversation`](crate::Conversation) -> 1. Programs write.
    pub const CONVERSATIONS: &str = "CONVERSATIONS";
    /// Cgroup id of a task -> [`TalkCounters`](crate::TalkCounters). The agent makes, programs write.
    pub const TALK_COUNTERS: &str = "TALK_COUNTERS";
    /// [`TalkKey`](crate::TalkKey) -> [`Denial`](crate::Denial). Programs write.
    pub const TALK_DENIALS: &str = "TALK_DENIALS";
    /// Ring buffer of [`DenialEvent`](crate::DenialEvent)s about a [`TalkKey`](crate::TalkKey).
    pub const TALK_EVENTS: &str = "TALK_EVENTS";
    /// The maps of `enforce` that are about who may talk to whom; pinned by themselves.
    pub const TALK_MAPS: [&str; 13] = [
        TALK_TASKS,
        TALK_V4,
        TALK_V6,
        TALK_PORTS,
        NODE_ADDRESSES,
        TALK_GROUPS,
        PORT_HOLDERS,
        TALK_NAMING,
        OPENINGS,
        CONVERSATIONS,
        TALK_COUNTERS,
        TALK_DENIALS,
        TALK_EVENTS,
    ];
    /// The programs of `enforce` that decide who may talk to whom, by call; each is attached as those about ports are.
    pub const TALK_PROGRAMS: [&str; 4] = ["talk_connect4", "talk_connect6", "talk_sendmsg4", "talk_sendmsg6"];

    /// Cgroup id of a task -> [`ConnectionCounters`](crate::ConnectionCounters) of each CPU. The agent makes, `observe` adds.
    pub const CONNECTIONS: &str = "connections";
    /// The program that counts connections, and its pinned link.
    pub const CONNECTIONS_PROGRAM: &str = "count_connections";

    /// Cgroup id of a task -> [`ExitRecord`](crate::ExitRecord). Made by the agent, completed by `observe`.
    pub const EXITS: &str = "exits";
    /// The pinned link of the program that records exits.
    pub const EXIT_LINK: &str = "process_exit";

    /// Cgroup id of a task -> [`RunqueueCounters`](crate::RunqueueCounters) of each CPU. The agent makes, `observe` adds.
    pub const RUNQUEUE: &str = "runqueue";
    /// What is kept with each thread of a task.
    pub const THREADS: &str = "threads";
    /// The pinned link of the program that makes room for it.
    pub const THREADS_LINK: &str = "sched_process_fork";
    /// The pinned program that counts waits. It has no pinned link: the agent attaches it for a while, again and again.
    pub const RUNQUEUE_PROGRAM: &str = "sched_switch";

    /// Cgroup id of a task -> [`BlockIoCounters`](crate::BlockIoCounters) of each CPU. The agent makes, `observe` adds.
    pub const BLOCK_IO: &str = "block_io";
    /// The pinned link of the program that counts requests for disks.
    pub const BLOCK_IO_LINK: &str = "block_rq_complete";

    /// Cgroup id of a task -> [`OomRecord`](crate::OomRecord). Made by the agent, filled by `observe`.
    pub const OOMS: &str = "ooms";
    /// The pinned link of the program that records victims of the out-of-memory killer.
    pub const OOM_LINK: &str = "mark_victim";
    /// CPU -> cgroup id of the task that owns it, or 0. The agent writes.
    pub const CORE_OWNERS: &str = "core_owners";
    /// Cgroup id of an owner -> [`ForeignTime`](crate::ForeignTime). The agent makes, the program adds.
    pub const FOREIGN_TIMES: &str = "foreign_times";
    /// The pinned program that counts foreign time.
    pub const FOREIGN_PROGRAM: &str = "sched_switch";
    /// Its pinned link, while some core has an owner.
    pub const FOREIGN_LINK: &str = "sched_switch_link";
}
