//! Whom a task may connect and send to, and what it is told otherwise.

use std::{
    cell::RefCell,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bulkhead_abi::{MAX_DENIED_PEERS, TalkGroups, denied};
use bulkhead_agent::{
    grant::talk::{Peer, Prefix, TalkGrant, TalkProtocol, TalkRule},
    isolate::talk::{
        model::{Attempt, allows},
        verdicts,
    },
    kernel::bpf::{DenialStream, NetRules, PortRules, Rates, TalkKey, TalkRules},
};
use nix::errno::Errno;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use socket2::{Domain, Socket, Type};
use tokio::runtime::{Builder, Runtime};

use crate::{
    fixture::{Node, Task},
    helper::Helper,
};

/// The rules in the kernel, and a task with a helper in it.
pub(crate) struct Talk {
    pub(crate) node: Node,
    pub(crate) rules: TalkRules,
    pub(crate) packets: NetRules,
    pub(crate) task: Task,
}

impl Talk {
    /// `None`, and the reason is printed, where these tests cannot run.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let node = Node::new(test)?;
        let loaded = node.load();
        let rules = TalkRules::open(&loaded.talk.clone().unwrap()).unwrap();
        let packets = NetRules::open(&loaded.net.clone().unwrap()).unwrap();
        let task = node.task("a");
        packets.set(task.id, Rates::default()).unwrap();
        PortRules::open(&loaded.ports).unwrap().grant(task.id, &node.ports(&[0, 1, 2])).unwrap();
        Some(Self { node, rules, packets, task })
    }

    pub(crate) fn set(&self, talk: &TalkGrant) {
        self.set_for(&self.task, TalkGroups { framework: 1, role: 1 }, talk);
    }

    pub(crate) fn set_for(&self, task: &Task, groups: TalkGroups, talk: &TalkGrant) {
        let verdicts = verdicts(talk).unwrap();
        self.rules.grant(task.id, groups, verdicts.as_ref()).unwrap();
        self.packets.set_rules(task.id, verdicts.as_ref()).unwrap();
    }

    /// A helper in a network namespace without a route: whatever is allowed fails in another way.
    pub(crate) fn secluded(&self) -> Helper {
        let mut helper = self.task.helper();
        assert_eq!(helper.ask("seclude"), "0");
        helper
    }

    pub(crate) fn dropped(&self) -> u64 {
        let dropped = self.rules.counted(self.task.id).unwrap().map_or(0, |counted| counted.dropped);
        let drops = self.packets.rule_drops(self.task.id).unwrap().unwrap_or_default();
        assert_eq!(drops.sent + drops.received, dropped, "counted in two places");
        dropped
    }

    fn refused(&self) -> u64 {
        self.rules.counted(self.task.id).unwrap().map_or(0, |counted| counted.refused)
    }
}

pub(crate) fn rule(allow: bool, peer: Peer) -> TalkRule {
    TalkRule { allow, egress: true, ingress: true, peer, protocol: TalkProtocol::Any, ports: vec![] }
}

fn prefix(text: &str) -> Peer {
    Peer::Prefix(text.parse().unwrap())
}

fn deny(peer: &str) -> TalkGrant {
    TalkGrant { rules: vec![rule(false, prefix(peer))], deny_rest: false }
}

/// Is it refused by the rules? Whatever else becomes of it is not theirs.
pub(crate) fn is_refused(helper: &mut Helper, how: &str, address: impl Into<IpAddr>, port: u16) -> bool {
    let answer = helper.ask(&format!("reach {how} {} {port}", address.into()));
    answer == (Errno::EPERM as i32).to_string()
}

const HOW: [&str; 7] = [
    "connect tcp",
    "connect udp",
    "send udp",
    "connect tcp-mapped",
    "connect udp-mapped",
    "send udp-mapped",
    "fastopen tcp",
];

#[test]
fn a_task_without_rules_talks_to_everybody() {
    let Some(talk) = Talk::new("a_task_without_rules_talks_to_everybody") else { return };
    let mut helper = talk.secluded();
    talk.set(&TalkGrant::default());
    for how in HOW {
        assert!(!is_refused(&mut helper, how, [10, 0, 0, 1], 80), "{how}");
    }
    assert_eq!(talk.refused(), 0);
}

