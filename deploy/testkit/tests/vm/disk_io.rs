//! Traffic of a disk, as the kernel counts it: caps, shares, and what is promised to whom.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{DiskOptions, LatencyBucket, Resources, TaskReason, TaskState};
use bulkhead_testkit::{Cluster, Framework, Options, Task, disk::ScratchDisk, harness, host, trials};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        what_a_disk_can_do_is_offered,
        bytes_and_operations_are_capped,
        buffered_writes_are_capped,
        a_running_tasks_caps_go_up_and_down,
        shares_follow_weights,
        a_grant_holds_against_tasks_without_one,
        a_killed_task_does_not_wait_for_its_turn,
        a_share_that_nothing_weighs_is_refused,
    ]
}

/// Long against the slices of a tenth of a second in which the kernel throttles.
const WINDOW: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;
/// Slower than the emulated disk is, so that the model and not the emulator decides.
const MODEL: &str = "\
disk = 'scratch'
[both_at_once]
read_bytes_per_sec = 6000000
write_bytes_per_sec = 6000000
read_ops_per_sec = 1000
write_ops_per_sec = 1000
[io_cost]
model = 'ctrl=user model=linear rbps=12000000 rseqiops=2000 rrandiops=2000 wbps=12000000 wseqiops=2000 wrandiops=2000'
qos = 'enable=1 ctrl=user rpct=0.00 rlat=0 wpct=0.00 wlat=0 min=100.00 max=100.00'
";

/// An agent whose sandboxes are on the scratch disk.
struct OnDisk {
    cluster: Cluster,
    framework: Framework,
    disk: ScratchDisk,
}

impl OnDisk {
    async fn start(model: Option<&str>) -> Result<Self> {
        let disk = ScratchDisk::format("ext4", &["-q"], "")?;
        let mut agent_args =
            ["--disk-offer-percent", "80", "--reserve-disk", "1MiB"].map(str::to_owned).to_vec();
        if let Some(model) = model {
            let path = disk.path().join("model.toml");
            fs::write(&path, model)?;
            agent_args.extend(["--disk-model".to_owned(), path.display().to_string()]);
        }
        let dir = Some(disk.path().to_owned());
        let cluster = Cluster::start(Options { agent_args, dir, ..Options::default() }).await?;
        let framework = cluster.framework("disk-io").await?;
        Ok(Self { cluster, framework, disk })
    }

    /// Starts a task that does something for ever, with a file `f` that is there already.
    async fn start_loop(&self, id: &str, command: &str, change: fn(&mut Resources)) -> Result<PathBuf> {
        self.start_weighted(id, command, 0, change).await
    }

    async fn start_weighted(
        &self,
        id: &str,
        command: &str,
        io_weight: u32,
        change: fn(&mut Resources),
    ) -> Result<PathBuf> {
        let task = looping(id, command).granted(|grant| {
            grant.disk = Some(DiskOptions { io_weight, ..DiskOptions::default() });
            change(grant.resources.get_or_insert_default());
        });
        self.framework.start(task).await?;
        self.cluster.stdout_until(&self.framework, id, "ready").await?;
        self.cluster.guaranteed(&self.framework, id)
    }

    async fn finish(self) -> Result<()> {
        self.framework.teardown().await?;
        self.cluster.finish().await
    }
}

/// Three at a time: with one alone, the disk would wait for whoever asks instead of the other way round.
fn looping(id: &str, command: &str) -> Task {
    // Long enough that what is measured is the disk, and not the starting of programs on an emulated processor.
    let mib = if command.contains("if=f ") { 32 } else { 1 };
    let make = format!("dd if=/dev/zero of=f bs=1M count={mib} oflag=direct 2>/dev/null; echo ready");
    let lane = format!("while :; do {command} 2>/dev/null; done");
    let script = format!("{make}; for i in 1 2 3; do ({lane}) & done; wait");
    Task::shell(id, &script).cpu_milli(200).cpu_burst().mem_mib(48)
}

const READ: &str = "dd if=f of=/dev/null bs=64k iflag=direct";
const WRITE: &str = "dd if=/dev/zero of=f bs=64k count=1024 oflag=direct conv=notrunc";
const READ_SMALL: &str = "dd if=f of=/dev/null bs=4k iflag=direct";
const WRITE_SMALL: &str = "dd if=/dev/zero of=f bs=4k oflag=direct conv=notrunc count=1000";

/// The four numbers of a cgroup on the disk: bytes read and written, reads and writes.
fn moved(cgroup: &Path, disk: &str) -> Result<[f64; 4]> {
    let text = fs::read_to_string(cgroup.join("io.stat"))?;
    let line = text.lines().find(|line| line.starts_with(&format!("{disk} "))).unwrap_or_default();
    let value = |key: &str| {
        let value = line.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        value.map_or(Ok(0.0), str::parse)
    };
    Ok([value("rbytes")?, value("wbytes")?, value("rios")?, value("wios")?])
}

