//! What tasks send and receive: counted to the byte, held to rates.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, UdpSocket},
    time::Instant,
};

use bulkhead_abi::{FRAME_BYTES, NetCounters, NetInterface, net_interface};
use bulkhead_agent::kernel::bpf::{BpfError, NetRules, Rates};

use crate::{
    fixture::{Node, Task},
    traffic::Peer,
};

const UDP_V4: u64 = 20 + 8 + FRAME_BYTES;
const UDP_V6: u64 = 40 + 8 + FRAME_BYTES;

/// The peer is dropped first: a cgroup cannot be removed before.
struct Setup {
    peer: Peer,
    rules: NetRules,
    task: Task,
    node: Node,
}

/// `None`, and the reason is printed, where these tests cannot run.
fn setup(test: &str, rates: Rates) -> Option<Setup> {
    let node = Node::new(test)?;
    let dir = match node.load().net {
        Ok(dir) => dir,
        Err(why) => {
            println!("SKIP {test}: {why}");
            return None;
        }
    };
    let rules = NetRules::open(&dir).unwrap();
    let task = node.task("a");
    rules.set(task.id, rates).unwrap();
    let peer = Peer::start(&task.cgroup);
    Some(Setup { peer, rules, task, node })
}

impl Setup {
    fn counted(&self) -> NetCounters {
        self.rules.counters(self.task.id).unwrap().unwrap()
    }
}

/// Takes in datagrams, so that none is refused for want of a listener.
fn sink(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn datagrams_are_counted_with_their_headers() {
    let Some(mut s) = setup("datagrams_are_counted_with_their_headers", Rates::default()) else { return };
    for (to, headers) in [("127.0.0.1:0", UDP_V4), ("[::1]:0", UDP_V6)] {
        let (_sink, to) = sink(to);
        let before = s.counted();
        assert_eq!(s.peer.send_udp(to, 1000, 50), 50);
        let after = s.counted();
        assert_eq!(after.sent.packets() - before.sent.packets(), 50);
        assert_eq!(after.sent.bytes() - before.sent.bytes(), 50 * (1000 + headers));
        assert_eq!(after.received, before.received, "none of it came back");
        assert_eq!((after.sent.dropped, after.sent.marked), (0, 0));
    }
}

#[test]
fn segments_that_the_kernel_makes_are_counted_one_by_one() {
    let Some(mut s) = setup("segments_that_the_kernel_makes_are_counted_one_by_one", Rates::default()) else {
        return;
    };
    for (to, headers) in [("127.0.0.1:0", UDP_V4), ("[::1]:0", UDP_V6)] {
        let (_sink, to) = sink(to);
        let before = s.counted();
        // Ten of 1000 bytes, and one of 500.
        assert_eq!(s.peer.send_segmented(to, 10_500, 1000), 1);
        let after = s.counted();
        assert_eq!(after.sent.packets() - before.sent.packets(), 11);
        assert_eq!(after.sent.bytes() - before.sent.bytes(), 10_500 + 11 * headers);
    }
}

#[test]
fn what_comes_in_is_counted_for_who_receives_it() {
    let Some(mut s) = setup("what_comes_in_is_counted_for_who_receives_it", Rates::default()) else { return };
    let (sender, address) = sink("127.0.0.1:0");
    s.peer.tell(&format!("udp-receive {address}"));
    let mut greeting = [0; 16];
    let (_, task) = sender.recv_from(&mut greeting).unwrap();
    let before = s.counted();
    for _ in 0..20 {
        sender.send_to(&[7; 300], task).unwrap();
    }
    sender.send_to(&[], task).unwrap();
    assert_eq!(s.peer.answer(), 20);
    let after = s.counted();
    assert_eq!(after.received.packets() - before.received.packets(), 21);
    assert_eq!(after.received.bytes() - before.received.bytes(), 20 * 300 + 21 * UDP_V4);
    assert_eq!(after.sent, before.sent);
}

#[test]
fn both_ends_of_a_connection_count_the_same() {
    let Some(mut s) = setup("both_ends_of_a_connection_count_the_same", Rates::default()) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    s.peer.tell(&format!("tcp-receive {}", listener.local_addr().unwrap()));
    let (mut stream, _) = listener.accept().unwrap();
    let payload = 8_000_000;
    (0..8).for_each(|_| stream.write_all(&[7; 1_000_000]).unwrap());
    drop(stream);
    assert_eq!(s.peer.answer(), payload);
    let NetCounters { sent, received } = s.counted();
    assert!(received.bytes() > payload, "{received:?}");
    // The largest header is 60 + 60 bytes, and a slow machine sends a packet twice.
    let most = payload + payload / 20 + received.packets() * (120 + FRAME_BYTES);
    assert!(received.bytes() <= most, "{received:?}");
    assert!(sent.packets() > 0, "acknowledgements: {sent:?}");
    let all = s.rules.all().unwrap();
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), [s.task.id]);
    assert!(all[&s.task.id].received.bytes() >= received.bytes());
}

