//! Ports: a set of bits for each task, looked at by BPF programs in every bind, and a policy for what nobody binds.

use std::sync::Arc;

use bulkhead_abi::{denied_call, port_choice, socket_kind};
use bulkhead_proto::v1::{self, EventKind, PortChoice, Protocol, SocketKind};

use super::{IsolateError, Isolator, TaskPlace};
use crate::{
    event::{EventKey, EventLog},
    grant::{Grant, NetGrant},
    kernel::bpf::{BpfError, DenialKey, DenialStream, PortGrant, PortRules},
    unix_time_ms,
};

/// The kind in [`Config::allow_unenforced`](crate::config::Config::allow_unenforced) that stands for
/// [`PortLimits::listen_waived`].
pub const PORT_CHOICE: &str = "port_choice";

/// What this node's kernel and operator let tasks ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortLimits {
    /// Why listen() without bind cannot be refused here, where it cannot.
    pub listen_uncovered: Option<String>,
    /// The operator does without that.
    pub listen_waived: bool,
    /// Kinds of sockets that may be granted.
    pub sockets: Vec<SocketKind>,
}

/// Needs the BPF programs of `ebpf/enforce`, loaded and pinned. Without them every grant that asks for a policy is
/// refused.
pub struct Ports {
    rules: Option<Arc<PortRules>>,
    limits: PortLimits,
    events: Arc<EventLog>,
}

impl Ports {
    /// Holds tasks to `rules`, if this kernel has them; what they were refused goes into `events`.
    pub fn new(rules: Option<Arc<PortRules>>, limits: PortLimits, events: Arc<EventLog>) -> Self {
        Self { rules, limits, events }
    }

    fn set(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.limits.check(&grant.net)?;
        let Some(rules) = &self.rules else {
            return match grant.net == NetGrant::default() {
                true => Ok(()),
                false => Err(IsolateError::Refused(
                    "this kernel holds no ports (see `bulkhead-agent probe`, bpf_ports): neither port_choice nor \
                     sockets can be granted"
                        .to_owned(),
                )),
            };
        };
        let ports = grant.ports.clone();
        let sockets = grant.net.sockets.iter().fold(0, |bits, kind| bits | socket_bit(*kind));
        Ok(rules.grant(task.id, &PortGrant { ports, choice: choice_bits(grant.net.port_choice), sockets })?)
    }

    /// Events are sent at each doubling; in between, and at the end, the map has the exact counts.
    fn record_exact(&self, rules: &PortRules, task: &TaskPlace) -> Result<(), BpfError> {
        for (key, denial) in rules.denials(task.id)? {
            record(&self.events, &key, denial.count);
        }
        Ok(())
    }
}

impl Isolator for Ports {
    fn part(&self) -> &'static str {
        "ports"
    }

    fn features(&self) -> &'static [&'static str] {
        &["bpf_ports"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // Before the task can be refused anything.
        self.events.bind(task.id, task.task.clone());
        self.set(task, grant)
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // A newer agent may have brought newer programs, whose tables begin empty.
        self.prepare(task, grant)
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        if (&before.ports, &before.net) == (&after.ports, &after.net) {
            Ok(())
        } else {
            self.set(task, after)
        }
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Some(rules) = &self.rules else { return };
        usage.ports_refused = rules.total_denied(task.id).unwrap_or(usage.ports_refused);
        if usage.ports_refused > 0
            && let Err(error) = self.record_exact(rules, task)
        {
            tracing::warn!(error = crate::error_chain(&error), "read what ports a task was refused");
        }
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.events.unbind(task.id);
        self.rules.as_ref().map_or(Ok(()), |rules| Ok(rules.revoke(task.id)?))
    }
}

impl PortLimits {
    /// Can the policy be held here, and are the sockets allowed?
    fn check(&self, net: &NetGrant) -> Result<(), IsolateError> {
        let refused = |why: String| Err(IsolateError::Refused(why));
        if let Some(kind) = net.sockets.iter().find(|kind| !self.sockets.contains(kind)) {
            let name = kind.as_str_name().trim_start_matches("SOCKET_KIND_").to_lowercase();
            return refused(format!("{name} sockets: this agent grants none (allow_sockets)"));
        }
        let strict = matches!(net.port_choice, PortChoice::Granted | PortChoice::None);
        match &self.listen_uncovered {
            Some(why) if strict && !self.listen_waived => refused(format!(
                "port_choice: this kernel cannot refuse listen() on a socket without a port ({why}); choose \
                 clients_ephemeral, or have the operator allow it (allow_unenforced = [\"port_choice\"])"
            )),
            _ => Ok(()),
        }
    }
}

fn choice_bits(choice: PortChoice) -> u32 {
    match choice {
        PortChoice::Unspecified | PortChoice::ClientsEphemeral => port_choice::DEFAULT,
        PortChoice::Granted => port_choice::BIND_GRANTED | port_choice::CLIENT_GRANTED,
        PortChoice::Ephemeral => {
            port_choice::BIND_EPHEMERAL | port_choice::CLIENT_EPHEMERAL | port_choice::LISTEN_EPHEMERAL
        }
        PortChoice::None => 0,
    }
}

