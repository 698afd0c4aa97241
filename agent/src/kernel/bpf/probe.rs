//! Can this kernel hold ports and devices, and record exits? Cheap: a few tiny programs, no type information read.

use std::{error::Error, fs, os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    maps::MapType,
    programs::{LsmAttachType, ProgramType},
    sys::{is_map_supported, is_program_supported},
};

use super::lsm;

const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The inode of the initial PID namespace, the same on every machine.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A kernel feature, as found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// It can be used.
    pub available: bool,
    /// Why not, and what would change that. Empty where it is available.
    pub reason: String,
}

impl From<Result<(), String>> for Support {
    fn from(result: Result<(), String>) -> Self {
        Self { available: result.is_ok(), reason: result.err().unwrap_or_default() }
    }
}

/// Whether port grants can be enforced. The last word has the load itself.
pub fn probe_ports() -> Support {
    has_bpffs()
        .and_then(|()| program(ProgramType::CgroupSockAddr, "CONFIG_CGROUP_BPF, kernel 4.17"))
        .and_then(|()| program(ProgramType::CgroupSock, "CONFIG_CGROUP_BPF, kernel 4.10"))
        .and_then(|()| map(MapType::LruHash, "kernel 4.10"))
        .and_then(|()| map(MapType::RingBuf, "kernel 5.8"))
        .into()
}

/// Whether listen() without bind, and packet sockets, can be refused. The last word has the load itself.
pub fn probe_listen() -> Support {
    has_bpffs()
        .and_then(|()| lsm::active())
        .and_then(|()| {
            program(ProgramType::Lsm(LsmAttachType::Cgroup), "CONFIG_BPF_LSM, kernel 6.0 for cgroups")
        })
        .and_then(|()| has_btf())
        .into()
}

/// Whether devices can be held. The last word has the load itself: before 6.1 these programs could not ask for the
/// cgroup of a task.
pub fn probe_devices() -> Support {
    has_bpffs()
        .and_then(|()| program(ProgramType::CgroupDevice, "CONFIG_CGROUP_BPF, kernel 4.15"))
        .and_then(|()| map(MapType::RingBuf, "kernel 5.8"))
        .into()
}

/// Whether traffic can be held and counted. The last word has the load itself.
pub fn probe_net() -> Support {
    has_bpffs()
        .and_then(|()| program(ProgramType::CgroupSkb, "CONFIG_CGROUP_BPF, kernel 4.10"))
        .and_then(|()| map(MapType::PerCpuArray, "kernel 4.6"))
        .into()
}

/// Whether connections can be counted. The last word has the load itself: before 5.15 a socket does not plainly say
/// whose it is.
pub fn probe_connections() -> Support {
    has_bpffs()
        .and_then(|()| program(ProgramType::SockOps, "CONFIG_CGROUP_BPF, kernel 4.13"))
        .and_then(|()| map(MapType::PerCpuHash, "kernel 4.6"))
        .and_then(|()| has_btf())
        .into()
}

/// Whether tasks can be kept from talking to somebody. The last word has the load itself.
pub fn probe_talk() -> Support {
    has_bpffs()
        .and_then(|()| program(ProgramType::CgroupSockAddr, "CONFIG_CGROUP_BPF, kernel 4.17"))
        .and_then(|()| map(MapType::LpmTrie, "kernel 4.11"))
        .and_then(|()| map(MapType::LruHash, "kernel 4.10"))
        .and_then(|()| map(MapType::RingBuf, "kernel 5.8"))
        .into()
}

/// Whether the end of tasks is recorded for an agent that restarts.
pub fn probe_exits() -> Support {
    observable("CONFIG_BPF_EVENTS, kernel 4.17", ProgramType::RawTracePoint).into()
}

/// Whether victims of the out-of-memory killer are recorded. Kernels whose tracepoint has only a process id, and
/// not the process, refuse the program when it is loaded.
pub fn probe_ooms() -> Support {
    observable("CONFIG_BPF_EVENTS, kernel 5.5", ProgramType::Tracing).into()
}

/// Whether waits of tasks for a CPU are counted. The last word has the load itself: typed tracepoints with storage for each
/// thread came with 5.11, the arguments that the program reads with 5.18, the fields with `CONFIG_SCHED_INFO` and
/// `CONFIG_CFS_BANDWIDTH`.
pub fn probe_runqueue() -> Support {
    observable("CONFIG_BPF_EVENTS, kernel 4.17", ProgramType::RawTracePoint).into()
}

/// What programs of `observe` need: type information, and process ids that mean the same to them and the agent.
fn observable(needs: &str, kind: ProgramType) -> Result<(), String> {
    has_bpffs().and_then(|()| program(kind, needs)).and_then(|()| has_btf())?;
    match fs::metadata("/proc/self/ns/pid").map(|ns| ns.ino()) {
        Ok(INITIAL_PID_NAMESPACE) => Ok(()),
        Ok(_) => Err("the agent is in a PID namespace of its own: run it in the host's".into()),
        Err(e) => Err(format!("look up /proc/self/ns/pid: {e}")),
    }
}

fn has_btf() -> Result<(), String> {
    match Path::new(BTF).exists() {
        true => Ok(()),
        false => Err(format!("no {BTF}: the kernel needs CONFIG_DEBUG_INFO_BTF")),
    }
}

fn has_bpffs() -> Result<(), String> {
    let known =
        fs::read_to_string("/proc/filesystems").map_err(|e| format!("read /proc/filesystems: {e}"))?;
    if known.split_whitespace().any(|name| name == "bpf") {
        return Ok(());
    }
    Err("the kernel has no BPF file system: it needs CONFIG_BPF_SYSCALL".into())
}

fn program(kind: ProgramType, needs: &str) -> Result<(), String> {
    answer(is_program_supported(kind), &format!("BPF programs of type {kind:?}"), needs)
}

fn map(kind: MapType, needs: &str) -> Result<(), String> {
    answer(is_map_supported(kind), &format!("BPF maps of type {kind:?}"), needs)
}

fn answer<E: Error>(found: Result<bool, E>, what: &str, needs: &str) -> Result<(), String> {
    match found {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("the kernel has no {what} ({needs})")),
        Err(e) => Err(format!(
            "{what}: {}; the agent needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
            crate::error_chain(&e)
        )),
    }
}
