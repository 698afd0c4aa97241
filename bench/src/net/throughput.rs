//! iperf3 with everything on and everything off, in turn.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::{Cluster, Framework, Task};
use serde::Serialize;
use tokio::process::Command;

use super::{
    Net, Settings,
    shaped::in_path,
    wire::{FAR_IP, Wire, far_command},
};

const PORT: u16 = 5201;
/// More than any of it can move: clocks run, and nothing waits.
const CEILING_BITS_PER_SEC: u64 = 90_000_000_000;

/// One TCP stream.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Throughput {
    /// `loopback` or `veth`.
    pub(crate) path: &'static str,
    /// Medians of the rounds.
    pub(crate) off_bits_per_sec: u64,
    pub(crate) on_bits_per_sec: u64,
    pub(crate) on_percent_of_off: f64,
}

/// Loopback, and the wire with fq.
pub(crate) async fn measure(
    wire: &Wire,
    cluster: &Cluster,
    settings: &Settings,
    net: &mut Net,
) -> Result<()> {
    if !in_path("iperf3") {
        net.skipped.push("throughput: no iperf3 in PATH (deploy/setup bench)".to_owned());
        return Ok(());
    }
    if let Err(why) = wire.shape("fq") {
        net.skipped.push(format!("throughput over veth is measured without fq: {why:#}"));
    }
    let framework = cluster.framework("throughput").await?;
    for (path, host) in [("loopback", "127.0.0.1"), ("veth", FAR_IP)] {
        let (mut off, mut on) = (Vec::new(), Vec::new());
        for round in 0..settings.rounds {
            off.push(plain(path, host, settings.seconds).await?);
            on.push(as_task(&framework, cluster, path, host, settings.seconds, round).await?);
        }
        let (off, on) = (median(off), median(on));
        let percent = on as f64 / (off as f64).max(1.0) * 100.0;
        net.throughput.push(Throughput {
            path,
            off_bits_per_sec: off,
            on_bits_per_sec: on,
            on_percent_of_off: (percent * 10.0).round() / 10.0,
        });
    }
    wire.shape("")?;
    framework.teardown().await
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// A server for one client; killed when dropped.
fn server(path: &str) -> Result<tokio::process::Child> {
    let port = PORT.to_string();
    let mut command =
        if path == "veth" { Command::from(far_command("iperf3")) } else { Command::new("iperf3") };
    command.args(["-s", "-1", "-p", &port]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().context("start iperf3")
}

fn client(host: &str, seconds: u64) -> Vec<String> {
    // The server may be a moment away from listening, and the client's exit status does not say so.
    let command = format!(
        "for i in 1 2 3 4 5 6 7 8 9; do out=$(iperf3 -J -c {host} -p {PORT} -t {seconds}); \
         case $out in *sum_received*) echo \"$out\"; exit;; esac; sleep 0.2; done; echo \"$out\"; exit 1"
    );
    ["sh", "-c", &command].map(str::to_owned).to_vec()
}

async fn plain(path: &str, host: &str, seconds: u64) -> Result<u64> {
    let _server = server(path)?;
    let argv = client(host, seconds);
    let output = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).output().await?;
    received(&output.stdout)
}

async fn as_task(
    framework: &Framework,
    cluster: &Cluster,
    path: &str,
    host: &str,
    seconds: u64,
    round: u64,
) -> Result<u64> {
    let _server = server(path)?;
    let id = format!("{path}-{round}");
    let task = Task::new(&id, client(host, seconds)).cpu_milli(400).cpu_burst().mem_mib(256);
    let end = framework.run(super::everything(task, CEILING_BITS_PER_SEC)).await?;
    let output = cluster.stdout(framework, &id).await?;
    ensure!(end.exit_code == Some(0), "iperf3 ended: {end:?}: {output}");
    received(output.as_bytes())
}

/// What the last of several documents says.
fn received(json: &[u8]) -> Result<u64> {
    let documents = serde_json::Deserializer::from_slice(json).into_iter::<serde_json::Value>();
    let last = documents.filter_map(Result::ok).last().context("iperf3 printed nothing")?;
    let bits = last["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.with_context(|| format!("iperf3: {}", last["error"]))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate; the cast saturates")]
    Ok(bits as u64)
}
