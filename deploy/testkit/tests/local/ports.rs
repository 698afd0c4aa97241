//! A port that was not granted is refused in the task's own call, and everybody can see it.

use std::{fs, io::Read as _};

use anyhow::{Context as _, Result};
use bulkhead_proto::{
    resources::PortSet,
    v1::{NetOptions, PortChoice, SocketKind, TaskState},
};
use bulkhead_testkit::{Cluster, Options, Task, harness::skip, programs, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        a_port_outside_the_grant_is_refused,
        a_granted_port_is_bound,
        any_port_comes_from_the_grant,
        no_grant_means_no_port,
        a_cgroup_below_is_held_too,
        the_grant_says_for_which_protocol,
        policies_and_sockets_are_held_or_refused,
        the_offered_range_is_reserved_and_given_back,
    ]
}

/// Skips where this kernel takes no port rules; the agent offers none then.
async fn needs_port_rules(cluster: &Cluster) -> Result<()> {
    let report = cluster.agent_info().await?.report.context("a report")?;
    match report.enforced.is_some_and(|e| e.ports) {
        true => Ok(()),
        false => skip("needs a kernel that takes BPF programs on bind"),
    }
}

async fn a_port_outside_the_grant_is_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    needs_port_rules(&cluster).await?;
    let framework = cluster.framework("refused").await?;
    let (granted, other) = (cluster.port(1), cluster.port(2));
    let end = framework.run(Task::new("t-refused", programs::bind_all(other)).ports(&[granted])).await?;
    assert_eq!(cluster.stdout(&framework, "t-refused").await?, "EPERM\n".repeat(5));
    assert_eq!(end.usage.map(|u| u.ports_refused), Some(5));

    let seen = cluster.run_cli(&["events", "--json", "t-refused"]).await?;
    assert_eq!(seen.code, 0, "{}", seen.stderr);
    let mut events: Vec<_> = seen
        .json_lines()?
        .into_iter()
        .map(|e| {
            assert_eq!((&e["port"], &e["framework_id"]), (&other.into(), &framework.id().into()), "{e}");
            let field = |name: &str| e[name].to_string().trim_matches('"').to_owned();
            [field("kind"), field("protocol"), field("ip_version"), field("count")].join(" ")
        })
        .collect();
    events.sort_unstable();
    // IPv4 through an IPv6 socket goes through the hook of IPv6.
    let expected = ["tcp 4 1", "tcp 6 2", "udp 4 1", "udp 6 1"].map(|e| format!("port_denied {e}"));
    assert_eq!(events, expected);

    let metrics = http_get(&cluster.agent_address().await?, "/metrics").await?;
    let line = "bulkhead_agent_port_binds_denied_total{ip_version=\"4\",protocol=\"udp\"} ";
    let counted = metrics.lines().find_map(|l| l.strip_prefix(line)).context(metrics.clone())?;
    assert!(counted.parse::<u64>()? >= 1);
    framework.teardown().await
}

async fn a_granted_port_is_bound() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    needs_port_rules(&cluster).await?;
    let framework = cluster.framework("granted").await?;
    let ports = [4, 5].map(|n| cluster.port(n));
    let sockets = |port| programs::SOCKETS.map(|(family, kind, host)| (family, kind, host, port));
    let argv = programs::bind(&ports.map(sockets).concat());
    let end = framework.run(Task::new("t", argv).ports(&ports)).await?;
    let expected = ports.map(|port| format!("{port}\n").repeat(5)).concat();
    assert_eq!(cluster.stdout(&framework, "t").await?, expected);
    assert_eq!(end.usage.map(|u| u.ports_refused), Some(0));
    framework.teardown().await
}

async fn any_port_comes_from_the_grant() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    needs_port_rules(&cluster).await?;
    let framework = cluster.framework("any").await?;
    let ports = [6, 7, 8, 9, 10, 11].map(|n| cluster.port(n));
    framework.run(Task::new("t", programs::bind_all(0)).ports(&ports)).await?;
    let output = cluster.stdout(&framework, "t").await?;
    let got: Vec<u16> = output.lines().map(str::parse).collect::<Result<_, _>>().context(output.clone())?;
    assert_eq!(got.len(), 5);
    assert!(got.iter().all(|port| ports.contains(port)), "{got:?} of {ports:?}");
    framework.teardown().await
}

async fn no_grant_means_no_port() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    needs_port_rules(&cluster).await?;
    let framework = cluster.framework("none").await?;
    let end = framework.run(Task::new("t", programs::bind_all(0))).await?;
    assert_eq!(cluster.stdout(&framework, "t").await?, "EPERM\n".repeat(5));
    assert_eq!(end.usage.map(|u| u.ports_refused), Some(5));
    framework.teardown().await
}

