//! What was measured of a disk, as a file that `calibrate-disk` writes and the agent installs. Pure but for reading it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bulkhead_proto::v1::Resources;
use serde::{Deserialize, Serialize};

use super::figures::Figures;
use crate::kernel::{block::Disk, io_cost::CostLines};

/// The keys of `io.cost.model` and of `io.cost.qos`, apart from those that have words as values.
const MODEL_KEYS: [&str; 6] = ["rbps", "rseqiops", "rrandiops", "wbps", "wseqiops", "wrandiops"];
const QOS_KEYS: [&str; 6] = ["rpct", "rlat", "wpct", "wlat", "min", "max"];
const WORDS: [&str; 4] = ["ctrl=user", "model=linear", "enable=1", "enable=0"];
/// Latencies above twice what the disk showed under full load mean that it gets more than it can take.
const LATENCY_SLACK: u64 = 2;
/// Requests of the size that the kernel's model counts operations in.
pub const SMALL_BYTES: u32 = 4096;
/// Requests that are large enough for any disk's best throughput.
pub const LARGE_BYTES: u32 = 1 << 20;

/// A disk's model; the file is TOML of this form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskModel {
    /// Which disk, as below /sys/block; for people.
    pub disk: String,
    /// Its size. A model of a disk of another size is not taken; 0 is taken for any.
    #[serde(default)]
    pub size_bytes: u64,
    /// When, how and where; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<How>,
    /// Reads and writes at once: what may be granted out of, less the configured reserve.
    pub both_at_once: Rates,
    /// For the kernel; without it no cost model is installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_cost: Option<CostLines>,
    /// All that was measured; for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<Measured>,
}

/// The circumstances of a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct How {
    /// RFC 3339.
    pub at: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Where the scratch file was.
    pub directory: PathBuf,
    /// Its size.
    pub scratch_bytes: u64,
    /// Of the disk.
    pub scheduler: String,
    /// All of it, from making the file to the last request.
    pub seconds: u64,
}

/// Reads and writes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Read, in large requests.
    pub read_bytes_per_sec: u64,
    /// Written, in large requests.
    pub write_bytes_per_sec: u64,
    /// Random small reads.
    pub read_ops_per_sec: u64,
    /// Random small writes.
    pub write_ops_per_sec: u64,
}

/// One kind of request in one phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Which.
    pub load: Load,
    /// Requests under way at any moment.
    pub depth: u32,
    /// How fast.
    #[serde(flatten)]
    pub figures: Figures,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Which way.
    pub direction: Direction,
    /// Where.
    pub order: Order,
    /// Size of each request.
    pub bytes: u32,
    /// Together with the same in the other direction.
    pub mixed: bool,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they say it all")]
pub enum Direction {
    Read,
    Write,
}

/// Where the next request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Behind the one before.
    Sequential,
    /// Anywhere.
    Random,
}

/// A model file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It cannot be read.
    #[error("read the disk model {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not what it should be; the source names line and key.
    #[error("disk model {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value is impossible.
    #[error("disk model {}: {why}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl DiskModel {
    /// Reads a model, and checks what does not depend on this machine.
    ///
    /// # Errors
    /// [`ModelError`] names the file and what is wrong in it.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let text =
            fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.into(), source })?;
        let model: Self = toml::from_str(&text)
            .map_err(|e| ModelError::Parse { path: path.into(), source: Box::new(e) })?;
        model.check().map_err(|why| ModelError::Value { path: path.into(), why })?;
        Ok(model)
    }

    fn check(&self) -> Result<(), String> {
        let rates = self.both_at_once.resources();
        if bulkhead_proto::resources::SCALARS.iter().any(|kind| (kind.get)(&rates) > i64::MAX.unsigned_abs())
        {
            return Err("no disk is that fast".to_owned());
        }
        let Some(lines) = &self.io_cost else { return Ok(()) };
        check_line("io_cost.model", &lines.model, &MODEL_KEYS)?;
        check_line("io_cost.qos", &lines.qos, &QOS_KEYS)
    }

    /// Was it measured on this disk, as far as that can be seen?
    ///
    /// # Errors
    /// Says what differs.
    pub fn fits(&self, disk: &Disk) -> Result<(), String> {
        if self.size_bytes == 0 || self.size_bytes == disk.size_bytes {
            return Ok(());
        }
        Err(format!(
            "the model is of {} with {} bytes, but {} has {}: run `bulkhead-agent calibrate-disk` again",
            self.disk, self.size_bytes, disk.name, disk.size_bytes
        ))
    }
}

