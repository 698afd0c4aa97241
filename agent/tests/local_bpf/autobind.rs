//! Ports that the kernel is asked to choose, by each call that asks it and each policy.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    ops::RangeInclusive,
};

use bulkhead_abi::{
    denied_call,
    port_choice::{
        BIND_EPHEMERAL, BIND_GRANTED, CLIENT_EPHEMERAL, CLIENT_GRANTED, DEFAULT, LISTEN_EPHEMERAL,
    },
    socket_kind,
};
use bulkhead_agent::kernel::bpf::PortGrant;
use nix::errno::Errno;

use crate::{fixture::Node, helper::Helper};

const CLIENTS: [&str; 6] = ["tcp4", "udp4", "tcp6", "udp6", "tcp6m", "udp6m"];
const UDP_CLIENTS: [&str; 3] = ["udp4", "udp6", "udp6m"];

/// Somebody outside of the tasks to connect to, for both protocols and families. Connections are accepted and closed.
pub(crate) struct Peer {
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
}

impl Peer {
    pub(crate) fn new() -> Self {
        let any = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))];
        let tcp = any.map(|a| TcpListener::bind(a).unwrap());
        for listener in &tcp {
            let listener = listener.try_clone().unwrap();
            // Ends with the process of the tests.
            std::thread::spawn(move || listener.incoming().for_each(drop));
        }
        Self { tcp, udp: any.map(|a| UdpSocket::bind(a).unwrap()) }
    }

    /// Where a socket of this kind reaches it.
    pub(crate) fn port(&self, kind: &str) -> u16 {
        let family = usize::from(kind.ends_with('6'));
        let tcp = kind.starts_with("tcp");
        let address = if tcp { self.tcp[family].local_addr() } else { self.udp[family].local_addr() };
        address.unwrap().port()
    }
}

/// What the kernel chooses from, in this network namespace.
pub(crate) fn ephemeral() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let bounds: Vec<u16> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    bounds[0]..=bounds[1]
}

fn with(choice: u32, grant: PortGrant) -> PortGrant {
    PortGrant { choice, ..grant }
}

fn close(helper: &mut Helper, name: &str) {
    assert_eq!(helper.ask(&format!("close {name}")), "0");
}

#[test]
fn ordinary_clients_take_ephemeral_ports() {
    let Some(node) = Node::new("ordinary_clients_take_ephemeral_ports") else { return };
    let (rules, peer) = (node.rules(), Peer::new());
    let (never_granted, granted) = (node.task("a"), node.task("b"));
    rules.grant(granted.id, &node.ports(&[0, 1])).unwrap();
    for task in [&never_granted, &granted] {
        let mut helper = task.helper();
        for kind in CLIENTS {
            let port = helper.connect("c", kind, peer.port(kind)).unwrap();
            assert!(ephemeral().contains(&port), "{kind}: {port}");
        }
        for kind in UDP_CLIENTS {
            let port = helper.port(&format!("send s {kind} {}", peer.port(kind))).unwrap();
            assert!(ephemeral().contains(&port), "{kind}: {port}");
            close(&mut helper, "s");
        }
        assert_eq!(rules.total_denied(task.id).unwrap(), 0);
    }
}

#[test]
fn clients_take_granted_ports_where_the_policy_says_so() {
    let Some(node) = Node::new("clients_take_granted_ports_where_the_policy_says_so") else { return };
    let (rules, peer, task) = (node.rules(), Peer::new(), node.task("a"));
    rules.grant(task.id, &with(BIND_GRANTED | CLIENT_GRANTED, node.ports(&[0, 1]))).unwrap();
    let mut helper = task.helper();
    for kind in CLIENTS {
        let first = helper.connect("a", kind, peer.port(kind)).unwrap();
        let second = helper.connect("b", kind, peer.port(kind)).unwrap();
        let mut both = [first, second];
        both.sort_unstable();
        assert_eq!(both, [node.port, node.port + 1], "{kind}");
        assert_eq!(helper.connect("c", kind, peer.port(kind)), Err(Errno::EADDRNOTAVAIL), "{kind}: used up");
        assert_eq!(helper.bind("d", kind, 0), Err(Errno::EADDRINUSE), "{kind}: bind(0) shares them");
        close(&mut helper, "a");
        assert_eq!(helper.connect("c", kind, peer.port(kind)), Ok(first), "{kind}: free again");
        for name in ["b", "c"] {
            close(&mut helper, name);
        }
        // A socket that was bound by number connects from there.
        assert_eq!(helper.bind("e", kind, node.port + 1), Ok(node.port + 1));
        close(&mut helper, "e");
    }
    assert_eq!(rules.total_denied(task.id).unwrap(), 0, "ports in use are no denials");
    rules.grant(task.id, &with(CLIENT_GRANTED, node.ports(&[]))).unwrap();
    for kind in CLIENTS {
        assert_eq!(helper.connect("a", kind, peer.port(kind)), Err(Errno::EPERM), "{kind}: none granted");
    }
}