#[test]
fn every_way_to_open_is_held() {
    let Some(talk) = Talk::new("every_way_to_open_is_held") else { return };
    talk.set(&TalkGrant {
        rules: vec![rule(false, prefix("10.0.0.0/8")), rule(false, prefix("2001:db8::/32"))],
        deny_rest: false,
    });
    let mut helper = talk.secluded();
    for how in HOW {
        assert!(is_refused(&mut helper, how, [10, 255, 0, 1], 80), "{how}");
        assert!(!is_refused(&mut helper, how, [11, 0, 0, 1], 80), "{how}");
    }
    let six = |low: u16| Ipv6Addr::new(0x2001, low, 0, 0, 0, 0, 0, 1);
    for how in ["connect tcp", "connect udp", "send udp"] {
        assert!(is_refused(&mut helper, how, six(0xdb8), 80), "{how}");
        assert!(!is_refused(&mut helper, how, six(0xdb9), 80), "{how}");
    }
    assert_eq!(talk.refused(), HOW.len() as u64 + 3);
}

#[test]
fn nowhere_is_loopback() {
    let Some(talk) = Talk::new("nowhere_is_loopback") else { return };
    talk.set(&TalkGrant {
        rules: vec![rule(false, prefix("127.0.0.0/8")), rule(false, prefix("::1"))],
        deny_rest: false,
    });
    let mut helper = talk.secluded();
    for how in HOW {
        assert!(is_refused(&mut helper, how, Ipv4Addr::UNSPECIFIED, 80), "{how}");
    }
    for how in ["connect tcp", "connect udp", "send udp"] {
        assert!(is_refused(&mut helper, how, Ipv6Addr::UNSPECIFIED, 80), "{how}");
    }
}

#[test]
fn loopback_is_of_this_node_and_the_rest_outside() {
    let Some(talk) = Talk::new("loopback_is_of_this_node_and_the_rest_outside") else { return };
    let mut helper = talk.secluded();
    let mut refused = |talk: &Talk, rules: Vec<TalkRule>, deny_rest| {
        talk.set(&TalkGrant { rules, deny_rest });
        let peers: [IpAddr; 4] = [
            [127, 9, 9, 9].into(),
            Ipv6Addr::LOCALHOST.into(),
            [10, 0, 0, 1].into(),
            [0x20, 1, 0, 0, 0, 0, 0, 1u16].into(),
        ];
        peers.map(|peer| is_refused(&mut helper, "connect tcp", peer, 80))
    };
    assert_eq!(refused(&talk, vec![rule(false, Peer::Node)], false), [true, true, false, false]);
    assert_eq!(refused(&talk, vec![rule(false, Peer::Outside)], false), [false, false, true, true]);
    assert_eq!(refused(&talk, vec![rule(true, Peer::Outside)], true), [true, true, false, false]);
    assert_eq!(
        refused(&talk, vec![rule(true, Peer::Node), rule(false, prefix("127.9.0.0/16"))], true),
        [true, false, true, true]
    );
}

#[test]
fn a_cgroup_below_the_tasks_own_talks_by_the_same_rules() {
    let Some(talk) = Talk::new("a_cgroup_below_the_tasks_own_talks_by_the_same_rules") else { return };
    talk.set(&deny("10.0.0.0/8"));
    let mut helper = talk.secluded();
    assert_eq!(helper.ask(&format!("enter {}", talk.task.cgroup.join("x").display())), "0");
    for how in HOW {
        assert!(is_refused(&mut helper, how, [10, 0, 0, 1], 80), "{how}");
    }
    let mut other = talk.node.task("b").helper();
    assert_eq!(other.ask("seclude"), "0");
    assert!(!is_refused(&mut other, "connect tcp", [10, 0, 0, 1], 80), "another task");
}

