use proptest::prelude::*;

use super::*;
use crate::{
    config::ReportConfig,
    grant::Grant,
    measure::network::NetUse,
    offer::{Observation, Steps, ledger::TaskKey},
};

const LINK: u64 = 1000;

fn set(text: &str) -> PortSet {
    text.parse().unwrap()
}

fn capacity() -> Resources {
    Resources {
        cpu_milli: 4000,
        mem_bytes: 8000,
        ports: set("31000-31009").to_ranges(),
        disk_bytes: 10_000,
        disk_read_bytes_per_sec: 100,
        net_egress_bits_per_sec: LINK,
        net_ingress_bits_per_sec: LINK,
        ..Resources::default()
    }
}

fn floor() -> Resources {
    Resources {
        cpu_milli: 100,
        mem_bytes: 256,
        disk_bytes: 1000,
        disk_read_bytes_per_sec: 20,
        net_egress_bits_per_sec: 100,
        net_ingress_bits_per_sec: 100,
        ..Resources::default()
    }
}

fn calm() -> Observation {
    Observation {
        link_bits_per_sec: LINK,
        guaranteed_peak_cpu_milli: Some(0),
        watched: true,
        ..Observation::default()
    }
}

/// As the keeper takes it in.
fn observe(ledger: &mut Ledger, observation: Observation) -> Seen {
    let seen = Seen::new(observation, ledger);
    ledger.observe(seen.strangers(ledger), seen.lending.lendable_milli);
    seen
}

fn node() -> Ledger {
    Ledger::new(capacity(), &floor())
}

fn kind<'a>(provenance: &'a Provenance, name: &str) -> &'a KindOrigin {
    provenance.kinds.iter().find(|kind| kind.kind == name).unwrap()
}

fn key(task: u8) -> TaskKey {
    ("f".into(), task.to_string())
}

fn with_disk(bytes: u64) -> Grant {
    let mut grant = crate::grant::plain(Class::Guaranteed, 0, 0);
    grant.disk.bytes = bytes;
    grant
}

fn cores(cpu_milli: u64) -> Grant {
    let mut grant = crate::grant::plain(Class::Guaranteed, cpu_milli, 0);
    grant.cpu.exclusive = true;
    grant
}

#[test]
fn before_the_first_measurement_the_floor_decides() {
    let all = provenance(&node(), None, "learned");
    let cpu = kind(&all, "cpu_milli");
    assert_eq!((cpu.reserve, cpu.free, cpu.reserve_for()), (100, 3900, HeldBackFor::Floor));
    let lending = all.revocable_cpu.clone().unwrap();
    assert_eq!((lending.lendable_milli, lending.kept_milli), (0, 4000));
    assert_eq!((lending.nothing_lent(), lending.predictor.as_str()), (NothingLent::NotMeasured, "learned"));
    assert_eq!(kind(&all, "disk_write_ops_per_sec").reserve_for(), HeldBackFor::Unspecified);
}

#[test]
fn what_decided_about_each_kind_is_named() {
    let mut ledger = node();
    let observation = Observation {
        strangers_cpu_milli: 450,
        strangers_mem_bytes: 200,
        strangers_disk_bytes: 3000,
        strangers_net: NetUse { sent_bits_per_sec: 300, received_bits_per_sec: 0 },
        link_bits_per_sec: 750,
        ports_in_use: set("31003,31005/tcp,40000"),
        ..calm()
    };
    let seen = observe(&mut ledger, observation);
    let all = provenance(&ledger, Some(&seen), "max");
    for (name, reserve, strangers, reserve_for) in [
        ("cpu_milli", 450, 450, HeldBackFor::Strangers),
        ("mem_bytes", 256, 200, HeldBackFor::Floor),
        ("disk_bytes", 4000, 3000, HeldBackFor::StrangersAndFloor),
        ("disk_read_bytes_per_sec", 20, 0, HeldBackFor::Floor),
        ("net_egress_bits_per_sec", 300, 300, HeldBackFor::Strangers),
        ("net_ingress_bits_per_sec", 250, 0, HeldBackFor::SlowerLink),
    ] {
        let kind = kind(&all, name);
        assert_eq!(
            (kind.reserve, kind.strangers, kind.reserve_for()),
            (reserve, strangers, reserve_for),
            "{name}"
        );
        assert_eq!(kind.short, 0, "{name}");
    }
    let ports = all.ports.unwrap();
    assert_eq!(ports.strangers, set("31003,31005/tcp").to_ranges());
    assert_eq!(ports.journal, []);
}

#[test]
fn what_is_granted_before_strangers_come_is_missing_in_the_reserve() {
    let mut ledger = node();
    ledger.admit(key(1), &crate::grant::plain(Class::Guaranteed, 3900, 0)).unwrap();
    let seen = observe(&mut ledger, Observation { strangers_cpu_milli: 1000, ..calm() });
    let all = provenance(&ledger, Some(&seen), "none");
    let cpu = kind(&all, "cpu_milli");
    assert_eq!((cpu.allocated, cpu.reserve, cpu.free, cpu.short), (3900, 100, 0, 900));
    assert_eq!(all.guaranteed_tasks, 1);
}

