use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn set(text: &str) -> PortSet {
    text.parse().unwrap()
}

fn resources(cpu_milli: u64, mem_bytes: u64, ports: &str) -> Resources {
    Resources { cpu_milli, mem_bytes, ports: set(ports).to_ranges(), ..Resources::default() }
}

fn grant(class: Class, cpu_milli: u64, mem_bytes: u64, ports: &str) -> Grant {
    Grant { ports: set(ports), ..crate::grant::plain(class, cpu_milli, mem_bytes) }
}

fn key(task: &str) -> TaskKey {
    ("f".into(), task.into())
}

fn node() -> Ledger {
    Ledger::new(resources(4000, 4 * GIB, "31000-31009"), &resources(500, GIB, ""))
}

#[test]
fn a_grant_is_free_again_when_the_task_ends() {
    let mut ledger = node();
    let before = ledger.report();
    ledger.admit(key("a"), &grant(Class::Guaranteed, 1000, GIB, "31002")).unwrap();
    let during = ledger.report();
    assert_eq!(during.free, Some(resources(2500, 2 * GIB, "31000-31001,31003-31009")));
    ledger.release(&key("a"));
    assert_eq!(ledger.report(), before);
    ledger.release(&key("a"));
    assert_eq!(ledger.report(), before, "a task ends once");
}

#[test]
fn the_floor_is_never_granted() {
    let mut ledger = node();
    let refusal = ledger.admit(key("a"), &grant(Class::Guaranteed, 3501, GIB, "")).unwrap_err();
    assert_eq!(refusal, Refusal::TooMuch { asked: 3501, left: 3500, unit: "thousandths of a CPU" });
    ledger.admit(key("a"), &grant(Class::Guaranteed, 3500, 3 * GIB, "")).unwrap();
}

#[test]
fn a_port_has_one_owner() {
    let mut ledger = node();
    ledger.admit(key("a"), &grant(Class::Guaranteed, 10, GIB, "31000-31001")).unwrap();
    let refusal = ledger.admit(key("b"), &grant(Class::Guaranteed, 10, GIB, "31001-31002")).unwrap_err();
    assert_eq!(refusal, Refusal::Ports(set("31001")));
    let outside = ledger.admit(key("b"), &grant(Class::Guaranteed, 10, GIB, "8080")).unwrap_err();
    assert_eq!(outside, Refusal::Ports(set("8080")));
}

#[test]
fn a_task_is_booked_once() {
    let mut ledger = node();
    ledger.admit(key("a"), &grant(Class::Guaranteed, 10, GIB, "")).unwrap();
    let again = ledger.admit(key("a"), &grant(Class::Guaranteed, 10, GIB, ""));
    assert_eq!(again, Err(Refusal::Duplicate("f".into(), "a".into())));
}

#[test]
fn strangers_shrink_the_offer_and_not_a_promise() {
    let mut ledger = node();
    ledger.observe(resources(3900, GIB, "31005"), 0);
    assert_eq!(ledger.report().free, Some(resources(100, 3 * GIB, "31000-31004,31006-31009")));
    // Accepted from an offer made before the strangers came.
    ledger.admit(key("a"), &grant(Class::Guaranteed, 3000, GIB, "")).unwrap();
    let report = ledger.report();
    assert_eq!(report.free.unwrap().cpu_milli, 0);
    assert_eq!(report.reserve.unwrap().cpu_milli, 1000);
}

#[test]
fn revocable_cpu_is_lent_apart_and_memory_is_not() {
    let mut ledger = node();
    ledger.observe(Resources::default(), 2000);
    ledger.admit(key("r"), &grant(Class::Revocable, 2000, GIB, "")).unwrap();
    let refusal = ledger.admit(key("s"), &grant(Class::Revocable, 1, GIB, "")).unwrap_err();
    assert!(matches!(refusal, Refusal::TooMuch { left: 0, .. }));
    let report = ledger.report();
    assert_eq!(report.free, Some(resources(3500, 2 * GIB, "31000-31009")));
    assert_eq!(report.revocable_allocated_cpu_milli, 2000);
}

#[test]
fn a_closed_node_offers_nothing_and_keeps_its_promises() {
    let mut ledger = node();
    ledger.admit(key("a"), &grant(Class::Guaranteed, 1000, GIB, "31002")).unwrap();
    let open = ledger.report();
    ledger.close(true);
    let report = ledger.report();
    assert!(report.free.unwrap().is_empty());
    assert_eq!(report.allocated, open.allocated);
    ledger.close(false);
    assert_eq!(ledger.report(), open);
}