#[test]
fn without_a_choice_everything_that_asks_for_one_is_refused() {
    let Some(node) = Node::new("without_a_choice_everything_that_asks_for_one_is_refused") else { return };
    let (rules, peer, task) = (node.rules(), Peer::new(), node.task("a"));
    rules.grant(task.id, &with(0, node.ports(&[0]))).unwrap();
    let mut helper = task.helper();
    for kind in CLIENTS {
        assert_eq!(helper.connect("c", kind, peer.port(kind)), Err(Errno::EPERM), "{kind}");
        assert_eq!(helper.bind("b", kind, 0), Err(Errno::EPERM), "{kind}");
        assert_eq!(helper.bind("b", kind, node.port), Ok(node.port), "{kind}");
        close(&mut helper, "b");
    }
    for kind in UDP_CLIENTS {
        let sent = helper.port(&format!("send s {kind} {}", peer.port(kind)));
        assert_eq!(sent, Err(Errno::EPERM), "{kind}");
        close(&mut helper, "s");
    }
    let calls = |call| {
        let denials = rules.denials(task.id).unwrap();
        denials.iter().filter(|(key, _)| key.call == call).map(|(_, denial)| denial.count).sum::<u64>()
    };
    let counted = [denied_call::CONNECT, denied_call::BIND, denied_call::SEND].map(calls);
    assert_eq!(counted, [6, 6, 3]);
    assert_eq!(rules.total_denied(task.id).unwrap(), 15);
}

#[test]
fn everything_may_be_ephemeral() {
    let Some(node) = Node::new("everything_may_be_ephemeral") else { return };
    let (rules, peer, task) = (node.rules(), Peer::new(), node.task("a"));
    rules.grant(task.id, &with(BIND_EPHEMERAL | CLIENT_EPHEMERAL, node.ports(&[0]))).unwrap();
    let mut helper = task.helper();
    for kind in CLIENTS {
        for port in [helper.bind("b", kind, 0).unwrap(), helper.connect("c", kind, peer.port(kind)).unwrap()]
        {
            assert!(ephemeral().contains(&port), "{kind}: {port}");
        }
        assert_eq!(helper.bind("b", kind, node.port + 1), Err(Errno::EPERM), "{kind}");
    }
}

#[test]
fn udp_is_sent_from_granted_ports_alone() {
    let Some(node) = Node::new("udp_is_sent_from_granted_ports_alone") else { return };
    let (rules, peer, task) = (node.rules(), Peer::new(), node.task("a"));
    rules.grant(task.id, &with(BIND_GRANTED | CLIENT_GRANTED, node.ports(&[0]))).unwrap();
    let mut helper = task.helper();
    for kind in UDP_CLIENTS {
        let order = format!("send s {kind} {}", peer.port(kind));
        assert_eq!(helper.port(&order), Err(Errno::EPERM), "{kind}: the kernel chose");
        close(&mut helper, "s");
        assert_eq!(helper.bind("b", kind, 0), Ok(node.port), "{kind}");
        assert_eq!(helper.port(&format!("send b {kind} {}", peer.port(kind))), Ok(node.port), "{kind}");
        close(&mut helper, "b");
    }
}