#[test]
fn tasks_are_counted_apart_and_forgotten_in_the_end() {
    let Some(mut s) = setup("tasks_are_counted_apart_and_forgotten_in_the_end", Rates::default()) else {
        return;
    };
    let other = s.node.task("b");
    s.rules.set(other.id, Rates::default()).unwrap();
    // Dropped before the node.
    let mut other_peer = Peer::start(&other.cgroup);
    let (_sink, to) = sink("127.0.0.1:0");
    assert_eq!((s.peer.send_udp(to, 10, 3), other_peer.send_udp(to, 10, 5)), (3, 5));
    let all = s.rules.all().unwrap();
    assert_eq!((all[&s.task.id].sent.packets(), all[&other.id].sent.packets()), (3, 5));
    s.rules.forget(s.task.id).unwrap();
    s.rules.forget(s.task.id).unwrap();
    assert_eq!(s.rules.counters(s.task.id).unwrap(), None);
    assert_eq!(s.rules.total().unwrap().sent.packets(), 8, "what was sent stays sent");
    let third = s.node.task("c");
    s.rules.set(third.id, Rates::default()).unwrap();
    assert_eq!(
        s.rules.counters(third.id).unwrap(),
        Some(NetCounters::default()),
        "a slot that was used before"
    );
}

#[test]
fn another_build_takes_over_in_the_same_links() {
    let Some(mut s) = setup("another_build_takes_over_in_the_same_links", Rates::default()) else { return };
    let (_sink, to) = sink("127.0.0.1:0");
    assert_eq!(s.peer.send_udp(to, 10, 3), 3);
    // Under the name that another build of the programs would have.
    let dir = s.node.load().net.unwrap();
    let name = dir.file_name().unwrap().to_str().unwrap();
    let build = name.split('-').nth(2).unwrap();
    let other = s.node.spec.pin_dir.join(name.replace(build, "0123456789abcdef"));
    std::fs::rename(&dir, &other).unwrap();
    // It may have been without a map that there is now.
    std::fs::remove_file(other.join(bulkhead_abi::names::NET_RULE_DROPS)).unwrap();
    let adopted = s.node.load().net.unwrap();
    assert_eq!(adopted, dir);
    assert!(!other.exists());
    // One hook, on the same map: counted once, and nothing is forgotten.
    assert_eq!(s.peer.send_udp(to, 10, 4), 4);
    assert_eq!(s.counted().sent.packets(), 7);
    assert_eq!(NetRules::open(&adopted).unwrap().counters(s.task.id).unwrap(), Some(s.counted()));
}

