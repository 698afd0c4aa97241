//! The BPF programs: loading them once, and typed handles to what they share with the agent.
//!
//! ```text
//! agent --ensure_loaded--> short-lived child --load_and_pin--> /sys/fs/bpf/bulkhead/{ports-...,devices-...,talk-...,
//!     net-...,connections-...,exits-...,ooms-...,foreign-...,runqueue-...,block_io-...}
//! agent <--PortRules, DeviceRules, TalkRules, NetRules, ConnectionCounts, DenialStream, ExitRecords, OomRecords,
//!     ForeignTimes, RunqueueCounts, BlockIoCounts-- the same pins
//! ```
//!
//! Programs and maps are pinned: they hold while the agent is down, and a restarted agent adopts
//! them. Loading happens in a child, because it parses the kernel's type information, which would
//! cost the agent 20 to 50 MB at its start; opening pinned maps costs it less than one.
//!
//! Handles are `Send + Sync`, and their calls are short system calls without waiting.

mod counts;
mod denials;
mod devices;
mod error;
mod exits;
mod foreign;
mod grace;
mod holders;
mod link;
mod load;
mod lsm;
mod migrate;
mod net;
mod ooms;
mod per_cpu;
mod pins;
mod ports;
mod probe;
mod runqueue;
mod table;
mod talk;
mod trie;

pub use counts::{BlockIoCounts, ConnectionCounts, Counters, TaskCounts};
pub use denials::DenialStream;
pub use devices::{DeviceId, DeviceRules, access_name};
pub use error::BpfError;
pub use exits::ExitRecords;
pub use foreign::ForeignTimes;
pub use load::{LoadReport, load_and_pin};
pub use net::{NetRules, Rates};
pub use ooms::{OomRecords, OomVictim};
pub use pins::{LOAD_SUBCOMMAND, LoadSpec, Loaded, ensure_loaded, loader_command, remove};
pub use ports::{PortGrant, PortRules};
pub use probe::{
    Support, probe_connections, probe_devices, probe_exits, probe_listen, probe_net, probe_ooms, probe_ports,
    probe_runqueue, probe_talk,
};
pub use runqueue::{Look, RunqueueCounts};
pub use talk::{PrefixVerdicts, TalkRules, Verdicts};

pub use bulkhead_abi::{
    BlockIoCounters, ConnectionCounters, Denial, DenialEvent, DenialKey, DeviceKey, ForeignTime,
    LATENCY_BUCKETS, NetCount, NetCounters, NetRuleDrops, RunqueueCounters, TalkCounters, TalkKey,
    latency_bound_ns, preempted_by,
};