#[test]
fn the_port_of_a_protocol_is_not_the_others() {
    let Some(node) = Node::new("the_port_of_a_protocol_is_not_the_others") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    let ports =
        format!("{}/tcp,{}/udp", node.port, node.port + 1).parse::<bulkhead_proto::resources::PortSet>();
    rules.grant(task.id, &ports.unwrap().into()).unwrap();
    let mut helper = task.helper();
    for (kind, own, other) in [("tcp", 0, 1), ("udp", 1, 0)] {
        for family in ["4", "6", "6m", "6d", "4r"] {
            let kind = format!("{kind}{family}");
            assert_eq!(helper.bind("a", &kind, node.port + own), Ok(node.port + own), "{kind}");
            assert_eq!(helper.bind("b", &kind, node.port + other), Err(Errno::EPERM), "{kind}");
            close(&mut helper, "a");
            assert_eq!(helper.bind("a", &kind, 0), Ok(node.port + own), "{kind}");
            close(&mut helper, "a");
        }
    }
    let counts: Vec<_> =
        rules.denials(task.id).unwrap().iter().map(|(key, d)| (key.protocol, d.count)).collect();
    assert_eq!(counts, [(6, 2), (6, 3), (17, 2), (17, 3)]);
}

#[test]
fn a_granted_privileged_port_needs_no_capability() {
    let Some(node) = Node::new("a_granted_privileged_port_needs_no_capability") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    let privileged = 1..fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .map_or(1024, |text| text.trim().parse().unwrap());
    // Some that nobody uses here.
    let Some(port) = privileged.rev().find(|&port: &u16| TcpListener::bind(("127.0.0.1", port)).is_ok())
    else {
        return println!("SKIP a_granted_privileged_port_needs_no_capability: no port is privileged here");
    };
    rules.grant(task.id, &bulkhead_proto::resources::PortSet::from_ports([port]).into()).unwrap();
    let mut helper = task.helper();
    assert_eq!(helper.ask("become 65534"), "0");
    for kind in ["tcp4", "udp4", "tcp6", "udp6"] {
        assert_eq!(helper.bind("a", kind, port), Ok(port), "{kind}");
        close(&mut helper, "a");
        assert_eq!(helper.bind("a", kind, 0), Ok(port), "{kind}: of the kernel's choice");
        close(&mut helper, "a");
        assert_eq!(helper.bind("a", kind, port - 1), Err(Errno::EPERM), "{kind}");
    }
}

#[test]
fn a_namespace_of_its_own_is_not_held() {
    let Some(node) = Node::new("a_namespace_of_its_own_is_not_held") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &with(0, node.ports(&[0]))).unwrap();
    let mut helper = task.helper();
    assert_eq!(helper.bind("a", "tcp4", node.port + 1), Err(Errno::EPERM));
    match helper.ask("unshare-net").as_str() {
        "0" => {}
        errno => return println!("SKIP a_namespace_of_its_own_is_not_held: unshare: errno {errno}"),
    }
    for kind in ["tcp4", "udp4", "tcp6", "udp6"] {
        for port in [node.port, node.port + 1, 80] {
            assert_eq!(helper.bind("a", kind, port), Ok(port), "{kind}");
            close(&mut helper, "a");
        }
        let port = helper.bind("a", kind, 0).unwrap();
        assert!(ephemeral().contains(&port), "{kind}: {port}");
    }
    let port = helper.bind("peer", "udp4", 0).unwrap();
    assert!(helper.connect("c", "udp4", port).is_ok());
    assert!(helper.port(&format!("send s udp4 {port}")).is_ok());
    assert_eq!(helper.ask("socket 2 3 1"), "0", "raw sockets see only what is in there");
    assert_eq!(rules.total_denied(task.id).unwrap(), 1);
}

#[test]
fn sockets_of_other_kinds_are_refused_unless_granted() {
    let Some(node) = Node::new("sockets_of_other_kinds_are_refused_unless_granted") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &with(DEFAULT, node.ports(&[]))).unwrap();
    let mut helper = task.helper();
    let [eperm, no_protocol, no_type] =
        [Errno::EPERM, Errno::EPROTONOSUPPORT, Errno::ESOCKTNOSUPPORT].map(|e| (e as i32).to_string());
    // Type and protocol: raw ICMP, raw IP, UDP-Lite; SCTP of both styles.
    let raw = [(3, 1), (3, 255)];
    let sctp = [(1, 132), (5, 132)];
    // A kernel without the protocol says so first.
    let refused = |answer: String| [&eperm, &no_protocol, &no_type].contains(&&answer);
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in raw {
            assert_eq!(helper.ask(&format!("socket {family} {kind} {protocol}")), eperm, "{kind} {protocol}");
        }
        for (kind, protocol) in sctp.into_iter().chain([(2, 136)]) {
            assert!(refused(helper.ask(&format!("socket {family} {kind} {protocol}"))), "{kind} {protocol}");
        }
        for (kind, protocol) in [(1, 0), (1, 6), (2, 0), (2, 17)] {
            assert_eq!(helper.ask(&format!("socket {family} {kind} {protocol}")), "0", "{kind} {protocol}");
        }
    }
    let denials = rules.denials(task.id).unwrap();
    assert!(denials.iter().all(|(key, _)| key.call == denied_call::SOCKET), "{denials:?}");
    let counted: u64 = denials.iter().map(|(_, denial)| denial.count).sum();
    assert!((4..=10).contains(&counted), "{denials:?}");
    assert_eq!(rules.total_denied(task.id).unwrap(), counted);
    let raw_granted = PortGrant { sockets: socket_kind::RAW, ..node.ports(&[]) };
    rules.grant(task.id, &raw_granted).unwrap();
    assert_eq!(helper.ask("socket 2 3 1"), "0");
    assert!(refused(helper.ask("socket 2 1 132")), "not what was granted");
}