#[test]
fn a_resize_books_the_larger_grant_until_it_is_settled() {
    let mut ledger = node();
    ledger.admit(key("a"), &grant(Class::Guaranteed, 1000, 2 * GIB, "31002")).unwrap();
    let other = grant(Class::Guaranteed, 2000, GIB, "31003");
    ledger.stretch(&key("a"), &other).unwrap();
    assert_eq!(ledger.report().allocated, Some(resources(2000, 2 * GIB, "31002-31003")));
    ledger.settle(&key("a"), &other);
    assert_eq!(ledger.report().allocated, Some(resources(2000, GIB, "31003")));
    let too_much = grant(Class::Guaranteed, 3501, GIB, "31003");
    let refusal = ledger.stretch(&key("a"), &too_much).unwrap_err();
    assert_eq!(refusal, Refusal::TooMuch { asked: 1501, left: 1500, unit: "thousandths of a CPU" });
    assert_eq!(ledger.report().allocated, Some(resources(2000, GIB, "31003")));
    ledger.release(&key("a"));
    assert!(ledger.report().allocated.unwrap().is_empty());
}

#[derive(Clone, Debug)]
enum Move {
    Admit(u8, Grant),
    Stretch(u8, Grant),
    Settle(u8, Grant),
    Release(u8),
    Observe(Resources, u64),
}

fn any_grant() -> impl Strategy<Value = Grant> {
    let class = prop_oneof![Just(Class::Guaranteed), Just(Class::Revocable)];
    let protocol = prop_oneof![Just(""), Just("/tcp"), Just("/udp")];
    let ports = (30_998..31_012u16, 0..4u16, protocol)
        .prop_map(|(first, more, protocol)| format!("{first}-{}{protocol}", first + more));
    (class, 0..5000u64, 0..5 * GIB, ports).prop_map(|(class, cpu, mem, ports)| grant(class, cpu, mem, &ports))
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => (any::<u8>(), any_grant()).prop_map(|(task, grant)| Move::Admit(task % 8, grant)),
        2 => (any::<u8>(), any_grant()).prop_map(|(task, grant)| Move::Stretch(task % 8, grant)),
        2 => any::<u8>().prop_map(|task| Move::Settle(task % 8, grant(Class::Guaranteed, 10, 1, ""))),
        2 => any::<u8>().prop_map(|task| Move::Release(task % 8)),
        1 => (0..6000u64, 0..6 * GIB, 31_000..31_009u16, 0..9000u64)
            .prop_map(|(cpu, mem, port, lent)| Move::Observe(resources(cpu, mem, &port.to_string()), lent)),
    ]
}

proptest! {
    #[test]
    fn capacity_is_reserve_and_allocated_and_free(moves in prop::collection::vec(any_move(), 0..60)) {
        let mut ledger = node();
        for step in moves {
            match step {
                Move::Admit(task, grant) => drop(ledger.admit(key(&task.to_string()), &grant)),
                Move::Stretch(task, grant) => drop(ledger.stretch(&key(&task.to_string()), &grant)),
                Move::Settle(task, grant) => ledger.settle(&key(&task.to_string()), &grant),
                Move::Release(task) => ledger.release(&key(&task.to_string())),
                Move::Observe(strangers, lent) => ledger.observe(strangers, lent),
            }
            let report = ledger.report();
            let (reserve, allocated, free) =
                (report.reserve.unwrap(), report.allocated.unwrap(), report.free.unwrap());
            let capacity = report.capacity.unwrap();
            prop_assert_eq!(reserve.cpu_milli + allocated.cpu_milli + free.cpu_milli, capacity.cpu_milli);
            prop_assert_eq!(reserve.mem_bytes + allocated.mem_bytes + free.mem_bytes, capacity.mem_bytes);
            let sets = [&reserve, &allocated, &free].map(|r| r.port_set().unwrap());
            prop_assert_eq!(sets.iter().map(PortSet::len_by_protocol).sum::<usize>(), capacity.port_set().unwrap().len_by_protocol());
            prop_assert_eq!(&reserve.plus(&allocated).plus(&free), &capacity);
            prop_assert!(allocated.cpu_milli <= 3500 && allocated.mem_bytes <= 3 * GIB);
        }
    }
}

#[test]
fn what_was_offered_before_a_small_file_of_others_came_is_granted() {
    let disk = |disk_bytes| Resources { disk_bytes, ..Resources::default() };
    let taking = |bytes| {
        let mut grant = grant(Class::Guaranteed, 0, 0, "");
        grant.disk.bytes = bytes;
        grant
    };
    let mut ledger = Ledger::new(disk(1000), &disk(100)).with_disk_slack(64);
    ledger.observe(disk(300 + 63), 0);
    assert_eq!(ledger.report().free.unwrap().disk_bytes, 637, "offers are made without it");
    ledger.clone().admit(key("a"), &taking(700)).unwrap();
    let refusal = ledger.clone().admit(key("a"), &taking(702)).unwrap_err();
    assert_eq!(refusal, Refusal::TooMuch { asked: 702, left: 701, unit: "bytes of disk" });
    // Never more than what is kept free for it.
    let mut tight = Ledger::new(disk(1000), &disk(10)).with_disk_slack(64);
    tight.observe(disk(300), 0);
    assert!(tight.clone().admit(key("a"), &taking(711)).is_err());
    tight.admit(key("a"), &taking(710)).unwrap();
}