#[test]
fn ports_and_protocols_are_told_apart() {
    let Some(talk) = Talk::new("ports_and_protocols_are_told_apart") else { return };
    let only = TalkRule {
        protocol: TalkProtocol::Tcp,
        ports: vec![80..=80, 443..=445],
        ..rule(true, prefix("10.0.0.0/8"))
    };
    let dns =
        TalkRule { protocol: TalkProtocol::Udp, ports: vec![53..=53], ..rule(true, prefix("10.0.0.53")) };
    talk.set(&TalkGrant { rules: vec![only, dns], deny_rest: true });
    let mut helper = talk.secluded();
    for (how, last, port, refused) in [
        ("connect tcp", 1, 80, false),
        ("connect tcp", 1, 79, true),
        ("connect tcp", 1, 443, false),
        ("connect tcp", 53, 445, false),
        ("connect tcp", 53, 446, true),
        ("connect tcp", 53, 53, true),
        ("send udp", 53, 53, false),
        ("connect udp", 53, 80, true),
        ("send udp", 1, 80, true),
    ] {
        assert_eq!(is_refused(&mut helper, how, [10, 0, 0, last], port), refused, "{how} {last} {port}");
    }
}

#[test]
fn the_kernel_decides_as_the_rules_do() {
    let Some(talk) = Talk::new("the_kernel_decides_as_the_rules_do") else { return };
    let helper = RefCell::new(talk.secluded());
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(60) });
    let result = runner.run(&(rules(), prop::collection::vec(attempt(), 60)), |(grant, attempts)| {
        talk.set(&grant);
        let before = talk.refused();
        let mut denied = 0;
        for (attempt, how) in attempts {
            let allowed = allows(&grant, &attempt);
            let refused = is_refused(&mut helper.borrow_mut(), how, attempt.address, attempt.port);
            prop_assert_eq!(refused, !allowed, "{} {:?}", how, attempt);
            denied += u64::from(refused);
        }
        // A task without an entry keeps its count.
        prop_assert_eq!(talk.refused(), before + denied);
        Ok(())
    });
    result.unwrap();
    talk.rules.revoke(talk.task.id).unwrap();
    assert_eq!(talk.rules.entries().unwrap(), (0, 0), "nothing is left");
}

prop_compose! {
    /// Few bits vary, so that rules and attempts meet.
    fn address()(kind in 0..3, high in 0u8..4, low in 0u8..4) -> IpAddr {
        match kind {
            0 => Ipv4Addr::new(10, high << 6, 0, low).into(),
            1 => Ipv4Addr::new(127, 0, high, low).into(),
            _ => Ipv6Addr::new(0x2001, u16::from(high) << 14, 0, 0, 0, 0, 0, low.into()).into(),
        }
    }
}

prop_compose! {
    fn attempt()(address in address(), port in 1u16..8, way in 0..3, mapped: bool) -> (Attempt, &'static str) {
        let mapped = mapped && address.is_ipv4();
        let (how, protocol) = match (way, mapped) {
            (0, false) => ("connect tcp", TalkProtocol::Tcp),
            (0, true) => ("connect tcp-mapped", TalkProtocol::Tcp),
            (1, false) => ("connect udp", TalkProtocol::Udp),
            (1, true) => ("connect udp-mapped", TalkProtocol::Udp),
            (_, false) => ("send udp", TalkProtocol::Udp),
            (_, true) => ("send udp-mapped", TalkProtocol::Udp),
        };
        let here = address.is_loopback();
        let attempt =
            Attempt { address, here, same_framework: false, same_role: false, egress: true, protocol, port };
        (attempt, how)
    }
}

fn rules() -> impl Strategy<Value = TalkGrant> {
    let lengths = prop::sample::select(vec![0u8, 7, 8, 9, 10, 17, 24, 30, 31, 32, 127, 128]);
    let prefix = (address(), lengths).prop_map(|(address, bits)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        Peer::Prefix(Prefix::new(address, bits.min(most)).unwrap())
    });
    let names = prop::sample::select(vec![Peer::Node, Peer::Outside, Peer::Framework]);
    let peer = prop_oneof![4 => prefix, 1 => names];
    let protocol = prop::sample::select(vec![TalkProtocol::Any, TalkProtocol::Tcp, TalkProtocol::Udp]);
    let ports = prop::collection::vec((1u16..8, 1u16..8), 0..3);
    let rule =
        (any::<bool>(), 0..3, peer, protocol, ports).prop_map(|(allow, way, peer, protocol, ports)| {
            TalkRule {
                allow,
                egress: way != 1,
                ingress: way != 0,
                peer,
                protocol,
                ports: ports.into_iter().map(|(a, b)| a.min(b)..=a.max(b)).collect(),
            }
        });
    (prop::collection::vec(rule, 0..10), any::<bool>())
        .prop_map(|(rules, deny_rest)| TalkGrant { rules, deny_rest })
}