#[test]
fn what_cannot_wait_is_dropped_beyond_the_rate() {
    let megabit = Rates { ceiling: Some(1_000_000), ..Rates::default() };
    let Some(mut s) = setup("what_cannot_wait_is_dropped_beyond_the_rate", megabit) else { return };
    let (_sink, to) = sink("127.0.0.1:0");
    let start = Instant::now();
    // Told as a full queue tells it: the call succeeds.
    assert_eq!(s.peer.send_udp(to, 1000, 2000), 2000);
    let elapsed = start.elapsed().as_secs_f64();
    let sent = s.counted().sent;
    assert_eq!(sent.packets() + sent.dropped, 2000);
    let most = 125_000.0 * (elapsed + 0.25) + 2000.0;
    assert!(sent.bytes() > 25_000 && (sent.bytes() as f64) < most, "{sent:?} in {elapsed} s");
    assert!(sent.marked > 0 && sent.dropped > 0, "{sent:?}");
    // Without a limit nothing is dropped any more.
    s.rules.set(s.task.id, Rates::default()).unwrap();
    assert_eq!(s.peer.send_udp(to, 1000, 100), 100);
    assert_eq!(s.counted().sent.packets(), sent.packets() + 100);
}

#[test]
fn what_comes_in_is_held_to_its_rate() {
    let megabit = Rates { ingress: Some(1_000_000), ..Rates::default() };
    let Some(mut s) = setup("what_comes_in_is_held_to_its_rate", megabit) else { return };
    let (sender, address) = sink("127.0.0.1:0");
    s.peer.tell(&format!("udp-receive {address}"));
    let mut greeting = [0; 16];
    let (_, task) = sender.recv_from(&mut greeting).unwrap();
    let start = Instant::now();
    for _ in 0..1000 {
        sender.send_to(&[7; 1000], task).unwrap();
    }
    let elapsed = start.elapsed().as_secs_f64();
    let received = s.counted().received;
    assert_eq!(received.packets() + received.dropped, 1000);
    assert!(received.dropped > 0 && received.marked > 0, "{received:?}");
    assert!((received.bytes() as f64) < 125_000.0 * (elapsed + 0.25) + 2000.0, "{received:?} in {elapsed} s");
}

#[test]
fn a_rate_changes_under_a_running_connection() {
    let slow = Rates { ceiling: Some(20_000_000), ..Rates::default() };
    let Some(mut s) = setup("a_rate_changes_under_a_running_connection", slow) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    s.peer.tell(&format!("tcp-send {} 3000", listener.local_addr().unwrap()));
    let (mut stream, _) = listener.accept().unwrap();
    let mut chunk = vec![0; 1 << 20];
    let mut read = 0u64;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 1.5 {
        read += stream.read(&mut chunk).unwrap() as u64;
    }
    let (elapsed, slow_bytes) = (start.elapsed().as_secs_f64(), read);
    assert!((slow_bytes as f64) < 2_500_000.0 * (elapsed + 0.5) + 200_000.0, "{slow_bytes} in {elapsed} s");
    assert!(slow_bytes > 1_000_000, "it does not collapse: {slow_bytes}");
    s.rules.set(s.task.id, Rates { ceiling: Some(400_000_000), ..slow }).unwrap();
    loop {
        match stream.read(&mut chunk).unwrap() {
            0 => break,
            bytes => read += bytes as u64,
        }
    }
    assert_eq!(s.peer.answer(), read, "nothing is lost");
    assert!(read > 4 * slow_bytes, "{slow_bytes} bytes, and {read} in the end");
}

#[test]
fn interfaces_that_meet_in_one_place_leave_the_link() {
    let Some(s) = setup("interfaces_that_meet_in_one_place_leave_the_link", Rates::default()) else { return };
    let device = |ifindex, flags| NetInterface { ifindex, flags, ..NetInterface::default() };
    let link = net_interface::LINK | net_interface::PACED;
    s.rules.set_interfaces(&[device(7, link), device(7 + 256, net_interface::PACED), device(9, 0)]).unwrap();
    s.rules.set_interfaces(&[]).unwrap();
}

#[test]
fn more_tasks_than_there_is_room_for_are_refused() {
    let Some(s) = setup("more_tasks_than_there_is_room_for_are_refused", Rates::default()) else { return };
    let ids = 1u64 << 40..;
    let full = ids.map(|id| s.rules.set(id, Rates::default())).find(Result::is_err);
    assert!(matches!(full, Some(Err(BpfError::Full { .. }))), "{full:?}");
}
