//! Bandwidth of a link: offered, kept for whom it was granted, and left as it was found.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::Command,
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{Grant, NetOptions, TaskReason, TaskState};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{Verdict, until},
    trials,
};
use libtest_mimic::Trial;

use crate::ports::http_get;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        the_speed_of_a_link_is_offered_and_its_queue_is_put_back,
        a_ceiling_is_kept_and_changed_under_traffic,
        rates_outlive_the_agent,
        a_queue_of_somebody_else_is_left_alone,
        of_an_interface_that_is_gone_nothing_is_offered,
        a_rate_beyond_the_link_is_refused,
        connections_are_counted_through_a_restart,
    ]
}

const NEAR: &str = "bh-near";
const FAR: &str = "bh-far";
const MBIT: u64 = 1_000_000;
/// The number that an agent gives to what it puts there.
const OURS: &str = "b1f:";
/// Datagrams of 1200 bytes without end.
const FLOOD: &str =
    "exec 2>/dev/null 3>/dev/udp/10.77.0.2/9; p=$(printf '%01200d' 0); while :; do printf $p >&3; done";

/// A link to nowhere in particular: a veth pair into a network namespace. Removed when dropped.
struct Link;

impl Link {
    fn new() -> Result<Self> {
        let link = Self;
        run(&format!("ip netns add {FAR}"))?;
        run(&format!("ip link add {NEAR} type veth peer name far netns {FAR}"))?;
        run(&format!("ip addr add 10.77.0.1/24 dev {NEAR}"))?;
        run(&format!("ip -n {FAR} addr add 10.77.0.2/24 dev far"))?;
        run(&format!("ip link set {NEAR} up"))?;
        run(&format!("ip -n {FAR} link set far up"))?;
        Ok(link)
    }

    async fn cluster(&self) -> Result<(Cluster, Framework)> {
        let flags = ["--net-interface", NEAR, "--net-bandwidth", "50Mbit", "--net-qdisc", "install"];
        let agent_args = flags.map(str::to_owned).to_vec();
        let cluster = Cluster::start(Options { agent_args, ..Options::default() }).await?;
        let framework = cluster.framework("network").await?;
        Ok((cluster, framework))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // One end goes with the other, unless a test took it away.
        drop(run(&format!("ip link del {NEAR}")));
        drop(run(&format!("ip netns del {FAR}")));
    }
}