async fn the_grant_says_for_which_protocol() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    needs_port_rules(&cluster).await?;
    let framework = cluster.framework("protocol").await?;
    let (tcp, udp) = (cluster.port(12), cluster.port(13));
    let sockets = |port| programs::SOCKETS.map(|(family, kind, host)| (family, kind, host, port));
    let argv = programs::bind(&[tcp, udp].map(sockets).concat());
    let task = Task::new("t", argv).port_list(&format!("{tcp}/tcp,{udp}/udp"));
    let end = framework.run(task).await?;
    // TCP, UDP, TCP, UDP, and TCP by an IPv4 address in IPv6.
    let (t, u) = (tcp.to_string(), udp.to_string());
    let expected = [&t, "EPERM", &t, "EPERM", &t, "EPERM", &u, "EPERM", &u, "EPERM"];
    assert_eq!(cluster.stdout(&framework, "t").await?.lines().collect::<Vec<_>>(), expected);
    assert_eq!(end.usage.map(|u| u.ports_refused), Some(5));
    framework.teardown().await
}

/// Connects, and prints which kind of port it got, or the error's name.
const CONNECT: &str = "\
import errno, socket, sys
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.bind(('127.0.0.1', int(sys.argv[1])))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    s.connect(peer.getsockname())
    print('granted' if s.getsockname()[1] == int(sys.argv[2]) else 'other')
except OSError as e:
    print(errno.errorcode[e.errno])
";

async fn policies_and_sockets_are_held_or_refused() -> Result<()> {
    // A kernel without the BPF LSM would refuse the strict policies.
    let args = ["--allow-unenforced", "port_choice"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(Options { agent_args: args, ..Options::default() }).await?;
    needs_port_rules(&cluster).await?;
    let framework = cluster.framework("policies").await?;
    let (bound, free) = (cluster.port(1), cluster.port(2));
    let wanted = [
        (PortChoice::Unspecified, "other\n"),
        (PortChoice::Granted, "granted\n"),
        (PortChoice::Ephemeral, "other\n"),
        (PortChoice::None, "EPERM\n"),
    ];
    for (choice, expected) in wanted {
        let id = format!("t-{}", i32::from(choice));
        let argv = ["python3", "-ISc", CONNECT, &bound.to_string(), &free.to_string()];
        let net = NetOptions { port_choice: choice.into(), ..NetOptions::default() };
        framework.run(Task::new(&id, argv).ports(&[bound, free]).net(net)).await?;
        assert_eq!(cluster.stdout(&framework, &id).await?, expected, "{choice:?}");
    }
    let net = NetOptions { sockets: vec![SocketKind::Raw.into()], ..NetOptions::default() };
    let end = framework.run(Task::new("t-raw", ["true"]).net(net)).await?;
    assert_eq!(end.state(), TaskState::Failed, "{end:?}");
    assert!(end.message.contains("allow_sockets"), "{end:?}");
    framework.teardown().await?;
    cluster.finish().await
}

/// Ports that the kernel does not choose by itself.
fn reserved() -> Result<PortSet> {
    // The kernel answers one call with what fits in, and says that this is all: not for `read_to_string`.
    let mut text = vec![0; 512 << 10];
    let read = fs::File::open("/proc/sys/net/ipv4/ip_local_reserved_ports")?.read(&mut text)?;
    Ok(std::str::from_utf8(&text[..read])?.trim().parse()?)
}

async fn the_offered_range_is_reserved_and_given_back() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    needs_port_rules(&cluster).await?;
    let own = PortSet::from_ports([cluster.port(0), cluster.port(1)]);
    assert!(reserved()?.is_superset(&own), "{}", reserved()?);
    // Killed, it gives nothing back; the next one knows what it added.
    cluster.kill_agent_hard().await?;
    assert!(reserved()?.is_superset(&own), "{}", reserved()?);
    cluster.restart_agent().await?;
    cluster.finish().await?;
    assert!(reserved()?.intersection(&own).is_empty(), "{}", reserved()?);
    Ok(())
}

/// Root may make cgroups below its own; a rule that knows only the task's cgroup would lose it there.
async fn a_cgroup_below_is_held_too() -> Result<()> {
    let cluster =
        Cluster::start(Options { allow_root_tasks: true, allow_trusted_tasks: true, ..Options::default() })
            .await?;
    needs_port_rules(&cluster).await?;
    let framework = cluster.framework("below").await?;
    let own = cluster.guaranteed(&framework, "t")?.display().to_string();
    let script = "mkdir \"$0/a\" \"$0/a/b\" && echo $$ >\"$0/a/b/cgroup.procs\" && grep -c /a/b /proc/self/cgroup && exec \"$@\"";
    let mut argv = ["sh", "-c", script, &own].map(str::to_owned).to_vec();
    argv.extend(programs::bind_all(cluster.port(2)));
    let task = Task::new("t", argv).ports(&[cluster.port(1)]).user("root");
    // Others may write to no cgroup.
    let end = framework.run(task.confined(|c| c.profile = "trusted".into())).await?;
    assert_eq!(cluster.stdout(&framework, "t").await?, format!("1\n{}", "EPERM\n".repeat(5)));
    assert_eq!(end.usage.map(|u| u.ports_refused), Some(5));
    framework.teardown().await?;
    cluster.finish().await
}

/// One HTTP request; the body of the answer.
pub(crate) async fn http_get(address: &str, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    anyhow::ensure!(head.contains(" 200 "), "{head}");
    Ok(body.to_owned())
}
