//! The agent's settings: a TOML file, then environment and flags on top.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_image::Credentials;
use bulkhead_proto::{
    rate::{RateError, parse_bits_per_sec},
    resources::PortSet,
    v1::SocketKind,
};
use bulkhead_stage::StageConfig;
use bytesize::ByteSize;
use serde::Deserialize;

use crate::{
    estimate::peak::Method,
    isolate::ports::PORT_CHOICE,
    launch::confine::{Profile, WAIVABLE, plain_absolute},
};

use crate::grant::MIN_DISK_BYTES;

mod locality;
mod qos;
mod report;

pub use locality::LocalityConfig;
pub use qos::QosConfig;
pub use report::ReportConfig;

/// Everything that can be set in the file. Most of it has a flag of the same name, with dashes.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// host:port of the master.
    pub master: String,
    /// Address of the agent's own API: gRPC, /metrics and /healthz. Loopback, because it is not authenticated.
    pub listen: SocketAddr,
    /// What the master tells others to reach `listen` by; empty is `listen` itself.
    pub advertise: String,
    /// Sandboxes, journal and lock. A place that survives a restart of the host.
    pub work_dir: PathBuf,
    /// The agent's directory in the cgroup tree, relative to the cgroup2 mount. Under systemd, the
    /// cgroup of a unit with `Delegate=yes`.
    pub cgroup_root: PathBuf,
    /// A bpffs directory for what must outlive the agent.
    pub bpf_dir: PathBuf,
    /// Shown to frameworks; empty is the host's name.
    pub hostname: String,
    /// Labels that frameworks choose by, such as rack or zone.
    pub attributes: BTreeMap<String, String>,
    /// Ports that are offered. The range of Mesos, outside Linux's ephemeral range.
    pub ports: String,
    /// CPUs that are offered at most; 0 is all that the machine has. More than that are offered only where nothing holds tasks to
    /// theirs and `allow_unenforced` has `cpu`: to try out a framework.
    pub cpus: f64,
    /// Memory that is offered at most; 0 is all that the machine has.
    pub mem: ByteSize,
    /// CPU that is never offered: what an idle host's own services need.
    pub reserve_cpu_milli: u64,
    /// Memory that is never offered: kernel, system services, page cache to breathe.
    pub reserve_mem: ByteSize,
    /// Disk that is never offered, on top of what others use of it: journal, logs, a metadata block here and there.
    pub reserve_disk: ByteSize,
    /// Project ids that sandboxes are counted under, FIRST-LAST. Nobody else may use them on this file system, but
    /// other agents may.
    pub disk_projects: String,
    /// Model of the disk below `work_dir`, made by `calibrate-disk`; empty is `disk-model.toml` in `work_dir`, if there.
    pub disk_model: PathBuf,
    /// Of what the disk was measured to do, this much is offered. Bytes and operations are two sides of the same time,
    /// so 40 % of all four kinds together are 80 % of the disk's time.
    pub disk_offer_percent: u32,
    /// Interface of the link whose bandwidth is offered; empty is the one that leads outside.
    pub net_interface: String,
    /// Speed of that link in each direction, such as `10Gbit`; empty is what its driver says. Virtual cards do not say.
    pub net_bandwidth: String,
    /// Of the link's speed, this much is offered. The rest is for what is around each frame (24 bytes, 1.6 % of long ones) and
    /// for what the system itself has to say.
    pub net_offer_percent: u32,
    /// May the agent put fq in the place of the kernel's default queueing discipline on that interface (`install`), or
    /// not (`leave`)? Only fq lets packets wait until it is their turn; without it they are dropped. What somebody else
    /// put there is always left.
    pub net_qdisc: NetQdisc,
    /// Also hold back what everything that is not a task is measured to use. Off, only the reserve is.
    pub measure_strangers: bool,
    /// Kinds ([`KINDS`]) that are offered although this kernel cannot enforce them.
    pub allow_unenforced: Vec<String>,
    /// Keep the system's services off the exclusive cores of tasks, too, as far as cgroups do.
    pub keep_system_off_exclusive_cores: bool,
    /// Whom tasks run as that name no user.
    pub task_user: String,
    /// Local images are read from these directories and those below them. The agent reads them as root, so none by
    /// default.
    pub image_dirs: Vec<PathBuf>,
    /// Space of all unpacked images.
    pub image_store_size: ByteSize,
    /// HOST[:PORT] of registries that images may be pulled from, with TLS. The agent reaches networks that tasks may
    /// not, so none by default.
    pub registries: Vec<String>,
    /// The same, without TLS.
    pub insecure_registries: Vec<String>,
    /// Names and passwords for registries, in the form of Docker's `config.json`; empty is none.
    pub registry_auth_file: PathBuf,
    /// May tasks run as root without a user namespace? Only for frameworks that are trusted.
    pub allow_root_tasks: bool,
    /// Devices that tasks may be granted, by their paths below /dev; a `*` at the end stands for any rest. None by
    /// default: most devices lead out of every other limit.
    pub allow_devices: Vec<String>,
    /// Kinds of sockets that tasks may be granted besides TCP and UDP: raw, sctp, packet. None by default: raw and packet
    /// sockets see what others receive.
    pub allow_sockets: Vec<String>,
    /// May tasks be trusted, or weaken the fences of their profile?
    pub allow_trusted_tasks: bool,
    /// The profile of tasks that name none: default or trusted.
    pub default_profile: String,
    /// Host paths that tasks without an image may read and execute below, besides the system's directories.
    pub readable_paths: Vec<PathBuf>,
    /// Volumes of tasks are these directories, or lie below them.
    pub volume_dirs: Vec<PathBuf>,
    /// Processes and threads of a task that names no number. A JVM with 500 threads fits; a fork bomb ends early.
    pub default_pids_max: u64,
    /// Sandbox of a task that asks for no disk, where quotas hold it to that. It is booked like one that was asked for.
    pub default_disk: ByteSize,
    /// What each of stdout and stderr keeps of its end, for tasks that name no size.
    pub default_output: ByteSize,
    /// A task above its memory.high is ended when it loses this percentage of its time to memory stalls...
    pub mem_stall_percent: u32,
    /// ... for this long.
    pub mem_stall_ms: u64,
    /// Time between SIGTERM and the end of every process, for tasks that name none.
    pub kill_grace_ms: u64,
    /// How often the node and its tasks are measured.
    pub sample_every_ms: u64,
    /// How often the machine's pressure is looked at while a guaranteed task runs; otherwise it is with the rest.
    pub pressure_every_ms: u64,
    /// Waits of tasks for a CPU are looked at for this part of the time; 0 is never. To look costs every program that
    /// switches threads some percent.
    pub runqueue_look_percent: u32,
    /// Measuring may use this much of one CPU; beyond it, it is done less often.
    pub sample_budget_milli: u32,
    /// How the peak of the next hour is predicted, above which CPU of guaranteed tasks is lent.
    pub estimate: Method,
    /// The master hears at least this often that its picture of this node still holds, or gets another one.
    pub report_every_ms: u64,
    /// Which changes of what is measured are news.
    pub report: ReportConfig,
    /// Sandboxes of ended tasks are kept this long.
    pub sandbox_keep_hours: u64,
    /// And at most this many of them.
    pub sandbox_keep_count: usize,
    /// Directories of this host that every task may be given files of. The agent reads them as root, so none by
    /// default.
    pub artifact_dirs: Vec<PathBuf>,
    /// Fetched artifacts are kept up to this size in all, for the next task that wants them.
    pub artifact_cache: ByteSize,
    /// Longest artifact that is fetched.
    pub artifact_max: ByteSize,
    /// Longest time of one fetch, repetitions included.
    pub artifact_timeout_ms: u64,
    /// PEM certificates that are trusted for https besides the host's; empty is none.
    pub artifact_ca_file: PathBuf,
    /// What frameworks are told about the way to their data.
    pub locality: LocalityConfig,
    /// How guaranteed tasks are protected from revocable ones.
    pub qos: QosConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            master: "127.0.0.1:5050".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 5051)),
            advertise: String::new(),
            work_dir: "/var/lib/bulkhead".into(),
            cgroup_root: "bulkhead".into(),
            bpf_dir: "/sys/fs/bpf/bulkhead".into(),
            hostname: String::new(),
            attributes: BTreeMap::new(),
            ports: "31000-32000".into(),
            cpus: 0.0,
            mem: ByteSize::b(0),
            reserve_cpu_milli: 100,
            reserve_mem: ByteSize::mib(256),
            reserve_disk: ByteSize::gib(1),
            disk_projects: "16777216-33554431".into(),
            disk_model: PathBuf::new(),
            disk_offer_percent: 40,
            net_interface: String::new(),
            net_bandwidth: String::new(),
            net_offer_percent: 90,
            net_qdisc: NetQdisc::Install,
            measure_strangers: true,
            allow_unenforced: Vec::new(),
            keep_system_off_exclusive_cores: true,
            task_user: "nobody".into(),
            image_dirs: Vec::new(),
            // A dozen large images; small next to any disk that tasks run on.
            image_store_size: ByteSize::gib(20),
            registries: Vec::new(),
            insecure_registries: Vec::new(),
            registry_auth_file: PathBuf::new(),
            allow_root_tasks: false,
            allow_devices: Vec::new(),
            allow_sockets: Vec::new(),
            allow_trusted_tasks: false,
            default_profile: "default".into(),
            readable_paths: Vec::new(),
            volume_dirs: Vec::new(),
            default_pids_max: 1024,
            default_disk: ByteSize::mib(256),
            default_output: ByteSize::mib(64),
            mem_stall_percent: 80,
            mem_stall_ms: 10_000,
            kill_grace_ms: 5000,
            sample_every_ms: 1000,
            pressure_every_ms: 100,
            // A twentieth of the few percent that a look costs, and enough to see a hundred waits of whoever waits often.
            runqueue_look_percent: 5,
            // A thousand tasks at the default period, on a slow machine.
            sample_budget_milli: 30,
            estimate: Method::default(),
            report_every_ms: 5000,
            sandbox_keep_hours: 168,
            sandbox_keep_count: 1000,
            artifact_dirs: Vec::new(),
            artifact_cache: ByteSize::gib(4),
            artifact_max: ByteSize::gib(8),
            artifact_timeout_ms: 1_800_000,
            artifact_ca_file: PathBuf::new(),
            locality: LocalityConfig::default(),
            qos: QosConfig::default(),
            report: ReportConfig::default(),
        }
    }
}