fn run(command: &str) -> Result<String> {
    let mut words = command.split(' ');
    let output =
        Command::new(words.next().unwrap_or_default()).args(words).output().context(command.to_owned())?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn qdisc() -> Result<String> {
    run(&format!("tc qdisc show dev {NEAR}"))
}

/// What the far end received so far: of such a pair, what has left the near one. Read without starting a program, which
/// takes longer on an emulated processor than the figures allow.
fn arrived_bytes() -> Result<u64> {
    let file = format!("/sys/class/net/{NEAR}/statistics/tx_bytes");
    Ok(fs::read_to_string(&file).context(file)?.trim().parse()?)
}

/// A sender has begun, its first burst is over, and what waited at an earlier rate has left, when this much has arrived.
const SETTLED_BYTES: u64 = 300_000;

/// What arrives, in bits a second, over a while.
async fn arriving() -> Result<f64> {
    let settled = arrived_bytes()? + SETTLED_BYTES;
    until("a steady flow", || async {
        match arrived_bytes() {
            Ok(bytes) if bytes >= settled => Ok(()),
            Ok(bytes) => Err(Verdict::NotYet(format!("{bytes} of {settled} bytes"))),
            Err(error) => Err(Verdict::Never(error.to_string())),
        }
    })
    .await?;
    let (start, before) = (std::time::Instant::now(), arrived_bytes()?);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let bytes = u32::try_from(arrived_bytes()? - before)?;
    Ok(f64::from(bytes) * 8.0 / start.elapsed().as_secs_f64())
}

fn assert_near(is: f64, megabits: u32) {
    let should = f64::from(megabits) * 1e6;
    eprintln!("asked {should:.0} bit/s, measured {is:.0} ({:+.2} %)", (is / should - 1.0) * 100.0);
    assert!((is / should - 1.0).abs() < 0.02, "{is:.0}, expected {should:.0}");
}

fn capped(megabits: u64) -> impl FnOnce(&mut Grant) {
    move |grant| {
        grant.resources.get_or_insert_default().net_egress_bits_per_sec = megabits * MBIT;
        let ceiling = megabits * MBIT;
        grant.net = Some(NetOptions { egress_ceiling_bits_per_sec: ceiling, ..NetOptions::default() });
    }
}

fn flood(megabits: u64) -> Task {
    Task::new("t", ["bash", "-c", FLOOD]).cpu_milli(500).cpu_burst().granted(capped(megabits))
}

async fn the_speed_of_a_link_is_offered_and_its_queue_is_put_back() -> Result<()> {
    let link = Link::new()?;
    let found = qdisc()?;
    let (mut cluster, framework) = link.cluster().await?;
    assert!(qdisc()?.contains(&format!("fq {OURS} root")), "{}", qdisc()?);
    let report = cluster.agent_info().await?.report.context("a report")?;
    let (capacity, free) = (report.capacity.context("a capacity")?, report.free.context("a free part")?);
    assert_eq!(capacity.net_egress_bits_per_sec, 50 * MBIT);
    assert_eq!(capacity.net_ingress_bits_per_sec, 50 * MBIT);
    assert!(
        free.net_egress_bits_per_sec <= 45 * MBIT && free.net_egress_bits_per_sec >= 40 * MBIT,
        "{free:?}"
    );
    assert!(report.enforced.context("what is enforced")?.net);

    let script = format!("{} & sleep 1; kill $!", FLOOD);
    let task = Task::new("counted", ["bash", "-c", &script]).granted(capped(5));
    let end = framework.run(task).await?;
    let usage = end.usage.clone().context("a usage")?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    // 20 + 8 bytes of headers, and 14 of the frame.
    assert!(usage.net_sent_packets > 10, "{usage:?}");
    assert_eq!(usage.net_sent_bytes, usage.net_sent_packets * 1242, "{usage:?}");
    assert_eq!(usage.net_sent_dropped, 0, "they wait: {usage:?}");

    framework.teardown().await?;
    cluster.stop_agent().await?;
    assert_eq!(qdisc()?, found, "as it was found");
    cluster.restart_agent().await?;
    assert!(qdisc()?.contains(OURS), "{}", qdisc()?);
    cluster.finish().await?;
    assert_eq!(qdisc()?, found, "as it was found");
    Ok(())
}

async fn a_ceiling_is_kept_and_changed_under_traffic() -> Result<()> {
    let link = Link::new()?;
    let (cluster, framework) = link.cluster().await?;
    framework.start(flood(4)).await?;
    assert_near(arriving().await?, 4);
    for (before, after) in [(4, 8), (8, 3)] {
        assert_eq!(framework.resize(&flood(before), &flood(after)).await?.refusal, "");
        assert_near(arriving().await?, u32::try_from(after)?);
    }
    let metrics = http_get(&cluster.agent_address().await?, "/metrics").await?;
    let told = |line: &&str| {
        let labels = ["direction=\"sent\"", "task=\"t\""];
        line.starts_with("bulkhead_agent_task_net_bytes_total") && labels.iter().all(|l| line.contains(l))
    };
    let line = metrics.lines().find(told).context("no line of the task")?;
    let bytes: f64 = line.rsplit(' ').next().context("no number")?.parse()?;
    assert!(bytes > 1e6, "{line}");
    framework.teardown().await?;
    cluster.finish().await
}

async fn rates_outlive_the_agent() -> Result<()> {
    let link = Link::new()?;
    let found = qdisc()?;
    let (mut cluster, framework) = link.cluster().await?;
    framework.start(flood(4)).await?;
    cluster.kill_agent_hard().await?;
    assert_near(arriving().await?, 4);
    cluster.restart_agent().await?;
    assert_near(arriving().await?, 4);
    assert_eq!(framework.resize(&flood(4), &flood(6)).await?.refusal, "");
    assert_near(arriving().await?, 6);
    // A task still runs: what it needs stays.
    cluster.stop_agent().await?;
    assert!(qdisc()?.contains(OURS), "{}", qdisc()?);
    assert_near(arriving().await?, 6);
    // Without an agent, cleanup takes everything away.
    cluster.finish().await?;
    assert_eq!(qdisc()?, found, "as it was found");
    Ok(())
}

async fn a_queue_of_somebody_else_is_left_alone() -> Result<()> {
    let link = Link::new()?;
    run(&format!("tc qdisc replace dev {NEAR} root handle 1: pfifo limit 50"))?;
    let found = qdisc()?;
    let (cluster, framework) = link.cluster().await?;
    assert_eq!(qdisc()?, found);
    assert!(cluster.agent_log().contains("somebody put pfifo there"), "{}", cluster.agent_log());
    // It is held all the same, by drops.
    framework.start(flood(4)).await?;
    assert_near(arriving().await?, 4);
    framework.kill("t", 0).await?;
    let usage = framework.end_of("t").await?.usage.context("a usage")?;
    assert!(usage.net_sent_dropped > 0, "{usage:?}");
    framework.teardown().await?;
    cluster.finish().await?;
    assert_eq!(qdisc()?, found);
    Ok(())
}

async fn of_an_interface_that_is_gone_nothing_is_offered() -> Result<()> {
    let link = Link::new()?;
    let (cluster, framework) = link.cluster().await?;
    framework.start(flood(4)).await?;
    run(&format!("ip link del {NEAR}"))?;
    until("nothing to be offered", || async {
        let info = cluster.agent_info().await.map_err(|e| Verdict::Never(e.to_string()))?;
        let free = info.report.and_then(|report| report.free).unwrap_or_default().net_egress_bits_per_sec;
        if free == 0 { Ok(()) } else { Err(Verdict::NotYet(format!("{free} bit/s are free"))) }
    })
    .await?;
    framework.kill("t", 0).await?;
    assert_eq!(framework.end_of("t").await?.state(), TaskState::Killed);
    framework.teardown().await?;
    cluster.finish().await?;
    Ok(())
}

async fn a_rate_beyond_the_link_is_refused() -> Result<()> {
    let link = Link::new()?;
    let (cluster, framework) = link.cluster().await?;
    let task = Task::new("t", ["true"]).granted(|grant| {
        grant.net = Some(NetOptions { egress_ceiling_bits_per_sec: 51 * MBIT, ..NetOptions::default() });
    });
    let end = framework.run(task).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::InvalidGrant), "{end:?}");
    assert!(end.message.contains("the link has 50 Mbit/s"), "{}", end.message);
    framework.teardown().await?;
    cluster.finish().await?;
    Ok(())
}

