//! TCP connections of tasks: each counted once, with what was sent again and how long round trips took.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use bulkhead_abi::{ConnectionCounters, names};
use bulkhead_agent::kernel::bpf::{ConnectionCounts, NetRules, PortRules, Rates};

use crate::{
    cost::runs,
    fixture::{Node, Task},
    pacing::{Wire, enter},
    tcp::SMALLEST_BACKLOG,
    traffic::Peer,
};

const FAMILIES: [&str; 2] = ["127.0.0.1", "[::1]"];

/// The peer is dropped first: a cgroup cannot be removed before.
struct Setup {
    peer: Peer,
    counts: ConnectionCounts,
    ports: PortRules,
    task: Task,
    node: Node,
}

/// `None`, and the reason is printed, where these tests cannot run.
fn setup(test: &str) -> Option<Setup> {
    let node = Node::new(test)?;
    let loaded = node.load();
    let dir = match loaded.connections {
        Ok(dir) => dir,
        Err(why) => {
            println!("SKIP {test}: {why}");
            return None;
        }
    };
    let (counts, ports) = (ConnectionCounts::open(&dir).unwrap(), PortRules::open(&loaded.ports).unwrap());
    let task = node.task("a");
    ports.grant(task.id, &node.ports(&[0, 1, 2])).unwrap();
    counts.watch(task.id).unwrap();
    let peer = Peer::start(&task.cgroup);
    Some(Setup { peer, counts, ports, task, node })
}

impl Setup {
    fn counted(&self) -> ConnectionCounters {
        self.counts.of(self.task.id).unwrap().unwrap()
    }

    /// Another task, which may bind the same ports.
    fn other(&self, name: &str) -> (Task, Peer) {
        let task = self.node.task(name);
        self.ports.grant(task.id, &self.node.ports(&[0, 1, 2])).unwrap();
        self.counts.watch(task.id).unwrap();
        let peer = Peer::start(&task.cgroup);
        (task, peer)
    }
}

/// Sends back every byte of each of so many connections.
fn echo(address: &str, connections: usize) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(format!("{address}:0")).unwrap();
    let at = listener.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                // The other end may be done with this connection.
                let _ = stream.write_all(&byte);
            }
        }
    });
    (at, answering)
}

fn opened_and_accepted(counted: &ConnectionCounters) -> (u64, u64) {
    (counted.opened, counted.accepted)
}

/// Round trips, whatever they took.
fn round_trips(counted: &ConnectionCounters) -> u64 {
    counted.rtt.iter().sum()
}

#[test]
fn connections_belong_to_who_opens_and_who_accepts() {
    let Some(mut s) = setup("connections_belong_to_who_opens_and_who_accepts") else { return };
    let (other, mut other_peer) = s.other("b");
    for address in FAMILIES {
        let before = s.counted();
        let (at, answering) = echo(address, 7);
        assert_eq!(s.peer.ask(&format!("tcp-open {at} 7")), [7]);
        answering.join().unwrap();
        assert_eq!(s.counted().opened - before.opened, 7);
        // Nobody listens there any more.
        assert_eq!(s.peer.ask(&format!("tcp-open {at} 3")), [0]);
        assert_eq!(s.counted().opened - before.opened, 7, "a connection that is refused is not opened");
        assert_eq!(s.counted().accepted, before.accepted);

        let at = format!("{address}:{}", s.node.port);
        assert_eq!(s.peer.ask(&format!("tcp-listen {at}")), [1]);
        s.peer.tell("tcp-accept 5");
        (0..5).for_each(|_| TcpStream::connect(&at).unwrap().write_all(b"x").unwrap());
        assert_eq!(s.peer.answer(), 5);
        s.peer.tell("tcp-accept 2");
        assert_eq!(other_peer.ask(&format!("tcp-open {at} 2")), [2]);
        assert_eq!(s.peer.answer(), 2);
        assert_eq!(s.counted().accepted - before.accepted, 5 + 2);
        assert_eq!(s.counted().opened - before.opened, 7);
    }
    // Of strangers, nothing.
    let (at, answering) = echo("127.0.0.1", 1);
    TcpStream::connect(at).unwrap().write_all(b"x").unwrap();
    answering.join().unwrap();
    assert_eq!(opened_and_accepted(&s.counts.of(other.id).unwrap().unwrap()), (2 * 2, 0));
    assert_eq!(opened_and_accepted(&s.counted()), (2 * 7, 2 * 7));
    let all = s.counts.all().unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[&s.task.id], s.counted());
    s.counts.forget(other.id).unwrap();
    s.counts.forget(other.id).unwrap();
    assert_eq!(s.counts.of(other.id).unwrap(), None);
    assert_eq!(other_peer.ask(&format!("tcp-open {} 0", s.node.port)), [0]);
}

