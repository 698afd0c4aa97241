//! What fuzzers call with arbitrary bytes. Each panics when an invariant is broken.

use std::time::Duration;

use bulkhead_proto::v1;
use prost::Message as _;

use crate::{
    grant::{Grant, GrantDefaults, MIN_CPU_MILLI, MIN_MEM_BYTES},
    launch::{capability::CapSet, seccomp::Filter},
};

/// Of an agent, for what a grant leaves open.
pub const DEFAULTS: GrantDefaults = GrantDefaults {
    pids_max: 1024,
    disk_bytes: 256 << 20,
    output_bytes: 64 << 20,
    stall_percent: 80,
    stall_for: Duration::from_secs(10),
};

/// Checks the bytes as the grant of a task.
///
/// # Panics
/// When a grant is taken that no kernel can hold.
pub fn grant(data: &[u8]) {
    let Ok(asked) = v1::Grant::decode(data) else { return };
    let Ok(grant) = Grant::check(Some(&asked), &DEFAULTS) else { return };
    assert!(grant.cpu_milli >= MIN_CPU_MILLI && grant.mem_bytes >= MIN_MEM_BYTES);
    assert!(grant.mem.max_bytes >= grant.mem_bytes, "a limit below what is promised");
    assert!(grant.mem.high_bytes.is_none_or(|high| high <= grant.mem.max_bytes));
    assert!(grant.cpu.cap_milli.is_none_or(|cap| cap >= grant.cpu_milli), "a cap below what is promised");
    assert!(grant.pids_max > 0, "a task that cannot start");
    for device in &grant.devices {
        let plain = device.path.components().all(|part| part.as_os_str() != "..");
        assert!(device.path.starts_with("/dev") && plain, "{}", device.path.display());
    }
}

/// Reads the bytes as a profile of system calls, for a task without capabilities and for one with all of them.
///
/// # Panics
/// When a filter is made that the kernel would not take.
pub fn seccomp_profile(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for caps in [CapSet::EMPTY, CapSet::ALL] {
        let Ok(filter) = Filter::parse(text, caps) else { continue };
        let program = filter.program();
        assert!((1..=4096).contains(&program.len()));
        for (at, instruction) in program.iter().enumerate() {
            let (jump, class) = (u32::from(instruction.code & 0xf0), u32::from(instruction.code & 7));
            let far = match (class, jump) {
                (libc::BPF_JMP, libc::BPF_JA) => usize::try_from(instruction.k).unwrap_or(usize::MAX),
                (libc::BPF_JMP, _) => usize::from(instruction.jt.max(instruction.jf)),
                (libc::BPF_RET, _) => continue,
                _ => 0,
            };
            assert!(far < program.len() - at - 1, "instruction {at} leads out of the program");
        }
    }
}