/// What the agent does to the queueing discipline of the link's interface.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NetQdisc {
    /// Puts fq in the place of the kernel's default, and that back when it stops and no task is left.
    #[default]
    Install,
    /// Nothing.
    Leave,
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be; the source names line and key.
    #[error("configuration {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value is impossible.
    #[error("{key} = {value}: {why}")]
    Value {
        /// The setting.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
}

/// Kinds that `allow_unenforced` takes, and fences that tasks then go without.
pub const KINDS: [&str; 10] =
    ["cpu", "mem", "pids", "ports", PORT_CHOICE, "disk", "disk_io", "net", WAIVABLE[0], WAIVABLE[1]];
/// Where `calibrate-disk` leaves its model for the agent, in the work directory.
pub const DISK_MODEL: &str = "disk-model.toml";

impl Config {
    /// Reads a file; settings that it does not name keep their defaults.
    ///
    /// # Errors
    /// [`ConfigError`] with the file and, where it is about the text, the line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        toml::from_str(&text).map_err(|e| ConfigError::Parse { path: path.into(), source: Box::new(e) })
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// The first impossible value.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |key, value: String, why: &str| Err(ConfigError::Value { key, value, why: why.into() });
        if let Err(e) = self.port_set() {
            return bad("ports", self.ports.clone(), &e.to_string());
        }
        if !locality::host_and_port(&self.master) {
            return bad("master", self.master.clone(), "write HOST:PORT, such as 127.0.0.1:5050");
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_empty() {
            let why = "others cannot reach this address: say with advertise (HOST:PORT) what they can";
            return bad("listen", self.listen.to_string(), why);
        }
        if !self.advertise.is_empty() && !locality::host_and_port(&self.advertise) {
            return bad("advertise", self.advertise.clone(), "write HOST:PORT, such as node7.example:5051");
        }
        if let Some(kind) = self.allow_unenforced.iter().find(|k| !KINDS.contains(&k.as_str())) {
            return bad("allow_unenforced", kind.clone(), &format!("the kinds are {}", KINDS.join(", ")));
        }
        if self.disk_offer_percent > 100 {
            return bad("disk_offer_percent", self.disk_offer_percent.to_string(), "give 0 to 100");
        }
        if self.runqueue_look_percent > 100 {
            return bad("runqueue_look_percent", self.runqueue_look_percent.to_string(), "give 0 to 100");
        }
        if self.net_offer_percent > 100 {
            return bad("net_offer_percent", self.net_offer_percent.to_string(), "give 0 to 100");
        }
        if let Err(e) = self.net_bits_per_sec() {
            return bad("net_bandwidth", self.net_bandwidth.clone(), &e.to_string());
        }
        if let Some(path) = self.allow_devices.iter().find(|path| !path.starts_with("/dev/")) {
            return bad(
                "allow_devices",
                path.clone(),
                "write a path below /dev, such as /dev/fuse or /dev/nvidia*",
            );
        }
        self.socket_kinds()?;
        match self.default_profile.parse() {
            Ok(Profile::Trusted) if !self.allow_trusted_tasks => {
                let why = "it needs allow_trusted_tasks";
                return bad("default_profile", self.default_profile.clone(), why);
            }
            Ok(_) => {}
            Err(e) => return bad("default_profile", self.default_profile.clone(), &e.to_string()),
        }
        for (key, paths) in [("readable_paths", &self.readable_paths), ("volume_dirs", &self.volume_dirs)] {
            if let Some(path) = paths.iter().find(|path| plain_absolute(path).is_none()) {
                return bad(key, path.display().to_string(), "write an absolute path without ..");
            }
        }
        if !self.cpus.is_finite() || self.cpus < 0.0 {
            return bad("cpus", self.cpus.to_string(), "give a number of CPUs, or 0 for all");
        }
        if let Err(why) = self.project_range() {
            return bad("disk_projects", self.disk_projects.clone(), &why);
        }
        if self.default_disk.as_u64() < MIN_DISK_BYTES {
            let why = format!("give at least {}", ByteSize::b(MIN_DISK_BYTES));
            return bad("default_disk", self.default_disk.to_string(), &why);
        }
        if let Some(dir) = self.artifact_dirs.iter().find(|dir| !dir.is_absolute()) {
            return bad("artifact_dirs", dir.display().to_string(), "give absolute paths");
        }
        if let Some(dir) = self.image_dirs.iter().find(|dir| !dir.is_absolute()) {
            return bad("image_dirs", dir.display().to_string(), "give absolute paths");
        }
        for (key, value) in [
            ("sample_every_ms", self.sample_every_ms),
            ("pressure_every_ms", self.pressure_every_ms),
            ("sample_budget_milli", self.sample_budget_milli.into()),
            ("report_every_ms", self.report_every_ms),
        ] {
            if value == 0 {
                return bad(key, "0".into(), "give at least 1");
            }
        }
        self.check_estimate()?;
        self.report.steps()?;
        if self.cgroup_root.components().any(|c| c.as_os_str() == "..")
            || self.cgroup_root.as_os_str().is_empty()
        {
            let value = self.cgroup_root.display().to_string();
            return bad("cgroup_root", value, "name a directory below the cgroup2 mount, such as bulkhead");
        }
        self.locality.check()
    }