/// What each cgroup moved a second, over one common window.
async fn rates<const N: usize>(on: &OnDisk, cgroups: [&Path; N]) -> Result<[[f64; 4]; N]> {
    let disk = on.disk.number()?;
    let read = || cgroups.map(|cgroup| moved(cgroup, &disk));
    // The first requests are free: a cap is an average.
    tokio::time::sleep(WINDOW / 4).await;
    let (start, before) = (Instant::now(), read());
    tokio::time::sleep(WINDOW).await;
    let (seconds, after) = (start.elapsed().as_secs_f64(), read());
    let mut rates = [[0.0; 4]; N];
    for (rates, (before, after)) in rates.iter_mut().zip(before.into_iter().zip(after)) {
        let (before, after) = (before?, after?);
        *rates = std::array::from_fn(|i| (after[i] - before[i]) / seconds);
    }
    Ok(rates)
}

fn assert_near(what: &str, is: f64, should: f64, percent: f64) {
    eprintln!("{what}: asked {should:.0}, measured {is:.0} ({:+.1} %)", (is / should - 1.0) * 100.0);
    assert!((is / should - 1.0).abs() * 100.0 <= percent, "{what}: {is:.0}, expected {should:.0}");
}

async fn what_a_disk_can_do_is_offered() -> Result<()> {
    let root = host::cgroup2_mount()?;
    let without = OnDisk::start(None).await?;
    let report = without.cluster.agent_info().await?.report.context("a report")?;
    let capacity = report.capacity.context("a capacity")?;
    assert_eq!((capacity.disk_read_bytes_per_sec, capacity.disk_write_ops_per_sec), (0, 0), "no model");
    without.finish().await?;

    let with = OnDisk::start(Some(MODEL)).await?;
    let report = with.cluster.agent_info().await?.report.context("a report")?;
    let (capacity, free) = (report.capacity.context("a capacity")?, report.free.context("a free part")?);
    let four = |r: &Resources| {
        [
            r.disk_read_bytes_per_sec,
            r.disk_write_bytes_per_sec,
            r.disk_read_ops_per_sec,
            r.disk_write_ops_per_sec,
        ]
    };
    assert_eq!(four(&capacity), [6_000_000, 6_000_000, 1000, 1000]);
    assert_eq!(four(&free), [4_800_000, 4_800_000, 800, 800]);
    assert!(report.enforced.context("what is enforced")?.disk_io);
    let number = with.disk.number()?;
    let qos = || fs::read_to_string(root.join("io.cost.qos"));
    assert!(qos()?.contains(&format!("{number} enable=1")), "{}", qos()?);

    let end = with
        .framework
        .run(looping("count", READ).with(|spec| {
            spec.argv[2] = "dd if=/dev/zero of=f bs=1M count=4 oflag=direct && dd if=f bs=64k iflag=direct"
                .to_owned()
                + " of=/dev/null";
        }))
        .await?;
    let usage = end.usage.clone().context("a usage")?;
    assert_eq!(end.state(), TaskState::Finished, "{end:?}");
    assert!(usage.disk_written_bytes >= 4 * MIB && usage.disk_read_bytes >= 4 * MIB, "{usage:?}");
    assert!(usage.disk_write_ops >= 4 && usage.disk_read_ops >= 64, "{usage:?}");
    // How long each of them took.
    let all = |buckets: &[LatencyBucket]| buckets.iter().map(|bucket| bucket.count).sum::<u64>();
    assert!(all(&usage.disk_write_buckets) >= 4 && usage.disk_write_wait_usec > 0, "{usage:?}");
    assert!(all(&usage.disk_read_buckets) >= 64 && usage.disk_read_wait_usec > 0, "{usage:?}");
    assert!(all(&usage.disk_read_buckets) <= usage.disk_read_ops, "{usage:?}");
    assert!(usage.io_some_stall_usec > 0, "{usage:?}");

    with.finish().await?;
    assert!(!qos()?.contains("enable=1"), "as it was found: {}", qos()?);
    Ok(())
}

async fn bytes_and_operations_are_capped() -> Result<()> {
    let on = OnDisk::start(Some(MODEL)).await?;
    // Side by side: together they ask for less than the disk has.
    let read = on.start_loop("read", READ, |r| r.disk_read_bytes_per_sec = 2 * MIB).await?;
    let write = on.start_loop("write", WRITE, |r| r.disk_write_bytes_per_sec = MIB).await?;
    let reads = on.start_loop("reads", READ_SMALL, |r| r.disk_read_ops_per_sec = 60).await?;
    let writes = on.start_loop("writes", WRITE_SMALL, |r| r.disk_write_ops_per_sec = 40).await?;
    let [read, write, reads, writes] = rates(&on, [&read, &write, &reads, &writes]).await?;
    assert_near("bytes read a second", read[0], 2.0 * 1048576.0, 5.0);
    assert_near("bytes written a second", write[1], 1048576.0, 5.0);
    assert_near("reads a second", reads[2], 60.0, 5.0);
    assert_near("writes a second", writes[3], 40.0, 5.0);
    on.finish().await
}

