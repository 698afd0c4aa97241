//! Ports: a set of bits for each task, looked at by BPF programs in every bind.

use std::sync::Arc;

use bulkhead_proto::v1::{self, EventKind, Protocol};

use super::{IsolateError, Isolator, TaskPlace};
use crate::{
    event::{EventKey, EventLog},
    grant::Grant,
    kernel::bpf::{BpfError, DenialKey, DenialStream, PortRules},
    unix_time_ms,
};

/// Needs the BPF programs of `ebpf/enforce`, loaded and pinned.
pub struct Ports {
    rules: Arc<PortRules>,
    events: Arc<EventLog>,
}

impl Ports {
    /// Holds tasks to `rules`; what they were refused goes into `events`.
    pub fn new(rules: Arc<PortRules>, events: Arc<EventLog>) -> Self {
        Self { rules, events }
    }

    /// Events are sent at each doubling; in between, and at the end, the map has the exact counts.
    fn record_exact(&self, task: &TaskPlace) -> Result<(), BpfError> {
        for (key, denial) in self.rules.denials(task.id)? {
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
        Ok(self.rules.grant(task.id, &grant.ports)?)
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // A newer agent may have brought newer programs, whose tables begin empty.
        self.prepare(task, grant)
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        if before.ports == after.ports { Ok(()) } else { Ok(self.rules.grant(task.id, &after.ports)?) }
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        usage.ports_refused = self.rules.total_denied(task.id).unwrap_or(usage.ports_refused);
        if usage.ports_refused > 0
            && let Err(error) = self.record_exact(task)
        {
            tracing::warn!(error = crate::error_chain(&error), "read what ports a task was refused");
        }
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.events.unbind(task.id);
        Ok(self.rules.revoke(task.id)?)
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
    let port = u32::from(key.port);
    let message = match (key.other, key.port) {
        (1, _) => "bind to ports outside the grant, too many to tell apart".to_owned(),
        (_, 0) => "bind to a port of the kernel's choice, and the grant has none".to_owned(),
        _ => format!("bind to port {port}, which is not in the grant"),
    };
    let ip_version = u32::from(key.ip_version);
    let cgroup_id = key.cgroup_id;
    let key = EventKey {
        task,
        cgroup_id,
        kind: EventKind::PortDenied,
        protocol,
        ip_version,
        port,
        object: String::new(),
    };
    events.record(key, count, message, unix_time_ms());
}