#[test]
fn cgroups_below_a_task_are_the_tasks() {
    let Some(s) = setup("cgroups_below_a_task_are_the_tasks") else { return };
    let below = s.task.cgroup.join("x/y");
    fs::create_dir_all(&below).unwrap();
    let mut peer = Peer::start(&below);
    let (at, answering) = echo("[::1]", 2);
    assert_eq!(peer.ask(&format!("tcp-open {at} 2")), [2]);
    answering.join().unwrap();
    assert_eq!(opened_and_accepted(&s.counted()), (2, 0));
}

/// A listening socket of MPTCP has others within it that the kernel makes: many servers listen that way.
#[test]
fn multipath_servers_are_counted() {
    const TEST: &str = "multipath_servers_are_counted";
    let Some(mut s) = setup(TEST) else { return };
    let at = format!("127.0.0.1:{}", s.node.port);
    if s.peer.ask(&format!("mptcp-listen {at}")) == [0] {
        return println!("SKIP {TEST}: the kernel has no MPTCP");
    }
    s.peer.tell("tcp-accept 3");
    (0..3).for_each(|_| TcpStream::connect(&at).unwrap().write_all(b"x").unwrap());
    assert_eq!(s.peer.answer(), 3);
    assert_eq!(opened_and_accepted(&s.counted()), (0, 3));
}

#[test]
fn round_trips_are_those_that_the_sockets_tell() {
    const TRIES: usize = 20;
    let Some(mut s) = setup("round_trips_are_those_that_the_sockets_tell") else { return };
    for address in FAMILIES {
        // A machine that stands still for a moment sends a segment twice, and then does not measure.
        let found = (0..TRIES).find_map(|_| {
            let before = s.counted();
            let (at, answering) = echo(address, 1);
            let told = s.peer.ask(&format!("tcp-rounds {at} 100"));
            let open = s.counted();
            assert_eq!(s.peer.ask("tcp-close"), [1]);
            answering.join().unwrap();
            (told[0] == 0).then_some((before, told, open))
        });
        let (before, told, open) = found.unwrap();
        // Older kernels tell each of them when the next one comes.
        let seen = usize::try_from(round_trips(&open) - round_trips(&before)).unwrap();
        assert!(seen == 100 || seen == 101, "{told:?} {open:?}");
        let mut expected = before;
        expected.opened += 1;
        for usec in &told[1..=seen] {
            let bucket = before.rtt_buckets().position(|(bound, _)| bound.is_none_or(|b| *usec <= b));
            expected.rtt[bucket.unwrap()] += 1;
            expected.rtt_sum_usec += usec;
        }
        assert_eq!(open, expected, "{told:?}");
    }
}

#[test]
fn what_is_sent_again_is_what_the_sockets_tell() {
    const TEST: &str = "what_is_sent_again_is_what_the_sockets_tell";
    let Some(mut s) = setup(TEST) else { return };
    let (receiver, mut receiving) = s.other("b");
    let rules = match s.node.load().net {
        Ok(dir) => NetRules::open(&dir).unwrap(),
        Err(why) => return println!("SKIP {TEST}: {why}"),
    };
    // Beyond this rate packets are lost on their way to the receiver.
    let slow = Rates { ingress: Some(20_000_000), ..Rates::default() };
    rules.set(receiver.id, slow).unwrap();
    for address in FAMILIES {
        let before = s.counted().retransmitted;
        let at = format!("{address}:{}", s.node.port);
        assert_eq!(receiving.ask(&format!("tcp-listen {at}")), [1]);
        receiving.tell("tcp-sink");
        let told = s.peer.ask(&format!("tcp-bulk {at} 8000000"));
        assert_eq!(receiving.answer(), 8_000_000);
        assert!(told[0] > 0, "nothing was lost");
        assert_eq!(s.counted().retransmitted - before, told[0]);
    }
}

#[test]
fn a_first_packet_that_is_sent_again_counts() {
    let Some(mut s) = setup("a_first_packet_that_is_sent_again_counts") else { return };
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(SMALLEST_BACKLOG).unwrap();
    let listener = TcpListener::from(listener);
    let at = listener.local_addr().unwrap();
    let first = TcpStream::connect(at).unwrap();
    s.peer.tell(&format!("tcp-rounds {at} 1"));
    // The kernel tells nobody when its timer has run out, after a second.
    while s.counted().retransmitted == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(s.counted().opened, 0, "not yet");
    drop((listener.accept().unwrap(), first));
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream.write_all(b"x").unwrap();
    let told = s.peer.answers();
    assert!(told[0] > 0, "{told:?}");
    assert_eq!((s.counted().retransmitted, s.counted().opened), (told[0], 1));
}

/// The program that counts, under the name that another build of it would have.
fn as_another_build(node: &Node) {
    let dir = node.load().connections.unwrap();
    let name = dir.file_name().unwrap().to_str().unwrap();
    let build = name.split('-').nth(2).unwrap();
    let other = node.spec.pin_dir.join(name.replace(build, "0123456789abcdef"));
    fs::rename(&dir, &other).unwrap();
    assert_eq!(node.load().connections.unwrap(), dir);
    assert!(!other.exists());
}

