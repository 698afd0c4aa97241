//! Children of the tests: this binary again, told by its environment what to be.

use std::{
    collections::HashMap,
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use bulkhead_agent::kernel::bpf::{self, LoadSpec};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sched::{CloneFlags, unshare},
    sys::{
        socket::{Backlog, MsgFlags, SockaddrIn, accept, bind, connect, listen, recv, sendto},
        stat::{Mode, SFlag, makedev, mknod},
    },
};

use crate::{
    fixture::this_test,
    socket::{Kind, other_socket, port_of, reach},
};

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
        self.port(&format!("bind {name} {kind} {port}"))
    }

    /// Connects a new socket that nobody bound to this port of loopback; the port it got, or the error.
    pub(crate) fn connect(&mut self, name: &str, kind: &str, to: u16) -> Result<u16, Errno> {
        self.port(&format!("connect {name} {kind} {to}"))
    }

    /// The same for an order whose answer is a port.
    pub(crate) fn port(&mut self, order: &str) -> Result<u16, Errno> {
        let answer = self.ask(order);
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
        ["connect", name, kind, to] => {
            let (kind, fd) = fresh(name, kind, sockets)?;
            connect(fd, &*kind.address(to.parse().unwrap()))?;
            return Ok(port_of(fd).to_string());
        }
        ["send", name, kind, to] => {
            let (kind, fd) = match sockets.get(name) {
                Some(fd) => (Kind::of(kind), fd.as_raw_fd()),
                None => fresh(name, kind, sockets)?,
            };
            sendto(fd, b"x", &*kind.address(to.parse().unwrap()), MsgFlags::empty())?;
            return Ok(port_of(fd).to_string());
        }
        ["listen-new", name, kind] => {
            let (_, fd) = fresh(name, kind, sockets)?;
            listen(&sockets[name], Backlog::new(1)?)?;
            return Ok(port_of(fd).to_string());
        }
        ["port", name] => return Ok(port_of(get(sockets, name)).to_string()),
        // By its numbers; the answer is whether it can be made.
        ["socket", family, kind, protocol] => {
            let number = |text: &str| text.parse::<i32>().unwrap();
            drop(other_socket(number(family), number(kind), number(protocol))?);
        }
        // Into a network namespace of its own, with its loopback up.
        ["unshare-net"] => crate::socket::unshare_net()?,
        // As somebody without capabilities.
        ["become", uid] => {
            let uid = nix::unistd::Uid::from_raw(uid.parse().unwrap());
            nix::unistd::setresuid(uid, uid, uid)?;
        }
        // `n` times: bind to the port and close.
        ["binds", kind, port, n] => {
            for _ in 0..n.parse::<u32>().unwrap() {
                drop(bound(kind, port.parse().unwrap(), false)?);
            }
        }
        // `n` times: connect a new UDP socket to the port and close.
        ["connects", kind, to, n] => {
            let address = Kind::of(kind).address(to.parse().unwrap());
            for _ in 0..n.parse::<u32>().unwrap() {
                let fd = Kind::of(kind).socket()?;
                connect(fd.as_raw_fd(), &*address)?;
            }
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
        // How many datagrams have come, by now.
        ["drain", name] => {
            let mut byte = [0];
            let mut next = || recv(get(sockets, name), &mut byte, MsgFlags::MSG_DONTWAIT);
            return Ok(std::iter::from_fn(|| next().ok()).count().to_string());
        }
        ["listen", name] => listen(&sockets[name], Backlog::new(1)?)?,
        ["accept-and-close", name] => nix::unistd::close(accept(get(sockets, name))?)?,
        ["close", name] => drop(sockets.remove(name)),
        // From now on in a network namespace of its own, where nothing is up.
        ["seclude"] => unshare(CloneFlags::CLONE_NEWNET)?,
        ["reach", how, kind, address, port] => {
            reach(how, kind, address.parse().unwrap(), port.parse().unwrap())?;
        }
        // How many of `n` such attempts were refused with EPERM.
        ["count-refused", how, kind, address, port, n] => {
            let (address, port, n) = (address.parse().unwrap(), port.parse().unwrap(), n.parse().unwrap());
            let refused = |_: &u32| reach(how, kind, address, port).err() == Some(Errno::EPERM);
            return Ok((0..n).filter(refused).count().to_string());
        }
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

/// A new socket that nobody bound, under this name. A TCP connection of it ends with a reset, so that nothing of it
/// is left in TIME_WAIT.
fn fresh(name: &str, kind: &str, sockets: &mut HashMap<String, OwnedFd>) -> Result<(Kind, i32), Errno> {
    let kind = Kind::of(kind);
    let fd = kind.socket()?;
    let raw = fd.as_raw_fd();
    sockets.insert(name.to_owned(), fd);
    Ok((kind, raw))
}

/// Binds a new socket; with its port.
fn bound(kind: &str, port: u16, reuse_port: bool) -> Result<(OwnedFd, u16), Errno> {
    let kind = Kind::of(kind);
    let fd = kind.socket()?;
    if reuse_port {
        crate::socket::reuse_port(&fd)?;
    }
    bind(fd.as_raw_fd(), &*kind.address(port))?;
    let port = port_of(fd.as_raw_fd());
    Ok((fd, port))
}
