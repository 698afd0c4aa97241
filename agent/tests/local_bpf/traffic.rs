//! A child of the tests in a task's cgroup, which sends and receives as it is told.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};

use crate::{fixture::this_test, tcp};

const CGROUP: &str = "BULKHEAD_TEST_TRAFFIC";
/// Sets answers apart from what the test harness prints.
const ANSWER: &str = "answer: ";
/// Of TCP, at once.
const CHUNK: usize = 256 * 1024;

/// A process in a cgroup; killed when dropped.
pub(crate) struct Peer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start(cgroup: &Path) -> Self {
        let mut command = this_test("traffic::obey");
        command.env(CGROUP, cgroup).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, orders, answers };
        peer.tell("hello");
        assert_eq!(peer.answer(), 0);
        peer
    }

    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    /// Sends an order, and waits for its numbers.
    pub(crate) fn ask(&mut self, order: &str) -> Vec<u64> {
        self.tell(order);
        self.answers()
    }

    /// Waits for the last order's number.
    pub(crate) fn answer(&mut self) -> u64 {
        self.answers()[0]
    }

    /// Waits for the last order's numbers.
    pub(crate) fn answers(&mut self) -> Vec<u64> {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the peer ended");
            // The harness does not end its own line before the first answer.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.split_whitespace().map(|number| number.parse().unwrap()).collect();
            }
        }
    }

    /// Sends datagrams; how many the kernel took.
    pub(crate) fn send_udp(&mut self, to: SocketAddr, bytes: usize, count: u64) -> u64 {
        self.tell(&format!("udp {to} {bytes} {count} 0"));
        self.answer()
    }

    /// Sends one datagram in segments (UDP_SEGMENT); 1, or 0 where the kernel did not take it.
    pub(crate) fn send_segmented(&mut self, to: SocketAddr, bytes: usize, segment: u16) -> u64 {
        self.tell(&format!("udp {to} {bytes} 1 {segment}"));
        self.answer()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "other tests run it in a child"]
fn obey() {
    let Some(cgroup) = env::var_os(CGROUP) else { return };
    fs::write(Path::new(&cgroup).join("cgroup.procs"), "0").unwrap();
    let mut sockets = tcp::Sockets::default();
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let numbers = sockets.order(&words).unwrap_or_else(|| Ok(vec![order(&words)?])).unwrap();
        println!("{ANSWER}{}", numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" "));
    }
}

fn order(words: &[&str]) -> io::Result<u64> {
    let number = |text: &str| text.parse::<u64>().unwrap();
    match *words {
        ["hello"] => Ok(0),
        ["netns", name] => {
            setns(fs::File::open(Path::new("/run/netns").join(name))?, CloneFlags::CLONE_NEWNET)?;
            Ok(0)
        }
        ["udp", to, bytes, count, segment] => {
            udp(to.parse().unwrap(), bytes.parse().unwrap(), number(count), segment.parse().unwrap())
        }
        // Sends datagrams for so many milliseconds; how many the kernel took.
        ["udp-flood", to, bytes, ms] => udp_flood(to.parse().unwrap(), bytes.parse().unwrap(), number(ms)),
        // Sends over TCP for so many milliseconds; the bytes that were taken.
        ["tcp-send", to, ms] => tcp_send(to, Duration::from_millis(number(ms))),
        // Receives over TCP until the other end closes; the bytes.
        ["tcp-receive", from] => tcp_receive(from),
        // Says something, and counts the datagrams that come until one is empty.
        ["udp-receive", from] => udp_receive(from.parse().unwrap()),
        _ => panic!("{words:?}"),
    }
}

fn udp(to: SocketAddr, bytes: usize, count: u64, segment: u16) -> io::Result<u64> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // Bound by connecting, as clients are.
    let socket = UdpSocket::bind(any).or_else(|_| unbound(to))?;
    socket.connect(to)?;
    let payload = vec![7; bytes];
    let mut taken = 0;
    for _ in 0..count {
        let sent = if segment == 0 {
            socket.send(&payload)
        } else {
            let parts = [io::IoSlice::new(&payload)];
            let size = [ControlMessage::UdpGsoSegments(&segment)];
            sendmsg::<()>(socket.as_raw_fd(), &parts, &size, MsgFlags::empty(), None).map_err(Into::into)
        };
        taken += u64::from(sent.is_ok());
    }
    Ok(taken)
}

fn udp_flood(to: SocketAddr, bytes: usize, ms: u64) -> io::Result<u64> {
    let socket = unbound(to)?;
    socket.connect(to)?;
    let (payload, end) = (vec![7; bytes], Instant::now() + Duration::from_millis(ms));
    let mut taken = 0;
    while Instant::now() < end {
        taken += u64::from(socket.send(&payload).is_ok());
        // What is dropped at once would keep everybody else off the processor.
        if taken % 16 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(taken)
}

/// A task that was granted no port.
fn unbound(to: SocketAddr) -> io::Result<UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?.into())
}

fn tcp_send(to: &str, time: Duration) -> io::Result<u64> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let end = Instant::now() + time;
    let chunk = vec![7; CHUNK];
    let mut sent = 0;
    while Instant::now() < end {
        match stream.write(&chunk) {
            Ok(bytes) => sent += bytes as u64,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(sent)
}

fn tcp_receive(from: &str) -> io::Result<u64> {
    let mut stream = TcpStream::connect(from)?;
    let mut chunk = vec![0; CHUNK];
    let mut received = 0;
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(received),
            bytes => received += bytes as u64,
        }
    }
}

fn udp_receive(from: SocketAddr) -> io::Result<u64> {
    let socket = unbound(from)?;
    socket.connect(from)?;
    socket.send(b"here")?;
    let mut count = 0;
    let mut datagram = [0; 65_536];
    while socket.recv(&mut datagram)? != 0 {
        count += 1;
    }
    Ok(count)
}