#[test]
fn lending_is_above_the_larger_peak() {
    let lending = |observation: Observation| {
        let mut ledger = node();
        ledger.admit(key(1), &cores(1000)).unwrap();
        let seen = observe(&mut ledger, observation);
        let lending = provenance(&ledger, Some(&seen), "learned").revocable_cpu.unwrap();
        let l = lending.clone();
        (
            l.exclusive_milli,
            l.strangers_milli,
            l.guaranteed_milli,
            l.kept_milli,
            l.lendable_milli,
            lending.nothing_lent(),
        )
    };
    let peaks = Observation {
        strangers_cpu_milli: 500,
        guaranteed_peak_cpu_milli: Some(700),
        predicted_cpu_milli: Some(1500),
        ..calm()
    };
    assert_eq!(lending(peaks.clone()), (1000, 500, 1500, 100, 900, NothingLent::Unspecified));
    let bursting = Observation { guaranteed_peak_cpu_milli: Some(2000), ..peaks.clone() };
    assert_eq!(lending(bursting), (1000, 500, 2000, 50, 450, NothingLent::Unspecified));
    let new = Observation { watched: false, ..peaks.clone() };
    assert_eq!(lending(new), (1000, 500, 1500, 1000, 0, NothingLent::NotWatched));
    let full = Observation { strangers_cpu_milli: u64::MAX, ..peaks };
    assert_eq!(lending(full), (1000, 3000, 0, 0, 0, NothingLent::Full));
}

#[test]
fn of_a_link_and_a_disk_that_are_gone_nothing_is_offered() {
    let mut ledger = node();
    let before = Seen::new(calm(), &ledger).tell(&ledger, ledger.report());
    let gone = Observation { link_bits_per_sec: 0, disk_usable_bytes: Some(0), ..calm() };
    let seen = observe(&mut ledger, gone);
    let all = provenance(&ledger, Some(&seen), "learned");
    for (name, reserve_for) in [
        ("disk_bytes", HeldBackFor::SmallerDisk),
        ("net_egress_bits_per_sec", HeldBackFor::SlowerLink),
        ("net_ingress_bits_per_sec", HeldBackFor::SlowerLink),
    ] {
        let kind = kind(&all, name);
        assert_eq!((kind.free, kind.reserve, kind.reserve_for()), (0, kind.capacity, reserve_for), "{name}");
    }
    assert_eq!(kind(&all, "cpu_milli").free, 3900, "all else is offered as before");
    let steps = Steps { disk_bytes: 64, net_bits_per_sec: 10, ..ReportConfig::default().steps().unwrap() };
    assert!(steps.differ(&before, &seen.tell(&ledger, ledger.report())), "the master is told at once");
    ledger.admit(key(1), &with_disk(1)).unwrap_err();

    let smaller = Observation { strangers_disk_bytes: 2000, disk_usable_bytes: Some(7000), ..calm() };
    let seen = observe(&mut ledger, smaller);
    let all = provenance(&ledger, Some(&seen), "learned");
    let disk = kind(&all, "disk_bytes");
    assert_eq!((disk.free, disk.reserve, disk.reserve_for()), (4000, 6000, HeldBackFor::SmallerDisk));
    let back = Observation { disk_usable_bytes: Some(20_000), ..calm() };
    let seen = observe(&mut ledger, back);
    let all = provenance(&ledger, Some(&seen), "learned");
    assert_eq!(kind(&all, "disk_bytes").free, 9000, "never more than at the start");
}

#[test]
fn a_node_without_a_journal_says_so_everywhere() {
    let mut ledger = node();
    let seen = observe(&mut ledger, Observation { ports_in_use: set("31003"), ..calm() });
    ledger.close(true);
    let all = provenance(&ledger, Some(&seen), "learned");
    assert_eq!(kind(&all, "mem_bytes").reserve_for(), HeldBackFor::Journal);
    let lending = all.revocable_cpu.clone().unwrap();
    assert_eq!((lending.lendable_milli, lending.nothing_lent()), (0, NothingLent::Journal));
    let ports = all.ports.unwrap();
    assert_eq!(ports.strangers, set("31003").to_ranges());
    assert_eq!(ports.journal, set("31000-31002,31004-31009").to_ranges());
}

/// Counters that were reset, clocks that jumped and files of nonsense come as zeros and as numbers without bound.
fn any_amount(typical: u64) -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..=typical, 1 => Just(0), 1 => Just(u64::MAX)]
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let amounts =
        (any_amount(5000), any_amount(9000), any_amount(12_000), any_amount(1200), any_amount(1200));
    let peaks = (prop::option::of(any_amount(5000)), prop::option::of(any_amount(5000)), any::<bool>());
    let ports = prop_oneof![Just(""), Just("31002"), Just("31000-31009/udp"), Just("30999-31004")];
    let links = (any_amount(LINK), prop::option::of(any_amount(12_000)));
    (amounts, links, peaks, ports).prop_map(
        |((cpu, mem, disk, sent, received), (link, disk_usable_bytes), peaks, ports)| {
            let (guaranteed_peak_cpu_milli, predicted_cpu_milli, watched) = peaks;
            Observation {
                strangers_cpu_milli: cpu,
                strangers_mem_bytes: mem,
                strangers_disk_bytes: disk,
                strangers_net: NetUse { sent_bits_per_sec: sent, received_bits_per_sec: received },
                link_bits_per_sec: link,
                disk_usable_bytes,
                guaranteed_peak_cpu_milli,
                predicted_cpu_milli,
                watched,
                ports_in_use: if ports.is_empty() { PortSet::default() } else { set(ports) },
                ..Observation::default()
            }
        },
    )
}

