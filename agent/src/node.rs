//! Puts the agent together, in flow order, from its configuration.

use std::{path::Path, sync::Arc, time::Instant};

use bulkhead_image::Store;
use bulkhead_stage::Stager;

use crate::{
    api::{self, AgentApi},
    config::Config,
    event::EventLog,
    identity::{self, Held},
    isolate::{disk_space::VolumeBounds, observed::Observed, revocable::Revocable, tree::Tree},
    journal::{Journal, replay::Replayed},
    keeper::{Keeper, Parts},
    kernel::{cgroupfs::cgroup2_mount, limits, probe::Features},
    launch::{self, Launcher, view::HostParts},
    link,
    measure::{
        NodeCapacity, NodeSampler,
        numa::NumaMemory,
        predictions::{self, Predictions},
        runqueue::{self, LatestWaits},
        sampler::{self, Sampling},
        tasks::TaskSampler,
        topology,
    },
    metrics::{Metrics, ReadCache},
    offer::Reporter,
};

mod capacity;
mod cleanup;
mod error;
mod isolation;
mod locality;
mod programs;
mod protection;
mod reserved;
mod settings;

pub use cleanup::cleanup;
pub use error::NodeError;

use isolation::{Host, Isolation};
use programs::Programs;
use reserved::Reserved;

/// Without these nothing works.
const REQUIRED: [&str; 3] = ["cgroup2", "cgroup_kill", "clone_into_cgroup"];

/// Runs an agent until it fails. Tasks go on when it ends, however it ends.
///
/// # Errors
/// [`NodeError`] says what was wrong and what to do.
pub async fn run(config: Config) -> Result<(), NodeError> {
    config.check()?;
    settings::check_task_user(&config)?;
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!(%error, "raise the limit of open files; it bounds the number of tasks");
    }
    let mut held = identity::lock_work_dir(&config.work_dir)?;
    let metrics = Arc::new(Metrics::new()?);
    let features = features(&config, &metrics)?;
    let machine = NodeCapacity::read()?;
    let tree = Tree::set_up(&config.cgroup_root, machine.cpus).map_err(NodeError::Tree)?;
    held.also(tree.root.path())?;
    let mut programs = Programs::open(&config, &tree, &features, &metrics);
    programs.export(&metrics)?;

    let tcp = api::bind(config.listen).await?;
    let listening =
        tcp.local_addr().map_err(|source| api::ApiError::Tcp { address: config.listen, source })?;
    let agent = settings::info(&config, listening.to_string())?;
    let events = Arc::new(EventLog::new(agent.agent_id.clone(), Arc::clone(&metrics)));
    let volumes = Arc::new(VolumeBounds::new(settings::projects(&config)?));
    let Isolation { isolators, enforced, disk, disk_speed, cores, network, connections, observed } =
        Isolation::set_up(&Host {
            config: &config,
            features: &features,
            machine,
            tree: &tree,
            programs: &programs,
            volumes: &volumes,
            events: &events,
            metrics: &metrics,
        })?;
    // However this ends.
    let _link = network.closed_on_drop();
    metrics.traffic({
        let network = Arc::clone(&network);
        Box::new(move || network.traffic().unwrap_or_default())
    })?;
    metrics.connections(Box::new(move || connections.all().unwrap_or_default()))?;
    tell_measured(&metrics, &observed)?;
    let (journal, replayed) = open_journal(&config)?;
    let launcher = Launcher::new(launch::execute::Parts {
        tree: tree.clone(),
        isolators: Arc::clone(&isolators),
        volumes,
        exits: programs.exits.clone(),
        work_dir: config.work_dir.clone(),
        host_parts: HostParts::make(&config.work_dir, &cgroup2_mount().map_err(NodeError::Tree)?)?,
        allow_root: config.allow_root_tasks,
    });
    let ledger = capacity::ledger(&config, machine, &disk_speed, network.link_bits_per_sec(), &enforced)?;
    let ports = ledger.capacity().port_set().unwrap_or_default();
    let all = ledger.capacity();
    let file = config.work_dir.join(predictions::FILE);
    let predictions = Predictions::start(&config.estimate, all.cpu_milli, all.mem_bytes, file);
    let _reserved = Reserved::take(&config, &tree, &ports.numbers(), &metrics);
    let images = Store::open(&config.work_dir.join("images"), config.images()?)?;
    let stager = Stager::new(config.stage())?;
    tell_caches(&metrics, &stager, &images)?;
    let (data_sets, answers) = locality::start(&config, &metrics).await?;
    let revocable = Arc::new(Revocable::release(tree.clone()).map_err(NodeError::Tree)?);
    let (mut keeper, messages) = Keeper::new(Parts {
        revocable: Arc::clone(&revocable),
        ledger,
        predictor: config.estimate.predictor().name(),
        reporter: Reporter::new(enforced, config.report.steps()?, settings::report_pace(&config)),
        agent,
        launcher,
        images,
        stager,
        journal,
        events: Arc::clone(&events),
        data_sets,
        metrics: Arc::clone(&metrics),
        defaults: settings::defaults(&config, disk.is_some(), &features)?,
        history: config.sandbox_keep_count,
        keep: settings::keep(&config),
        work_dir: config.work_dir.clone(),
    });
    keeper.recover(replayed)?;
    tokio::spawn(keeper.run());
    tokio::spawn(locality::forward(answers, messages.clone()));
    programs.tell_refusals(&events);
    let latest_waits = LatestWaits::default();
    let _protection = protection::start(protection::Parts {
        config: &config,
        tree: &tree,
        revocable,
        watched: observed.watched(),
        waits: latest_waits.clone(),
        keeper: &messages,
        metrics: &metrics,
    })?;
    let sampling = Sampling {
        node: NodeSampler::start(tree, Instant::now())?,
        tasks: TaskSampler::new(Arc::clone(observed.watched()), machine.cpus),
        waits: programs.runqueue.clone(),
        latest_waits,
        predictions,
        work_dir: config.work_dir.clone(),
        disk,
        net: network.sampler(),
        numa: NumaMemory::open(Path::new(topology::SYSFS), cores.topology()),
        cores,
        ports,
        measure_strangers: config.measure_strangers,
    };
    if let Some(counts) = programs.runqueue.clone() {
        let (watched, percent) = (Arc::clone(observed.watched()), config.runqueue_look_percent);
        tokio::spawn(runqueue::look(counts, watched, percent));
    }
    tokio::spawn(sampler::run(sampling, settings::pace(&config), metrics.sampler()?, messages.clone()));
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

