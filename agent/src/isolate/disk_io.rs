//! Disk I/O: a cap on bytes and operations in each direction (`io.max`), and a share of the disk under contention
//! (`io.weight`).
//!
//! # What a grant of disk I/O promises
//! `io.max` holds a task to at most what it was granted. That alone keeps nothing free for anybody: a task that asked
//! for no disk I/O has no cap, and could take what was granted to others. What holds it back is its weight. With a
//! measured model (`calibrate-disk`) the kernel knows the cost of each request, and a task with a grant weighs as much
//! of 10,000 as its grant is of the disk's time; one without a grant weighs 1 to 100. So the disk's I/O is offered as
//! enforced only where the kernel weighs it.
//!
//! Buffered writes count too: the kernel charges writeback to the cgroup whose memory it is, which needs the memory
//! controller on the same hierarchy.

use bulkhead_proto::{
    resources::SCALARS,
    v1::{self, Resources},
};

use super::{
    IsolateError, Isolator, TaskPlace,
    tree::{Branch, Tree},
};
use crate::{
    config::Config,
    grant::{Grant, IO_WEIGHT},
    kernel::{
        block::{Disk, DiskError},
        cgroupfs::{Cgroup, CgroupError, cgroup2_mount},
        io_cost::{self, IoCostError},
    },
    measure::disk_speed::{DiskModel, ModelError},
};

pub mod limits;
use limits::{Caps, Moved, bfq_weight, promised_weight};

const MAX: &str = "io.max";
const WEIGHT: &str = "io.weight";
const BFQ_WEIGHT: &str = "io.bfq.weight";
/// Of the agent's part of the tree against the rest of the machine, and of guaranteed tasks against the others.
const GUARANTEED_WEIGHT: u32 = 10_000;
/// The journal and the logs: little, but everybody waits for it.
const AGENT_WEIGHT: u32 = 500;
/// Of all revocable tasks together.
const REVOCABLE_WEIGHT: u32 = 1;

/// Why there is no disk to hold tasks to.
#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error("the io controller is not on the cgroup v2 hierarchy")]
    Controller,
    #[error("the kernel was built without CONFIG_BLK_DEV_THROTTLING: there is no io.max")]
    Throttling,
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What decides under contention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weighing {
    /// `io.weight`, by the cost that a model gives each request.
    Cost,
    /// `io.bfq.weight`, by the scheduler of that name.
    Bfq,
}

/// The disk below the sandboxes, and what can be done there.
#[derive(Debug)]
struct Held {
    disk: Disk,
    weighing: Option<Weighing>,
    /// Of both directions at once.
    measured: Option<Resources>,
}

/// Needs the io controller, and a work directory on a block device.
#[derive(Debug)]
pub struct DiskIo {
    held: Result<Held, Unavailable>,
    /// The operator takes grants that nothing holds.
    unenforced: bool,
}

impl DiskIo {
    /// Finds the disk below the work directory, and installs its model where there is one.
    ///
    /// # Errors
    /// A model that was named in the settings or lies in its place, and cannot be used.
    pub fn set_up(tree: &Tree, config: &Config) -> Result<Self, ModelError> {
        let model = config.disk_model_path().map(|path| DiskModel::read(&path)).transpose()?;
        let unenforced = config.allows_unenforced("disk_io");
        let held = find(tree, config).map(|disk| hold(tree, config, disk, model.as_ref()));
        match &held {
            Ok(held) => tracing::info!(
                disk = held.disk.name,
                number = %held.disk.number,
                weighing = ?held.weighing,
                model = held.measured.is_some(),
                "disk I/O is held"
            ),
            Err(why) if model.is_some() => tracing::warn!(%why, "no disk I/O is offered"),
            Err(why) => tracing::info!(%why, "disk I/O is not held"),
        }
        Ok(Self { held, unenforced })
    }

    /// What the disk was measured to do, where there is a model of it.
    pub fn measured(&self) -> Option<&Resources> {
        self.held.as_ref().ok()?.measured.as_ref()
    }

    /// Does the kernel keep for each task what it was granted?
    pub fn enforces(&self) -> bool {
        self.held.as_ref().is_ok_and(|held| held.weighing.is_some() && held.measured.is_some())
    }

    fn apply(&self, cgroup: &Cgroup, before: Option<&Grant>, grant: &Grant) -> Result<(), IsolateError> {
        let caps = Caps::of(&grant.disk);
        let held = match &self.held {
            Ok(held) => held,
            Err(_) if self.unenforced || (caps.is_none() && grant.disk.io_weight == IO_WEIGHT) => {
                return Ok(());
            }
            Err(why) => {
                let asked = if caps.is_none() { "a share of the disk" } else { "a limit on disk I/O" };
                return Err(IsolateError::Refused(format!("{asked} cannot be held on this node: {why}")));
            }
        };
        // A new cgroup has no caps; each write to a cgroup is time that a launch takes.
        let before = before.map_or_else(Caps::default, |before| Caps::of(&before.disk));
        if caps != before {
            cgroup.write(MAX, &caps.line(held.disk.number))?;
        }
        held.weigh(cgroup, grant)
    }
}