fn socket_bit(kind: SocketKind) -> u32 {
    match kind {
        SocketKind::Unspecified => 0,
        SocketKind::Raw => socket_kind::RAW,
        SocketKind::Sctp => socket_kind::SCTP,
        SocketKind::Packet => socket_kind::PACKET,
    }
}

/// Puts refusals into the log as the kernel reports them. Ends only when the ring buffer cannot be read.
pub async fn follow(mut denials: DenialStream, events: Arc<EventLog>) {
    loop {
        match denials.next().await {
            Ok(denied) => record(&events, &denied.key, denied.count),
            Err(error) => {
                tracing::error!(error = crate::error_chain(&error), "read refusals from the kernel");
                return;
            }
        }
    }
}

fn record(events: &EventLog, key: &DenialKey, count: u64) {
    // A task that has ended and been cleared: its exact counts were recorded then.
    let Some(task) = events.task_of(key.cgroup_id) else { return };
    let protocol = match i32::from(key.protocol) {
        libc::IPPROTO_UDP => Protocol::Udp,
        libc::IPPROTO_TCP => Protocol::Tcp,
        _ => Protocol::Unspecified,
    };
    // The type of a socket is none.
    let port = if key.call == denied_call::SOCKET { 0 } else { u32::from(key.port) };
    let ip_version = u32::from(key.ip_version);
    let event = EventKey {
        task,
        cgroup_id: key.cgroup_id,
        kind: EventKind::PortDenied,
        protocol,
        ip_version,
        port,
        object: object(key),
    };
    events.record(event, count, message(key), unix_time_ms());
}

/// Sets apart what has the same port: the call, and of a socket what it was to be.
fn object(key: &DenialKey) -> String {
    match key.call {
        denied_call::BIND => String::new(),
        denied_call::OTHERS => "others".to_owned(),
        denied_call::CONNECT => "connect".to_owned(),
        denied_call::SEND => "send".to_owned(),
        denied_call::LISTEN => "listen".to_owned(),
        _ => format!("socket {} {}", key.port, key.protocol),
    }
}

fn message(key: &DenialKey) -> String {
    let policy = "and the grant's port_choice allows none";
    match (key.call, key.port) {
        (denied_call::BIND, 0) => format!("bind to a port of the kernel's choice, {policy}"),
        (denied_call::BIND, port) => format!("bind to port {port}, which is not in the grant"),
        (denied_call::OTHERS, _) => "ports outside the grant, too many to tell apart".to_owned(),
        (denied_call::CONNECT, _) => format!("connect from a port of the kernel's choice, {policy}"),
        (denied_call::SEND, port) => format!("send from port {port} of the kernel's choice, {policy}"),
        (denied_call::LISTEN, _) => format!("listen on a port of the kernel's choice, {policy}"),
        (_, kind) => {
            format!("a socket of type {kind}, protocol {}, which the grant does not name", key.protocol)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(limits: &PortLimits, port_choice: PortChoice, sockets: &[SocketKind]) -> Result<(), String> {
        let net = NetGrant { port_choice, sockets: sockets.to_vec() };
        limits.check(&net).map_err(|e| e.to_string())
    }

    #[test]
    fn what_cannot_be_held_is_refused_with_the_reason() {
        let covered = PortLimits::default();
        let uncovered = PortLimits { listen_uncovered: Some("no bpf LSM".to_owned()), ..covered.clone() };
        let waived = PortLimits { listen_waived: true, ..uncovered.clone() };
        for strict in [PortChoice::Granted, PortChoice::None] {
            assert_eq!(check(&covered, strict, &[]), Ok(()));
            assert_eq!(check(&waived, strict, &[]), Ok(()));
            let error = check(&uncovered, strict, &[]).unwrap_err();
            assert!(error.contains("no bpf LSM") && error.contains("allow_unenforced"), "{error}");
        }
        for lax in [PortChoice::ClientsEphemeral, PortChoice::Ephemeral] {
            assert_eq!(check(&uncovered, lax, &[]), Ok(()));
        }
    }

    #[test]
    fn sockets_are_the_operators_to_allow() {
        let limits = PortLimits { sockets: vec![SocketKind::Raw], ..PortLimits::default() };
        let lax = PortChoice::ClientsEphemeral;
        assert_eq!(check(&limits, lax, &[SocketKind::Raw]), Ok(()));
        let error = check(&limits, lax, &[SocketKind::Raw, SocketKind::Sctp]).unwrap_err();
        assert!(error.contains("sctp") && error.contains("allow_sockets"), "{error}");
    }

    #[test]
    fn no_policy_allows_what_another_is_for() {
        let all =
            [PortChoice::ClientsEphemeral, PortChoice::Granted, PortChoice::Ephemeral, PortChoice::None];
        let bits = all.map(choice_bits);
        assert_eq!(bits.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
        assert_eq!(choice_bits(PortChoice::Granted) & port_choice::CLIENT_EPHEMERAL, 0);
        assert_eq!(choice_bits(PortChoice::Unspecified), bits[0]);
    }
}
