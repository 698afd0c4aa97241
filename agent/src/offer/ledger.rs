//! Who holds what on this node.
//!
//! # Properties
//! - **Conservation**: for each kind, `capacity = reserve + allocated + free`, at every moment.
//! - **No double grant**: two live tasks never hold the same port, nor together more than
//!   `capacity - floor` of CPU or memory.
//! - **A promise outlives a measurement**: a launch is admitted against the configured floor, not
//!   against what strangers use at that instant; their use shapes the offers that come after. Only of the
//!   disk are their files left out too: those do not go away again by themselves.
//!
//! Memory and ports are one pool for both classes. The CPU of revocable tasks is lent on top of the
//! guaranteed CPU and accounted apart.

use std::collections::BTreeMap;

use bulkhead_proto::{
    resources::{PortSet, SCALARS},
    v1::{self, Resources},
};

use crate::grant::{Class, Grant};

/// A task, by its framework's id and its own.
pub type TaskKey = (String, String);

/// A grant that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More than is left of a countable kind.
    #[error("{asked} {unit} asked, {left} left")]
    TooMuch {
        /// What was asked for.
        asked: u64,
        /// What is left.
        left: u64,
        /// Of what.
        unit: &'static str,
    },
    /// Ports that are not offered here or are held by another task.
    #[error("ports {0} are not free on this node")]
    Ports(PortSet),
    /// The task holds a grant already.
    #[error("task {1} of framework {0} is already running here")]
    Duplicate(String, String),
}

/// What one task holds.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    class: Class,
    /// Out of the pool that offers are made from: CPU only where it is guaranteed.
    pool: Resources,
    /// CPU that was lent.
    revocable_cpu_milli: u64,
    /// The part of `pool` that is cores of its own.
    exclusive_cpu_milli: u64,
}

impl Held {
    fn of(grant: &Grant) -> Self {
        let all = amounts(grant);
        let exclusive_cpu_milli = if grant.cpu.exclusive { grant.cpu_milli } else { 0 };
        let (revocable_cpu_milli, pool) = match grant.class {
            Class::Guaranteed => (0, all),
            Class::Revocable => (all.cpu_milli, Resources { cpu_milli: 0, ..all }),
        };
        Self { class: grant.class, pool, revocable_cpu_milli, exclusive_cpu_milli }
    }
}

/// The node's books.
#[derive(Clone, Debug)]
pub struct Ledger {
    capacity: Resources,
    /// Never granted to tasks, whatever is measured.
    floor: Resources,
    /// What everything that is not a task was measured to use.
    strangers: Resources,
    revocable_cpu_milli: u64,
    disk_slack_bytes: u64,
    held: BTreeMap<TaskKey, Held>,
    /// The sum of what is `held`, kept so that a launch costs the same with a thousand tasks.
    allocated: Resources,
    closed: bool,
    version: u64,
}

impl Ledger {
    /// An empty node. `floor` is cut to the capacity.
    pub fn new(capacity: Resources, floor: &Resources) -> Self {
        let floor = floor.at_most(&capacity);
        Self {
            capacity,
            floor,
            strangers: Resources::default(),
            revocable_cpu_milli: 0,
            disk_slack_bytes: 0,
            held: BTreeMap::new(),
            allocated: Resources::default(),
            closed: false,
            version: 0,
        }
    }

    /// Of the disk, files of others that the master may not have been told of yet: what it offers is granted all the same, out
    /// of the floor.
    #[must_use]
    pub fn with_disk_slack(self, bytes: u64) -> Self {
        Self { disk_slack_bytes: bytes.min(self.floor.disk_bytes), ..self }
    }

    /// Books a grant, or says why it does not fit.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is booked then.
    pub fn admit(&mut self, key: TaskKey, grant: &Grant) -> Result<(), Refusal> {
        if self.held.contains_key(&key) {
            return Err(Refusal::Duplicate(key.0, key.1));
        }
        self.check_room(&amounts(grant), grant.class)?;
        self.adopt(key, grant);
        Ok(())
    }

    /// Books the larger of what the task holds and of `grant`, kind by kind, until [`Ledger::settle`] says which
    /// of them it is. A task that is not booked stays so.
    ///
    /// # Errors
    /// [`Refusal`] where the growth does not fit; nothing changes then.
    pub fn stretch(&mut self, key: &TaskKey, grant: &Grant) -> Result<(), Refusal> {
        let Some(held) = self.held.get(key) else { return Ok(()) };
        let cpu_milli = match grant.class {
            Class::Guaranteed => held.pool.cpu_milli,
            Class::Revocable => held.revocable_cpu_milli,
        };
        let now = Resources { cpu_milli, ..held.pool.clone() };
        self.check_room(&amounts(grant).saturating_sub(&now), grant.class)?;
        let wanted = Held::of(grant);
        let both = Held {
            class: held.class,
            pool: held.pool.at_least(&wanted.pool),
            revocable_cpu_milli: held.revocable_cpu_milli.max(wanted.revocable_cpu_milli),
            exclusive_cpu_milli: held.exclusive_cpu_milli.max(wanted.exclusive_cpu_milli),
        };
        self.hold(key, both);
        Ok(())
    }

    /// Books exactly this grant for a task that is booked.
    pub fn settle(&mut self, key: &TaskKey, grant: &Grant) {
        if self.held.contains_key(key) {
            self.hold(key, Held::of(grant));
        }
    }