/// What this kernel can do, which must be enough to hold a task at all.
fn features(config: &Config, metrics: &Metrics) -> Result<Features, NodeError> {
    let features = Features::probe(&config.work_dir);
    for feature in &features.features {
        metrics.feature(feature.name, feature.available);
        if REQUIRED.contains(&feature.name) && !feature.available {
            return Err(NodeError::Missing { name: feature.name, detail: feature.detail.clone() });
        }
    }
    Ok(features)
}

fn tell_measured(metrics: &Metrics, observed: &Arc<Observed>) -> Result<(), prometheus::Error> {
    metrics.tasks(Arc::clone(observed.watched()))?;
    let (waits, disk_waits) = (Arc::clone(observed), Arc::clone(observed));
    metrics.waits(
        Box::new(move || waits.waits().unwrap_or_default()),
        Box::new(move || disk_waits.disk_waits().unwrap_or_default()),
    )
}

fn tell_caches(metrics: &Metrics, stager: &Stager, images: &Store) -> Result<(), prometheus::Error> {
    let (stager, images) = (stager.clone(), images.clone());
    let artifacts: ReadCache = Box::new(move || stager.cache_use());
    metrics.caches(vec![("artifacts", artifacts), ("images", Box::new(move || images.usage()))])
}

fn open_journal(config: &Config) -> Result<(Journal, Replayed), NodeError> {
    let (journal, replayed) = Journal::open(&config.work_dir)?;
    if replayed.damaged_bytes > 0 {
        tracing::warn!(
            bytes = replayed.damaged_bytes,
            "the journal ended in a torn record, which was cut off"
        );
    }
    Ok((journal, replayed))
}
