//! The maps, under the names in `bulkhead_abi::names`.
//!
//! Entries that belong to a task are made and deleted by the agent while programs hold pointers to
//! them. The kernel keeps their memory until the program ends, but may give it to another entry of
//! the same map at once; programs therefore write only counters and hints into them, never a grant.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use bulkhead_abi::{
    Cells, Conversation, DEVICE_RING_BYTES, Denial, DenialKey, DeviceCounters, DeviceKey, EVENT_RING_BYTES,
    HELD_PORT_BYTES, MAX_CONVERSATIONS, MAX_DENIALS, MAX_DEVICE_DENIALS, MAX_DEVICES, MAX_HELD_PORTS,
    MAX_NET_TASKS, MAX_NODE_ADDRESSES, MAX_OPENINGS, MAX_PORT_VERDICTS, MAX_PORT_WORDS, MAX_PREFIXES,
    MAX_TALK_DENIALS, MAX_TASKS, NET_INTERFACES, NetClocks, NetCounters, NetInterface, NetLink, NetRuleDrops,
    NetTask, Opener, Opening, PortVerdicts, PortWord, PortWordKey, SOCKET_SETS, SocketSet, TALK_RING_BYTES,
    TalkCounters, TalkGroups, TalkKey, TalkTask, TaskCounters, TaskPorts, V4_KEY_BYTES, V6_KEY_BYTES,
};

#[map]
pub static TASK_PORTS: HashMap<u64, TaskPorts> = HashMap::with_max_entries(MAX_TASKS, BPF_F_NO_PREALLOC);

#[map]
pub static PORTS: HashMap<PortWordKey, PortWord> =
    HashMap::with_max_entries(MAX_PORT_WORDS, BPF_F_NO_PREALLOC);

#[map]
pub static COUNTERS: HashMap<u64, TaskCounters> = HashMap::with_max_entries(MAX_TASKS, BPF_F_NO_PREALLOC);

#[map]
pub static SOCKETS: Array<SocketSet> = Array::with_max_entries(SOCKET_SETS, 0);

#[map]
pub static DENIALS: HashMap<DenialKey, Denial> = HashMap::with_max_entries(MAX_DENIALS, BPF_F_NO_PREALLOC);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_RING_BYTES, 0);

#[map]
pub static DEVICES: HashMap<DeviceKey, u32> = HashMap::with_max_entries(MAX_DEVICES, BPF_F_NO_PREALLOC);

#[map]
pub static DEVICE_COUNTERS: HashMap<u64, DeviceCounters> =
    HashMap::with_max_entries(MAX_TASKS, BPF_F_NO_PREALLOC);

#[map]
pub static DEVICE_DENIALS: HashMap<DeviceKey, Denial> =
    HashMap::with_max_entries(MAX_DEVICE_DENIALS, BPF_F_NO_PREALLOC);

#[map]
pub static DEVICE_EVENTS: RingBuf = RingBuf::with_byte_size(DEVICE_RING_BYTES, 0);

#[map]
pub static NET_TASKS: HashMap<u64, NetTask> = HashMap::with_max_entries(MAX_NET_TASKS, BPF_F_NO_PREALLOC);

#[map]
pub static NET_DEVICES: Array<NetInterface> = Array::with_max_entries(NET_INTERFACES, 0);

#[map]
pub static NET_LINK: Array<NetLink> = Array::with_max_entries(1, 0);

#[map]
pub static NET_CLOCKS: Array<NetClocks> = Array::with_max_entries(MAX_NET_TASKS, 0);

#[map]
pub static NET_COUNTERS: PerCpuArray<NetCounters> = PerCpuArray::with_max_entries(MAX_NET_TASKS, 0);

#[map]
pub static NET_RULE_DROPS: PerCpuArray<NetRuleDrops> = PerCpuArray::with_max_entries(MAX_NET_TASKS, 0);

#[map]
pub static TALK_TASKS: HashMap<u64, TalkTask> = HashMap::with_max_entries(MAX_TASKS, BPF_F_NO_PREALLOC);

#[map]
pub static TALK_V4: LpmTrie<[u32; V4_KEY_BYTES / 4], Cells> = LpmTrie::with_max_entries(MAX_PREFIXES, 0);

#[map]
pub static TALK_V6: LpmTrie<[u32; V6_KEY_BYTES / 4], Cells> = LpmTrie::with_max_entries(MAX_PREFIXES, 0);

#[map]
pub static TALK_PORTS: HashMap<u32, PortVerdicts> =
    HashMap::with_max_entries(MAX_PORT_VERDICTS, BPF_F_NO_PREALLOC);

#[map]
pub static NODE_ADDRESSES: HashMap<[u32; 4], u32> =
    HashMap::with_max_entries(MAX_NODE_ADDRESSES, BPF_F_NO_PREALLOC);

#[map]
pub static TALK_GROUPS: HashMap<u64, TalkGroups> = HashMap::with_max_entries(MAX_TASKS, BPF_F_NO_PREALLOC);

#[map]
pub static PORT_HOLDERS: LpmTrie<[u8; HELD_PORT_BYTES], u64> = LpmTrie::with_max_entries(MAX_HELD_PORTS, 0);

#[map]
pub static TALK_NAMING: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub static OPENINGS: LruHashMap<Opening, Opener> = LruHashMap::with_max_entries(MAX_OPENINGS, 0);

#[map]
pub static CONVERSATIONS: LruHashMap<Conversation, u32> = LruHashMap::with_max_entries(MAX_CONVERSATIONS, 0);

#[map]
pub static TALK_COUNTERS: HashMap<u64, TalkCounters> =
    HashMap::with_max_entries(MAX_TASKS, BPF_F_NO_PREALLOC);

#[map]
pub static TALK_DENIALS: HashMap<TalkKey, Denial> =
    HashMap::with_max_entries(MAX_TALK_DENIALS, BPF_F_NO_PREALLOC);

#[map]
pub static TALK_EVENTS: RingBuf = RingBuf::with_byte_size(TALK_RING_BYTES, 0);
