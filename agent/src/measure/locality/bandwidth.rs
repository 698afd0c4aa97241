//! How fast data comes from where it is: measured, or a cautious guess that says so.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{MemfdFlags, memfd_create};

use super::tally::{Home, scaled};
use crate::{
    config::Config,
    kernel::{
        block::{DeviceNumber, Disk},
        rtnetlink,
    },
    measure::disk_speed::{
        DiskModel,
        model::{Direction, LARGE_BYTES, Load, Order, SMALL_BYTES},
    },
};

/// How fast one place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// One reader, from beginning to end.
    pub bytes_per_sec: u64,
    /// Files that can be begun in a second: seeks, round trips.
    pub requests_per_sec: u64,
    /// Guessed and not measured.
    pub assumed: bool,
}

/// A disk with a head, of which nothing else is known: a slow laptop's.
const ROTATING: Speed = Speed { bytes_per_sec: 100_000_000, requests_per_sec: 100, assumed: true };
/// A disk without: any SATA SSD.
const SOLID: Speed = Speed { bytes_per_sec: 400_000_000, requests_per_sec: 10_000, assumed: true };
/// Memory that cannot be measured: one channel of an old server.
const MEMORY: Speed = Speed { bytes_per_sec: 2_000_000_000, requests_per_sec: u64::MAX, assumed: true };
/// A link that does not tell its speed.
const LINK_BITS_PER_SEC: u64 = 1_000_000_000;
/// A file from elsewhere costs a round trip within a data centre, and somebody's disk.
const REMOTE_FILES_PER_SEC: u64 = 1000;
/// On a link that is full, a newcomer's stream still gets this part of it.
const LEAST_SHARE: u64 = 10;

/// The file that the page cache is measured with: larger than most caches of CPUs.
const PROBE_BYTES: usize = 32 << 20;
const PROBE_PIECE: usize = 1 << 20;
const PROBE_TIME: Duration = Duration::from_millis(50);

/// How fast each place is, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bandwidths {
    /// The page cache.
    pub memory: Speed,
    /// Disks by their names below /sys/block.
    pub disks: BTreeMap<String, Speed>,
    /// Where it cannot be told which disk it is.
    pub unknown_disk: Speed,
    /// The link: its speed, less what comes in over it.
    pub network: Speed,
}

impl Bandwidths {
    /// How fast what is there comes.
    pub(super) fn of(&self, home: &Home) -> Speed {
        match home {
            Home::Elsewhere => self.network,
            Home::Disk(name) => self.disks.get(name).copied().unwrap_or(self.unknown_disk),
        }
    }
}

/// Keeps what is measured once, and measures the rest when it is asked.
pub struct Meter {
    memory: Speed,
    models: Vec<DiskModel>,
    interface: String,
    link_bits_per_sec: Option<u64>,
    last: Option<(Instant, u64)>,
    sys: PathBuf,
}

impl Meter {
    /// Measures the page cache, for a tenth of a second and only where something may be asked at all, and reads the
    /// models of disks. What cannot be had is told once and guessed.
    pub fn start(config: &Config) -> Self {
        let probed = config.locality.answers().then(memory).transpose();
        let memory = probed.unwrap_or_else(|error| {
            tracing::warn!(%error, "measure the page cache; its bandwidth is guessed");
            None
        });
        let read = |path: PathBuf| match DiskModel::read(&path) {
            Ok(model) => Some(model),
            Err(error) => {
                tracing::warn!(error = crate::error_chain(&error), "a disk's bandwidth is guessed");
                None
            }
        };
        Self {
            memory: memory.unwrap_or(MEMORY),
            models: super::model_files(config).into_iter().filter_map(read).collect(),
            interface: config.net_interface.clone(),
            link_bits_per_sec: config.net_bits_per_sec().ok().flatten(),
            last: None,
            sys: "/sys".into(),
        }
    }

    /// How fast each place is. The link's use is that since the call before.
    pub fn now(&mut self, now: Instant) -> Bandwidths {
        Bandwidths {
            memory: self.memory,
            disks: disks(&self.sys, &self.models),
            unknown_disk: ROTATING,
            network: self.network(now),
        }
    }

