//! What holds the tasks of this node, and which promises that is good for.

use std::{path::Path, sync::Arc};

use bulkhead_proto::v1::{Enforced, Resources};

use super::{NodeError, programs::Programs, settings};
use crate::{
    config::{Config, ConfigError, NetQdisc},
    event::EventLog,
    isolate::{
        Isolator, Isolators,
        connections::Connections,
        cores::Cores,
        cpu::Cpu,
        devices::Devices,
        disk_io::DiskIo,
        disk_space::{self, DiskSpace, VolumeBounds},
        memory::{Memory, MemorySetup},
        network::{
            Network,
            uplink::{LinkSettings, Uplink},
        },
        observed::Observed,
        output::Outputs,
        pids::Pids,
        ports::{PORT_CHOICE, PortLimits, Ports},
        talk::Talk,
        tree::Tree,
    },
    kernel::{core_scheduling, probe::Features, quota_warnings::QuotaWarnings},
    measure::{
        NodeCapacity,
        topology::{self, Topology},
    },
    metrics::Metrics,
};

/// What the isolators are made of.
pub(super) struct Host<'a> {
    pub(super) config: &'a Config,
    pub(super) features: &'a Features,
    pub(super) machine: NodeCapacity,
    pub(super) tree: &'a Tree,
    pub(super) programs: &'a Programs,
    pub(super) volumes: &'a Arc<VolumeBounds>,
    pub(super) events: &'a Arc<EventLog>,
    pub(super) metrics: &'a Arc<Metrics>,
}

/// The isolators, and what is known with them.
pub(super) struct Isolation {
    pub(super) isolators: Arc<Isolators>,
    pub(super) enforced: Enforced,
    /// Of sandboxes, where quotas hold them.
    pub(super) disk: Option<Arc<DiskSpace>>,
    /// What the disk was measured to do.
    pub(super) disk_speed: Resources,
    /// Whose cores are whose.
    pub(super) cores: Arc<Cores>,
    /// Of tasks, where it is held.
    pub(super) network: Arc<Network>,
    /// Of tasks, where they are counted.
    pub(super) connections: Arc<Connections>,
    /// What tasks use and wait for.
    pub(super) observed: Arc<Observed>,
}

impl Isolation {
    /// Sets up what holds for all tasks together. Must run within a tokio runtime.
    ///
    /// # Errors
    /// A setting that cannot be used, or a part of the kernel that does not answer as it should.
    pub(super) fn set_up(host: &Host<'_>) -> Result<Self, NodeError> {
        let disk = if host.features.has("disk_quota") { Some(open_disk(host)?) } else { None };
        follow_refusals(host, disk.clone());
        let disk_io = DiskIo::set_up(host.tree, host.config)?;
        let disk_speed = disk_io.measured().cloned().unwrap_or_default();
        let network = Arc::new(network(host)?);
        let connections = Arc::new(Connections::new(host.programs.connections.clone()));
        let enforced = Enforced {
            cpu: host.tree.has("cpu"),
            mem: host.tree.has("memory"),
            pids: host.tree.has("pids"),
            ports: host.programs.ports.is_some(),
            disk: disk.is_some(),
            disk_io: disk_io.enforces(),
            net: network.link_bits_per_sec() > 0,
        };
        let cores = Arc::new(cores(host)?);
        let mut parts = parts(host, &cores, disk_io, disk.as_ref(), &network)?;
        parts.push(Box::new(Arc::clone(&connections)));
        let (runqueue, block_io) = (host.programs.runqueue.clone(), host.programs.block_io.clone());
        let observed = Arc::new(Observed::new(runqueue, block_io));
        parts.push(Box::new(Arc::clone(&observed)));
        let isolators = Arc::new(Isolators::new(parts));
        Ok(Self { isolators, enforced, disk, disk_speed, cores, network, connections, observed })
    }
}

