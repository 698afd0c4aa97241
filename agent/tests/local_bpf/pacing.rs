//! Packets of tasks on a wire between two network namespaces: when they leave, and what is marked.

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bulkhead_abi::{FRAME_BYTES, NetInterface, net_interface};
use bulkhead_agent::kernel::bpf::{NetRules, Rates};
use nix::sched::{CloneFlags, setns};

use crate::{
    fixture::{Node, Task},
    traffic::Peer,
};

const MBIT: u64 = 1_000_000;
/// A datagram, and what is around it on the wire.
const PAYLOAD: usize = 1200;
const UDP_V4: u64 = 20 + 8 + FRAME_BYTES;
const UDP_V6: u64 = 40 + 8 + FRAME_BYTES;

/// Two network namespaces with a veth pair between them. Removed when dropped.
pub(crate) struct Wire {
    pub(crate) near: String,
    pub(crate) far: String,
}

impl Wire {
    pub(crate) fn new(qdisc: Option<&str>) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |end| format!("bh-{}-{number}-{end}", std::process::id());
        let wire = Self { near: name("near"), far: name("far") };
        let (near, far) = (&wire.near, &wire.far);
        run(&format!("ip netns add {near}"))?;
        run(&format!("ip netns add {far}"))?;
        run(&format!("ip link add v0 netns {near} type veth peer name v1 netns {far}"))?;
        for (end, device, host) in [(near, "v0", 1), (far, "v1", 2)] {
            run(&format!("ip -n {end} addr add 10.9.9.{host}/24 dev {device}"))?;
            run(&format!("ip -n {end} addr add fd99::{host}/64 dev {device} nodad"))?;
            run(&format!("ip -n {end} link set {device} up"))?;
        }
        if let Some(qdisc) = qdisc {
            run(&format!("tc -n {near} qdisc replace dev v0 root {qdisc}"))?;
        }
        Ok(wire)
    }

    fn ifindex(&self) -> u32 {
        let line = run(&format!("ip -n {} -o link show v0", self.near)).unwrap();
        line.split(':').next().unwrap().trim().parse().unwrap()
    }

    /// What a file below /proc/net says at the far end.
    fn far_proc(&self, file: &str) -> String {
        run(&format!("ip netns exec {} cat /proc/net/{file}", self.far)).unwrap()
    }

    /// Receives datagrams at the far end until none comes for a while.
    fn receive(&self, address: &str) -> (SocketAddr, JoinHandle<Received>) {
        let far = self.far.clone();
        let address: SocketAddr = address.parse().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let receiving = std::thread::spawn(move || {
            enter(&far).unwrap();
            let socket = UdpSocket::bind(address).unwrap();
            tell.send(socket.local_addr().unwrap()).unwrap();
            Received::from(&socket).unwrap()
        });
        (told.recv().unwrap(), receiving)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for end in [&self.near, &self.far] {
            if let Err(error) = run(&format!("ip netns del {end}")) {
                println!("{error}");
            }
        }
    }
}

/// Datagrams as they came in.
struct Received {
    /// After the first.
    bytes: u64,
    datagrams: u64,
    took: Duration,
}

impl Received {
    fn from(socket: &UdpSocket) -> io::Result<Self> {
        let mut datagram = [0; 65_536];
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        socket.recv(&mut datagram)?;
        let first = Instant::now();
        let mut received = Self { bytes: 0, datagrams: 0, took: Duration::ZERO };
        socket.set_read_timeout(Some(Duration::from_millis(1500)))?;
        while let Ok(bytes) = socket.recv(&mut datagram) {
            received.bytes += bytes as u64;
            received.datagrams += 1;
            received.took = first.elapsed();
        }
        Ok(received)
    }

    fn bits_per_sec(&self, headers: u64) -> f64 {
        (self.bytes + self.datagrams * headers) as f64 * 8.0 / self.took.as_secs_f64()
    }
}