    fn network(&mut self, now: Instant) -> Speed {
        let link = self.link();
        let speed = self.link_bits_per_sec.or_else(|| rtnetlink::speed_bits_per_sec(link.as_deref()?));
        let received =
            link.and_then(|name| rtnetlink::traffic_bytes(&name).ok()).map(|(received, _)| received);
        let before = self.last.take();
        self.last = received.map(|bytes| (now, bytes));
        let used = before.zip(self.last).map_or(0, |(before, after)| rate_bits(before, after));
        network(speed, used)
    }

    fn link(&self) -> Option<String> {
        if !self.interface.is_empty() {
            return Some(self.interface.clone());
        }
        let outside = rtnetlink::way_outside().ok()??;
        let all = rtnetlink::interfaces().ok()?;
        all.into_iter().find(|interface| interface.index == outside).map(|interface| interface.name)
    }
}

/// Bits a second between two counts of bytes; 0 where the counter or the clock went backwards.
fn rate_bits(before: (Instant, u64), after: (Instant, u64)) -> u64 {
    let usec = u64::try_from(after.0.saturating_duration_since(before.0).as_micros()).unwrap_or(u64::MAX);
    let bytes = after.1.saturating_sub(before.1);
    if usec == 0 { 0 } else { scaled(bytes.saturating_mul(8), 1_000_000, usec) }
}

/// What a newcomer gets of a link that carries so much already.
fn network(link_bits_per_sec: Option<u64>, used_bits_per_sec: u64) -> Speed {
    let link = link_bits_per_sec.unwrap_or(LINK_BITS_PER_SEC);
    let left = link.saturating_sub(used_bits_per_sec).max(link / LEAST_SHARE);
    Speed {
        bytes_per_sec: (left / 8).max(1),
        requests_per_sec: REMOTE_FILES_PER_SEC,
        assumed: link_bits_per_sec.is_none(),
    }
}

/// All disks that sysfs knows.
fn disks(sys: &Path, models: &[DiskModel]) -> BTreeMap<String, Speed> {
    let entries = fs::read_dir(sys.join("block")).into_iter().flatten().flatten();
    let speed = |entry: fs::DirEntry| {
        let number = fs::read_to_string(entry.path().join("dev")).ok()?.parse::<DeviceNumber>().ok()?;
        let disk = Disk::numbered(sys, number).ok()?;
        let model = models.iter().find(|model| model.disk == disk.name && model.fits(&disk).is_ok());
        // A disk that does not say is taken for the slower kind.
        let rotating = fs::read_to_string(entry.path().join("queue/rotational"));
        let guess = if rotating.is_ok_and(|text| text.trim() == "0") { SOLID } else { ROTATING };
        Some((disk.name, model.map_or(guess, measured)))
    };
    entries.filter_map(speed).collect()
}

/// What a model says about one reader, beside nobody where that was measured.
fn measured(model: &DiskModel) -> Speed {
    let alone = |order, bytes| {
        let load = Load { direction: Direction::Read, order, bytes, mixed: false };
        model.measured.iter().find(|m| m.load == load).map(|m| m.figures)
    };
    let large = alone(Order::Sequential, LARGE_BYTES).map(|f| f.bytes_per_sec);
    let small = alone(Order::Random, SMALL_BYTES).map(|f| f.ops_per_sec);
    Speed {
        bytes_per_sec: large.unwrap_or(model.both_at_once.read_bytes_per_sec).max(1),
        requests_per_sec: small.unwrap_or(model.both_at_once.read_ops_per_sec).max(1),
        assumed: false,
    }
}

