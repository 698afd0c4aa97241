//! Whom a task may talk to, by name and by address, through master and agent.

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{FrameworkInfo, NetAction, NetDirection, NetOptions, NetPeer, NetRule};
use bulkhead_testkit::{Cluster, Framework, Options, Task, harness::skip, trials};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    trials![tasks_are_told_apart_by_name, the_command_line_says_whom]
}

/// Listens on the port in its first argument.
const SERVER: &str = "
import socket, sys
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('ready', flush=True)
while True:
    listener.accept()[0].close()
";

/// Connects to each port of its arguments, again and again; a line for what became of it whenever that changes.
const CLIENT: &str = "
import socket, sys, time
def attempt(port):
    with socket.socket() as s:
        s.settimeout(1)
        try:
            s.connect(('127.0.0.1', port))
            return 'ok'
        except PermissionError:
            return 'refused'
        except TimeoutError:
            return 'silent'
        except OSError as e:
            return 'errno %d' % e.errno
seen = None
while True:
    found = ' '.join(attempt(int(port)) for port in sys.argv[1:])
    if found != seen:
        print(found, flush=True)
        seen = found
    time.sleep(0.05)
";

fn program(id: &str, script: &str, ports: &[u16]) -> Task {
    let ports = ports.iter().map(u16::to_string);
    Task::new(id, ["python3", "-ISc", script].map(String::from).into_iter().chain(ports)).cpu_milli(100)
}

/// Allowed in this direction is `peer`, and nobody else in either.
fn only(peer: NetPeer, direction: NetDirection) -> NetOptions {
    let rule = NetRule {
        action: NetAction::Allow.into(),
        peer: peer.into(),
        direction: direction.into(),
        ..NetRule::default()
    };
    NetOptions { rules: vec![rule], net_default: NetAction::Deny.into(), ..NetOptions::default() }
}

async fn framework(cluster: &Cluster, name: &str, role: &str) -> Result<Framework> {
    let info = FrameworkInfo { name: name.into(), role: role.into(), ..FrameworkInfo::default() };
    Framework::subscribe_as(cluster.master_channel().await?, info, true).await
}

async fn serve(cluster: &Cluster, framework: &Framework, task: Task) -> Result<()> {
    let id = framework.start(task).await?.task_id;
    cluster.stdout_until(framework, &id, "ready").await.map(drop)
}

async fn needs_rules(cluster: &Cluster) -> Result<()> {
    match cluster.agent_info().await?.report.context("a report")?.enforced.is_some_and(|e| e.ports) {
        true => Ok(()),
        false => skip("needs a kernel that takes BPF programs on connect"),
    }
}

async fn tasks_are_told_apart_by_name() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    needs_rules(&cluster).await?;
    let blue = framework(&cluster, "blue", "day").await?;
    let green = framework(&cluster, "green", "day").await?;
    let red = framework(&cluster, "red", "night").await?;
    let ports = [0, 1, 2].map(|n| cluster.port(n));
    for (framework, port) in [(&blue, ports[0]), (&green, ports[1]), (&red, ports[2])] {
        serve(&cluster, framework, program("server", SERVER, &[port]).ports(&[port])).await?;
    }
    let out = NetDirection::Egress;
    let by_framework = program("by-framework", CLIENT, &ports).net(only(NetPeer::Framework, out));
    blue.start(by_framework.clone()).await?;
    blue.start(program("by-role", CLIENT, &ports).net(only(NetPeer::Role, out))).await?;
    cluster.stdout_until(&blue, "by-framework", "ok refused refused").await?;
    cluster.stdout_until(&blue, "by-role", "ok ok refused").await?;

    // The other way: a server that names who may call it.
    let port = cluster.port(3);
    let guarded = program("guarded", SERVER, &[port]).ports(&[port]);
    serve(&cluster, &blue, guarded.net(only(NetPeer::Framework, NetDirection::Ingress))).await?;
    blue.start(program("friend", CLIENT, &[port])).await?;
    green.start(program("stranger", CLIENT, &[port])).await?;
    cluster.stdout_until(&blue, "friend", "ok").await?;
    cluster.stdout_until(&green, "stranger", "silent").await?;

    // Without an agent nothing changes; the next one knows what is whose.
    cluster.kill_agent_hard().await?;
    cluster.restart_agent().await?;
    cluster.registered().await?;
    let roles = by_framework.clone().net(only(NetPeer::Role, out));
    blue.resize(&by_framework, &roles).await?;
    let seen = cluster.stdout_until(&blue, "by-framework", "ok ok refused").await?;
    assert_eq!(seen, "ok refused refused\nok ok refused\n");
    green.kill("stranger", 0).await?;
    assert_eq!(cluster.stdout(&green, "stranger").await?, "silent\n");

    let events = cluster.run_cli(&["events", "--json", "guarded"]).await?;
    ensure!(events.stdout.contains("peer_denied"), "{} {}", events.stdout, events.stderr);
    blue.kill("by-framework", 0).await?;
    let end = blue.end_of("by-framework").await?;
    ensure!(end.usage.as_ref().is_some_and(|usage| usage.peers_refused > 0), "{end:?}");
    for framework in [blue, green, red] {
        framework.teardown().await?;
    }
    cluster.finish().await
}

async fn the_command_line_says_whom() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    needs_rules(&cluster).await?;
    let attempt = "
import socket
for address in '127.0.0.1', '127.9.0.1':
    try:
        socket.create_connection((address, 9), timeout=5)
    except OSError as e:
        print(e.errno, flush=True)
";
    let run = ["run", "--net-default", "deny", "--allow", "127.9.0.0/16,out,tcp=9", "--"];
    let seen = cluster.run_cli(&[&run[..], &["python3", "-ISc", attempt]].concat()).await?;
    // EPERM from the rules, ECONNREFUSED from nobody who listens.
    assert_eq!((seen.code, &*seen.stdout), (0, "1\n111\n"), "{}", seen.stderr);
    let wrong = cluster.run_cli(&["run", "--allow", "10.1.0.0/8", "--", "true"]).await?;
    ensure!(wrong.code != 0 && wrong.stderr.contains("10.0.0.0/8"), "{}", wrong.stderr);
    cluster.finish().await
}
