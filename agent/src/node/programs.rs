//! The BPF programs of this node: loaded or adopted, as far as the kernel takes them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::NodeError;
use crate::{
    config::Config,
    event::EventLog,
    isolate::{devices, ports, talk, tree::Tree},
    kernel::{
        bpf::{
            self, BlockIoCounts, ConnectionCounts, DenialStream, DeviceKey, DeviceRules, ExitRecords,
            ForeignTimes, NetRules, OomRecords, PortRules, RunqueueCounts, TalkKey, TalkRules,
        },
        probe::Features,
    },
    metrics::Metrics,
};

/// What the programs share with the agent; nothing where the kernel does not take them.
#[derive(Default)]
pub(super) struct Programs {
    pub(super) ports: Option<Arc<PortRules>>,
    /// Why listen() without bind is not refused, where it is not.
    pub(super) listen_uncovered: Option<String>,
    pub(super) devices: Option<Arc<DeviceRules>>,
    pub(super) talk: Option<Arc<TalkRules>>,
    pub(super) net: Option<Arc<NetRules>>,
    pub(super) connections: Option<Arc<ConnectionCounts>>,
    pub(super) exits: Option<Arc<ExitRecords>>,
    pub(super) ooms: Option<Arc<OomRecords>>,
    pub(super) foreign: Option<Arc<ForeignTimes>>,
    pub(super) runqueue: Option<Arc<RunqueueCounts>>,
    pub(super) block_io: Option<Arc<BlockIoCounts>>,
    refusals: Refusals,
}

/// What the programs refused, as it happens.
#[derive(Default)]
struct Refusals {
    ports: Option<DenialStream>,
    devices: Option<DenialStream<DeviceKey>>,
    talk: Option<DenialStream<TalkKey>>,
}

impl Programs {
    /// Everything that this kernel takes; what it does not take is told in the log and in the metrics.
    pub(super) fn open(config: &Config, tree: &Tree, features: &Features, metrics: &Metrics) -> Self {
        let loaded = if features.has("bpf_ports") { load(config, tree) } else { Ok(Self::default()) };
        let programs = loaded.unwrap_or_else(|error| {
            metrics.feature("bpf_ports", false);
            tracing::error!(error = crate::error_chain(&error), "port rules cannot be loaded");
            Self::default()
        });
        metrics.feature("bpf_devices", programs.devices.is_some());
        metrics.feature("bpf_talk", programs.talk.is_some());
        metrics.feature("bpf_net", programs.net.is_some());
        metrics.feature("bpf_connections", programs.connections.is_some());
        metrics.feature("bpf_runqueue", programs.runqueue.is_some());
        metrics.feature("bpf_block_io", programs.block_io.is_some());
        metrics.feature("port_listen", programs.ports.is_some() && programs.listen_uncovered.is_none());
        programs
    }

    /// Refusals become events. Must run within a tokio runtime.
    pub(super) fn tell_refusals(&mut self, events: &Arc<EventLog>) {
        if let Some(denials) = self.refusals.ports.take() {
            tokio::spawn(ports::follow(denials, Arc::clone(events)));
        }
        if let Some(denials) = self.refusals.devices.take() {
            tokio::spawn(devices::follow(denials, Arc::clone(events)));
        }
        if let Some(denials) = self.refusals.talk.take() {
            tokio::spawn(talk::follow(denials, Arc::clone(events)));
        }
    }

    /// What is counted becomes metrics.
    ///
    /// # Errors
    /// A metric registered twice.
    pub(super) fn export(&self, metrics: &Metrics) -> Result<(), prometheus::Error> {
        let Some(foreign) = self.foreign.clone() else { return Ok(()) };
        metrics.foreign_cpu(move || {
            let time = foreign.total().ok()?;
            Some((Duration::from_nanos(time.kernel_ns), Duration::from_nanos(time.others_ns)))
        })
    }
}