/// In the order they prepare. Cores, disk I/O, devices, network, ports and network rules are always there: they refuse
/// what they cannot hold.
fn parts(
    host: &Host<'_>,
    cores: &Arc<Cores>,
    disk_io: DiskIo,
    disk: Option<&Arc<DiskSpace>>,
    network: &Arc<Network>,
) -> Result<Vec<Box<dyn Isolator>>, NodeError> {
    let mut parts: Vec<Box<dyn Isolator>> = Vec::new();
    if host.tree.has("cpu") {
        parts.push(Box::new(Cpu::new(host.machine.cpus, core_scheduling::supported())));
    }
    parts.push(Box::new(Arc::clone(cores)));
    parts.push(Box::new(disk_io));
    let allowed = host.config.allow_devices.clone();
    parts.push(Box::new(Devices::new(host.programs.devices.clone(), allowed, Arc::clone(host.events))));
    if host.tree.has("memory") {
        parts.push(Box::new(Memory::open(host.tree, memory(host))?));
    }
    if host.tree.has("pids") {
        parts.push(Box::new(Pids));
    }
    if let Some(disk) = disk {
        parts.push(Box::new(Arc::clone(disk)));
    }
    parts.push(Box::new(Arc::clone(host.volumes)));
    if let Some(outputs) = bound_outputs(host) {
        parts.push(Box::new(outputs));
    }
    parts.push(Box::new(Arc::clone(network)));
    let (rules, packets) = (host.programs.talk.clone(), host.programs.net.clone());
    parts.push(Box::new(Talk::new(rules, packets, Arc::clone(host.events))));
    let limits = port_limits(host)?;
    parts.push(Box::new(Ports::new(host.programs.ports.clone(), limits, Arc::clone(host.events))));
    Ok(parts)
}

/// What tasks may ask for besides ports.
fn port_limits(host: &Host<'_>) -> Result<PortLimits, NodeError> {
    Ok(PortLimits {
        listen_uncovered: host.programs.listen_uncovered.clone(),
        listen_waived: host.config.allows_unenforced(PORT_CHOICE),
        sockets: host.config.socket_kinds()?,
    })
}

fn cores(host: &Host<'_>) -> Result<Cores, NodeError> {
    let topology = Topology::read(Path::new(topology::SYSFS)).map_err(|e| crate::error_chain(&e));
    let keep_off = host.config.keep_system_off_exclusive_cores;
    Cores::start(host.tree, topology, host.programs.foreign.clone(), keep_off).map_err(NodeError::Tree)
}

/// Finds the link, and follows what becomes of it.
fn network(host: &Host<'_>) -> Result<Network, NodeError> {
    let config = host.config;
    let bits_per_sec = config.net_bits_per_sec().map_err(|e| ConfigError::Value {
        key: "net_bandwidth",
        value: config.net_bandwidth.clone(),
        why: e.to_string(),
    })?;
    let settings = LinkSettings {
        interface: config.net_interface.clone(),
        bits_per_sec,
        install_fq: config.net_qdisc == NetQdisc::Install,
        offer_percent: config.net_offer_percent,
    };
    let held = host.programs.net.clone().map(|rules| {
        let uplink = Arc::new(Uplink::set_up(settings, Arc::clone(&rules)));
        drop(tokio::spawn(Arc::clone(&uplink).follow()));
        (rules, uplink)
    });
    Ok(Network::new(held, config.allows_unenforced("net")))
}

fn memory(host: &Host<'_>) -> MemorySetup {
    MemorySetup {
        machine_bytes: host.machine.mem_bytes,
        reserve_bytes: host.config.reserve_mem.as_u64(),
        pressure: host.features.has("psi_cgroup"),
        ooms: host.programs.ooms.clone(),
        events: Arc::clone(host.events),
        metrics: Arc::clone(host.metrics),
    }
}

/// A range of project ids on the file system of the work directory.
fn open_disk(host: &Host<'_>) -> Result<Arc<DiskSpace>, NodeError> {
    Ok(Arc::new(DiskSpace::open(&host.config.work_dir, settings::projects(host.config)?)?))
}

/// Sandboxes and volumes that are full become events from now on.
fn follow_refusals(host: &Host<'_>, disk: Option<Arc<DiskSpace>>) {
    match QuotaWarnings::open() {
        Ok(warnings) => {
            let (volumes, events) = (Arc::clone(host.volumes), Arc::clone(host.events));
            drop(tokio::spawn(disk_space::follow(disk, volumes, warnings, events)));
        }
        Err(error) => tracing::warn!(%error, "listen for full sandboxes and volumes: they are no events"),
    }
}

/// Outputs that are cut as they grow, from now on. Without inotify they grow as far as the quota allows.
fn bound_outputs(host: &Host<'_>) -> Option<Arc<Outputs>> {
    if !host.features.has("punch_hole") {
        return None;
    }
    match Outputs::new(Arc::clone(host.events)) {
        Ok(outputs) => {
            let outputs = Arc::new(outputs);
            tokio::spawn(Arc::clone(&outputs).run());
            Some(outputs)
        }
        Err(error) => {
            tracing::error!(%error, "watch outputs (see fs.inotify.max_user_instances): they are not bounded");
            None
        }
    }
}