/// Copies a file of its own out of the page cache, again and again for [`PROBE_TIME`]; the best pass counts, as the
/// others were disturbed.
fn memory() -> io::Result<Speed> {
    let mut file = File::from(memfd_create("bulkhead-probe", MemfdFlags::CLOEXEC)?);
    let mut piece = vec![1_u8; PROBE_PIECE];
    for _ in 0..PROBE_BYTES / PROBE_PIECE {
        file.write_all(&piece)?;
    }
    let began = Instant::now();
    let mut best = Duration::MAX;
    while best == Duration::MAX || began.elapsed() < PROBE_TIME {
        let pass = Instant::now();
        for number in 0..PROBE_BYTES / PROBE_PIECE {
            file.read_exact_at(&mut piece, (number * PROBE_PIECE) as u64)?;
        }
        best = best.min(pass.elapsed());
    }
    let nanos = u64::try_from(best.as_nanos()).unwrap_or(u64::MAX).max(1);
    let bytes_per_sec = scaled(PROBE_BYTES as u64, 1_000_000_000, nanos).max(1);
    Ok(Speed { bytes_per_sec, requests_per_sec: u64::MAX, assumed: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::disk_speed::{
        Figures,
        model::{Measured, Rates},
    };

    fn sysfs(rotational: &str) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("block/vda");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        fs::write(disk.join("dev"), "254:0\n").unwrap();
        fs::write(disk.join("size"), "2048\n").unwrap();
        fs::write(disk.join("queue/rotational"), rotational).unwrap();
        std::os::unix::fs::symlink("../../block/vda", sys.path().join("dev/block/254:0")).unwrap();
        sys
    }

    fn model(disk: &str, size_bytes: u64) -> DiskModel {
        DiskModel {
            disk: disk.into(),
            size_bytes,
            how: None,
            both_at_once: Rates { read_bytes_per_sec: 7, read_ops_per_sec: 3, ..Rates::default() },
            io_cost: None,
            measured: Vec::new(),
        }
    }

    #[test]
    fn disks_are_as_fast_as_their_model_says_or_their_kind_suggests() {
        let of = |rotational, models: &[DiskModel]| disks(sysfs(rotational).path(), models)["vda"];
        assert_eq!(of("0\n", &[]), SOLID);
        assert_eq!(of("1\n", &[]), ROTATING);
        assert_eq!(of("", &[]), ROTATING, "it does not say");
        let mixed = Speed { bytes_per_sec: 7, requests_per_sec: 3, assumed: false };
        assert_eq!(of("0\n", &[model("vdb", 0), model("vda", 1 << 20)]), mixed);
        assert_eq!(of("0\n", &[model("vda", 1 << 30)]), SOLID, "a disk of another size");
        let mut alone = model("vda", 0);
        let load =
            Load { direction: Direction::Read, order: Order::Sequential, bytes: LARGE_BYTES, mixed: false };
        let figures = Figures { bytes_per_sec: 90, ..Figures::default() };
        alone.measured.push(Measured { load, depth: 1, figures });
        assert_eq!(of("0\n", &[alone]).bytes_per_sec, 90, "one reader alone");
        assert!(disks(Path::new("/no/such"), &[]).is_empty());
    }

    #[test]
    fn a_busy_link_leaves_less_and_never_nothing() {
        assert_eq!(network(Some(8_000_000), 4_000_000).bytes_per_sec, 500_000);
        assert_eq!(network(Some(8_000_000), 9_000_000).bytes_per_sec, 100_000);
        assert_eq!(network(Some(0), 0).bytes_per_sec, 1);
        assert!(network(None, 0).assumed && !network(Some(1), 0).assumed);
    }

    #[test]
    fn the_use_of_the_link_survives_odd_counters() {
        let at = Instant::now();
        let later = at + Duration::from_secs(2);
        assert_eq!(rate_bits((at, 1000), (later, 3000)), 8000);
        assert_eq!(rate_bits((at, 3000), (later, 1000)), 0, "reset");
        assert_eq!(rate_bits((later, 0), (at, 1000)), 0, "no time");
        assert!(rate_bits((at, 0), (later, u64::MAX)) > 0);
    }

    #[test]
    fn this_machine_has_speeds() {
        let locality = crate::config::LocalityConfig { roots: vec!["/".into()], ..Default::default() };
        let bandwidths = Meter::start(&Config { locality, ..Config::default() }).now(Instant::now());
        assert!(!bandwidths.memory.assumed && bandwidths.memory.bytes_per_sec > 1_000_000);
        assert!(bandwidths.network.bytes_per_sec > 0);
    }
}