    fn check_estimate(&self) -> Result<(), ConfigError> {
        let Method { error_budget, fraction, percentile, sigmas, .. } = self.estimate;
        for (key, value, least, most) in [
            ("estimate.error_budget", error_budget, 0.0001, 0.5),
            ("estimate.fraction", fraction, 0.0, 1.0),
            ("estimate.percentile", percentile, 0.0, 1.0),
            ("estimate.sigmas", sigmas, 0.0, 100.0),
        ] {
            if !(least..=most).contains(&value) {
                let why = format!("give {least} to {most}");
                return Err(ConfigError::Value { key, value: value.to_string(), why });
            }
        }
        Ok(())
    }

    /// The offered ports.
    ///
    /// # Errors
    /// When the text is no list of ports.
    pub fn port_set(&self) -> Result<PortSet, bulkhead_proto::resources::PortSetError> {
        self.ports.parse()
    }

    /// `allow_sockets` as kinds.
    ///
    /// # Errors
    /// A name that is none.
    pub fn socket_kinds(&self) -> Result<Vec<SocketKind>, ConfigError> {
        let kind = |name: &String| match name.as_str() {
            "raw" => Ok(SocketKind::Raw),
            "sctp" => Ok(SocketKind::Sctp),
            "packet" => Ok(SocketKind::Packet),
            _ => Err(ConfigError::Value {
                key: "allow_sockets",
                value: name.clone(),
                why: "the kinds are raw, sctp, packet".into(),
            }),
        };
        self.allow_sockets.iter().map(kind).collect()
    }

