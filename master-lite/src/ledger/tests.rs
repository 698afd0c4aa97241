use bulkhead_proto::v1::PortRange;

use super::*;
use crate::allocator::{CPU, MEM, PORTS};

fn agent() -> AgentId {
    "a".into()
}

fn resources(cpu_milli: u64, mem_bytes: u64, ports: &[(u32, u32)]) -> Resources {
    let ports =
        ports.iter().map(|&(first, last)| PortRange { first, last, ..PortRange::default() }).collect();
    Resources { cpu_milli, mem_bytes, ports, ..Resources::default() }
}

fn held(class: ResourceClass, resources: Resources) -> Held {
    Held { framework: "f".into(), class, resources }
}

fn firm(cpu_milli: u64, mem_bytes: u64, ports: &[(u32, u32)]) -> Held {
    held(ResourceClass::Guaranteed, resources(cpu_milli, mem_bytes, ports))
}

fn lent(cpu_milli: u64, mem_bytes: u64) -> Held {
    held(ResourceClass::Revocable, resources(cpu_milli, mem_bytes, &[]))
}

fn key(task: &str) -> TaskKey {
    TaskKey::new(&"f".into(), task)
}

fn report(capacity: Resources, reserve: Resources, revocable_cpu_milli: u64) -> ResourceReport {
    ResourceReport {
        capacity: Some(capacity),
        reserve: Some(reserve),
        revocable_cpu_milli,
        ..ResourceReport::default()
    }
}

fn ledger() -> Ledger {
    let mut ledger = Ledger::default();
    let capacity = resources(4_000, 1_000, &[(1, 10)]);
    ledger.report(&agent(), &report(capacity, resources(500, 100, &[(1, 1)]), 800));
    ledger
}

fn parts(ledger: &Ledger) -> Parts {
    ledger.book(&agent()).unwrap().parts()
}

#[test]
fn what_is_held_and_reserved_is_not_free() {
    let mut ledger = ledger();
    ledger.grant(&agent(), key("t"), firm(1_000, 200, &[(2, 3)]));
    ledger.offer(&agent(), "o".into(), lent(300, 100));
    let parts = parts(&ledger);
    assert_eq!(parts.free, Slice { pool: resources(2_500, 600, &[(4, 10)]), revocable_cpu_milli: 500 });
    let held = ledger.held_by(&"f".into());
    assert_eq!([CPU, REVOCABLE_CPU, MEM, PORTS].map(|kind| held.0[kind]), [1_000, 300, 300, 4]);
}

#[test]
fn everything_given_back_is_free_again() {
    let mut ledger = ledger();
    let before = parts(&ledger);
    ledger.grant(&agent(), key("t"), firm(1_000, 200, &[(2, 3)]));
    ledger.offer(&agent(), "o".into(), lent(300, 100));
    ledger.release_grant(&agent(), &key("t"));
    ledger.release_offer(&agent(), &"o".into());
    ledger.release_offer(&agent(), &"o".into());
    assert_eq!(parts(&ledger), before);
    assert_eq!(ledger.held_by(&"f".into()), Totals::default());
}

#[test]
fn a_port_that_two_tasks_claim_stays_with_the_first() {
    let mut ledger = ledger();
    ledger.grant(&agent(), key("first"), firm(1, 1, &[(5, 6)]));
    ledger.grant(&agent(), key("second"), firm(1, 1, &[(6, 7)]));
    ledger.release_grant(&agent(), &key("second"));
    assert_eq!(parts(&ledger).granted.pool.ports, resources(0, 0, &[(5, 6)]).ports);
}

#[test]
fn an_unchanged_report_is_no_news() {
    let mut ledger = ledger();
    let same = report(resources(4_000, 1_000, &[(1, 10)]), resources(500, 100, &[(1, 1)]), 800);
    assert!(!ledger.report(&agent(), &same));
    assert!(ledger.report(&agent(), &ResourceReport { revocable_cpu_milli: 801, ..same }));
}

#[test]
fn only_offers_that_help_are_overdrawn_and_the_newest_first() {
    let mut ledger = ledger();
    ledger.offer(&agent(), "o1".into(), firm(1_000, 300, &[]));
    ledger.offer(&agent(), "o2".into(), firm(1_000, 300, &[]));
    ledger.offer(&agent(), "o3".into(), firm(0, 0, &[(9, 10)]));
    let newest_first: Vec<OfferId> = ["o3", "o2", "o1"].map(Into::into).to_vec();
    let overdrawn = |ledger: &Ledger| ledger.book(&agent()).unwrap().overdrawn(newest_first.iter());
    assert!(overdrawn(&ledger).is_empty());

    let capacity = || resources(4_000, 1_000, &[(1, 10)]);
    ledger.report(&agent(), &report(capacity(), resources(2_500, 0, &[]), 800));
    assert_eq!(overdrawn(&ledger), ["o2".into()]);
    ledger.report(&agent(), &report(capacity(), resources(0, 0, &[(10, 10)]), 800));
    assert_eq!(overdrawn(&ledger), ["o3".into()]);
    ledger.report(&agent(), &report(capacity(), resources(4_000, 0, &[]), 800));
    assert_eq!(overdrawn(&ledger), ["o2".into(), "o1".into()]);
}

#[test]
fn a_closed_book_leaves_nothing_behind() {
    let mut ledger = ledger();
    ledger.grant(&agent(), key("t"), firm(1_000, 200, &[]));
    ledger.remove(&agent());
    assert!(ledger.book(&agent()).is_none());
    assert_eq!(ledger.held_by(&"f".into()), Totals::default());
}