#[test]
fn denials_of_several_processes_are_counted_exactly() {
    let Some(talk) = Talk::new("denials_of_several_processes_are_counted_exactly") else { return };
    const EACH: u64 = 3000;
    talk.set(&TalkGrant {
        rules: vec![rule(false, prefix("10.0.0.0/8")), rule(false, prefix("2001:db8::/32"))],
        deny_rest: false,
    });
    let mut helpers: Vec<_> = (0..4).map(|_| talk.secluded()).collect();
    for order in ["tcp 10.1.2.3", "udp 10.1.2.3", "tcp 2001:db8::1", "udp 2001:db8::1"] {
        helpers.iter_mut().for_each(|h| h.tell(&format!("count-refused connect {order} 80 {EACH}")));
        helpers.iter_mut().for_each(|h| assert_eq!(h.answer(), format!("0 {EACH}"), "{order}"));
    }
    assert_eq!(talk.refused(), 4 * 4 * EACH);
    let denials = talk.rules.denials(talk.task.id).unwrap();
    let counts: Vec<_> =
        denials.iter().map(|(key, denial)| (key.what, key.port, key.other, denial.count)).collect();
    assert_eq!(counts, [(denied::CALL, 80, 0, 4 * EACH); 4], "one entry for each protocol and family");
}

#[test]
fn a_scan_of_many_peers_stays_bounded_and_counted() {
    let Some(talk) = Talk::new("a_scan_of_many_peers_stays_bounded_and_counted") else { return };
    talk.set(&TalkGrant { rules: vec![], deny_rest: true });
    let mut helper = talk.secluded();
    for i in 0..400 {
        assert!(is_refused(&mut helper, "send udp", Ipv4Addr::from_bits(0x0a00_0000 + i), 80));
    }
    let denials = talk.rules.denials(talk.task.id).unwrap();
    assert_eq!(denials.iter().filter(|(key, _)| key.other == 0).count() as u64, MAX_DENIED_PEERS);
    assert_eq!(denials.iter().map(|(_, denial)| denial.count).sum::<u64>(), 400);
    assert_eq!(talk.refused(), 400);
}

#[test]
fn refusals_come_as_events_at_powers_of_two() {
    let Some(talk) = Talk::new("refusals_come_as_events_at_powers_of_two") else { return };
    let loaded = talk.node.load();
    talk.set(&deny("10.0.0.0/8"));
    let mut helper = talk.secluded();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut stream = DenialStream::open_talk(&loaded.talk.unwrap()).unwrap();
        assert_eq!(helper.ask("count-refused connect tcp 10.0.0.9 443 20"), "0 20");
        for count in [1, 2, 4, 8, 16] {
            let event = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.unwrap().unwrap();
            assert_eq!((event.count, event.key.cgroup_id, event.key.port), (count, talk.task.id, 443));
            assert_eq!(event.key.address, Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped().octets());
            assert!(event.pid > 0);
        }
        assert_eq!(stream.take(), None);
    });
}

/// Both versions refuse the same peer by different rules: at no moment may neither hold.
#[test]
fn rules_change_without_a_moment_between() {
    let Some(talk) = Talk::new("rules_change_without_a_moment_between") else { return };
    let versions = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"].map(|p| TalkGrant {
        rules: vec![rule(false, prefix(p)), rule(false, prefix("192.168.0.0/16"))],
        deny_rest: false,
    });
    talk.set(&versions[0]);
    let mut helpers = [talk.secluded(), talk.secluded()];
    const EACH: u64 = 20_000;
    helpers.iter_mut().for_each(|h| h.tell(&format!("count-refused connect udp 10.1.2.3 80 {EACH}")));
    for version in versions.iter().cycle().take(60) {
        talk.set(version);
    }
    helpers.iter_mut().for_each(|h| assert_eq!(h.answer(), format!("0 {EACH}")));
    assert_eq!(talk.refused(), 2 * EACH);
    assert_eq!(talk.rules.entries().unwrap().0, 2, "older versions are gone");
}

