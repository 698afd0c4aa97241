//! What fleets run to see the same: exporters for Prometheus, where the machine has them.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use bulkhead_testkit::http;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::process_cost::{ProcessCost, cpu_time};

/// A peer that takes longer has failed, or asks somebody who is not there.
const STARTED_WITHIN: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A program that may be installed, and how it is told where to listen.
struct Known {
    name: &'static str,
    programs: &'static [&'static str],
    listen: fn(SocketAddr) -> Vec<String>,
}

const KNOWN: [Known; 2] = [
    Known {
        name: "node_exporter",
        programs: &["prometheus-node-exporter", "node_exporter"],
        listen: |address| vec![format!("--web.listen-address={address}")],
    },
    Known {
        name: "cAdvisor",
        programs: &["cadvisor"],
        listen: |address| vec![format!("--listen_ip={}", address.ip()), format!("--port={}", address.port())],
    },
];

/// One that runs. It ends when this is dropped.
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// Where its `/metrics` are.
    pub(super) address: String,
    child: Child,
}

/// Starts those that are installed, and waits until they answer.
pub(super) async fn start() -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for known in &KNOWN {
        peers.extend(started(known).await?);
    }
    Ok(peers)
}

async fn started(known: &Known) -> Result<Option<Peer>> {
    let address = free_address()?;
    for program in known.programs {
        let mut command = Command::new(program);
        command.args((known.listen)(address)).kill_on_drop(true);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("start {program}")),
        };
        let peer = Peer { name: known.name, address: address.to_string(), child };
        peer.answers().await.with_context(|| format!("{program} on {address}"))?;
        return Ok(Some(peer));
    }
    Ok(None)
}

impl Peer {
    async fn answers(&self) -> Result<()> {
        let by = Instant::now() + STARTED_WITHIN;
        loop {
            match http::get(&self.address, "/metrics").await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > by => return Err(error),
                Err(_) => sleep(ASK_AGAIN).await,
            }
        }
    }

    /// Its CPU time so far.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid()?)
    }

    /// What it costs, with this CPU time of a window.
    pub(super) fn cost(&self, cpu: Duration, window: Duration) -> Result<ProcessCost> {
        ProcessCost::read(self.pid()?, cpu, window)
    }

    fn pid(&self) -> Result<i32> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        Ok(i32::try_from(pid)?)
    }
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?)
}