#[derive(Clone, Debug)]
enum Move {
    Admit(u8, Grant),
    /// Found running, whatever the settings are now.
    Adopt(u8, Grant),
    Release(u8),
    Close(bool),
    Observe(Observation),
}

fn any_grant() -> impl Strategy<Value = Grant> {
    let class = prop_oneof![Just(Class::Guaranteed), Just(Class::Revocable)];
    (class, 0..3000u64, 0..4000u64, 0..4000u64, 30_998..31_010u16).prop_map(
        |(class, cpu, mem, disk, port)| {
            let mut grant = Grant { ports: set(&port.to_string()), ..crate::grant::plain(class, cpu, mem) };
            grant.disk.bytes = disk;
            grant.cpu.exclusive = class == Class::Guaranteed && cpu % 3 == 0;
            grant
        },
    )
}

fn any_move() -> impl Strategy<Value = Move> {
    let task = || 0..6u8;
    prop_oneof![
        4 => (task(), any_grant()).prop_map(|(task, grant)| Move::Admit(task, grant)),
        1 => (task(), any_grant()).prop_map(|(task, grant)| Move::Adopt(task, grant)),
        2 => task().prop_map(Move::Release),
        1 => any::<bool>().prop_map(Move::Close),
        4 => any_observation().prop_map(Move::Observe),
    ]
}

/// Do the parts add up to what the report of the same moment says?
fn check(all: &Provenance, report: &ResourceReport) -> Result<(), TestCaseError> {
    let of = |part: &Option<Resources>, kind: &Scalar| (kind.get)(part.as_ref().unwrap());
    for (origin, kind) in all.kinds.iter().zip(&SCALARS) {
        prop_assert_eq!(&origin.kind, kind.name);
        prop_assert_eq!(origin.capacity, of(&report.capacity, kind));
        prop_assert_eq!(origin.allocated, of(&report.allocated, kind));
        prop_assert_eq!(origin.reserve, of(&report.reserve, kind));
        prop_assert_eq!(origin.free, of(&report.free, kind));
        prop_assert_eq!(origin.reserve + origin.free, origin.capacity.saturating_sub(origin.allocated));
        prop_assert!(origin.floor <= origin.capacity && origin.strangers <= origin.capacity, "{:?}", origin);
        prop_assert!(origin.reserve.saturating_add(origin.short) <= origin.capacity, "{:?}", origin);
    }
    let ports = all.ports.as_ref().unwrap();
    let parts = [&ports.allocated, &ports.strangers, &ports.journal, &ports.free];
    let parts = parts.map(|ranges| PortSet::from_ranges(ranges).unwrap());
    let offered = PortSet::from_ranges(&ports.capacity).unwrap();
    let together = parts.iter().fold(PortSet::default(), |all, part| all.union(part));
    prop_assert_eq!(parts.iter().map(PortSet::len_by_protocol).sum::<usize>(), together.len_by_protocol());
    prop_assert!(together.is_superset(&offered));
    prop_assert!(offered.is_superset(&parts[1].union(&parts[2]).union(&parts[3])));
    let l = all.revocable_cpu.as_ref().unwrap();
    let sum = l.exclusive_milli + l.strangers_milli + l.guaranteed_milli + l.kept_milli + l.lendable_milli;
    prop_assert_eq!(sum, l.capacity_milli);
    prop_assert_eq!(l.lendable_milli, report.revocable_cpu_milli);
    prop_assert_eq!(l.lent_milli, report.revocable_allocated_cpu_milli);
    prop_assert_eq!(l.lendable_milli == 0, l.nothing_lent() != NothingLent::Unspecified);
    Ok(())
}

proptest! {
    #[test]
    fn parts_add_up_to_the_report_and_none_is_above_the_capacity(moves in prop::collection::vec(any_move(), 0..40)) {
        let (mut ledger, mut seen) = (node(), None);
        for step in moves {
            match step {
                Move::Admit(task, grant) => drop(ledger.admit(key(task), &grant)),
                Move::Adopt(task, grant) => ledger.adopt(key(task), &grant),
                Move::Release(task) => ledger.release(&key(task)),
                Move::Close(closed) => ledger.close(closed),
                Move::Observe(observation) => seen = Some(observe(&mut ledger, observation)),
            }
            let all = provenance(&ledger, seen.as_ref(), "learned");
            check(&all, &ledger.report())?;
        }
    }
}