fn run(command: &str) -> Result<String, String> {
    let mut words = command.split(' ');
    let output =
        Command::new(words.next().unwrap()).args(words).output().map_err(|e| format!("{command}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Moves this thread.
pub(crate) fn enter(netns: &str) -> io::Result<()> {
    Ok(setns(fs::File::open(format!("/run/netns/{netns}"))?, CloneFlags::CLONE_NEWNET)?)
}

/// A node whose only interface is the near end of a wire.
struct Setup {
    rules: NetRules,
    wire: Wire,
    node: Node,
}

/// `None`, and the reason is printed, where these tests cannot run.
fn setup(test: &str, qdisc: Option<&str>, flags: u32) -> Option<Setup> {
    let node = Node::new(test)?;
    let skip = |why: String| {
        println!("SKIP {test}: {why}");
        None
    };
    let dir = match node.load().net {
        Ok(dir) => dir,
        Err(why) => return skip(why),
    };
    let rules = NetRules::open(&dir).unwrap();
    let wire = match Wire::new(qdisc) {
        Ok(wire) => wire,
        Err(why) => return skip(why),
    };
    let interface = NetInterface { ifindex: wire.ifindex(), flags, mtu_bytes: 1500, reserved: 0 };
    rules.set_interfaces(&[interface]).unwrap();
    Some(Setup { rules, wire, node })
}

impl Setup {
    fn task(&self, name: &str, rates: Rates) -> (Task, Peer) {
        let task = self.node.task(name);
        self.rules.set(task.id, rates).unwrap();
        let mut peer = Peer::start(&task.cgroup);
        peer.tell(&format!("netns {}", self.wire.near));
        assert_eq!(peer.answer(), 0);
        (task, peer)
    }
}

fn ceiling(bits_per_sec: u64) -> Rates {
    Rates { ceiling: Some(bits_per_sec), ..Rates::default() }
}

fn assert_close(measured: f64, wanted: f64, percent: f64) {
    let error = (measured / wanted - 1.0) * 100.0;
    println!("{measured:.0} bit/s, wanted {wanted:.0}: {error:+.2} %");
    assert!(error.abs() < percent, "{measured:.0} bit/s is {error:+.2} % off {wanted:.0}");
}

#[test]
fn datagrams_leave_at_their_rate() {
    let Some(s) = setup("datagrams_leave_at_their_rate", Some("fq"), net_interface::PACED) else { return };
    let (task, mut peer) = s.task("a", ceiling(10 * MBIT));
    for (address, headers) in [("10.9.9.2:0", UDP_V4), ("[fd99::2]:0", UDP_V6)] {
        let (to, receiving) = s.wire.receive(address);
        peer.tell(&format!("udp-flood {to} {PAYLOAD} 4000"));
        let received = receiving.join().unwrap();
        peer.answer();
        assert_close(received.bits_per_sec(headers), 10e6, 1.0);
    }
    let sent = s.rules.counters(task.id).unwrap().unwrap().sent;
    // What fits into a socket's buffer waits; nothing is lost on the way.
    assert_eq!(sent.dropped, 0, "{sent:?}");
}

#[test]
fn connections_are_paced_with_all_their_segments() {
    let Some(s) = setup("connections_are_paced_with_all_their_segments", Some("fq"), net_interface::PACED)
    else {
        return;
    };
    let (task, mut peer) = s.task("a", ceiling(20 * MBIT));
    let far = s.wire.far.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let receiving = std::thread::spawn(move || {
        enter(&far).unwrap();
        let listener = std::net::TcpListener::bind("10.9.9.2:0").unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let start = Instant::now();
        let bytes = io::copy(&mut stream, &mut io::sink()).unwrap();
        (bytes, start.elapsed().as_secs_f64())
    });
    peer.tell(&format!("tcp-send {} 4000", told.recv().unwrap()));
    let sent = peer.answer();
    let (received, seconds) = receiving.join().unwrap();
    assert_eq!(sent, received);
    let counted = s.rules.counters(task.id).unwrap().unwrap().sent;
    // Every segment of 1448 bytes has 20 + 32 + 14 bytes of headers.
    let wire = received + received.div_ceil(1448) * 66;
    assert!(counted.bytes() >= wire && counted.bytes() < wire + wire / 100, "{counted:?}, {wire} bytes");
    assert_close(wire as f64 * 8.0 / seconds, 20e6, 2.0);
}

#[test]
fn a_guarantee_holds_next_to_a_flood_and_spare_bandwidth_is_borrowed() {
    let flags = net_interface::PACED | net_interface::LINK;
    let test = "a_guarantee_holds_next_to_a_flood_and_spare_bandwidth_is_borrowed";
    let Some(s) = setup(test, Some("fq"), flags) else { return };
    s.rules.set_link(Some(20 * MBIT)).unwrap();
    let guaranteed = Rates { guaranteed: Some(15 * MBIT), ..Rates::default() };
    let (_first, mut first) = s.task("a", guaranteed);
    let (_second, mut second) = s.task("b", Rates::default());
    let (to_first, first_receiving) = s.wire.receive("10.9.9.2:0");
    let (to_second, second_receiving) = s.wire.receive("10.9.9.2:0");
    first.tell(&format!("udp-flood {to_first} {PAYLOAD} 4000"));
    second.tell(&format!("udp-flood {to_second} {PAYLOAD} 4000"));
    let (first_got, second_got) = (first_receiving.join().unwrap(), second_receiving.join().unwrap());
    first.answer();
    second.answer();
    let rates = (first_got.bits_per_sec(UDP_V4), second_got.bits_per_sec(UDP_V4));
    println!("{rates:?}");
    // Not more exactly: what the others have dropped at once takes the processor away on a slow machine.
    assert!(rates.0 > 14e6, "the guarantee: {rates:?}");
    assert_close(rates.0 + rates.1, 20e6, 3.0);
    // Alone, each of them has the whole link.
    for peer in [&mut first, &mut second] {
        let (to, receiving) = s.wire.receive("10.9.9.2:0");
        peer.tell(&format!("udp-flood {to} {PAYLOAD} 2000"));
        let received = receiving.join().unwrap();
        peer.answer();
        assert_close(received.bits_per_sec(UDP_V4), 20e6, 2.0);
    }
}

#[test]
fn a_hard_cap_borrows_nothing() {
    let flags = net_interface::PACED | net_interface::LINK;
    let Some(s) = setup("a_hard_cap_borrows_nothing", Some("fq"), flags) else { return };
    s.rules.set_link(Some(50 * MBIT)).unwrap();
    let capped = Rates { guaranteed: Some(8 * MBIT), ceiling: Some(8 * MBIT), ingress: None };
    let (_task, mut peer) = s.task("a", capped);
    let (to, receiving) = s.wire.receive("10.9.9.2:0");
    peer.tell(&format!("udp-flood {to} {PAYLOAD} 3000"));
    let received = receiving.join().unwrap();
    peer.answer();
    assert_close(received.bits_per_sec(UDP_V4), 8e6, 1.0);
}

#[test]
fn where_nothing_can_wait_the_receiver_sees_marks() {
    let Some(s) = setup("where_nothing_can_wait_the_receiver_sees_marks", None, 0) else { return };
    for end in [&s.wire.near, &s.wire.far] {
        run(&format!("ip netns exec {end} sysctl -qw net.ipv4.tcp_ecn=1")).unwrap();
    }
    let (task, mut peer) = s.task("a", ceiling(20 * MBIT));
    let far = s.wire.far.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let receiving = std::thread::spawn(move || {
        enter(&far).unwrap();
        let listener = std::net::TcpListener::bind("[fd99::2]:0").unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        io::copy(&mut stream, &mut io::sink()).unwrap()
    });
    let start = Instant::now();
    peer.tell(&format!("tcp-send {} 3000", told.recv().unwrap()));
    let sent = peer.answer();
    assert_eq!(receiving.join().unwrap(), sent, "nothing is lost");
    let seconds = start.elapsed().as_secs_f64();
    let counted = s.rules.counters(task.id).unwrap().unwrap().sent;
    assert!(counted.marked > 0, "{counted:?}");
    assert!((counted.bytes() as f64) < 2.5e6 * (seconds + 0.3), "{counted:?} in {seconds} s");
    assert!(counted.bytes() > 2_500_000, "it does not collapse: {counted:?} in {seconds} s");
    let marks = congestion_experienced(&s.wire.far_proc("snmp6"));
    println!("{marks} marks were seen, {counted:?}");
    assert!(marks > 0);
}

/// Packets with the mark that came in over IPv6.
fn congestion_experienced(snmp6: &str) -> u64 {
    let line = snmp6.lines().find(|line| line.starts_with("Ip6InCEPkts")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_live_rate_is_changed_without_a_loss() {
    let test = "a_live_rate_is_changed_without_a_loss";
    let Some(s) = setup(test, Some("fq"), net_interface::PACED) else { return };
    let (task, mut peer) = s.task("a", ceiling(5 * MBIT));
    let (to, receiving) = s.wire.receive("10.9.9.2:0");
    peer.tell(&format!("udp-flood {to} {PAYLOAD} 4000"));
    for step in 0..20 {
        std::thread::sleep(Duration::from_millis(150));
        s.rules.set(task.id, ceiling((5 + step % 3) * MBIT)).unwrap();
    }
    let sent = peer.answer();
    let received = receiving.join().unwrap();
    assert_eq!(received.datagrams + 1, sent);
    assert_eq!(s.rules.counters(task.id).unwrap().unwrap().sent.dropped, 0);
}

#[test]
fn another_namespace_with_the_same_number_is_not_taken_for_the_link() {
    let flags = net_interface::PACED | net_interface::LINK;
    let test = "another_namespace_with_the_same_number_is_not_taken_for_the_link";
    let Some(s) = setup(test, None, flags) else { return };
    let (task, mut peer) = s.task("a", Rates::default());
    s.rules.set_own_namespace(task.id, true).unwrap();
    let (to, receiving) = s.wire.receive("10.9.9.2:0");
    assert_eq!(peer.send_udp(to, 100, 10), 10);
    assert_eq!(receiving.join().unwrap().datagrams, 9);
    let sent = s.rules.counters(task.id).unwrap().unwrap().sent;
    assert_eq!((sent.link_packets, sent.other_packets), (0, 10));
    s.rules.set_own_namespace(task.id, false).unwrap();
    let (to, receiving) = s.wire.receive("10.9.9.2:0");
    assert_eq!(peer.send_udp(to, 100, 10), 10);
    assert_eq!(receiving.join().unwrap().datagrams, 9);
    assert_eq!(s.rules.counters(task.id).unwrap().unwrap().sent.link_packets, 10);
}