impl Held {
    fn weigh(&self, cgroup: &Cgroup, grant: &Grant) -> Result<(), IsolateError> {
        let asked = grant.disk.io_weight;
        let weight = self.measured.as_ref().map_or(asked, |all| promised_weight(&grant.disk, all));
        match self.weighing {
            None if asked == IO_WEIGHT => Ok(()),
            None => Err(IsolateError::Refused(format!(
                "nothing weighs the traffic of {}, so a share of {asked} cannot be held: measure the disk with \
                 `bulkhead-agent calibrate-disk`, or ask for no io_weight",
                self.disk.name
            ))),
            Some(Weighing::Cost) => Ok(cgroup.write(WEIGHT, &weight.to_string())?),
            Some(Weighing::Bfq) => Ok(cgroup.write(BFQ_WEIGHT, &bfq_weight(weight).to_string())?),
        }
    }
}

fn find(tree: &Tree, config: &Config) -> Result<Disk, Unavailable> {
    if !tree.has("io") {
        return Err(Unavailable::Controller);
    }
    if !tree.branch(Branch::Guaranteed).has(MAX) {
        return Err(Unavailable::Throttling);
    }
    Ok(Disk::below(&config.work_dir)?)
}

fn hold(tree: &Tree, config: &Config, disk: Disk, model: Option<&DiskModel>) -> Held {
    let model = model.filter(|model| match model.fits(&disk) {
        Ok(()) => true,
        Err(why) => {
            tracing::warn!(why, "no disk I/O is offered");
            false
        }
    });
    let root = cgroup2_mount().map(Cgroup::at).ok();
    if let (Some(root), Some(lines)) = (&root, model.and_then(|m| m.io_cost.as_ref())) {
        let installed = if io_cost::available(root) {
            io_cost::install(root, &config.work_dir, disk.number, lines).map_err(|e| crate::error_chain(&e))
        } else {
            Err("this kernel has no io.cost (CONFIG_BLK_CGROUP_IOCOST)".to_owned())
        };
        if let Err(error) = installed {
            tracing::warn!(disk = disk.name, error, "install the disk's model; its traffic is not weighed");
        }
    }
    let guaranteed = tree.branch(Branch::Guaranteed);
    let weighing = match &root {
        Some(root) if guaranteed.has(WEIGHT) && io_cost::enabled(root, disk.number) => Some(Weighing::Cost),
        _ if disk.scheduler == "bfq" && guaranteed.has(BFQ_WEIGHT) => Some(Weighing::Bfq),
        _ => None,
    };
    if let Some(weighing) = weighing
        && let Err(error) = weigh_tree(tree, weighing)
    {
        tracing::warn!(error = crate::error_chain(&error), "weigh tasks against the rest of the machine");
    }
    Held { disk, weighing, measured: model.map(|m| m.both_at_once.resources()) }
}

/// What was promised to tasks goes before everything else; what is lent comes last.
fn weigh_tree(tree: &Tree, weighing: Weighing) -> Result<(), CgroupError> {
    let guaranteed = tree.branch(Branch::Guaranteed);
    for (cgroup, weight) in [
        (&tree.root, GUARANTEED_WEIGHT),
        (&tree.agent_leaf(), AGENT_WEIGHT),
        (&guaranteed, GUARANTEED_WEIGHT),
        (&tree.branch(Branch::Exclusive), GUARANTEED_WEIGHT),
        (&tree.branch(Branch::Revocable), REVOCABLE_WEIGHT),
    ] {
        match weighing {
            Weighing::Cost => cgroup.write(WEIGHT, &weight.to_string())?,
            Weighing::Bfq => cgroup.write(BFQ_WEIGHT, &bfq_weight(weight).to_string())?,
        }
    }
    Ok(())
}

/// The part of what the disk was measured to do that is never granted.
pub fn kept_back(measured: &Resources, offer_percent: u32) -> Resources {
    let mut kept = Resources::default();
    for kind in &SCALARS {
        let all = (kind.get)(measured);
        let offered = u128::from(all) * u128::from(offer_percent.min(100)) / 100;
        (kind.set)(&mut kept, all - u64::try_from(offered).unwrap_or(all));
    }
    kept
}

/// Puts back the cost model that was there before the agent with this work directory installed its own.
///
/// # Errors
/// The kernel's refusal.
pub fn restore_model(config: &Config) -> Result<(), IoCostError> {
    let root = Cgroup::at(cgroup2_mount()?);
    if io_cost::restore(&root, &config.work_dir)? {
        tracing::info!("the disk's cost model is as it was found");
    }
    Ok(())
}

impl Isolator for DiskIo {
    fn part(&self) -> &'static str {
        "disk_io"
    }

    fn features(&self) -> &'static [&'static str] {
        &["cgroup_io"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.apply(&task.cgroup, None, grant)
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        let part = |grant: &Grant| (Caps::of(&grant.disk), grant.disk.io_weight);
        if part(before) == part(after) {
            return Ok(());
        }
        self.apply(&task.cgroup, Some(before), after).inspect_err(|_| {
            if let Err(error) = self.apply(&task.cgroup, Some(after), before) {
                tracing::error!(error = crate::error_chain(&error), "go back to the disk limits before");
            }
        })
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.apply(&task.cgroup, None, grant)
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Ok(held) = &self.held else { return };
        let Ok(text) = task.cgroup.read("io.stat") else { return };
        let Some(moved) = Moved::parse(&text, held.disk.number) else { return };
        usage.disk_read_bytes = moved.read_bytes;
        usage.disk_written_bytes = moved.written_bytes;
        usage.disk_read_ops = moved.read_ops;
        usage.disk_write_ops = moved.write_ops;
    }

    fn cleanup(&self, _task: &TaskPlace) -> Result<(), IsolateError> {
        Ok(())
    }
}
