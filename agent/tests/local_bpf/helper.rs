//! Children of the tests: this binary again, told by its environment what to be.

use std::{
    collections::HashMap,
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use bulkhead_agent::kernel::bpf::{self, LoadSpec};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, accept,
            bind, getsockname, listen, setsockopt, socket, sockopt,
        },
        stat::{Mode, SFlag, makedev, mknod},
    },
};

use crate::fixture::this_test;

const CGROUP: &str = "BULKHEAD_TEST_CGROUP";
const LOAD: &str = "BULKHEAD_TEST_LOAD";
/// Sets answers apart from what the test harness prints.
const ANSWER: &str = "answer: ";

/// A process in a cgroup; killed when dropped.
pub(crate) struct Helper {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    pub(crate) fn start(cgroup: &Path) -> Self {
        let mut command = this_test("helper::obey");
        command.env(CGROUP, cgroup).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut helper = Self { child, orders, answers };
        assert_eq!(helper.ask("hello"), "0");
        helper
    }

    /// Sends an order, and waits for its answer: `0 ...`, or the number of an error.
    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer()
    }

    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the helper ended");
            // The harness does not end its own line before the first answer.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Binds a new socket; the port it got, or the error.
    pub(crate) fn bind(&mut self, name: &str, kind: &str, port: u16) -> Result<u16, Errno> {
        let answer = self.ask(&format!("bind {name} {kind} {port}"));
        match answer.split_once(' ') {
            Some(("0", port)) => Ok(port.parse().unwrap()),
            _ => Err(Errno::from_raw(answer.parse().unwrap())),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that loads.
pub(crate) fn loader(spec: &LoadSpec) -> Command {
    let mut command = this_test("helper::load");
    let text = format!("{}\n{}\n{}", spec.pin_dir.display(), spec.cgroup.display(), spec.task_level);
    command.env(LOAD, text);
    command
}

#[test]
#[ignore = "other tests run it in a child"]
fn load() {
    let Ok(text) = env::var(LOAD) else { return };
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap();
    let spec =
        LoadSpec { pin_dir: line().into(), cgroup: line().into(), task_level: line().parse().unwrap() };
    for error in bpf::load_and_pin(&spec).unwrap().missing {
        eprintln!("{}", bulkhead_agent::error_chain(&error));
    }
}

#[test]
#[ignore = "other tests run it in a child"]
fn obey() {
    let Some(cgroup) = env::var_os(CGROUP) else { return };
    enter(Path::new(&cgroup));
    let mut sockets = HashMap::new();
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let answer = match order(&words, &mut sockets) {
            Ok(text) => format!("0 {text}"),
            Err(errno) => (errno as i32).to_string(),
        };
        println!("{ANSWER}{}", answer.trim_end());
    }
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
}

fn order(words: &[&str], sockets: &mut HashMap<String, OwnedFd>) -> Result<String, Errno> {
    let get = |sockets: &HashMap<String, OwnedFd>, name: &str| sockets[name].as_raw_fd();
    match *words {
        ["hello"] => {}
        ["enter", cgroup] => {
            fs::create_dir(cgroup).unwrap();
            enter(Path::new(cgroup));
        }
        ["bind", name, kind, port] => {
            let (fd, port) = bound(kind, port.parse().unwrap(), name.ends_with("reuse"))?;
            sockets.insert(name.to_owned(), fd);
            return Ok(port.to_string());
        }
        // Port 0 for `n` sockets, which stay open; the ports.
        ["take", kind, n] => {
            let mut ports = Vec::new();
            for i in 0..n.parse().unwrap() {
                let (fd, port) = bound(kind, 0, false)?;
                sockets.insert(format!("{kind}-{i}"), fd);
                ports.push(port.to_string());
            }
            return Ok(ports.join(" "));
        }
        ["bind-again", name] => bind(get(sockets, name), &SockaddrIn::new(127, 0, 0, 1, 0))?,
        ["open", how, path] => {
            let mut flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            flags |= match how {
                "r" => OFlag::O_RDONLY,
                "w" => OFlag::O_WRONLY,
                _ => OFlag::O_RDWR,
            };
            drop(nix::fcntl::open(path, flags, Mode::empty())?);
        }
        ["mknod", kind, major, minor, path] => {
            let kind = if kind == "b" { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
            let device = makedev(major.parse().unwrap(), minor.parse().unwrap());
            mknod(path, kind, Mode::from_bits_truncate(0o666), device)?;
        }
        ["listen", name] => listen(&sockets[name], Backlog::new(1)?)?,
        ["accept-and-close", name] => nix::unistd::close(accept(get(sockets, name))?)?,
        ["close", name] => drop(sockets.remove(name)),
        // How many of `n` attempts at ports from `first` on, `step` apart, were refused with EPERM.
        ["refused", kind, first, step, n] => {
            let (first, step, n): (u16, u16, u16) =
                (first.parse().unwrap(), step.parse().unwrap(), n.parse().unwrap());
            let refused = |i: &u16| bound(kind, first + step * i, false).err() == Some(Errno::EPERM);
            return Ok((0..n).filter(refused).count().to_string());
        }
        _ => panic!("{words:?}"),
    }
    Ok(String::new())
}

/// Binds to loopback: `tcp4`, `udp4`, `tcp6`, `udp6`, or `tcp6m`, `udp6m` for an IPv4 address mapped into IPv6.
fn bound(kind: &str, port: u16, reuse_port: bool) -> Result<(OwnedFd, u16), Errno> {
    let family = if kind.contains('4') { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket_type = if kind.starts_with("tcp") { SockType::Stream } else { SockType::Datagram };
    let fd = socket(family, socket_type, SockFlag::SOCK_CLOEXEC, None)?;
    if reuse_port {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    let v6 = |ip| SockaddrIn6::from(SocketAddrV6::new(ip, port, 0, 0));
    let localhost = std::net::Ipv4Addr::LOCALHOST;
    match family {
        AddressFamily::Inet => bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(localhost, port)))?,
        _ if kind.ends_with('m') => bind(fd.as_raw_fd(), &v6(localhost.to_ipv6_mapped()))?,
        _ => bind(fd.as_raw_fd(), &v6(Ipv6Addr::LOCALHOST))?,
    }
    let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let (v4, v6) = (name.as_sockaddr_in(), name.as_sockaddr_in6());
    let port = v4.map(SockaddrIn::port).or_else(|| v6.map(SockaddrIn6::port)).unwrap();
    Ok((fd, port))
}
