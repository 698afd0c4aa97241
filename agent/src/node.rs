//! Puts the agent together, in flow order, from its configuration.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_image::Store;
use bulkhead_proto::{
    resources::PortSet,
    v1::{AgentInfo, Enforced, Resources},
};
use bulkhead_stage::Stager;

use crate::{
    api::{self, AgentApi},
    config::{Config, ConfigError},
    event::EventLog,
    grant::GrantDefaults,
    identity::{self, Held},
    isolate::{
        Isolator, Isolators,
        cores::{self, Cores},
        cpu::Cpu,
        devices::{self, Devices},
        disk_io::{self, DiskIo},
        disk_space::{self, DiskSpace},
        memory::{Memory, MemorySetup},
        network::Network,
        output::Outputs,
        pids::Pids,
        ports::Ports,
        tree::Tree,
    },
    journal::Journal,
    keeper::{Keeper, Parts, RecoverError},
    kernel::{
        bpf::{
            self, DenialStream, DeviceKey, DeviceRules, ExitRecords, ForeignTimes, NetRules, OomRecords,
            PortRules,
        },
        cgroupfs::cgroup2_mount,
        core_scheduling, limits,
        probe::Features,
        quota_warnings::QuotaWarnings,
    },
    launch::{
        self, Launcher,
        confine::{ConfineError, FENCES, Rules},
        host_parts::HostPartsError,
        plan::Defaults,
        sandbox::Keep,
        view::HostParts,
    },
    link,
    measure::{
        DiskUse, NodeCapacity, NodeSampler,
        sampler::{self, Sampling},
        topology::{self, Topology},
    },
    metrics::Metrics,
    offer::{Ledger, Reporter},
};

