//! A link that is shaped: by departure times, and by the kernel's own disciplines.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::NetOptions;
use bulkhead_testkit::{Cluster, Framework, Task};
use serde::Serialize;
use tokio::time::sleep;

use super::{
    Net, Settings, program,
    role::REQUEST_BYTES,
    wire::{FAR_IP, Wire},
};
use crate::latency::Summary;

/// Until a queue is full, or the agent has seen another discipline.
const WARM_UP: Duration = Duration::from_millis(1500);
const PAYLOAD: u64 = 1200;
/// Around it: UDP, IP, Ethernet.
const HEADERS: u64 = 8 + 20 + 14;
/// Of the link in the measurement of round trips, and what the small requests are granted of it.
const LINK_MBIT: u64 = 100;
const SMALL_MBIT: u64 = 10;
const BULK_CONNECTIONS: usize = 8;
const SMALL_PORT: u16 = 7;
const BULK_PORT: u16 = 9;

/// Who shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Shaper {
    Bulkhead,
    Htb,
    Tbf,
    /// Nobody else sends.
    Alone,
}

/// A flood that was held to a rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Paced {
    pub(crate) shaper: Shaper,
    pub(crate) asked_bits_per_sec: u64,
    pub(crate) measured_bits_per_sec: u64,
    pub(crate) error_percent: f64,
    pub(crate) seconds: f64,
}

/// Small requests of one task next to the bulk of another.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RoundTrips {
    pub(crate) shaper: Shaper,
    pub(crate) latency: Summary,
}

impl Shaper {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bulkhead => "bulkhead",
            Self::Htb => "HTB",
            Self::Tbf => "TBF",
            Self::Alone => "nothing beside",
        }
    }

    /// One rate for everything.
    fn limit(self, wire: &Wire, mbit: u64) -> Result<()> {
        match self {
            Self::Bulkhead | Self::Alone => wire.shape("fq"),
            Self::Htb => {
                wire.shape("handle 1: htb default 1")?;
                wire.tc(&format!(
                    "class add dev DEV parent 1: classid 1:1 htb rate {mbit}mbit ceil {mbit}mbit"
                ))
            }
            // What a burst of the sender has, and 4 ms.
            Self::Tbf => {
                let burst = 65_536 + mbit * 500;
                wire.shape(&format!("tbf rate {mbit}mbit burst {burst} latency 50ms"))
            }
        }
    }

    /// A share for the small requests, and the rest for everything else; both may borrow.
    fn share(self, wire: &Wire) -> Result<()> {
        if self != Self::Htb {
            return wire.shape("fq");
        }
        let rest = LINK_MBIT - SMALL_MBIT;
        wire.shape("handle 1: htb default 20")?;
        wire.tc(&format!(
            "class add dev DEV parent 1: classid 1:1 htb rate {LINK_MBIT}mbit ceil {LINK_MBIT}mbit"
        ))?;
        let class = |id: u64, rate: u64| {
            wire.tc(&format!(
                "class add dev DEV parent 1:1 classid 1:{id} htb rate {rate}mbit ceil {LINK_MBIT}mbit"
            ))
        };
        class(10, SMALL_MBIT)?;
        class(20, rest)?;
        wire.tc(&format!(
            "filter add dev DEV parent 1: protocol ip u32 match ip dport {SMALL_PORT} 0xffff flowid 1:10"
        ))
    }
}

/// A task that plays a role.
pub(crate) fn task(id: &str, role: &[String]) -> Result<Task> {
    let program = program()?.display().to_string();
    let argv = [program, "net-role".to_owned()].into_iter().chain(role.iter().cloned());
    Ok(Task::new(id, argv).cpu_milli(400).cpu_burst().mem_mib(128))
}