    /// `net_bandwidth` in bits a second, where it is given.
    ///
    /// # Errors
    /// When the text is no rate.
    pub fn net_bits_per_sec(&self) -> Result<Option<u64>, RateError> {
        if self.net_bandwidth.is_empty() {
            Ok(None)
        } else {
            parse_bits_per_sec(&self.net_bandwidth).map(Some)
        }
    }

    /// `disk_projects` as a range.
    ///
    /// # Errors
    /// What is wrong with it. 0 is the project of files that have none.
    pub fn project_range(&self) -> Result<RangeInclusive<u32>, String> {
        let form = "write FIRST-LAST, such as 16777216-33554431";
        let (first, last) = self.disk_projects.split_once('-').ok_or(form)?;
        let parse = |text: &str| text.trim().parse::<u32>().map_err(|e| format!("{form}: {text:?}: {e}"));
        let (first, last) = (parse(first)?, parse(last)?);
        if first == 0 || first > last { Err(form.to_owned()) } else { Ok(first..=last) }
    }

    /// May this kind be offered although nothing enforces it?
    pub fn allows_unenforced(&self, kind: &str) -> bool {
        self.allow_unenforced.iter().any(|k| k == kind)
    }

    /// The disk's model: the one that was named, or the one in its place, if there is one.
    pub fn disk_model_path(&self) -> Option<PathBuf> {
        if !self.disk_model.as_os_str().is_empty() {
            return Some(self.disk_model.clone());
        }
        Some(self.work_dir.join(DISK_MODEL)).filter(|path| path.exists())
    }

