//! Whom a task may talk to: rules that BPF programs look up in every connect and send, and for packets that open something.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use bulkhead_abi::{TalkGroups, denied};
use bulkhead_proto::{
    resources::PortSet,
    v1::{self, EventKind, Protocol},
};
use nix::unistd::Pid;
use sha2::{Digest as _, Sha256};

use super::{IsolateError, Isolator, TaskPlace};
use crate::{
    event::{EventKey, EventLog},
    grant::{Grant, talk::TalkGrant},
    kernel::bpf::{BpfError, DenialStream, NetRules, TalkKey, TalkRules},
    unix_time_ms,
};

pub mod model;
mod verdicts;

pub use verdicts::verdicts;

/// Needs the BPF programs of `ebpf/enforce/src/talk`, loaded and pinned. Without them every grant with rules that refuse
/// something is refused.
pub struct Talk {
    rules: Option<Arc<TalkRules>>,
    /// Of the programs that see packets.
    packets: Option<Arc<NetRules>>,
    events: Arc<EventLog>,
}

impl Talk {
    /// Holds tasks to `rules`, if this kernel has them, and their packets if it has the programs for those; what they
    /// were refused goes into `events`. Must prepare after [`Network`](super::network::Network), which tells the programs
    /// of the task.
    pub fn new(rules: Option<Arc<TalkRules>>, packets: Option<Arc<NetRules>>, events: Arc<EventLog>) -> Self {
        Self { rules, packets, events }
    }

    fn set(&self, task: &TaskPlace, talk: &TalkGrant) -> Result<(), IsolateError> {
        let Some(rules) = &self.rules else {
            if talk.allows_all() {
                return Ok(());
            }
            return Err(IsolateError::Refused(
                "this kernel cannot keep a task from talking to anybody (see `bulkhead-agent probe`, bpf_talk)"
                    .to_owned(),
            ));
        };
        let verdicts = verdicts(talk).map_err(|error| IsolateError::Refused(error.to_string()))?;
        if verdicts.is_some() {
            rules.set_node_addresses(&node_addresses()?)?;
        }
        rules.grant(task.id, groups(task), verdicts.as_ref())?;
        match &self.packets {
            Some(packets) => Ok(packets.set_rules(task.id, verdicts.as_ref())?),
            None if verdicts.is_none() => Ok(()),
            None => Err(IsolateError::Refused(
                "this kernel cannot keep packets from a task (see `bulkhead-agent probe`, bpf_net)"
                    .to_owned(),
            )),
        }
    }

    /// Lets others find the task by its ports, where those are the host's.
    fn hold(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let own = self.packets.as_ref().map_or(Ok(false), |packets| packets.has_own_namespace(task.id))?;
        let ports = if own { &PortSet::default() } else { &grant.ports };
        Ok(rules.hold_ports(task.id, ports)?)
    }

    /// Events are sent at each doubling; in between, and at the end, the map has the exact counts.
    fn record_exact(&self, rules: &TalkRules, task: &TaskPlace) -> Result<(), BpfError> {
        for (key, denial) in rules.denials(task.id)? {
            record(&self.events, &key, denial.count);
        }
        Ok(())
    }
}

/// The addresses of all interfaces.
fn node_addresses() -> Result<BTreeSet<IpAddr>, IsolateError> {
    let interfaces = nix::ifaddrs::getifaddrs()
        .map_err(|errno| IsolateError::Refused(format!("read the addresses of this node: {errno}")))?;
    let address = |storage: nix::sys::socket::SockaddrStorage| match storage.as_sockaddr_in() {
        Some(v4) => Some(IpAddr::V4(v4.ip())),
        None => storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())),
    };
    Ok(interfaces.filter_map(|interface| address(interface.address?)).collect())
}

/// A task whose role is not known, as of a master that does not tell it, belongs with no other.
fn groups(task: &TaskPlace) -> TalkGroups {
    let role = if task.role.is_empty() { task.id } else { number(&task.role) };
    TalkGroups { framework: number(&task.task.0), role }
}

/// Stands for a name. The same in every agent, so that tasks of the one before are recognised.
fn number(name: &str) -> u64 {
    let digest = Sha256::digest(name);
    digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Isolator for Talk {
    fn part(&self) -> &'static str {
        "network rules"
    }

    fn features(&self) -> &'static [&'static str] {
        &["bpf_talk"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // Before the task can be refused anything.
        self.events.bind(task.id, task.task.clone());
        self.set(task, &grant.talk)?;
        self.hold(task, grant)
    }

    fn attach(&self, task: &TaskPlace, grant: &Grant, _process: Pid) -> Result<(), IsolateError> {
        // Known from here on whether it has a network namespace of its own.
        self.hold(task, grant)
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // A newer agent may have brought newer programs, whose tables begin empty.
        self.prepare(task, grant)
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        if before.talk != after.talk {
            self.set(task, &after.talk)?;
        }
        if before.ports == after.ports { Ok(()) } else { self.hold(task, after) }
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Some(rules) = &self.rules else { return };
        let Ok(Some(counted)) = rules.counted(task.id) else { return };
        usage.peers_refused = counted.refused;
        usage.peers_dropped = counted.dropped;
        if counted.refused + counted.dropped > 0
            && let Err(error) = self.record_exact(rules, task)
        {
            tracing::warn!(error = crate::error_chain(&error), "read which peers a task was refused");
        }
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.events.unbind(task.id);
        self.rules.as_ref().map_or(Ok(()), |rules| Ok(rules.revoke(task.id)?))
    }
}

