//! `make run`: the usual master and agent, until somebody has seen enough.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Result, bail};
use bulkhead_proto::v1::Enforced;
use bulkhead_testkit::{
    Cluster, Options,
    binaries::Binaries,
    signals::{self, Signals},
};

use crate::screen::Screen;

/// Where master and agent listen unless they are told otherwise, and the CLI looks for them.
const MASTER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5050);
const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5051);
/// What an agent offers unless it is told otherwise.
const PORTS: &str = "31000-32000";
/// On the kernel's command line of a test guest.
const GUEST_MARK: &str = "vm.job=";

/// Serves until a signal comes, or the master or the agent ends.
pub(crate) async fn run(screen: &Screen, signals: &mut Signals) -> Result<ExitCode> {
    screen.say("starting a master and an agent");
    let options = Options {
        master_listen: Some(MASTER),
        agent_listen: Some(AGENT),
        ports: Some(PORTS.to_owned()),
        ..Options::default()
    };
    let cluster = tokio::select! {
        cluster = Cluster::start(options) => cluster?,
        number = signals.next() => return Ok(signals::exit_code(number)),
    };
    let report = cluster.agent_info().await?.report.unwrap_or_default();
    screen
        .out(&welcome(&Binaries::find()?.cli.display().to_string(), report.enforced.unwrap_or_default()))?;
    let ended = tokio::select! {
        _ = signals.next() => None,
        who = cluster.ended() => Some(who),
    };
    screen.say("ending the tasks, the agent and the master");
    if let Some(who) = ended {
        bail!("{who}");
    }
    cluster.finish().await?;
    Ok(ExitCode::SUCCESS)
}

fn welcome(bulkhead: &str, enforced: Enforced) -> String {
    let mut text = format!(
        "\
master {MASTER}, agent {AGENT}: up until Ctrl-C. In another terminal:

  alias bulkhead={bulkhead}
  bulkhead run -- echo hello
  bulkhead run --cpus 0.5 --mem 64MiB -- tail /dev/zero
  bulkhead run --name web --ports 1 --detach -- sh -c 'exec python3 -m http.server $PORT'
  bulkhead run -- python3 -c 'import socket; socket.socket().bind((\"\", 8080))'
  bulkhead ps
  bulkhead events
  bulkhead kill web
  curl http://{AGENT}/metrics
"
    );
    if fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains(GUEST_MARK)) {
        text +=
            "\nAll of it runs in a virtual machine: so do the tasks, and the ports they open are there.\n";
    }
    let kinds = [
        ("CPU", enforced.cpu),
        ("memory", enforced.mem),
        ("processes", enforced.pids),
        ("ports", enforced.ports),
    ];
    let loose: Vec<&str> = kinds.iter().filter(|(_, enforced)| !enforced).map(|(kind, _)| *kind).collect();
    if !loose.is_empty() {
        text += &format!(
            "\nThis kernel does not enforce: {}. `make run` takes one that does.\n",
            loose.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_enforced_is_said() {
        let all = Enforced { cpu: true, mem: true, ports: true, pids: true, ..Enforced::default() };
        assert!(!welcome("/b", all).contains("does not enforce"));
        let text = welcome("/b", Enforced { ports: true, ..Enforced::default() });
        assert!(text.contains("does not enforce: CPU, memory, processes."), "{text}");
        assert!(text.contains("alias bulkhead=/b\n"), "{text}");
    }
}