impl Rates {
    /// As kinds of resources.
    pub fn resources(&self) -> Resources {
        Resources {
            disk_read_bytes_per_sec: self.read_bytes_per_sec,
            disk_write_bytes_per_sec: self.write_bytes_per_sec,
            disk_read_ops_per_sec: self.read_ops_per_sec,
            disk_write_ops_per_sec: self.write_ops_per_sec,
            ..Resources::default()
        }
    }
}

/// `key=number` or one of a few words, apart by spaces: what the kernel takes, and nothing else.
fn check_line(name: &str, line: &str, keys: &[&str]) -> Result<(), String> {
    for pair in line.split(' ') {
        let number = |value: &str| value.parse::<f64>().is_ok_and(|v| v.is_finite() && v >= 0.0);
        let fits = |(key, value): (&str, &str)| keys.contains(&key) && number(value);
        if !WORDS.contains(&pair) && !pair.split_once('=').is_some_and(fits) {
            return Err(format!(
                "{name}: {pair:?} is not one of {} or {}",
                keys.join(", "),
                WORDS.join(", ")
            ));
        }
    }
    Ok(())
}

fn find(measured: &[Measured], direction: Direction, order: Order, bytes: u32, mixed: bool) -> Figures {
    let load = Load { direction, order, bytes, mixed };
    measured.iter().find(|m| m.load == load).map(|m| m.figures).unwrap_or_default()
}

/// What a disk does in both directions at once.
pub fn both_at_once(measured: &[Measured]) -> Rates {
    let large = |direction| find(measured, direction, Order::Sequential, LARGE_BYTES, true).bytes_per_sec;
    let small = |direction| find(measured, direction, Order::Random, SMALL_BYTES, true).ops_per_sec;
    Rates {
        read_bytes_per_sec: large(Direction::Read),
        write_bytes_per_sec: large(Direction::Write),
        read_ops_per_sec: small(Direction::Read),
        write_ops_per_sec: small(Direction::Write),
    }
}

