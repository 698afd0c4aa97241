//! A veth pair between this machine and a network namespace.

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::Command,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

/// The end that tasks send through.
pub(crate) const NEAR: &str = "bhb-near";
const FAR: &str = "bhb-far";
/// Of the far end.
pub(crate) const FAR_IP: &str = "10.78.0.2";

/// The pair; removed when dropped.
#[derive(Debug)]
pub(crate) struct Wire;

/// What arrived at the far end up to a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) at: Instant,
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

impl Wire {
    /// Makes it.
    pub(crate) fn new() -> Result<Self> {
        // What a run that was killed has left.
        drop(Self);
        let wire = Self;
        run(&format!("ip netns add {FAR}"))?;
        run(&format!("ip link add {NEAR} type veth peer name far netns {FAR}"))?;
        run(&format!("ip addr add 10.78.0.1/24 dev {NEAR}"))?;
        run(&format!("ip -n {FAR} addr add {FAR_IP}/24 dev far"))?;
        run(&format!("ip link set {NEAR} up"))?;
        run(&format!("ip -n {FAR} link set far up"))?;
        run(&format!("ip -n {FAR} link set lo up"))?;
        Ok(wire)
    }

    /// Puts a queueing discipline on the near end: what follows `root` in a command of tc.
    pub(crate) fn shape(&self, qdisc: &str) -> Result<()> {
        drop(run(&format!("tc qdisc del dev {NEAR} root")));
        if qdisc.is_empty() {
            Ok(())
        } else {
            run(&format!("tc qdisc replace dev {NEAR} root {qdisc}")).map(drop)
        }
    }

    /// More of it: a command of tc with `DEV` for the near end.
    pub(crate) fn tc(&self, command: &str) -> Result<()> {
        run(&format!("tc {}", command.replace("DEV", NEAR))).map(drop)
    }

    /// Runs something at the far end, on a thread of its own.
    pub(crate) fn far<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        thread::spawn(move || {
            let namespace = File::open(format!("/run/netns/{FAR}"))?;
            setns(namespace, CloneFlags::CLONE_NEWNET).context("enter the namespace of the far end")?;
            work()
        })
    }

    /// Counts what arrived so far.
    pub(crate) fn arrived(&self) -> Result<Arrived> {
        let counted = self.far(|| {
            let text = fs::read_to_string("/proc/thread-self/net/dev")?;
            let line = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("far:"))
                .context("no such interface")?;
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            let mut next = || Ok::<_, anyhow::Error>(numbers.next().context("too few numbers")??);
            Ok(Arrived { at: Instant::now(), bytes: next()?, packets: next()? })
        });
        counted.join().map_err(|_| anyhow!("counting panicked"))?
    }

    /// Throws away what comes in over UDP; the address.
    pub(crate) fn udp_sink(&self) -> Result<(SocketAddr, std::net::UdpSocket)> {
        let sink = self.far(|| Ok(std::net::UdpSocket::bind((FAR_IP, 0))?));
        let socket = sink.join().map_err(|_| anyhow!("binding panicked"))??;
        Ok((socket.local_addr()?, socket))
    }

    /// A listener at the far end.
    pub(crate) fn listener(&self, port: u16) -> Result<std::net::TcpListener> {
        let listener = self.far(move || Ok(std::net::TcpListener::bind((FAR_IP, port))?));
        listener.join().map_err(|_| anyhow!("binding panicked"))?
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(run(&format!("ip link del {NEAR}")));
        drop(run(&format!("ip netns del {FAR}")));
    }
}

/// Something that can be run at the far end.
pub(crate) fn far_command(program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", FAR, program]);
    command
}

fn run(command: &str) -> Result<String> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output().with_context(|| command.to_owned())?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