#[test]
fn another_build_goes_on_counting_in_the_same_link() {
    let Some(mut s) = setup("another_build_goes_on_counting_in_the_same_link") else { return };
    let at = format!("127.0.0.1:{}", s.node.port);
    assert_eq!(s.peer.ask(&format!("tcp-listen {at}")), [1]);
    s.peer.tell("tcp-accept 3");
    (0..3).for_each(|_| TcpStream::connect(&at).unwrap().write_all(b"x").unwrap());
    assert_eq!(s.peer.answer(), 3);
    as_another_build(&s.node);
    // By the same listening socket, which nobody told the new program of.
    s.peer.tell("tcp-accept 4");
    (0..4).for_each(|_| TcpStream::connect(&at).unwrap().write_all(b"x").unwrap());
    assert_eq!(s.peer.answer(), 4);
    let adopted = ConnectionCounts::open(&s.node.adopt().unwrap().connections.unwrap()).unwrap();
    adopted.watch(s.task.id).unwrap();
    assert_eq!(opened_and_accepted(&adopted.of(s.task.id).unwrap().unwrap()), (0, 7));
    assert_eq!(s.counted(), adopted.of(s.task.id).unwrap().unwrap(), "one map");
}

#[test]
fn round_trips_over_a_slow_wire_fall_where_they_belong() {
    const TEST: &str = "round_trips_over_a_slow_wire_fall_where_they_belong";
    let Some(mut s) = setup(TEST) else { return };
    let wire = match Wire::new(Some("netem delay 20ms")) {
        Ok(wire) => wire,
        Err(why) => return println!("SKIP {TEST}: {why}"),
    };
    assert_eq!(s.peer.ask(&format!("netns {}", wire.near)), [0]);
    let far = wire.far.clone();
    let far = std::thread::spawn(move || {
        enter(&far).unwrap();
        echo("10.9.9.2", 1)
    });
    let (at, answering) = far.join().unwrap();
    let told = s.peer.ask(&format!("tcp-rounds {at} 20"));
    assert_eq!(s.peer.ask("tcp-close"), [1]);
    answering.join().unwrap();
    let counted = s.counted();
    println!("{told:?} {counted:?}");
    assert!(round_trips(&counted) >= 20, "{counted:?}");
    let too_short: u64 =
        counted.rtt_buckets().filter(|(bound, _)| bound.is_some_and(|b| b < 20_000)).map(|(_, n)| n).sum();
    assert_eq!(too_short, 0, "{counted:?}");
    assert!(counted.rtt_sum_usec >= 20_000 * round_trips(&counted), "{counted:?}");
}

#[test]
fn a_thousand_tasks_are_read_with_nothing_lost() {
    let Some(s) = setup("a_thousand_tasks_are_read_with_nothing_lost") else { return };
    let ids: Vec<_> = (1u64 << 40..).take(1000).collect();
    ids.iter().for_each(|id| s.counts.watch(*id).unwrap());
    let mut all = s.counts.all().unwrap();
    assert_eq!(all.remove(&s.task.id), Some(ConnectionCounters::default()));
    assert_eq!(all.into_keys().collect::<Vec<_>>(), ids);
}

/// What the program costs, by the kernel's own count of its run time; see [`cost`](crate::cost).
#[test]
#[ignore = "records figures and asserts none"]
fn cost_of_counting() {
    let Some(mut s) = setup("cost_of_counting") else { return };
    let dir = s.node.load().connections.unwrap();
    let stats = enable_stats(Stats::RunTime).unwrap();
    let mut record = |what: &str, order: &dyn Fn(SocketAddr) -> String, connections| {
        let (at, answering) = echo("127.0.0.1", connections);
        let before = runs(&dir, names::CONNECTIONS_PROGRAM);
        s.peer.ask(&order(at));
        s.peer.ask("tcp-close");
        answering.join().unwrap();
        let after = runs(&dir, names::CONNECTIONS_PROGRAM);
        let (count, ns) = (after.0 - before.0, after.1 - before.1);
        println!("{what}: {count} runs, {} ns each", ns / count.max(1));
    };
    record("20000 connections", &|at| format!("tcp-open {at} 20000"), 20_000);
    record("20000 round trips", &|at| format!("tcp-rounds {at} 20000"), 1);
    drop(stats);
    let rules = NetRules::open(&s.node.load().net.unwrap()).unwrap();
    for id in (1u64 << 40..).take(1000) {
        s.counts.watch(id).unwrap();
        rules.set(id, Rates::default()).unwrap();
    }
    // What one scrape reads.
    let start = Instant::now();
    let connections = s.counts.all().unwrap().len();
    let after_connections = start.elapsed();
    let (traffic, drops) = (rules.all().unwrap().len(), rules.all_rule_drops().unwrap().len());
    let traffic_took = start.elapsed() - after_connections;
    println!("connections of {connections} tasks read in {after_connections:?}");
    println!("traffic of {traffic} and drops of {drops} tasks read in {traffic_took:?}");
}