/// The kernel writes later what was written to the page cache, and charges it to whose memory it was.
async fn buffered_writes_are_capped() -> Result<()> {
    let on = OnDisk::start(Some(MODEL)).await?;
    // Written to the page cache, then waited for: when the kernel begins to write back by itself is up to it.
    let command = "dd if=/dev/zero of=f$i bs=256k count=16 conv=notrunc,fsync";
    // Room for what waits to be written: at its memory limit the kernel might end the task instead.
    let amounts = |r: &mut Resources| (r.disk_write_bytes_per_sec, r.mem_bytes) = (4 * MIB, 128 * MIB);
    let cgroup = on.start_loop("t", command, amounts).await?;
    let [rates] = rates(&on, [&cgroup]).await?;
    eprintln!("buffered: asked 4194304, measured {:.0}", rates[1]);
    // The files' metadata is written for nobody in particular, and the pages wait for it.
    assert!((0.7..1.05).contains(&(rates[1] / 4.0 / 1048576.0)), "{rates:?}");
    on.finish().await
}

async fn a_running_tasks_caps_go_up_and_down() -> Result<()> {
    let on = OnDisk::start(Some(MODEL)).await?;
    let task = |mib: u64| {
        looping("t", WRITE).granted(|grant| {
            grant.resources.get_or_insert_default().disk_write_bytes_per_sec = mib * MIB;
        })
    };
    let mut before = task(1);
    on.framework.start(before.clone()).await?;
    on.cluster.stdout_until(&on.framework, "t", "ready").await?;
    let cgroup = on.cluster.guaranteed(&on.framework, "t")?;
    for mib in [3, 2] {
        let after = task(mib);
        let answer = on.framework.resize(&before, &after).await?;
        assert_eq!(answer.refusal, "");
        let [rates] = rates(&on, [&cgroup]).await?;
        assert_near("bytes written a second", rates[1], 1048576.0 * f64::from(u32::try_from(mib)?), 5.0);
        before = after;
    }
    on.finish().await
}

async fn shares_follow_weights() -> Result<()> {
    let on = OnDisk::start(Some(MODEL)).await?;
    let small = on.start_weighted("small", READ, 1000, |_| ()).await?;
    let large = on.start_weighted("large", READ, 3000, |_| ()).await?;
    let [small, large] = rates(&on, [&small, &large]).await?;
    assert_near("percent of a share three times as large", 100.0 * large[0] / small[0], 300.0, 10.0);
    on.finish().await
}

async fn a_grant_holds_against_tasks_without_one() -> Result<()> {
    let on = OnDisk::start(Some(MODEL)).await?;
    for id in ["hog-1", "hog-2"] {
        on.start_loop(id, &format!("{READ}; {WRITE}"), |_| ()).await?;
    }
    let cgroup = on.start_loop("granted", READ, |r| r.disk_read_bytes_per_sec = 4 * MIB).await?;
    let hog = on.cluster.guaranteed(&on.framework, "hog-1")?;
    let [granted, hog] = rates(&on, [&cgroup, &hog]).await?;
    eprintln!("under pressure: granted {granted:.0?}, one of two others {hog:.0?}");
    ensure!(hog[0] + hog[1] > 1048576.0, "the others have to press: {hog:?}");
    assert_near("granted bytes read a second, under pressure", granted[0], 4.0 * 1048576.0, 5.0);
    on.finish().await
}

/// 16 MiB at 64 KiB a second are four minutes; a request cannot be taken back.
async fn a_killed_task_does_not_wait_for_its_turn() -> Result<()> {
    let on = OnDisk::start(Some(MODEL)).await?;
    let command = "dd if=/dev/zero of=g bs=16M oflag=direct";
    let cgroup = on.start_loop("t", command, |r| r.disk_write_bytes_per_sec = 4 * MIB).await?;
    let slow = |mib: u64| {
        looping("t", command).granted(|grant| {
            grant.resources.get_or_insert_default().disk_write_bytes_per_sec = mib;
        })
    };
    assert_eq!(on.framework.resize(&slow(4 * MIB), &slow(65_536)).await?.refusal, "");
    assert!(fs::read_to_string(cgroup.join("io.max"))?.contains("wbps=65536"));
    tokio::time::sleep(WINDOW / 4).await;
    on.framework.kill("t", 0).await?;
    let end = on.framework.end_of("t").await?;
    assert_eq!(end.reason(), TaskReason::KilledByFramework, "{end:?}");
    on.finish().await
}

async fn a_share_that_nothing_weighs_is_refused() -> Result<()> {
    let on = OnDisk::start(None).await?;
    if fs::read_to_string("/sys/block/".to_owned() + on.disk.name() + "/queue/scheduler")?.contains("[bfq]") {
        on.finish().await?;
        return harness::skip("the scheduler bfq weighs everything here");
    }
    let weight = DiskOptions { io_weight: 300, ..DiskOptions::default() };
    let end = on.framework.run(Task::new("t", ["true"]).granted(|grant| grant.disk = Some(weight))).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::InvalidGrant), "{end:?}");
    assert!(end.message.contains("300") && end.message.contains("calibrate-disk"), "{}", end.message);
    on.finish().await
}