fn words(words: &[&dyn std::fmt::Display]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// Floods at each rate, by each shaper.
pub(crate) async fn pacing(wire: &Wire, cluster: &Cluster, settings: &Settings, net: &mut Net) -> Result<()> {
    let framework = cluster.framework("pacing").await?;
    for &mbit in &settings.rates {
        for shaper in [Shaper::Bulkhead, Shaper::Htb, Shaper::Tbf] {
            if let Err(why) = shaper.limit(wire, mbit) {
                net.skipped.push(format!("pacing by {}: {why:#}", shaper.name()));
                continue;
            }
            net.pacing.push(flood(wire, &framework, shaper, mbit, settings.seconds).await?);
        }
    }
    wire.shape("")?;
    framework.teardown().await
}

async fn flood(wire: &Wire, framework: &Framework, shaper: Shaper, mbit: u64, seconds: u64) -> Result<Paced> {
    let (to, _sink) = wire.udp_sink()?;
    // Calls cost the sender time, bursts cost exactness: some hundred calls a second at least.
    let segments = (mbit / 20).clamp(1, 40);
    let id = format!("{}-{mbit}", shaper.name().to_lowercase());
    let role = words(&[&"flood", &to, &PAYLOAD, &segments, &(seconds + 4)]);
    let task = task(&id, &role)?.granted(|grant| {
        if shaper == Shaper::Bulkhead {
            let egress_ceiling_bits_per_sec = mbit * 1_000_000;
            grant.net = Some(NetOptions { egress_ceiling_bits_per_sec, ..NetOptions::default() });
        }
    });
    // The agent sees the discipline by then.
    sleep(WARM_UP).await;
    framework.start(task).await?;
    sleep(WARM_UP).await;
    let before = wire.arrived()?;
    sleep(Duration::from_secs(seconds)).await;
    let after = wire.arrived()?;
    framework.kill(&id, 0).await?;
    framework.end_of(&id).await?;
    // veth hands on what belongs together in one piece, and counts its headers once.
    let pieces = after.packets - before.packets;
    let bytes = after.bytes - before.bytes + pieces * (segments - 1) * HEADERS;
    let took = after.at - before.at;
    let bits = u128::from(bytes) * 8 * 1_000_000_000 / took.as_nanos().max(1);
    let (measured, asked) = (u64::try_from(bits)?, mbit * 1_000_000);
    let error = i64::try_from(measured)? - i64::try_from(asked)?;
    Ok(Paced {
        shaper,
        asked_bits_per_sec: asked,
        measured_bits_per_sec: measured,
        error_percent: (f64::from(i32::try_from(error / 10)?) / f64::from(u32::try_from(asked / 10)?) * 1e5)
            .round()
            / 1e3,
        seconds: took.as_secs_f64(),
    })
}

/// Requests alone and beside bulk, by each shaper that has shares.
pub(crate) async fn round_trips(wire: &Wire, settings: &Settings, net: &mut Net) -> Result<()> {
    let cluster = super::cluster(&format!("{LINK_MBIT}Mbit")).await?;
    let framework = cluster.framework("round-trips").await?;
    let (echo, sink) = (wire.listener(SMALL_PORT)?, wire.listener(BULK_PORT)?);
    // They end with this program.
    std::thread::spawn(move || serve(&echo, answer));
    std::thread::spawn(move || serve(&sink, |stream| drop(std::io::copy(stream, &mut std::io::sink()))));
    for shaper in [Shaper::Alone, Shaper::Bulkhead, Shaper::Htb] {
        match shaper.share(wire) {
            Ok(()) => net.round_trips.push(beside(&cluster, &framework, shaper, settings.seconds).await?),
            Err(why) => net.skipped.push(format!("round trips by {}: {why:#}", shaper.name())),
        }
    }
    framework.teardown().await?;
    cluster.finish().await
}

async fn beside(
    cluster: &Cluster,
    framework: &Framework,
    shaper: Shaper,
    seconds: u64,
) -> Result<RoundTrips> {
    let id = |what: &str| format!("{what}-{}", shaper.name().replace(' ', "-").to_lowercase());
    let (small, bulk) = (id("small"), id("bulk"));
    let unlimited = |grant: &mut bulkhead_proto::v1::Grant| {
        // By HTB alone: a ceiling above the link's rate has no effect.
        grant.net = None;
    };
    sleep(WARM_UP).await;
    if shaper != Shaper::Alone {
        let to = format!("{FAR_IP}:{BULK_PORT}");
        let role = words(&[&"bulk", &to, &BULK_CONNECTIONS, &(seconds + 6)]);
        framework.start(task(&bulk, &role)?.granted(unlimited)).await?;
        sleep(WARM_UP).await;
    }
    let role = words(&[&"ask", &format!("{FAR_IP}:{SMALL_PORT}"), &seconds, &true]);
    let asking = task(&small, &role)?.granted(|grant| {
        if shaper != Shaper::Htb {
            grant.resources.get_or_insert_default().net_egress_bits_per_sec = SMALL_MBIT * 1_000_000;
        }
    });
    let end = framework.run(asking).await?;
    ensure!(end.exit_code == Some(0), "the task that asks ended: {end:?}");
    let output = cluster.stdout(framework, &small).await?;
    if shaper != Shaper::Alone {
        framework.kill(&bulk, 0).await?;
        framework.end_of(&bulk).await?;
    }
    let latency: Summary = serde_json::from_str(&output).context("what was measured")?;
    Ok(RoundTrips { shaper, latency })
}

/// Every connection on a thread of its own.
fn serve(listener: &TcpListener, with: impl Fn(&mut std::net::TcpStream) + Clone + Send + 'static) {
    for mut stream in listener.incoming().flatten() {
        let with = with.clone();
        std::thread::spawn(move || with(&mut stream));
    }
}

pub(crate) fn answer(stream: &mut std::net::TcpStream) {
    drop(stream.set_nodelay(true));
    let mut message = [0; REQUEST_BYTES];
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}

/// For whoever needs iperf3 and the like.
pub(crate) fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| Path::new(&dir).join(program).exists())
}
