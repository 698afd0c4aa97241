//! Where each number of a report comes from. Pure.
//!
//! # Properties
//! - **The parts add up** to exactly what the report of the same moment says.
//! - **No part is above the capacity**, whatever was measured.

use bulkhead_proto::{
    resources::{PortSet, SCALARS, Scalar},
    v1::{
        HeldBackFor, KindOrigin, LendingOrigin, NothingLent, PortOrigin, Provenance, ResourceReport,
        Resources,
    },
};

use super::{Ledger, Seen};
use crate::grant::Class;

/// Of the books as they are, with what was seen last; `predictor` is the name of who predicts the peaks. What is enforced
/// and how old the measurement is are the caller's.
pub fn provenance(ledger: &Ledger, seen: Option<&Seen>, predictor: &str) -> Provenance {
    let report = ledger.report();
    Provenance {
        kinds: SCALARS.iter().map(|kind| kind_origin(kind, ledger, seen, &report)).collect(),
        ports: Some(port_origin(ledger, &report)),
        revocable_cpu: Some(lending_origin(ledger, seen, &report, predictor)),
        numa: seen.map(|seen| seen.observation.numa.clone()).unwrap_or_default(),
        guaranteed_tasks: ledger.tasks(Class::Guaranteed),
        revocable_tasks: ledger.tasks(Class::Revocable),
        ..Provenance::default()
    }
}

fn kind_origin(kind: &Scalar, ledger: &Ledger, seen: Option<&Seen>, report: &ResourceReport) -> KindOrigin {
    let of = |part: &Option<Resources>| part.as_ref().map_or(0, kind.get);
    let (floor, claimed) = ((kind.get)(ledger.floor()), (kind.get)(ledger.strangers()));
    let strangers = seen.map_or(0, |seen| (kind.get)(&seen.used_by_strangers));
    let reserve = of(&report.reserve);
    let reserve_for = if ledger.is_closed() {
        HeldBackFor::Journal
    } else if claimed <= floor {
        if floor > 0 { HeldBackFor::Floor } else { HeldBackFor::Unspecified }
    } else if claimed <= strangers {
        HeldBackFor::Strangers
    } else if kind.name == "disk_bytes" {
        let both = claimed <= strangers.saturating_add(floor);
        if both { HeldBackFor::StrangersAndFloor } else { HeldBackFor::SmallerDisk }
    } else {
        HeldBackFor::SlowerLink
    };
    KindOrigin {
        kind: kind.name.to_owned(),
        capacity: of(&report.capacity),
        allocated: of(&report.allocated),
        reserve,
        free: of(&report.free),
        floor,
        strangers,
        reserve_for: reserve_for.into(),
        short: floor.max(claimed).saturating_sub(reserve),
    }
}

fn port_origin(ledger: &Ledger, report: &ResourceReport) -> PortOrigin {
    let of = |part: Option<&Resources>| part.and_then(|r| r.port_set().ok()).unwrap_or_default();
    let kept = of(report.reserve.as_ref());
    let strangers = kept.intersection(&of(Some(ledger.strangers())));
    let ranges = |set: &PortSet| set.to_ranges();
    PortOrigin {
        capacity: ranges(&of(report.capacity.as_ref())),
        allocated: ranges(&of(report.allocated.as_ref())),
        journal: ranges(&kept.difference(&strangers)),
        strangers: ranges(&strangers),
        free: ranges(&of(report.free.as_ref())),
    }
}

fn lending_origin(
    ledger: &Ledger,
    seen: Option<&Seen>,
    report: &ResourceReport,
    predictor: &str,
) -> LendingOrigin {
    let not_measured = || LendingOrigin {
        capacity_milli: ledger.capacity().cpu_milli,
        kept_milli: ledger.capacity().cpu_milli,
        nothing_lent: NothingLent::NotMeasured.into(),
        ..LendingOrigin::default()
    };
    let mut origin = seen.map_or_else(not_measured, |seen| seen.lending.clone());
    if ledger.is_closed() {
        origin.kept_milli += std::mem::take(&mut origin.lendable_milli);
        origin.nothing_lent = NothingLent::Journal.into();
    }
    origin.lent_milli = report.revocable_allocated_cpu_milli;
    predictor.clone_into(&mut origin.predictor);
    origin
}

#[cfg(test)]
mod tests;