    /// How artifacts are brought into sandboxes.
    pub fn stage(&self) -> StageConfig {
        StageConfig {
            cache_dir: self.work_dir.join("cache"),
            cache_max_bytes: self.artifact_cache.as_u64(),
            local_dirs: self.artifact_dirs.clone(),
            fetch_max_bytes: self.artifact_max.as_u64(),
            fetch_timeout: Duration::from_millis(self.artifact_timeout_ms),
            ca_file: Some(self.artifact_ca_file.clone()).filter(|path| !path.as_os_str().is_empty()),
        }
    }

    /// How images are brought in.
    ///
    /// # Errors
    /// When the credentials cannot be read.
    pub fn images(&self) -> Result<bulkhead_image::Settings, bulkhead_image::CredentialsError> {
        let file = &self.registry_auth_file;
        let credentials =
            if file.as_os_str().is_empty() { Credentials::default() } else { Credentials::read(file)? };
        Ok(bulkhead_image::Settings {
            image_dirs: self.image_dirs.clone(),
            registries: self.registries.clone(),
            insecure_registries: self.insecure_registries.clone(),
            credentials,
            ..bulkhead_image::Settings::new(self.image_store_size.as_u64())
        })
    }

    /// The name that others know this node by: the configured one, or the host's.
    pub fn shown_hostname(&self) -> String {
        if !self.hostname.is_empty() {
            return self.hostname.clone();
        }
        nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// `kill_grace_ms` as a duration.
    pub fn kill_grace(&self) -> Duration {
        Duration::from_millis(self.kill_grace_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;
    use crate::estimate::peak::Kind;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let config =
            parse("master = \"10.0.0.1:5050\"\nreserve_mem = \"1GiB\"\n[attributes]\nrack = \"a\"\n")
                .unwrap();
        let expected = Config {
            master: "10.0.0.1:5050".into(),
            reserve_mem: ByteSize::gib(1),
            attributes: BTreeMap::from([("rack".into(), "a".into())]),
            ..Config::default()
        };
        assert_eq!(config, expected);
        config.check().unwrap();
    }

    #[test]
    fn the_method_of_estimating_is_a_section() {
        let config = parse("[estimate]\npredictor = \"n-sigma\"\nsigmas = 4\n").unwrap();
        let expected = Method { predictor: Kind::NSigma, sigmas: 4.0, ..Method::default() };
        assert_eq!(config.estimate, expected);
        assert!(parse("[estimate]\npredictor = \"oracle\"\n").is_err());
        assert!(parse("[estimate]\nbudget = 1\n").is_err());
    }

    #[test]
    fn a_malformed_file_is_named_with_line_and_key() {
        let error = parse("master = \"x\"\nmastre = \"y\"\n").unwrap_err();
        let detail = error.source().unwrap().to_string();
        assert!(error.to_string().contains("agent.toml"), "{error}");
        assert!(detail.contains("mastre") && detail.contains("line 2"), "{detail}");
        assert!(matches!(parse("ports = \"1"), Err(ConfigError::Parse { .. })));
        assert!(matches!(Config::read(Path::new("/no/such")), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn impossible_values_are_named() {
        let refused = |config: Config| config.check().unwrap_err().to_string();
        assert!(refused(Config { ports: "9-3".into(), ..Config::default() }).contains("9-3"));
        assert!(refused(Config { cpus: f64::NAN, ..Config::default() }).contains("cpus"));
        assert!(
            refused(Config { allow_unenforced: vec!["gpu".into()], ..Config::default() }).contains("gpu")
        );
        assert!(refused(Config { cgroup_root: "../x".into(), ..Config::default() }).contains("cgroup_root"));
        let disk = Config { allow_devices: vec!["sda".into()], ..Config::default() };
        assert!(refused(disk).contains("/dev/fuse"));
        let dccp = Config { allow_sockets: vec!["dccp".into()], ..Config::default() };
        assert!(refused(dccp).contains("raw, sctp, packet"));
        let trusted = Config { default_profile: "trusted".into(), ..Config::default() };
        assert!(refused(trusted.clone()).contains("allow_trusted_tasks"));
        Config { allow_trusted_tasks: true, ..trusted }.check().unwrap();
        assert!(refused(Config { default_profile: "lax".into(), ..Config::default() }).contains("lax"));
        let relative = vec!["data".into()];
        assert!(refused(Config { volume_dirs: relative, ..Config::default() }).contains("volume_dirs"));
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 5051));
        assert!(refused(Config { listen: everywhere, ..Config::default() }).contains("advertise"));
        assert!(refused(Config { advertise: "x".into(), ..Config::default() }).contains("HOST:PORT"));
        assert!(refused(Config { master: "host".into(), ..Config::default() }).contains("HOST:PORT"));
        for range in ["", "5", "9-3", "0-7", "1-4294967296", "a-b"] {
            let config = Config { disk_projects: range.into(), ..Config::default() };
            assert!(refused(config).contains("disk_projects"), "{range}");
        }
        let little = Config { default_disk: ByteSize::kib(1), ..Config::default() };
        assert!(refused(little).contains("default_disk"));
        assert!(refused(Config { sample_every_ms: 0, ..Config::default() }).contains("sample_every_ms"));
        let estimate = Method { error_budget: 0.0, ..Method::default() };
        assert!(refused(Config { estimate, ..Config::default() }).contains("estimate.error_budget"));
        assert!(refused(Config { pressure_every_ms: 0, ..Config::default() }).contains("pressure_every_ms"));
        assert!(refused(Config { report_every_ms: 0, ..Config::default() }).contains("report_every_ms"));
        let report = ReportConfig { runqueue_factor: 1, ..ReportConfig::default() };
        assert!(refused(Config { report, ..Config::default() }).contains("report.runqueue_factor"));
        assert!(refused(Config { sample_budget_milli: 0, ..Config::default() }).contains("sample_budget"));
        assert!(
            refused(Config { disk_offer_percent: 101, ..Config::default() }).contains("disk_offer_percent")
        );
    }
}
