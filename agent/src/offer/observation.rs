//! What was measured, and what follows from it for the books. Pure.

use bulkhead_proto::{
    resources::PortSet,
    v1::{self, LendingOrigin, NothingLent, Origin, Resources},
};

use super::Ledger;
use crate::{
    estimate::lendable_cpu_milli,
    measure::{network::NetUse, pressure::Pressure},
};

/// What the sampler found: peaks over its window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// CPU of everything that is not a task.
    pub strangers_cpu_milli: u64,
    /// Memory of everything that is not a task.
    pub strangers_mem_bytes: u64,
    /// Disk that is in use and no running task's.
    pub strangers_disk_bytes: u64,
    /// What the disk has now, 0 where it cannot be read; `None` where nobody looked.
    pub disk_usable_bytes: Option<u64>,
    /// What goes over the link and is no task's.
    pub strangers_net: NetUse,
    /// The link's speed now, 0 where there is none.
    pub link_bits_per_sec: u64,
    /// CPU of guaranteed tasks, at its peak of the last while.
    pub guaranteed_peak_cpu_milli: Option<u64>,
    /// Were they watched for long enough to lend what they leave?
    pub watched: bool,
    /// The predicted peak of guaranteed tasks; `None` in the first minutes.
    pub predicted_cpu_milli: Option<u64>,
    /// The same of their memory.
    pub predicted_mem_bytes: Option<u64>,
    /// Ports that the node offers and some socket on the host holds, tasks' included.
    pub ports_in_use: PortSet,
    /// What the machine stands still for.
    pub pressure: Pressure,
    /// What 99 of 100 waits of guaranteed tasks for a CPU took at most, to a factor of two; `None` where that is not
    /// counted, or there were too few.
    pub runqueue_p99_usec: Option<u64>,
    /// What each memory node has, and what is free of it.
    pub numa: Vec<v1::NumaNode>,
}

/// An observation, beside the books as they were when it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// As it was measured.
    pub observation: Observation,
    /// What everything that is not a task uses: never more than there is of a kind.
    pub used_by_strangers: Resources,
    /// What follows for revocable tasks. What they hold is not in it.
    pub lending: LendingOrigin,
}

impl Seen {
    /// Takes it in.
    pub fn new(observation: Observation, ledger: &Ledger) -> Self {
        let ports = observation.ports_in_use.difference(&ledger.granted_ports());
        let used_by_strangers = Resources {
            cpu_milli: observation.strangers_cpu_milli,
            mem_bytes: observation.strangers_mem_bytes,
            ports: ports.to_ranges(),
            disk_bytes: observation.strangers_disk_bytes,
            net_egress_bits_per_sec: observation.strangers_net.sent_bits_per_sec,
            net_ingress_bits_per_sec: observation.strangers_net.received_bits_per_sec,
            ..Resources::default()
        }
        .at_most(ledger.capacity());
        let lending = lending(&observation, ledger);
        Self { observation, used_by_strangers, lending }
    }

    /// What nobody can be offered because of strangers, or because it is not there any more.
    pub fn strangers(&self, ledger: &Ledger) -> Resources {
        let (used, capacity) = (&self.used_by_strangers, ledger.capacity());
        let link_bits_per_sec = self.observation.link_bits_per_sec;
        // Nor of a disk that is not what it was.
        let lost = |usable: u64| capacity.disk_bytes.saturating_sub(usable);
        let lost_bytes = self.observation.disk_usable_bytes.map_or(0, lost);
        // Of a link that has become slower, or is gone, nobody can have the rest.
        let on_link = |used: u64, all: u64| used.max(all.saturating_sub(link_bits_per_sec));
        Resources {
            // Their files stay, so what is kept free comes on top of them.
            disk_bytes: used.disk_bytes.saturating_add(ledger.floor().disk_bytes).saturating_add(lost_bytes),
            net_egress_bits_per_sec: on_link(used.net_egress_bits_per_sec, capacity.net_egress_bits_per_sec),
            net_ingress_bits_per_sec: on_link(
                used.net_ingress_bits_per_sec,
                capacity.net_ingress_bits_per_sec,
            ),
            ..used.clone()
        }
        .at_most(capacity)
    }

    /// The report with what was seen, and where its numbers come from.
    pub fn tell(&self, ledger: &Ledger, report: v1::ResourceReport) -> v1::ResourceReport {
        let origin = Origin {
            floor: Some(ledger.floor().clone()),
            strangers: Some(self.used_by_strangers.clone()),
            guaranteed_peak_cpu_milli: self.lending.peak_milli,
            predicted_peak_cpu_milli: self.lending.predicted_milli,
        };
        v1::ResourceReport { numa: self.observation.numa.clone(), origin: Some(origin), ..report }
    }
}

/// What revocable tasks may have: what neither tasks with cores of their own, strangers, nor guaranteed tasks use.
fn lending(seen: &Observation, ledger: &Ledger) -> LendingOrigin {
    let capacity_milli = ledger.capacity().cpu_milli;
    // What a task leaves of cores of its own, nobody else can use.
    let exclusive_milli = ledger.exclusive_cpu_milli().min(capacity_milli);
    let sharable = capacity_milli - exclusive_milli;
    let (peak_milli, predicted_milli) = (seen.guaranteed_peak_cpu_milli, seen.predicted_cpu_milli);
    // A burst is over the prediction for as long as it counts.
    let guaranteed = peak_milli.max(predicted_milli).unwrap_or(0);
    let strangers_milli = seen.strangers_cpu_milli.min(sharable);
    let guaranteed_milli = guaranteed.min(sharable - strangers_milli);
    let is_known = seen.watched && peak_milli.is_some();
    let lendable_milli =
        if is_known { lendable_cpu_milli(sharable, strangers_milli, guaranteed_milli) } else { 0 };
    let nothing_lent = match lendable_milli {
        1.. => NothingLent::Unspecified,
        0 if capacity_milli == 0 => NothingLent::NoCpu,
        0 if !is_known => NothingLent::NotWatched,
        0 => NothingLent::Full,
    };
    LendingOrigin {
        capacity_milli,
        exclusive_milli,
        strangers_milli,
        guaranteed_milli,
        kept_milli: sharable - strangers_milli - guaranteed_milli - lendable_milli,
        lendable_milli,
        peak_milli,
        predicted_milli,
        nothing_lent: nothing_lent.into(),
        ..LendingOrigin::default()
    }
}
