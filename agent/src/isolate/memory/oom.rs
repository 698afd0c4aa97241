//! What the kernel ended a task's processes for, and which.

use bytesize::ByteSize;

use crate::kernel::{
    bpf::OomVictim,
    cgroupfs::{Cgroup, flat_key},
};

/// What the kernel counted for a task and all cgroups below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Times that the task itself, or a cgroup of its own, was out of memory.
    pub(super) oom: u64,
    /// Processes that were ended, whoever was out of memory.
    pub(super) kills: u64,
    /// Times that a whole group was ended (Linux 5.17).
    pub(super) groups: u64,
}

impl Counts {
    pub(super) fn read(cgroup: &Cgroup) -> Option<Self> {
        let text = cgroup.read("memory.events").ok()?;
        let value = |key| flat_key(&text, key).unwrap_or(0);
        Some(Self { oom: value("oom"), kills: value("oom_kill"), groups: value("oom_group_kill") })
    }

    /// How many processes were ended, each once. When the kernel ends a group it counts the process that it chose
    /// first, and then every process that it finds in the group, which mostly includes that one. `marked` is how many
    /// the kernel chose: exact, but for those that were ending anyway.
    pub(super) fn processes(&self, marked: Option<u64>) -> u64 {
        let least = self.kills.saturating_sub(self.groups).max(self.kills.min(1));
        marked.map_or(least, |marked| marked.clamp(least, self.kills))
    }
}

/// Which process it was.
pub(super) fn whom(victim: &OomVictim) -> String {
    let swap = match victim.swap_bytes {
        0 => String::new(),
        bytes => format!(", and {} in swap", ByteSize::b(bytes)),
    };
    format!(
        "{} (pid {}) with {} of anonymous memory, {} of files and {} of shared memory{swap}",
        victim.command,
        victim.pid,
        ByteSize::b(victim.anon_bytes),
        ByteSize::b(victim.file_bytes),
        ByteSize::b(victim.shmem_bytes),
    )
}

/// For the last status of a task, and its event: what happened, to whom, and what to do.
pub(super) fn message(counts: Counts, victim: Option<&OomVictim>, max_bytes: u64, peak_bytes: u64) -> String {
    let (limit, peak) = (ByteSize::b(max_bytes), ByteSize::b(peak_bytes));
    let how = match (counts.oom, counts.processes(victim.map(|v| v.victims))) {
        (0, _) => format!("ended by the kernel when the host was out of memory, below its limit of {limit}"),
        (_, 1) => format!("ended by the kernel at its memory limit of {limit}"),
        (_, n) => format!("{n} processes ended by the kernel at the memory limit of {limit}"),
    };
    let whom = victim.map(|v| format!(", of which the largest was {}", whom(v)));
    let advice = if counts.oom == 0 { "the node's reserve is too small" } else { "ask for more memory" };
    format!("{how} (peak {peak}){}: {advice}", whom.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn victim() -> OomVictim {
        OomVictim {
            pid: 41,
            command: "hog".into(),
            anon_bytes: 46 << 20,
            file_bytes: 4096,
            shmem_bytes: 0,
            swap_bytes: 0,
            victims: 2,
        }
    }

    #[test]
    fn the_first_of_a_group_counts_once() {
        let counts = |kills, groups| Counts { oom: 1, kills, groups };
        assert_eq!(counts(3, 1).processes(None), 2, "two processes in one group");
        assert_eq!(counts(3, 1).processes(Some(2)), 2);
        assert_eq!(counts(1, 1).processes(None), 1, "gone before the group was looked through");
        assert_eq!(counts(2, 1).processes(Some(2)), 2, "the same, and another process");
        assert_eq!(counts(2, 0).processes(None), 2, "one at a time");
        assert_eq!(counts(0, 0).processes(Some(1)), 0, "a process that was killed by somebody else");
    }

    proptest! {
        #[test]
        fn counts_never_leave_what_the_kernel_says(kills in 0..100_u64, groups in 0..100_u64, marked: Option<u64>) {
            let n = Counts { oom: 1, kills, groups }.processes(marked);
            prop_assert!(n <= kills && (n > 0) == (kills > 0));
        }
    }

    #[test]
    fn messages_name_the_process_its_size_and_the_limit() {
        let counts = Counts { oom: 1, kills: 3, groups: 1 };
        let text = message(counts, Some(&victim()), 48 << 20, 48 << 20);
        for part in ["2 processes", "48.0 MiB", "hog (pid 41)", "46.0 MiB of anonymous", "4.0 KiB of files"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("swap"), "{text}");
        let one = Counts { oom: 1, kills: 1, groups: 0 };
        assert!(
            message(one, None, 48 << 20, 48 << 20).starts_with("ended by the kernel at its memory limit")
        );
    }

    #[test]
    fn a_task_that_the_host_had_to_end_is_not_told_to_ask_for_more() {
        let counts = Counts { oom: 0, kills: 1, groups: 0 };
        let text = message(counts, None, 1 << 30, 1 << 20);
        assert!(text.contains("the host was out of memory") && !text.contains("ask for"), "{text}");
    }
}
