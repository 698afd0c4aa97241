//! Traffic: what a task sends and receives is counted by BPF programs at each packet.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use bulkhead_proto::v1;
use nix::unistd::Pid;

use super::{IsolateError, Isolator, TaskPlace};
use crate::{
    grant::Grant,
    kernel::bpf::{NetRules, Rates},
};

/// Needs the BPF programs `net_egress` and `net_ingress` of `ebpf/enforce`.
pub struct Network {
    rules: Arc<NetRules>,
}

impl Network {
    /// Counts tasks' traffic in `rules`.
    pub fn new(rules: Arc<NetRules>) -> Self {
        Self { rules }
    }
}

impl Isolator for Network {
    fn part(&self) -> &'static str {
        "network"
    }

    fn features(&self) -> &'static [&'static str] {
        &["bpf_net"]
    }

    fn prepare(&self, task: &TaskPlace, _grant: &Grant) -> Result<(), IsolateError> {
        Ok(self.rules.set(task.id, Rates::default())?)
    }

    fn attach(&self, task: &TaskPlace, _grant: &Grant, process: Pid) -> Result<(), IsolateError> {
        // A process that has ended already needs nothing.
        let own = has_own_namespace(process).unwrap_or(false);
        if own { Ok(self.rules.set_own_namespace(task.id, true)?) } else { Ok(()) }
    }

    fn update(&self, _task: &TaskPlace, _before: &Grant, _after: &Grant) -> Result<(), IsolateError> {
        Ok(())
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // A newer agent may have brought newer programs, whose tables begin empty.
        self.prepare(task, grant)?;
        let processes = task.cgroup.read("cgroup.procs")?;
        let first = processes.lines().next().and_then(|pid| pid.parse().ok());
        first.map_or(Ok(()), |pid| self.attach(task, grant, Pid::from_raw(pid)))
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Ok(Some(counters)) = self.rules.counters(task.id) else { return };
        let (sent, received) = (counters.sent, counters.received);
        usage.net_sent_bytes = sent.bytes();
        usage.net_sent_packets = sent.packets();
        usage.net_sent_dropped = sent.dropped;
        usage.net_sent_marked = sent.marked;
        usage.net_received_bytes = received.bytes();
        usage.net_received_packets = received.packets();
        usage.net_received_dropped = received.dropped;
        usage.net_received_marked = received.marked;
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        Ok(self.rules.forget(task.id)?)
    }
}

/// Is the process in another network namespace than the agent?
fn has_own_namespace(process: Pid) -> io::Result<bool> {
    let of = |who: &Path| fs::metadata(who.join("ns/net")).map(|ns| ns.ino());
    Ok(of(&Path::new("/proc").join(process.to_string()))? != of(Path::new("/proc/self"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_own_processes_share_its_namespace() {
        assert!(!has_own_namespace(Pid::this()).unwrap());
        assert!(has_own_namespace(Pid::from_raw(i32::MAX)).is_err());
    }
}