/// Seven connections one after the other, over each of which a line is answered.
const SEVEN: &str = "for i in 1 2 3 4 5 6 7; do \
    exec 3<>/dev/tcp/127.0.0.1/$1; echo $i >&3; read -r -u 3 answer; exec 3>&-; done";

/// Answers lines, each on a connection of its own; the fourth only when it is told to, and it tells when that has come.
fn answer_seven(listener: TcpListener) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((tell, fourth_is_here), (go, may_answer)) = (mpsc::channel(), mpsc::channel());
    std::thread::spawn(move || -> Result<()> {
        for number in 1..=7 {
            let (stream, _) = listener.accept()?;
            let mut lines = BufReader::new(stream);
            lines.read_line(&mut String::new())?;
            if number == 4 {
                tell.send(())?;
                may_answer.recv()?;
            }
            lines.get_mut().write_all(b"heard\n")?;
            // Until the task has closed it.
            lines.read_line(&mut String::new())?;
        }
        Ok(())
    });
    (fourth_is_here, go)
}

async fn connections_are_counted_through_a_restart() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let framework = cluster.framework("network").await?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let (fourth_is_here, go) = answer_seven(listener);
    framework.start(Task::new("t", ["bash", "-c", SEVEN, "seven", &port])).await?;
    tokio::task::spawn_blocking(move || fourth_is_here.recv()).await??;

    let metrics = http_get(&cluster.agent_address().await?, "/metrics").await?;
    let told = |name: &str| {
        let name = format!("bulkhead_agent_task_{name}{{");
        let line = metrics.lines().find(|l| l.starts_with(&name) && l.contains("task=\"t\""));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    assert_eq!(told("connections_opened_total"), Some(4.0), "{metrics}");
    assert_eq!(told("connections_accepted_total"), Some(0.0), "{metrics}");
    assert!(told("tcp_retransmitted_segments_total").is_some(), "{metrics}");
    assert!(told("rtt_seconds_count").is_some_and(|count| count >= 4.0), "{metrics}");

    cluster.kill_agent_hard().await?;
    go.send(())?;
    cluster.restart_agent().await?;
    let end = framework.end_of("t").await?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    let usage = end.usage.context("a usage")?;
    assert_eq!((usage.connections_opened, usage.connections_accepted), (7, 0), "{usage:?}");
    let round_trips: u64 = usage.rtt_buckets.iter().map(|bucket| bucket.round_trips).sum();
    assert!(round_trips >= 7, "{usage:?}");
    let bounds = usage.rtt_buckets.iter().map(|bucket| bucket.up_to_usec.unwrap_or(u64::MAX));
    let at_most = usage.rtt_buckets.iter().map(|bucket| bucket.round_trips).zip(bounds);
    let at_most = at_most.fold(0u64, |sum, (n, bound)| sum.saturating_add(n.saturating_mul(bound)));
    assert!(usage.rtt_sum_usec <= at_most, "{usage:?}");
    framework.teardown().await?;
    cluster.finish().await
}
