//! What comes in from others: the kernel lets in what the rules do, whoever sends.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    time::{Duration, Instant},
};

use bulkhead_agent::{
    grant::talk::{Peer, Prefix, TalkGrant, TalkProtocol, TalkRule},
    isolate::talk::model::{Attempt, allows},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    helper::Helper,
    names::peers,
    talk::{Talk, is_refused},
};

const PORTS: u16 = 3;
/// A packet over loopback that takes longer has been lost.
const HANG: Duration = Duration::from_secs(10);

/// Who sends: the host from an address, or one of [`peers`].
#[derive(Clone, Copy, Debug)]
enum Sender {
    Host(IpAddr),
    Task(usize, IpAddr),
}

fn local() -> impl Strategy<Value = IpAddr> {
    prop_oneof![Just(Ipv4Addr::LOCALHOST.into()), Just(Ipv6Addr::LOCALHOST.into())]
}

fn sender() -> impl Strategy<Value = Sender> {
    let address = (0u8..4, 1u8..4).prop_map(|(high, low)| Ipv4Addr::new(127, 0, high, low).into());
    prop_oneof![
        prop_oneof![address, local()].prop_map(Sender::Host),
        (0usize..3, local()).prop_map(|(task, address)| Sender::Task(task, address)),
    ]
}

fn rules(first: u16) -> impl Strategy<Value = TalkGrant> {
    let v4 = (0u8..4, 0u8..4, prop::sample::select(vec![0u8, 8, 22, 23, 24, 30, 31, 32]));
    let v4 = v4.prop_map(|(high, low, bits)| (Ipv4Addr::new(127, 0, high, low).into(), bits));
    let v6 = prop::sample::select(vec![0u8, 127, 128]).prop_map(|bits| (Ipv6Addr::LOCALHOST.into(), bits));
    let prefix = prop_oneof![2 => v4, 1 => v6];
    let prefix = prefix.prop_map(|(address, bits)| Peer::Prefix(Prefix::new(address, bits).unwrap()));
    let names = prop::sample::select(vec![Peer::Node, Peer::Outside, Peer::Framework, Peer::Role]);
    let peer = prop_oneof![2 => prefix, 1 => names];
    let protocol = prop::sample::select(vec![TalkProtocol::Any, TalkProtocol::Tcp, TalkProtocol::Udp]);
    let ports = prop::collection::vec((first..first + PORTS, first..first + PORTS), 0..3);
    let rule = (any::<bool>(), 0..3, peer, protocol, ports);
    let rule = rule.prop_map(|(allow, way, peer, protocol, ports)| TalkRule {
        allow,
        egress: way == 0,
        ingress: way != 0,
        peer,
        protocol,
        ports: ports.into_iter().map(|(a, b)| a.min(b)..=a.max(b)).collect(),
    });
    (prop::collection::vec(rule, 0..8), any::<bool>())
        .prop_map(|(rules, deny_rest)| TalkGrant { rules, deny_rest })
}

/// Of a port that the kernel gives nobody: it may give the host one that a task has just had, and for a second the host would be
/// taken for that task.
fn host_socket(from: IpAddr) -> UdpSocket {
    (20_000..30_000).find_map(|port| UdpSocket::bind((from, port)).ok()).unwrap()
}

fn dropped(talk: &Talk) -> u64 {
    talk.rules.counted(talk.task.id).unwrap().map_or(0, |counted| counted.dropped)
}

/// What came of the packet that was sent. A busy machine delivers it a little later: it is received, or counted as dropped.
fn received(talk: &Talk, helper: &mut Helper, dropped_before: u64) -> String {
    let until = Instant::now() + HANG;
    loop {
        let received = helper.ask("drain u");
        if received != "0 0" || dropped(talk) > dropped_before || Instant::now() > until {
            return received;
        }
        std::thread::yield_now();
    }
}

#[test]
fn the_kernel_lets_in_what_the_rules_do() {
    let Some(talk) = Talk::new("the_kernel_lets_in_what_the_rules_do") else { return };
    let first = talk.node.port;
    let (helper, senders) = (RefCell::new(talk.task.helper()), RefCell::new(peers(&talk)));
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(60) });
    let attempts = prop::collection::vec((sender(), first..first + PORTS), 40);
    let result = runner.run(&(rules(first), attempts), |(grant, attempts)| {
        talk.set(&grant);
        for (sender, port) in attempts {
            let (address, same_framework, same_role) = match sender {
                Sender::Host(address) => (address, false, false),
                Sender::Task(task, address) => (address, task == 0, task == 1),
            };
            let before = dropped(&talk);
            let to: IpAddr =
                if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            // A socket each time: whoever it let in once may go on.
            let kind = if address.is_ipv4() { "udp4" } else { "udp6" };
            assert_eq!(helper.borrow_mut().bind("u", kind, port), Ok(port));
            match sender {
                Sender::Host(from) => {
                    host_socket(from).send_to(b"x", (to, port)).unwrap();
                }
                Sender::Task(task, _) => {
                    let caller = &mut senders.borrow_mut()[task].helper;
                    prop_assert!(!is_refused(caller, "send udp", to, port));
                }
            }
            let attempt = Attempt {
                address,
                here: true,
                same_framework,
                same_role,
                egress: false,
                protocol: TalkProtocol::Udp,
                port,
            };
            let received = received(&talk, &mut helper.borrow_mut(), before);
            assert_eq!(helper.borrow_mut().ask("close u"), "0");
            let expected = u8::from(allows(&grant, &attempt));
            prop_assert_eq!(received, format!("0 {expected}"), "{:?} to {}: {:?}", sender, port, attempt);
        }
        Ok(())
    });
    result.unwrap();
}