/// What it does not take besides the port rules was told by the probe.
fn load(config: &Config, tree: &Tree) -> Result<Programs, NodeError> {
    let spec = bpf::LoadSpec {
        pin_dir: pin_dir(config),
        cgroup: tree.root.path().to_owned(),
        task_level: tree.task_level,
    };
    let exe = std::env::current_exe().map_err(NodeError::Exe)?;
    let loaded = bpf::ensure_loaded(&spec, bpf::loader_command(&exe, &spec))?;
    if loaded.mounted {
        tracing::info!("mounted a bpffs on /sys/fs/bpf");
    }
    tracing::info!(fresh = loaded.fresh, pins = %loaded.ports.display(), "port rules are in the kernel");
    let uncovered =
        "listen() without bind takes an ephemeral port, and packet sockets are held by capabilities alone";
    let _ = there(loaded.listen.as_deref(), uncovered);
    let devices = there(loaded.devices.as_deref(), "devices are not held, and none can be granted");
    let talk = there(
        loaded.talk.as_deref(),
        "tasks are not kept from talking to anybody, and none with such rules is taken",
    );
    let net = there(loaded.net.as_deref(), "traffic is neither held nor counted");
    let connections = there(loaded.connections.as_deref(), "connections of tasks are not counted");
    let exits = there(loaded.exits.as_deref(), "ends of tasks are not recorded while the agent is away");
    let ooms = there(loaded.ooms.as_deref(), "whom the kernel ends for memory is not recorded");
    let runqueue = there(loaded.runqueue.as_deref(), "how long tasks wait for a CPU is not counted");
    let block_io = there(loaded.block_io.as_deref(), "how long tasks wait for disks is not counted");
    let foreign = loaded.foreign.and_then(|dir| ForeignTimes::open(&dir).map_err(|e| crate::error_chain(&e)));
    if let Err(why) = &foreign {
        tracing::warn!(why, "time of others on exclusive cores is not counted");
    }
    Ok(Programs {
        ports: Some(Arc::new(PortRules::open(&loaded.ports)?)),
        listen_uncovered: loaded.listen.err(),
        devices: devices.map(DeviceRules::open).transpose()?.map(Arc::new),
        talk: talk.map(TalkRules::open).transpose()?.map(Arc::new),
        net: net.map(NetRules::open).transpose()?.map(Arc::new),
        connections: connections.map(ConnectionCounts::open).transpose()?.map(Arc::new),
        exits: exits.map(ExitRecords::open).transpose()?.map(Arc::new),
        ooms: ooms.map(OomRecords::open).transpose()?.map(Arc::new),
        foreign: foreign.ok().map(Arc::new),
        runqueue: runqueue.map(RunqueueCounts::open).transpose()?.map(Arc::new),
        block_io: block_io.map(BlockIoCounts::open).transpose()?.map(Arc::new),
        refusals: Refusals {
            ports: Some(DenialStream::open(&loaded.ports)?),
            devices: devices.map(DenialStream::open_devices).transpose()?,
            talk: talk.map(DenialStream::open_talk).transpose()?,
        },
    })
}

/// The pins of one set of programs, or a line in the log about what is missing without them.
fn there<'a>(pins: Result<&'a std::path::Path, &String>, without: &str) -> Option<&'a std::path::Path> {
    match pins {
        Ok(dir) => Some(dir),
        Err(why) => {
            tracing::warn!(why, "{without}");
            None
        }
    }
}

/// Pins of several agents on one host lie apart by their cgroup roots.
pub(super) fn pin_dir(config: &Config) -> PathBuf {
    config.bpf_dir.join(pin_name_of(config))
}

/// What sets this agent apart from others on its host.
pub(super) fn pin_name_of(config: &Config) -> String {
    let root = config.cgroup_root.to_string_lossy();
    pin_name(root.trim_matches('/'))
}

/// A name for a bpffs, which has no dots and slashes in its names; different for different roots.
fn pin_name(cgroup_root: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let escaped = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("_{byte:02x}") };
    cgroup_root.bytes().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_different_roots_never_meet() {
        assert_eq!(pin_name("bulkhead"), "bulkhead");
        assert_eq!(pin_name("system.slice/x.service"), "system_2eslice_2fx_2eservice");
        let names = ["a/b", "a-b", "a_b", "a.b", "a_2fb"].map(pin_name);
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len(), "{names:?}");
    }
}