/// The kernel's linear model of a disk: the cost of a request is a part for its being one, sequential or random, and a
/// part for each of its pages.
///
/// The targets for latency let the kernel slow everybody down where the disk turns out slower than it was measured,
/// to half of the model at most, and speed up by half where it turns out faster.
pub fn cost_lines(measured: &[Measured]) -> CostLines {
    let figures = |direction, order, bytes| find(measured, direction, order, bytes, false);
    let mut model = "ctrl=user model=linear".to_owned();
    let mut qos = "enable=1 ctrl=user".to_owned();
    for (letter, direction) in [('r', Direction::Read), ('w', Direction::Write)] {
        let bytes = figures(direction, Order::Sequential, LARGE_BYTES).bytes_per_sec.max(1);
        let random = figures(direction, Order::Random, SMALL_BYTES).ops_per_sec.max(1);
        // The kernel takes sequential requests for the cheaper ones.
        let sequential = figures(direction, Order::Sequential, SMALL_BYTES).ops_per_sec.max(random);
        model += &format!(" {letter}bps={bytes} {letter}seqiops={sequential} {letter}randiops={random}");
        let slowest = measured.iter().filter(|m| m.load.direction == direction).map(|m| m.figures.p95_usec);
        let latency = slowest.max().unwrap_or(0).max(1).saturating_mul(LATENCY_SLACK);
        qos += &format!(" {letter}pct=95.00 {letter}lat={latency}");
    }
    qos += " min=50.00 max=150.00";
    CostLines { model, qos }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Vec<Measured> {
        let mut all = Vec::new();
        for mixed in [false, true] {
            for direction in [Direction::Read, Direction::Write] {
                for (order, bytes) in [
                    (Order::Sequential, LARGE_BYTES),
                    (Order::Sequential, SMALL_BYTES),
                    (Order::Random, SMALL_BYTES),
                ] {
                    let n = all.len() as u64 + 1;
                    let figures = Figures {
                        bytes_per_sec: n * 1000,
                        ops_per_sec: n * 10,
                        p95_usec: n,
                        ..Figures::default()
                    };
                    all.push(Measured { load: Load { direction, order, bytes, mixed }, depth: 32, figures });
                }
            }
        }
        all
    }

    fn model() -> DiskModel {
        DiskModel {
            disk: "vda".into(),
            size_bytes: 1 << 30,
            how: Some(How {
                at: "2026-01-01T00:00:00Z".into(),
                kernel: "6.12".into(),
                directory: "/var/lib/bulkhead".into(),
                scratch_bytes: 1 << 28,
                scheduler: "none".into(),
                seconds: 20,
            }),
            both_at_once: both_at_once(&measured()),
            io_cost: Some(cost_lines(&measured())),
            measured: measured(),
        }
    }

    fn read(text: &str) -> Result<DiskModel, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.toml");
        fs::write(&path, text).unwrap();
        DiskModel::read(&path)
    }

    #[test]
    fn the_kernels_lines_follow_from_the_figures() {
        let lines = cost_lines(&measured());
        assert_eq!(
            lines.model,
            "ctrl=user model=linear rbps=1000 rseqiops=30 rrandiops=30 wbps=4000 wseqiops=60 wrandiops=60"
        );
        assert_eq!(
            lines.qos,
            "enable=1 ctrl=user rpct=95.00 rlat=18 wpct=95.00 wlat=24 min=50.00 max=150.00"
        );
        assert_eq!(
            both_at_once(&measured()),
            Rates {
                read_bytes_per_sec: 7000,
                write_bytes_per_sec: 10_000,
                read_ops_per_sec: 90,
                write_ops_per_sec: 120
            }
        );
    }

    #[test]
    fn nothing_measured_still_makes_lines_that_the_kernel_takes() {
        let lines = cost_lines(&[]);
        assert!(lines.model.contains("rbps=1 ") && lines.qos.contains("rlat=2 "), "{lines:?}");
    }

    #[test]
    fn a_model_survives_its_file() {
        let text = toml::to_string(&model()).unwrap();
        assert_eq!(read(&text).unwrap(), model(), "{text}");
        let short = "disk = \"vda\"\n[both_at_once]\nread_bytes_per_sec = 1\nwrite_bytes_per_sec = 2\n\
                     read_ops_per_sec = 3\nwrite_ops_per_sec = 4\n";
        let short = read(short).unwrap();
        assert_eq!(short.io_cost, None);
        assert_eq!(short.both_at_once.resources().disk_write_ops_per_sec, 4);
    }

    #[test]
    fn bad_models_are_named_with_what_is_wrong() {
        let refused = |text: &str| {
            let error = read(text).unwrap_err();
            format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string))
        };
        assert!(refused("disk = 1").contains("model.toml"));
        assert!(refused("disk = \"a\"\nspeed = 3").contains("speed"));
        let with = |change: fn(&mut CostLines)| {
            let mut model = model();
            change(model.io_cost.as_mut().unwrap());
            refused(&toml::to_string(&model).unwrap())
        };
        assert!(with(|l| l.model += " rbps=-1").contains("rbps=-1"));
        assert!(with(|l| l.model += "\n8:0 rbps=1").contains("io_cost.model"));
        assert!(with(|l| l.qos += " rlat=soon").contains("rlat=soon"));
        assert!(with(|l| l.qos = String::new()).contains("io_cost.qos"));
        assert!(matches!(DiskModel::read(Path::new("/no/such")), Err(ModelError::Read { .. })));
    }

    #[test]
    fn a_model_of_another_disk_is_refused() {
        let disk = Disk {
            name: "vdb".into(),
            number: crate::kernel::block::DeviceNumber { major: 1, minor: 2 },
            size_bytes: 1 << 31,
            scheduler: String::new(),
        };
        let why = model().fits(&disk).unwrap_err();
        assert!(why.contains("vda") && why.contains("vdb") && why.contains("calibrate-disk"), "{why}");
        DiskModel { size_bytes: 0, ..model() }.fits(&disk).unwrap();
    }
}