/// Why an agent does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The work directory, or another agent.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// The cgroup tree.
    #[error(
        "set up the cgroup tree: the agent needs root, or a cgroup that was delegated to it (--cgroup-root)"
    )]
    Tree(#[source] crate::kernel::cgroupfs::CgroupError),
    /// What holds for all tasks together.
    #[error("set up what holds for all tasks together")]
    Isolate(#[from] crate::isolate::IsolateError),
    /// A kernel feature without which no task can be held.
    #[error(
        "this kernel lacks {name} ({detail}), without which no task can be held: see `bulkhead-agent probe`"
    )]
    Missing {
        /// The feature.
        name: &'static str,
        /// Why it is not there.
        detail: String,
    },
    /// The store of images.
    #[error(transparent)]
    Images(#[from] bulkhead_image::ImageError),
    /// The credentials for registries.
    #[error(transparent)]
    Credentials(#[from] bulkhead_image::CredentialsError),
    /// The cache of artifacts.
    #[error(transparent)]
    Cache(#[from] bulkhead_stage::CacheError),
    /// The tasks of the agent before this one.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The BPF programs.
    #[error("load the BPF programs")]
    Bpf(#[from] bpf::BpfError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// The quotas of the work directory.
    #[error(transparent)]
    Quota(#[from] crate::kernel::quota::QuotaError),
    /// What tasks' files are mounted from.
    #[error(transparent)]
    HostParts(#[from] HostPartsError),
    /// The kernel's counters.
    #[error(transparent)]
    Measure(#[from] crate::measure::node::MeasureError),
    /// The agent's own API.
    #[error(transparent)]
    Api(#[from] api::ApiError),
    /// The master's address.
    #[error(transparent)]
    Link(#[from] link::LinkError),
    /// A part of the agent panicked.
    #[error("a part of the agent ended unexpectedly")]
    Task(#[from] tokio::task::JoinError),
    /// The disk's model.
    #[error(transparent)]
    DiskModel(#[from] crate::measure::disk_speed::ModelError),
    /// The disk's cost model in the kernel.
    #[error(transparent)]
    IoCost(#[from] crate::kernel::io_cost::IoCostError),
    /// A metric registered twice.
    #[error("register the metrics")]
    Metrics(#[from] prometheus::Error),
    /// This program's own file, which loads the BPF programs.
    #[error("find this program's own file")]
    Exe(#[source] std::io::Error),
}

/// Without these nothing works.
const REQUIRED: [&str; 3] = ["cgroup2", "cgroup_kill", "clone_into_cgroup"];

/// Runs an agent until it fails. Tasks go on when it ends, however it ends.
///
/// # Errors
/// [`NodeError`] says what was wrong and what to do.
pub async fn run(config: Config) -> Result<(), NodeError> {
    config.check()?;
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!(%error, "raise the limit of open files; it bounds the number of tasks");
    }
    let mut held = identity::lock_work_dir(&config.work_dir)?;
    let features = Features::probe(&config.work_dir);
    require(&features)?;
    let metrics = Arc::new(Metrics::new()?);
    for feature in &features.features {
        metrics.feature(feature.name, feature.available);
    }
    let machine = NodeCapacity::read()?;
    let tree = Tree::set_up(&config.cgroup_root, machine.cpus).map_err(NodeError::Tree)?;
    held.also(tree.root.path())?;
    let bpf = if features.has("bpf_ports") { open_bpf(&config, &tree) } else { Ok(Bpf::default()) };
    let bpf = bpf.unwrap_or_else(|error| {
        metrics.feature("bpf_ports", false);
        tracing::error!(error = crate::error_chain(&error), "port rules cannot be loaded");
        Bpf::default()
    });

    let disk = if features.has("disk_quota") { Some(open_disk(&config)?) } else { None };
    let disk_io = DiskIo::set_up(&tree, &config)?;
    let disk_measured = disk_io.measured().cloned().unwrap_or_default();
    let enforced = Enforced {
        cpu: tree.has("cpu"),
        mem: tree.has("memory"),
        pids: tree.has("pids"),
        ports: bpf.ports.is_some(),
        disk: disk.is_some(),
        disk_io: disk_io.enforces(),
    };
    let tcp = api::bind(config.listen).await?;
    let listening =
        tcp.local_addr().map_err(|source| api::ApiError::Tcp { address: config.listen, source })?;
    let agent = info(&config, listening.to_string())?;
    let (journal, replayed) = Journal::open(&config.work_dir)?;
    if replayed.damaged_bytes > 0 {
        tracing::warn!(
            bytes = replayed.damaged_bytes,
            "the journal ended in a torn record, which was cut off"
        );
    }
    let events = Arc::new(EventLog::new(agent.agent_id.clone(), Arc::clone(&metrics)));
    if let Some(foreign) = bpf.foreign.clone() {
        metrics.foreign_cpu(move || {
            let time = foreign.total().ok()?;
            Some((Duration::from_nanos(time.kernel_ns), Duration::from_nanos(time.others_ns)))
        })?;
    }
    let mut parts = cpu_parts(&config, &tree, machine, &bpf)?;
    // Always there: they refuse what they cannot hold.
    parts.push(Box::new(disk_io));
    metrics.feature("bpf_devices", bpf.devices.is_some());
    metrics.feature("bpf_net", bpf.net.is_some());
    let allowed = config.allow_devices.clone();
    parts.push(Box::new(Devices::new(bpf.devices.clone(), allowed, Arc::clone(&events))));
    if let Some(disk) = &disk {
        tell_full_disks(disk, &events);
    }
    let outputs = if features.has("punch_hole") { bound_outputs(&events) } else { None };
    let memory = MemorySetup {
        machine_bytes: machine.mem_bytes,
        reserve_bytes: config.reserve_mem.as_u64(),
        pressure: features.has("psi_cgroup"),
        ooms: bpf.ooms.clone(),
        events: Arc::clone(&events),
        metrics: Arc::clone(&metrics),
    };
    let isolators =
        Arc::new(isolators(parts, &tree, &bpf, disk.as_ref(), outputs.as_ref(), &events, memory)?);
    let host_parts = HostParts::make(&config.work_dir, &cgroup2_mount().map_err(NodeError::Tree)?)?;
    let launcher = Launcher::new(launch::execute::Parts {
        tree: tree.clone(),
        isolators: Arc::clone(&isolators),
        exits: bpf.exits.clone(),
        work_dir: config.work_dir.clone(),
        host_parts,
        allow_root: config.allow_root_tasks,
    });
    let (mut keeper, messages) = Keeper::new(Parts {
        ledger: ledger(&config, machine, &disk_measured, &enforced)?,
        reporter: Reporter::new(enforced, Duration::from_millis(config.report_every_ms)),
        agent,
        launcher,
        images: Store::open(&config.work_dir.join("images"), config.images()?)?,
        stager: Stager::new(config.stage())?,
        journal,
        events: Arc::clone(&events),
        metrics: Arc::clone(&metrics),
        defaults: defaults(&config, disk.is_some(), &features)?,
        history: config.sandbox_keep_count,
        keep: keep(&config),
        work_dir: config.work_dir.clone(),
    });
    keeper.recover(replayed)?;
    tokio::spawn(keeper.run());
    if let Some(denials) = bpf.denials {
        tokio::spawn(crate::isolate::ports::follow(denials, Arc::clone(&events)));
    }
    if let Some(denials) = bpf.device_denials {
        tokio::spawn(devices::follow(denials, Arc::clone(&events)));
    }
    let every = Duration::from_millis(config.sample_every_ms);
    let sampling = Sampling {
        node: NodeSampler::start(tree, Instant::now())?,
        work_dir: config.work_dir.clone(),
        disk,
        measure_strangers: config.measure_strangers,
    };
    tokio::spawn(sampler::run(sampling, every, messages.clone()));
    let answers = AgentApi { keeper: messages.clone(), events, isolators, metrics };
    tracing::info!(address = %listening, "listening");
    // Tasks of their own: on the thread that waits here, each message would first have to wake it.
    let serving = tokio::spawn(api::serve(answers, tcp, config.work_dir.join(api::SOCKET)));
    let linking = tokio::spawn(async move { link::run(&config.master, messages).await });
    let result = tokio::select! {
        served = serving => served?.map_err(NodeError::from),
        linked = linking => linked?.map_err(NodeError::from),
    };
    drop::<Held>(held);
    result
}

fn require(features: &Features) -> Result<(), NodeError> {
    let missing = features.features.iter().find(|f| REQUIRED.contains(&f.name) && !f.available);
    missing.map_or(Ok(()), |f| Err(NodeError::Missing { name: f.name, detail: f.detail.clone() }))
}

/// What the BPF programs share with the agent; nothing where the kernel does not take them.
#[derive(Default)]
struct Bpf {
    ports: Option<Arc<PortRules>>,
    denials: Option<DenialStream>,
    devices: Option<Arc<DeviceRules>>,
    device_denials: Option<DenialStream<DeviceKey>>,
    net: Option<Arc<NetRules>>,
    exits: Option<Arc<ExitRecords>>,
    ooms: Option<Arc<OomRecords>>,
    foreign: Option<Arc<ForeignTimes>>,
}

/// Loads or adopts what this kernel takes; what it does not take was told by the probe.
fn open_bpf(config: &Config, tree: &Tree) -> Result<Bpf, NodeError> {
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
    let (devices, device_denials) = match &loaded.devices {
        Ok(dir) => (Some(Arc::new(DeviceRules::open(dir)?)), Some(DenialStream::open_devices(dir)?)),
        Err(why) => {
            tracing::warn!(why, "devices are not held, and none can be granted");
            (None, None)
        }
    };
    let net = match &loaded.net {
        Ok(dir) => Some(Arc::new(NetRules::open(dir)?)),
        Err(why) => {
            tracing::warn!(why, "traffic is neither held nor counted");
            None
        }
    };
    let exits = match &loaded.exits {
        Ok(dir) => Some(Arc::new(ExitRecords::open(dir)?)),
        Err(why) => {
            tracing::warn!(why, "ends of tasks are not recorded while the agent is away");
            None
        }
    };
    let ooms = match &loaded.ooms {
        Ok(dir) => Some(Arc::new(OomRecords::open(dir)?)),
        Err(why) => {
            tracing::warn!(why, "whom the kernel ends for memory is not recorded");
            None
        }
    };
    let foreign = loaded.foreign.and_then(|dir| ForeignTimes::open(&dir).map_err(|e| crate::error_chain(&e)));
    if let Err(why) = &foreign {
        tracing::warn!(why, "time of others on exclusive cores is not counted");
    }
    Ok(Bpf {
        ports: Some(Arc::new(PortRules::open(&loaded.ports)?)),
        denials: Some(DenialStream::open(&loaded.ports)?),
        devices,
        device_denials,
        net,
        exits,
        ooms,
        foreign: foreign.ok().map(Arc::new),
    })
}

/// Pins of several agents on one host lie apart by their cgroup roots.
pub fn pin_dir(config: &Config) -> PathBuf {
    let root = config.cgroup_root.to_string_lossy();
    config.bpf_dir.join(pin_name(root.trim_matches('/')))
}

/// A name for a bpffs, which has no dots and slashes in its names; different for different roots.
fn pin_name(cgroup_root: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let escaped = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("_{byte:02x}") };
    cgroup_root.bytes().map(escaped).collect()
}

/// A range of project ids on the file system of the work directory.
fn open_disk(config: &Config) -> Result<Arc<DiskSpace>, NodeError> {
    let projects = config.project_range().map_err(|why| ConfigError::Value {
        key: "disk_projects",
        value: config.disk_projects.clone(),
        why,
    })?;
    Ok(Arc::new(DiskSpace::open(&config.work_dir, projects)?))
}

/// Sandboxes that are full become events.
fn tell_full_disks(disk: &Arc<DiskSpace>, events: &Arc<EventLog>) {
    match QuotaWarnings::open() {
        Ok(warnings) => {
            drop(tokio::spawn(disk_space::follow(Arc::clone(disk), warnings, Arc::clone(events))));
        }
        Err(error) => tracing::warn!(%error, "listen for full sandboxes: they are no events"),
    }
}

/// Outputs that are cut as they grow, from now on. Without inotify they grow as far as the quota allows.
fn bound_outputs(events: &Arc<EventLog>) -> Option<Arc<Outputs>> {
    match Outputs::new(Arc::clone(events)) {
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

/// Shares, caps and cores.
fn cpu_parts(
    config: &Config,
    tree: &Tree,
    machine: NodeCapacity,
    bpf: &Bpf,
) -> Result<Vec<Box<dyn Isolator>>, NodeError> {
    let mut parts: Vec<Box<dyn Isolator>> = Vec::new();
    if tree.has("cpu") {
        parts.push(Box::new(Cpu::new(machine.cpus, core_scheduling::supported())));
    }
    let topology = Topology::read(Path::new(topology::SYSFS)).map_err(|e| crate::error_chain(&e));
    let keep_off = config.keep_system_off_exclusive_cores;
    let cores = Cores::start(tree, topology, bpf.foreign.clone(), keep_off).map_err(NodeError::Tree)?;
    // Always there: it refuses what it cannot hold.
    parts.push(Box::new(cores));
    Ok(parts)
}

fn isolators(
    mut parts: Vec<Box<dyn Isolator>>,
    tree: &Tree,
    bpf: &Bpf,
    disk: Option<&Arc<DiskSpace>>,
    outputs: Option<&Arc<Outputs>>,
    events: &Arc<EventLog>,
    memory: MemorySetup,
) -> Result<Isolators, NodeError> {
    if tree.has("memory") {
        parts.push(Box::new(Memory::open(tree, memory)?));
    }
    if tree.has("pids") {
        parts.push(Box::new(Pids));
    }
    if let Some(disk) = disk {
        parts.push(Box::new(Arc::clone(disk)));
    }
    if let Some(outputs) = outputs {
        parts.push(Box::new(Arc::clone(outputs)));
    }
    if let Some(rules) = &bpf.net {
        parts.push(Box::new(Network::new(Arc::clone(rules))));
    }
    if let Some(rules) = &bpf.ports {
        parts.push(Box::new(Ports::new(Arc::clone(rules), Arc::clone(events))));
    }
    Ok(Isolators::new(parts))
}

/// What the machine has and the operator wants offered, without kinds that nothing would enforce.
fn ledger(
    config: &Config,
    machine: NodeCapacity,
    disk_io: &Resources,
    enforced: &Enforced,
) -> Result<Ledger, NodeError> {
    let disk = DiskUse::read(&config.work_dir)?;
    let offered = |kind, enforced| enforced || config.allows_unenforced(kind);
    let all_cpu_milli = machine.cpus.saturating_mul(1000);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be finite and not negative; the cast saturates"
    )]
    let wanted_milli = (config.cpus * 1000.0).round() as u64;
    let limit = |wanted: u64, all: u64| if wanted == 0 { all } else { wanted.min(all) };
    let ports = config.port_set().map_err(|e| ConfigError::Value {
        key: "ports",
        value: config.ports.clone(),
        why: e.to_string(),
    })?;
    // Nothing can be promised next to a task that may fork without bound.
    let bounded = offered("pids", enforced.pids);
    if !bounded {
        tracing::warn!(
            "nothing is offered: this kernel cannot bound processes (see --allow-unenforced pids)"
        );
    }
    let when = |yes: bool, amount: u64| if yes && bounded { amount } else { 0 };
    let capacity = Resources {
        cpu_milli: when(offered("cpu", enforced.cpu), limit(wanted_milli, all_cpu_milli)),
        mem_bytes: when(offered("mem", enforced.mem), limit(config.mem.as_u64(), machine.mem_bytes)),
        ports: if bounded && offered("ports", enforced.ports) { ports } else { PortSet::default() }
            .to_ranges(),
        disk_bytes: when(offered("disk", enforced.disk), disk.usable_bytes),
        ..Resources::default()
    };
    let floor = Resources {
        cpu_milli: config.reserve_cpu_milli,
        mem_bytes: config.reserve_mem.as_u64(),
        ports: Vec::new(),
        disk_bytes: config.reserve_disk.as_u64(),
        ..Resources::default()
    };
    let disk_io_offered = bounded && offered("disk_io", enforced.disk_io);
    let disk_io = if disk_io_offered { disk_io.clone() } else { Resources::default() };
    let kept = disk_io::kept_back(&disk_io, config.disk_offer_percent);
    Ok(Ledger::new(capacity.plus(&disk_io), &floor.plus(&kept)))
}

fn info(config: &Config, listening: String) -> Result<AgentInfo, NodeError> {
    let host = || nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(AgentInfo {
        agent_id: identity::agent_id(&config.work_dir)?,
        hostname: if config.hostname.is_empty() { host() } else { config.hostname.clone() },
        api_address: if config.advertise.is_empty() { listening } else { config.advertise.clone() },
        attributes: config.attributes.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn defaults(config: &Config, disk_is_held: bool, features: &Features) -> Result<Defaults, ConfigError> {
    let profile = config.default_profile.parse().map_err(|e: ConfineError| ConfigError::Value {
        key: "default_profile",
        value: config.default_profile.clone(),
        why: e.to_string(),
    })?;
    let lacks = features.features.iter().filter(|f| FENCES.contains(&f.name) && !f.available);
    Ok(Defaults {
        user: config.task_user.clone(),
        grant: GrantDefaults {
            pids_max: config.default_pids_max,
            disk_bytes: if disk_is_held { config.default_disk.as_u64() } else { 0 },
            output_bytes: config.default_output.as_u64(),
            stall_percent: config.mem_stall_percent,
            stall_for: Duration::from_millis(config.mem_stall_ms),
        },
        kill_grace: config.kill_grace(),
        rules: Rules {
            profile,
            allow_trusted: config.allow_trusted_tasks,
            readable_paths: config.readable_paths.clone(),
            volume_dirs: config.volume_dirs.clone(),
            lacks: lacks.map(|f| (f.name, f.detail.clone())).collect(),
            waived: config.allow_unenforced.iter().cloned().collect(),
        },
    })
}

fn keep(config: &Config) -> Keep {
    let age = Duration::from_secs(config.sandbox_keep_hours.saturating_mul(3600));
    Keep { age, count: config.sandbox_keep_count }
}

/// Ends every task below the cgroup root and takes everything of this agent out of the kernel.
///
/// # Errors
/// Where an agent is still running, or something cannot be removed.
pub async fn cleanup(config: &Config) -> Result<(), NodeError> {
    let mut alone = identity::lock_work_dir(&config.work_dir)?;
    let tree = Tree::locate(&config.cgroup_root).map_err(NodeError::Tree)?;
    if tree.root.exists() {
        // An agent with another work directory may be at work in it.
        alone.also(tree.root.path())?;
        let root = tree.root.clone();
        root.kill().map_err(NodeError::Tree)?;
        root.wait_empty().await.map_err(NodeError::Tree)?;
        let topology = Topology::read(Path::new(topology::SYSFS)).unwrap_or_default();
        if let Err(error) = cores::forget(&tree, topology.possible()) {
            tracing::warn!(error = crate::error_chain(&error), "give exclusive cores back to the host");
        }
        root.remove().map_err(NodeError::Tree)?;
        tracing::info!(cgroup = %root.path().display(), "removed");
    }
    disk_io::restore_model(config)?;
    // Last: tasks are held to their ports as long as they run.
    bpf::remove(&pin_dir(config))?;
    // Shared with other agents on this host: it goes with the last one.
    drop(std::fs::remove_dir(&config.bpf_dir));
    Ok(())
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