/// Puts refusals into the log as the kernel reports them. Ends only when the ring buffer cannot be read.
pub async fn follow(mut denials: DenialStream<TalkKey>, events: Arc<EventLog>) {
    loop {
        match denials.next().await {
            Ok(denied) => record(&events, &denied.key, denied.count),
            Err(error) => {
                tracing::error!(error = crate::error_chain(&error), "read refused peers from the kernel");
                return;
            }
        }
    }
}

fn record(events: &EventLog, key: &TalkKey, count: u64) {
    // A task that has ended and been cleared: its exact counts were recorded then.
    let Some(task) = events.task_of(key.cgroup_id) else { return };
    let message = message(key);
    let protocol = match i32::from(key.protocol) {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        _ => Protocol::Unspecified,
    };
    let key = EventKey {
        task,
        cgroup_id: key.cgroup_id,
        kind: EventKind::PeerDenied,
        protocol,
        ip_version: if peer(key).is_ipv4() { 4 } else { 6 },
        port: key.port.into(),
        object: message.clone(),
    };
    events.record(key, count, message, unix_time_ms());
}

fn peer(key: &TalkKey) -> IpAddr {
    std::net::Ipv6Addr::from(key.address).to_canonical()
}

fn message(key: &TalkKey) -> String {
    let (protocol, has_ports) = match i32::from(key.protocol) {
        libc::IPPROTO_TCP => ("TCP".to_owned(), true),
        libc::IPPROTO_UDP => ("UDP".to_owned(), true),
        number => (format!("IP protocol {number}"), false),
    };
    let port = if has_ports { format!(" port {}", key.port) } else { String::new() };
    let peer = if key.other == 1 { "peers too many to tell apart".to_owned() } else { peer(key).to_string() };
    match key.what {
        denied::PACKET_IN if key.other == 1 => {
            format!("{protocol} from {peer}, dropped by the network rules")
        }
        denied::PACKET_IN => format!("{protocol} from {peer} to{port}, dropped by the network rules"),
        denied::PACKET_OUT if key.other == 1 => format!("{protocol} to {peer}, dropped by the network rules"),
        denied::PACKET_OUT => format!("{protocol} to {peer}{port}, dropped by the network rules"),
        _ if key.other == 1 => format!("{protocol} to {peer}, refused by the network rules"),
        _ => format!("{protocol} to {peer}{port}, refused by the network rules"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        grant::{Class, plain},
        kernel::cgroupfs::Cgroup,
        metrics::Metrics,
    };

    fn place(role: &str, id: u64) -> TaskPlace {
        let cgroup = Cgroup::at("/nowhere");
        TaskPlace { task: Default::default(), role: role.to_owned(), cgroup, id, sandbox: Default::default() }
    }

    fn key(what: u16, protocol: u16, peer: &str) -> TalkKey {
        let address = match peer.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        TalkKey { cgroup_id: 1, what, protocol, port: 80, other: 0, address: address.octets() }
    }

    #[test]
    fn without_programs_only_tasks_that_may_talk_to_everybody_run() {
        let events = EventLog::new("agent".into(), Arc::new(Metrics::new().unwrap()));
        let talk = Talk::new(None, None, Arc::new(events));
        let place = place("", 1);
        let mut grant = plain(Class::Guaranteed, 500, 1 << 20);
        talk.prepare(&place, &grant).unwrap();
        talk.attach(&place, &grant, Pid::this()).unwrap();
        talk.cleanup(&place).unwrap();
        grant.talk.deny_rest = true;
        let refused = talk.prepare(&place, &grant).unwrap_err().to_string();
        assert!(refused.contains("bpf_talk"), "{refused}");
    }

    #[test]
    fn nobody_shares_a_role_that_is_not_known() {
        assert_eq!(groups(&place("day", 1)), groups(&place("day", 2)));
        assert_ne!(groups(&place("", 1)).role, groups(&place("", 2)).role);
        assert_eq!(groups(&place("", 1)).framework, groups(&place("", 2)).framework);
    }

    #[test]
    fn names_stand_for_themselves_in_every_agent() {
        assert_eq!(number("default"), number("default"));
        assert_ne!(number("default"), number("Default"));
        // What another build of the agent wrote into the maps means the same.
        assert_eq!(number(""), 0xe3b0_c442_98fc_1c14);
    }

    #[test]
    fn a_refusal_names_the_peer_and_the_way() {
        let call = key(denied::CALL, 6, "10.0.0.1");
        assert_eq!(message(&call), "TCP to 10.0.0.1 port 80, refused by the network rules");
        let out = key(denied::PACKET_OUT, 1, "2001:db8::1");
        assert_eq!(message(&out), "IP protocol 1 to 2001:db8::1, dropped by the network rules");
        let packet = key(denied::PACKET_IN, 17, "2001:db8::1");
        assert_eq!(message(&packet), "UDP from 2001:db8::1 to port 80, dropped by the network rules");
        let others = TalkKey { other: 1, port: 0, address: [0; 16], ..call };
        assert_eq!(message(&others), "TCP to peers too many to tell apart, refused by the network rules");
    }
}
