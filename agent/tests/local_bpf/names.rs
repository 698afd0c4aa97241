//! Rules that name tasks: those of the same framework, and those of the same role.

use std::net::{Ipv4Addr, UdpSocket};

use bulkhead_abi::{TalkGroups, denied};
use bulkhead_agent::{
    grant::talk::{Peer, TalkGrant, TalkRule},
    kernel::bpf::{DenialStream, PortRules, Rates},
};
use tokio::runtime::Builder;

use crate::{
    fixture::Task,
    helper::Helper,
    talk::{Talk, is_refused, next_denial, rule},
};

/// A task that listens on a port of its own, TCP and UDP.
pub(crate) struct Called {
    task: Task,
    pub(crate) helper: Helper,
    port: u16,
}

impl Called {
    fn new(talk: &Talk, name: &str, offset: u16, groups: TalkGroups) -> Self {
        let task = talk.node.task(name);
        let (ports, port) = (talk.node.ports(&[offset]), talk.node.port + offset);
        PortRules::open(&talk.node.load().ports).unwrap().grant(task.id, &ports).unwrap();
        talk.packets.set(task.id, Rates::default()).unwrap();
        talk.set_for(&task, groups, &TalkGrant::default());
        talk.rules.hold_ports(task.id, &ports.ports).unwrap();
        let mut helper = task.helper();
        assert_eq!(helper.bind("l", "tcp4", port), Ok(port));
        assert_eq!(helper.ask("listen l"), "0");
        assert_eq!(helper.bind("u", "udp4", port), Ok(port));
        Self { task, helper, port }
    }
}

/// One of the framework in another role, one of the role in another framework, and one of neither.
pub(crate) fn peers(talk: &Talk) -> [Called; 3] {
    [
        Called::new(talk, "framework", 10, TalkGroups { framework: 1, role: 2 }),
        Called::new(talk, "role", 11, TalkGroups { framework: 2, role: 1 }),
        Called::new(talk, "neither", 12, TalkGroups { framework: 2, role: 2 }),
    ]
}

fn only(peer: Peer) -> TalkGrant {
    TalkGrant { rules: vec![rule(true, peer)], deny_rest: true }
}

#[test]
fn a_task_calls_others_by_name() {
    let Some(talk) = Talk::new("a_task_calls_others_by_name") else { return };
    let peers = peers(&talk);
    let mut helper = talk.task.helper();
    for (name, refused) in [(Peer::Framework, [false, true, true]), (Peer::Role, [true, false, true])] {
        talk.set(&only(name));
        for how in ["connect tcp", "connect udp", "send udp", "connect tcp-mapped"] {
            let mut ask = |peer: &Called| is_refused(&mut helper, how, Ipv4Addr::LOCALHOST, peer.port);
            assert_eq!(peers.each_ref().map(&mut ask), refused, "{name:?}, {how}");
        }
    }
    // Narrower names decide: of the role, but not of the framework.
    talk.set(&TalkGrant {
        rules: vec![rule(true, Peer::Role), rule(false, Peer::Framework), rule(true, Peer::Node)],
        deny_rest: true,
    });
    let mut ask = |peer: &Called| is_refused(&mut helper, "connect tcp", Ipv4Addr::LOCALHOST, peer.port);
    assert_eq!(peers.each_ref().map(&mut ask), [true, false, false]);
    // A port that nobody holds any more is nobody's.
    talk.set(&only(Peer::Framework));
    talk.rules.hold_ports(peers[0].task.id, &talk.node.ports(&[]).ports).unwrap();
    assert!(is_refused(&mut helper, "connect tcp", Ipv4Addr::LOCALHOST, peers[0].port));
}

#[test]
fn names_are_of_tasks_in_the_hosts_namespace() {
    let Some(talk) = Talk::new("names_are_of_tasks_in_the_hosts_namespace") else { return };
    let peers = peers(&talk);
    talk.set(&only(Peer::Framework));
    let mut helper = talk.secluded();
    assert!(is_refused(&mut helper, "connect tcp", Ipv4Addr::LOCALHOST, peers[0].port), "not that loopback");
}

#[test]
fn a_task_is_called_by_those_it_names() {
    let Some(talk) = Talk::new("a_task_is_called_by_those_it_names") else { return };
    let mut callers = peers(&talk);
    let mut helper = talk.task.helper();
    let host = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let by_name =
        |name| TalkGrant { rules: vec![TalkRule { egress: false, ..rule(true, name) }], deny_rest: true };
    // A port each: who was let in once may go on.
    let mut port = talk.node.port;
    for (name, received) in [(Peer::Role, [0, 1, 0]), (Peer::Framework, [1, 0, 0])] {
        talk.set(&by_name(name));
        port += 1;
        assert_eq!(helper.bind("u", "udp4", port), Ok(port));
        for (caller, received) in callers.iter_mut().zip(received) {
            let dropped = talk.dropped();
            assert!(caller.helper.ask(&format!("send u udp4 {port}")).starts_with("0 "));
            assert_eq!(helper.ask("drain u"), format!("0 {received}"), "{name:?}");
            assert_eq!(talk.dropped(), dropped + 1 - received, "{name:?}");
        }
        host.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!(helper.ask("drain u"), "0 0", "the host is no task");
    }
    // Who was let in is answered.
    assert!(helper.ask(&format!("send u udp4 {}", callers[0].port)).starts_with("0 "));
}

/// What a task sent to one address of the node says nothing about who sends from its port to another.
#[test]
fn a_note_is_of_one_way_only() {
    let Some(talk) = Talk::new("a_note_is_of_one_way_only") else { return };
    let [mut caller, ..] = peers(&talk);
    let (mut helper, port) = (talk.task.helper(), talk.node.port);
    talk.set(&TalkGrant {
        rules: vec![TalkRule { egress: false, ..rule(true, Peer::Framework) }],
        deny_rest: true,
    });
    assert_eq!(helper.bind("u", "udp4", port), Ok(port));
    // The caller sends to somebody else at the same port, from one that the kernel chose.
    let other = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), port)).unwrap();
    assert!(!is_refused(&mut caller.helper, "send udp", Ipv4Addr::new(127, 0, 0, 2), port));
    let (_, from) = other.recv_from(&mut [0]).unwrap();
    let host = UdpSocket::bind(from).unwrap();
    host.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap();
    assert_eq!((helper.ask("drain u"), talk.dropped()), ("0 0".into(), 1));
}

#[test]
fn connections_are_let_in_by_name() {
    let Some(talk) = Talk::new("connections_are_let_in_by_name") else { return };
    let mut callers = peers(&talk);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let mut stream = DenialStream::open_talk(&talk.node.load().talk.unwrap()).unwrap();
    let (mut helper, port) = (talk.task.helper(), talk.node.port);
    assert_eq!(helper.bind("l", "tcp4", port), Ok(port));
    assert_eq!(helper.ask("listen l"), "0");
    talk.set(&TalkGrant {
        rules: vec![TalkRule { egress: false, ..rule(true, Peer::Framework) }],
        deny_rest: true,
    });
    let connect = format!("connect c tcp4 {port}");
    assert!(callers[0].helper.ask(&connect).starts_with("0 "));
    assert_eq!(helper.ask("accept-and-close l"), "0");
    // This one waits for an answer that does not come.
    callers[1].helper.tell(&connect);
    let denied = next_denial(&mut stream, &runtime);
    assert_eq!((denied.what, denied.protocol, denied.port), (denied::PACKET_IN, 6, port));
}