#[test]
fn ten_thousand_prefixes_hold_and_go_away() {
    let Some(talk) = Talk::new("ten_thousand_prefixes_hold_and_go_away") else { return };
    let denied = |i: u32| TalkRule {
        ports: vec![80..=80],
        ..rule(false, prefix(&format!("10.{}.{}.0/24", i >> 8, i & 255)))
    };
    talk.set(&TalkGrant { rules: (0..10_000).map(denied).collect(), deny_rest: false });
    assert_eq!(talk.rules.entries().unwrap(), (10_000, 1), "with one table of ports");
    let mut helper = talk.secluded();
    assert!(is_refused(&mut helper, "connect tcp", [10, 39, 15, 255], 80));
    assert!(!is_refused(&mut helper, "connect tcp", [10, 39, 15, 255], 81));
    assert!(!is_refused(&mut helper, "connect tcp", [10, 39, 16, 0], 80));
    talk.rules.revoke(talk.task.id).unwrap();
    assert_eq!(talk.rules.entries().unwrap(), (0, 0));
    assert!(!is_refused(&mut helper, "connect tcp", [10, 39, 15, 255], 80));
}

#[test]
fn another_agent_adopts_rules_and_clears_what_was_left_halfway() {
    let Some(talk) = Talk::new("another_agent_adopts_rules_and_clears_what_was_left_halfway") else { return };
    let ports = |peer: &str| TalkRule { ports: vec![1..=9], ..rule(false, prefix(peer)) };
    talk.set(&TalkGrant { rules: vec![ports("10.0.0.0/8"), ports("2001:db8::/32")], deny_rest: false });
    let other = talk.node.task("b");
    let groups = TalkGroups { framework: 2, role: 2 };
    talk.rules.grant(other.id, groups, verdicts(&deny("10.0.0.0/8")).unwrap().as_ref()).unwrap();
    let again = TalkRules::open(&talk.node.adopt().unwrap().talk.unwrap()).unwrap();
    assert_eq!(again.entries().unwrap(), (3, 1));
    let mut helper = talk.secluded();
    assert!(is_refused(&mut helper, "connect tcp", [10, 0, 0, 1], 9));
    // What the new agent sets replaces what the old one did, and leaves nothing of it.
    again.grant(talk.task.id, groups, verdicts(&deny("10.0.0.0/8")).unwrap().as_ref()).unwrap();
    assert_eq!(again.entries().unwrap(), (2, 0));
    again.revoke(talk.task.id).unwrap();
    again.revoke(other.id).unwrap();
    assert_eq!(again.entries().unwrap(), (0, 0));
}

/// While others try, at no moment nobody refuses, and nothing is counted twice or not at all.
#[test]
fn another_build_takes_over_without_a_moment_between() {
    let Some(talk) = Talk::new("another_build_takes_over_without_a_moment_between") else { return };
    talk.set(&deny("10.0.0.0/8"));
    let dir = talk.node.load().talk.unwrap();
    let name = dir.file_name().unwrap().to_str().unwrap();
    let build = name.split('-').nth(2).unwrap();
    let other = talk.node.spec.pin_dir.join(name.replace(build, "0123456789abcdef"));
    let mut helpers = [talk.secluded(), talk.secluded()];
    const EACH: u64 = 50_000;
    helpers.iter_mut().for_each(|h| h.tell(&format!("count-refused connect udp 10.1.2.3 80 {EACH}")));
    for _ in 0..3 {
        fs::rename(&dir, &other).unwrap();
        assert_eq!(talk.node.load().talk.unwrap(), dir);
        assert!(!other.exists());
    }
    helpers.iter_mut().for_each(|h| assert_eq!(h.answer(), format!("0 {EACH}")));
    let rules = TalkRules::open(&dir).unwrap();
    assert_eq!(rules.counted(talk.task.id).unwrap().unwrap().refused, 2 * EACH);
}

fn way(allow: bool, peer: &str, egress: bool) -> TalkRule {
    TalkRule { egress, ingress: !egress, ..rule(allow, prefix(peer)) }
}

/// A connection that begins at this address of loopback; it goes on in the background.
fn begin(from: [u8; 4], port: u16) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let begun = socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into());
    assert_eq!(begun.unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
    socket
}

/// Waits for the next event.
pub(crate) fn next_denial(stream: &mut DenialStream<TalkKey>, runtime: &Runtime) -> TalkKey {
    let next = async { tokio::time::timeout(Duration::from_secs(60), stream.next()).await };
    runtime.block_on(next).unwrap().unwrap().key
}

