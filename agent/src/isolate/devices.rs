//! Devices: a short list of harmless ones for every task, and what a grant adds, looked at by a BPF program at every
//! open and mknod.

use std::{
    collections::BTreeMap, fs, os::unix::fs::FileTypeExt as _, os::unix::fs::MetadataExt as _, path::Path,
    sync::Arc,
};

use bulkhead_abi::device_access;
use bulkhead_proto::v1::{self, EventKind};
use nix::sys::stat::{major, minor};

use super::{IsolateError, Isolator, TaskPlace};
use crate::{
    event::{EventKey, EventLog},
    grant::{DeviceRule, Grant},
    kernel::bpf::{BpfError, DenialStream, DeviceId, DeviceKey, DeviceRules, access_name},
    unix_time_ms,
};

/// Needs the BPF program `device` of `ebpf/enforce`. Without it every grant that names a device is refused.
pub struct Devices {
    rules: Option<Arc<DeviceRules>>,
    allowed: Vec<String>,
    events: Arc<EventLog>,
}

impl Devices {
    /// Holds tasks to `rules`, if this kernel has them. `allowed` are the paths that may be granted, as in
    /// [`Config::allow_devices`](crate::config::Config::allow_devices).
    pub fn new(rules: Option<Arc<DeviceRules>>, allowed: Vec<String>, events: Arc<EventLog>) -> Self {
        Self { rules, allowed, events }
    }

    fn set(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        let Some(rules) = &self.rules else {
            return match grant.devices.first() {
                Some(device) => Err(IsolateError::Refused(format!(
                    "{}: this kernel cannot grant devices (see `bulkhead-agent probe`, bpf_devices)",
                    device.path.display()
                ))),
                None => Ok(()),
            };
        };
        Ok(rules.grant(task.id, &resolve(&grant.devices, &self.allowed)?)?)
    }

    /// Events are sent at each doubling; in between, and at the end, the map has the exact counts.
    fn record_exact(&self, rules: &DeviceRules, task: &TaskPlace) -> Result<(), BpfError> {
        for (key, denial) in rules.denials(task.id)? {
            record(&self.events, &key, denial.count);
        }
        Ok(())
    }
}

impl Isolator for Devices {
    fn part(&self) -> &'static str {
        "devices"
    }

    fn features(&self) -> &'static [&'static str] {
        &["bpf_devices"]
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
        if before.devices == after.devices { Ok(()) } else { self.set(task, after) }
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Some(rules) = &self.rules else { return };
        usage.devices_refused = rules.total_denied(task.id).unwrap_or(usage.devices_refused);
        if usage.devices_refused > 0
            && let Err(error) = self.record_exact(rules, task)
        {
            tracing::warn!(error = crate::error_chain(&error), "read what devices a task was refused");
        }
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.events.unbind(task.id);
        self.rules.as_ref().map_or(Ok(()), |rules| Ok(rules.revoke(task.id)?))
    }
}

/// The devices behind the paths, with what is granted of each. One device under several names adds up.
fn resolve(rules: &[DeviceRule], allowed: &[String]) -> Result<BTreeMap<DeviceId, u32>, IsolateError> {
    let mut devices = BTreeMap::new();
    for rule in rules {
        let refused = |why: String| IsolateError::Refused(format!("{}: {why}", rule.path.display()));
        if !is_allowed(&rule.path, allowed) {
            return Err(refused("this agent grants no such device (allow_devices)".to_owned()));
        }
        let meta = fs::metadata(&rule.path).map_err(|e| refused(e.to_string()))?;
        let block = meta.file_type().is_block_device();
        if !block && !meta.file_type().is_char_device() {
            return Err(refused("is no device".to_owned()));
        }
        let number = |number: u64| u32::try_from(number).map_err(|_| refused("no 32-bit number".to_owned()));
        let id = DeviceId { block, major: number(major(meta.rdev()))?, minor: number(minor(meta.rdev()))? };
        *devices.entry(id).or_insert(0) |= access(rule);
    }
    Ok(devices)
}

fn access(rule: &DeviceRule) -> u32 {
    let bit = |yes: bool, bit: u32| if yes { bit } else { 0 };
    bit(rule.read, device_access::READ)
        | bit(rule.write, device_access::WRITE)
        | bit(rule.make, device_access::MAKE)
}

/// By name: a link below /dev is granted as what it is called, since only root makes links there.
fn is_allowed(path: &Path, allowed: &[String]) -> bool {
    let path = path.to_string_lossy();
    allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => path == pattern.as_str(),
    })
}

/// Puts refusals into the log as the kernel reports them. Ends only when the ring buffer cannot be read.
pub async fn follow(mut denials: DenialStream<DeviceKey>, events: Arc<EventLog>) {
    loop {
        match denials.next().await {
            Ok(denied) => record(&events, &denied.key, denied.count),
            Err(error) => {
                tracing::error!(error = crate::error_chain(&error), "read refused devices from the kernel");
                return;
            }
        }
    }
}

fn record(events: &EventLog, key: &DeviceKey, count: u64) {
    // A task that has ended and been cleared: its exact counts were recorded then.
    let Some(task) = events.task_of(key.cgroup_id) else { return };
    let message = message(key);
    let object = message.clone();
    let key = EventKey { object, ..EventKey::of_run(&task, key.cgroup_id, EventKind::DeviceDenied) };
    events.record(key, count, message, unix_time_ms());
}

fn message(key: &DeviceKey) -> String {
    match DeviceId::of(key) {
        Some(id) => format!("{} {id}, which is not in the grant", access_name(key.access)),
        None => "devices outside the grant, too many to tell apart".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(path: &str, read: bool, write: bool) -> DeviceRule {
        DeviceRule { path: path.into(), read, write, make: false }
    }

    #[test]
    fn paths_become_devices() {
        let everything = ["/dev/*".to_owned()];
        let rules =
            [rule("/dev/null", true, false), rule("/dev/null", false, true), rule("/dev/full", true, false)];
        let null = DeviceId { block: false, major: 1, minor: 3 };
        let full = DeviceId { block: false, major: 1, minor: 7 };
        assert_eq!(resolve(&rules, &everything).unwrap(), BTreeMap::from([(null, 6), (full, 2)]));
        let refused = |path| resolve(&[rule(path, true, false)], &everything).unwrap_err().to_string();
        assert_eq!(refused("/dev/shm"), "/dev/shm: is no device");
        assert!(refused("/dev/nothing-of-the-kind").contains("No such file"));
    }

    #[test]
    fn only_what_the_operator_allows_is_granted() {
        let allowed = ["/dev/fuse".to_owned(), "/dev/nvidia*".to_owned()];
        assert!(is_allowed(Path::new("/dev/fuse"), &allowed));
        assert!(is_allowed(Path::new("/dev/nvidia0"), &allowed));
        assert!(!is_allowed(Path::new("/dev/fuse2"), &allowed));
        assert!(!is_allowed(Path::new("/dev/sda"), &allowed));
        let error = resolve(&[rule("/dev/null", true, true)], &allowed).unwrap_err();
        assert!(error.to_string().contains("allow_devices"), "{error}");
    }

    #[test]
    fn a_refusal_names_the_device_and_the_access() {
        let key = DeviceKey { cgroup_id: 1, kind: 1, major: 8, minor: 0, access: 6 };
        assert_eq!(message(&key), "read, write block device 8:0, which is not in the grant");
        let others = DeviceKey { kind: 0, major: 0, minor: 0, access: 0, ..key };
        assert!(message(&others).contains("too many"));
    }
}