    fn hold(&mut self, key: &TaskKey, held: Held) {
        if let Some(before) = self.held.remove(key) {
            self.allocated = self.allocated.saturating_sub(&before.pool);
        }
        self.allocated = self.allocated.plus(&held.pool);
        self.held.insert(key.clone(), held);
        self.version += 1;
    }

    fn check_room(&self, asked: &Resources, class: Class) -> Result<(), Refusal> {
        let left = self.capacity.saturating_sub(&self.floor).saturating_sub(&self.allocated);
        let cpu_left = match class {
            Class::Guaranteed => left.cpu_milli,
            Class::Revocable => self.revocable_cpu_milli.saturating_sub(self.revocable_allocated()),
        };
        // Files of others do not go away when somebody waits.
        let strangers = self.strangers.disk_bytes.saturating_sub(self.disk_slack_bytes);
        let others = self.floor.disk_bytes.max(strangers);
        let disk_left =
            self.capacity.disk_bytes.saturating_sub(others).saturating_sub(self.allocated.disk_bytes);
        let left = Resources { cpu_milli: cpu_left, disk_bytes: disk_left, ..left };
        for kind in &SCALARS {
            let (asked, left) = ((kind.get)(asked), (kind.get)(&left));
            if asked > left {
                return Err(Refusal::TooMuch { asked, left, unit: kind.unit });
            }
        }
        let missing = ports(asked).difference(&ports(&left));
        if !missing.is_empty() {
            return Err(Refusal::Ports(missing));
        }
        Ok(())
    }

    /// Books a grant of a task that is running already, which a restarted agent found: it fits by history.
    pub fn adopt(&mut self, key: TaskKey, grant: &Grant) {
        self.hold(&key, Held::of(grant));
    }

    /// Takes a grant back. One that is not there is no error: a task ends only once.
    pub fn release(&mut self, key: &TaskKey) {
        if let Some(held) = self.held.remove(key) {
            self.allocated = self.allocated.saturating_sub(&held.pool);
            self.version += 1;
        }
    }

    /// Holds everything back that is not granted yet, or gives it free again.
    pub fn close(&mut self, closed: bool) {
        self.version += u64::from(self.closed != closed);
        self.closed = closed;
    }

    /// Differs whenever the books may have changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Takes over a measurement: what strangers use, and the CPU that is safe to lend.
    pub fn observe(&mut self, strangers: Resources, revocable_cpu_milli: u64) {
        self.strangers = strangers;
        self.revocable_cpu_milli = revocable_cpu_milli.min(self.capacity.cpu_milli);
        self.version += 1;
    }

    /// Ports that tasks hold.
    pub fn granted_ports(&self) -> PortSet {
        ports(&self.allocated)
    }

    /// What is never granted, whatever is measured.
    pub fn floor(&self) -> &Resources {
        &self.floor
    }

    /// What is held back for strangers, as far as that is more than the floor.
    pub fn strangers(&self) -> &Resources {
        &self.strangers
    }

    /// Is everything held back that is not granted?
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// How many tasks of this class hold a grant.
    pub fn tasks(&self, class: Class) -> u64 {
        self.held.values().filter(|held| held.class == class).count() as u64
    }

    /// What the node has in all.
    pub fn capacity(&self) -> &Resources {
        &self.capacity
    }

    /// The books in the form that is reported; `enforced` and `sequence` are the caller's.
    pub fn report(&self) -> v1::ResourceReport {
        let allocated = self.allocated.clone();
        let held_back = self.floor.at_least(&self.strangers);
        let not_granted = self.capacity.saturating_sub(&allocated);
        let reserve = if self.closed { not_granted.clone() } else { held_back.at_most(&not_granted) };
        v1::ResourceReport {
            free: Some(not_granted.saturating_sub(&reserve)),
            capacity: Some(self.capacity.clone()),
            reserve: Some(reserve),
            allocated: Some(allocated),
            revocable_cpu_milli: if self.closed { 0 } else { self.revocable_cpu_milli },
            revocable_allocated_cpu_milli: self.revocable_allocated(),
            ..v1::ResourceReport::default()
        }
    }

    /// CPU of tasks with cores of their own: what these leave idle cannot be lent.
    pub fn exclusive_cpu_milli(&self) -> u64 {
        self.held.values().map(|held| held.exclusive_cpu_milli).sum()
    }

    fn revocable_allocated(&self) -> u64 {
        self.held.values().map(|held| held.revocable_cpu_milli).sum()
    }
}

/// Everything that a grant takes.
fn amounts(grant: &Grant) -> Resources {
    Resources {
        cpu_milli: grant.cpu_milli,
        mem_bytes: grant.mem_bytes,
        ports: grant.ports.to_ranges(),
        disk_bytes: grant.disk.bytes,
        disk_read_bytes_per_sec: grant.disk.read_bytes_per_sec.unwrap_or(0),
        disk_write_bytes_per_sec: grant.disk.write_bytes_per_sec.unwrap_or(0),
        disk_read_ops_per_sec: grant.disk.read_ops_per_sec.unwrap_or(0),
        disk_write_ops_per_sec: grant.disk.write_ops_per_sec.unwrap_or(0),
        net_egress_bits_per_sec: grant.bandwidth.egress_bits_per_sec.unwrap_or(0),
        net_ingress_bits_per_sec: grant.bandwidth.ingress_bits_per_sec.unwrap_or(0),
    }
}

/// The ports of an amount that this module made itself, and which are therefore valid.
fn ports(resources: &Resources) -> PortSet {
    resources.port_set().unwrap_or_default()
}

#[cfg(test)]
mod tests;