#[test]
fn listen_without_bind_is_the_policys_to_allow() {
    const TEST: &str = "listen_without_bind_is_the_policys_to_allow";
    let Some(node) = Node::new(TEST) else { return };
    if let Err(why) = node.load().listen {
        return println!("SKIP {TEST}: {why}");
    }
    let (rules, task) = (node.rules(), node.task("a"));
    let mut helper = task.helper();
    for choice in [DEFAULT, BIND_GRANTED | CLIENT_GRANTED, 0] {
        rules.grant(task.id, &with(choice, node.ports(&[0]))).unwrap();
        for kind in ["tcp4", "tcp6"] {
            assert_eq!(helper.port(&format!("listen-new l {kind}")), Err(Errno::EPERM), "{choice} {kind}");
            close(&mut helper, "l");
            assert_eq!(helper.bind("b", kind, node.port), Ok(node.port), "{choice} {kind}");
            assert_eq!(helper.ask("listen b"), "0", "{choice} {kind}: on a port of its own");
            close(&mut helper, "b");
        }
    }
    let denials = rules.denials(task.id).unwrap();
    let seen: Vec<_> =
        denials.iter().map(|(key, d)| (key.call, key.protocol, key.ip_version, d.count)).collect();
    assert_eq!(seen, [(denied_call::LISTEN, 6, 4, 3), (denied_call::LISTEN, 6, 6, 3)]);
    assert_eq!(rules.total_denied(task.id).unwrap(), 6);
    rules.grant(task.id, &with(LISTEN_EPHEMERAL, node.ports(&[0]))).unwrap();
    for kind in ["tcp4", "tcp6"] {
        let port = helper.port(&format!("listen-new l {kind}")).unwrap();
        assert!(ephemeral().contains(&port), "{kind}: {port}");
        close(&mut helper, "l");
    }
    rules.grant(task.id, &with(0, node.ports(&[0]))).unwrap();
    assert_eq!(helper.ask("unshare-net"), "0");
    assert!(helper.port("listen-new l tcp4").is_ok(), "in a namespace of its own");
}

#[test]
fn packet_sockets_are_refused_unless_granted() {
    const TEST: &str = "packet_sockets_are_refused_unless_granted";
    let Some(node) = Node::new(TEST) else { return };
    if let Err(why) = node.load().listen {
        return println!("SKIP {TEST}: {why}");
    }
    let (rules, task) = (node.rules(), node.task("a"));
    let mut helper = task.helper();
    let eperm = (Errno::EPERM as i32).to_string();
    rules.grant(task.id, &node.ports(&[])).unwrap();
    let orders =
        [(2, 0), (3, 0)].map(|(kind, protocol)| format!("socket {} {kind} {protocol}", libc::AF_PACKET));
    for order in &orders {
        assert_eq!(helper.ask(order), eperm, "{order}");
    }
    assert_eq!(rules.total_denied(task.id).unwrap(), 2);
    rules.grant(task.id, &PortGrant { sockets: socket_kind::PACKET, ..node.ports(&[]) }).unwrap();
    for order in &orders {
        assert_eq!(helper.ask(order), "0", "{order}");
    }
    rules.grant(task.id, &node.ports(&[])).unwrap();
    assert_eq!(helper.ask("unshare-net"), "0");
    assert_eq!(helper.ask(&orders[1]), "0", "in a namespace of its own");
    // Whoever is no task makes what he may.
    let mut outside = Helper::start(&node.spec.cgroup);
    assert_eq!(outside.ask(&orders[1]), "0");
}