#[test]
fn connections_are_let_in_by_rule() {
    let Some(talk) = Talk::new("connections_are_let_in_by_rule") else { return };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let mut stream = DenialStream::open_talk(&talk.node.load().talk.unwrap()).unwrap();
    let mut helper = talk.task.helper();
    assert_eq!(helper.bind("l", "tcp4", talk.node.port), Ok(talk.node.port));
    assert_eq!(helper.ask("listen l"), "0");
    // It may only be called, and not by everybody; what it answers passes all the same.
    let rules = vec![way(true, "127.0.0.0/8", false), way(false, "127.9.0.0/16", false)];
    talk.set(&TalkGrant { rules, deny_rest: true });
    let refused = begin([127, 9, 0, 1], talk.node.port);
    let denied = next_denial(&mut stream, &runtime);
    assert_eq!((denied.what, denied.protocol, denied.port), (denied::PACKET_IN, 6, talk.node.port));
    assert_eq!(denied.address, Ipv4Addr::new(127, 9, 0, 1).to_ipv6_mapped().octets());
    assert!(refused.peer_addr().is_err(), "the handshake went no further");
    let allowed = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, talk.node.port)).unwrap();
    assert_eq!(helper.ask("accept-and-close l"), "0");
    drop(allowed);
    assert!(is_refused(&mut helper, "connect tcp", [127, 0, 0, 1], talk.node.port), "it may not call");
    // Asked about no more, as a task without rules.
    talk.packets.set_rules(talk.task.id, None).unwrap();
    let dropped = talk.dropped();
    drop(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, talk.node.port)).unwrap());
    assert_eq!(talk.dropped(), dropped);
}

#[test]
fn answers_pass_where_no_rule_lets_their_sender_open() {
    let Some(talk) = Talk::new("answers_pass_where_no_rule_lets_their_sender_open") else { return };
    let mut helper = talk.task.helper();
    assert_eq!(helper.bind("u", "udp4", talk.node.port), Ok(talk.node.port));
    let peers = [(); 2].map(|()| std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let to = (Ipv4Addr::LOCALHOST, talk.node.port);
    let port = |i: usize| peers[i].local_addr().unwrap().port();

    // It may only call: the one that it called may answer, as often as it likes.
    talk.set(&TalkGrant { rules: vec![way(true, "127.0.0.0/8", true)], deny_rest: true });
    peers[0].send_to(b"x", to).unwrap();
    assert_eq!((helper.ask("drain u"), talk.dropped()), ("0 0".into(), 1));
    assert!(helper.ask(&format!("send u udp4 {}", port(0))).starts_with("0 "));
    for _ in 0..3 {
        peers[0].send_to(b"x", to).unwrap();
    }
    peers[1].send_to(b"x", to).unwrap();
    assert_eq!((helper.ask("drain u"), talk.dropped()), ("0 3".into(), 2));

    // It may only be called: it may answer those who did.
    talk.set(&TalkGrant { rules: vec![way(true, "127.0.0.0/8", false)], deny_rest: true });
    let refused = (Errno::EPERM as i32).to_string();
    let other = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let other_port = other.local_addr().unwrap().port();
    assert_eq!(helper.ask(&format!("send u udp4 {other_port}")), refused);
    other.send_to(b"x", to).unwrap();
    assert_eq!(helper.ask("drain u"), "0 1");
    assert!(helper.ask(&format!("send u udp4 {other_port}")).starts_with("0 "));
}

#[test]
fn whatever_a_connection_brings_passes() {
    let Some(talk) = Talk::new("whatever_a_connection_brings_passes") else { return };
    let mut helper = talk.task.helper();
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    talk.set(&TalkGrant { rules: vec![way(true, "127.0.0.0/8", true)], deny_rest: true });
    assert!(helper.ask(&format!("connect c tcp4 {port}")).starts_with("0 "));
    let (mut accepted, _) = listener.accept().unwrap();
    // The connection stays what it is when rules change.
    talk.set(&TalkGrant { rules: vec![], deny_rest: true });
    std::io::Write::write_all(&mut accepted, b"xyz").unwrap();
    assert_eq!((helper.ask("drain c"), talk.dropped()), ("0 3".into(), 0));
}
