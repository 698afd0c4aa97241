//! The command line: flags and environment on top of the file, and the subcommands.

mod calibrate;
mod explain;
mod locality;

use std::{io::IsTerminal as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use bulkhead_agent::{
    config::{Config, ConfigError, NetQdisc},
    kernel::{bpf, probe::Features},
    node,
};
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use comfy_table::{Table, presets};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Holds tasks to what they were granted, and offers what is left of this machine.
///
/// Needs root. Tasks run on when the agent stops; the next agent with the same work directory finds them again.
#[derive(Parser)]
#[command(name = "bulkhead-agent", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  bulkhead-agent --master 127.0.0.1:5050
  bulkhead-agent --config /etc/bulkhead/agent.toml --ports 31000-31999
  bulkhead-agent probe            what this kernel can enforce
  bulkhead-agent calibrate-disk /var/lib/bulkhead     what the disk can do, so that it is offered
  bulkhead-agent locality --locality-root /data /data/logs     what it costs to read that from here
  bulkhead-agent explain          why the running agent offers what it does
  bulkhead-agent cleanup          end all tasks and take everything out of the kernel

Exit status: 0 after SIGTERM or SIGINT, 1 when the agent could not start or go on, 2 for a wrong command line.";

const LOCALITY_EXAMPLES: &str = "\
Examples:
  bulkhead-agent locality --config /etc/bulkhead/agent.toml /data/logs
  bulkhead-agent locality --locality-root /data '/data/day=*/part-0*.orc' --json | jq '.[].access_usec'
  bulkhead-agent locality --config /etc/bulkhead/agent.toml webhdfs://namenode.example:9870/logs

Exit status: 0 when everything is known, 1 when something is not, 2 for a wrong command line.";

const CALIBRATE_EXAMPLES: &str = "\
Examples:
  bulkhead-agent calibrate-disk /var/lib/bulkhead
  bulkhead-agent calibrate-disk /dev/nvme0n1 --time 1min --out /etc/bulkhead/disk.toml
  bulkhead-agent calibrate-disk /var/lib/bulkhead --json | jq .both_at_once

Exit status: 0 when the disk was measured, 1 when it could not be, 2 for a wrong command line.";

#[derive(Subcommand)]
enum Command {
    /// Show what this kernel can enforce, and what happens where it cannot
    Probe {
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Measure what a disk can do, so that it can be offered and enforced
    ///
    /// Reads and writes a scratch file in the directory, or where the device is mounted: at most a quarter of what is
    /// free, up to 1 GiB. It has no name, so nothing is left however this ends. A device itself is never written to.
    /// The disk should be otherwise idle, and will be busy.
    ///
    /// The result goes to a model file (TOML): what the agent offers as disk_read_bytes_per_sec,
    /// disk_write_bytes_per_sec, disk_read_ops_per_sec and disk_write_ops_per_sec, and the model that the kernel
    /// weighs requests by (io.cost). The agent takes it at its next start.
    #[command(after_help = CALIBRATE_EXAMPLES)]
    CalibrateDisk(calibrate::CalibrateDisk),
    /// Show what frameworks are told about the way to their data: where it is, and what it costs to read it from here
    ///
    /// Nothing is read but directories. The answer is that of an agent with the same settings, so only what is below
    /// --locality-root, or the roots of the configuration, is looked at.
    #[command(after_help = LOCALITY_EXAMPLES)]
    Locality(locality::Locality),
    /// Say where each number of what the agent on this node offers comes from
    ///
    /// Asks the agent that runs with these settings, by the socket in its work directory: what it has, what is granted,
    /// what it keeps back and for whom, what it lends and which prediction that rests on.
    Explain(explain::Explain),
    /// End all tasks of the agent with these settings, and remove its cgroups and BPF programs
    ///
    /// For uninstalling, and after a crash that nobody will follow up. Sandboxes and the journal stay.
    Cleanup,
    /// Load the BPF programs and pin them (the agent starts this by itself)
    #[command(name = bpf::LOAD_SUBCOMMAND, hide = true)]
    BpfLoad {
        #[arg(long)]
        pin_dir: PathBuf,
        #[arg(long)]
        cgroup: PathBuf,
        #[arg(long)]
        task_level: u32,
    },
}

/// Flags stand above the environment, the environment above the file, the file above the defaults.
#[derive(Args)]
struct Settings {
    /// TOML file with the settings below, with '_' in place of '-', and more (docs/agent.md)
    #[arg(long, env = "BULKHEAD_AGENT_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Address of the master [default: 127.0.0.1:5050]
    #[arg(long, value_name = "HOST:PORT", env = "BULKHEAD_MASTER", global = true)]
    master: Option<String>,
    /// Address of this agent's own API, /metrics and /healthz [default: 127.0.0.1:5051]
    #[arg(long, value_name = "IP:PORT", env = "BULKHEAD_AGENT_LISTEN", global = true)]
    listen: Option<SocketAddr>,
    /// Address that others reach --listen by, where that differs
    #[arg(long, value_name = "HOST:PORT", env = "BULKHEAD_AGENT_ADVERTISE", global = true)]
    advertise: Option<String>,
    /// Sandboxes, journal and lock [default: /var/lib/bulkhead]
    #[arg(long, value_name = "DIR", env = "BULKHEAD_AGENT_WORK_DIR", global = true)]
    work_dir: Option<PathBuf>,
    /// The agent's directory below the cgroup2 mount [default: bulkhead]
    #[arg(long, value_name = "PATH", env = "BULKHEAD_AGENT_CGROUP_ROOT", global = true)]
    cgroup_root: Option<PathBuf>,
    /// Where BPF programs are pinned [default: /sys/fs/bpf/bulkhead]
    #[arg(long, value_name = "DIR", env = "BULKHEAD_AGENT_BPF_DIR", global = true)]
    bpf_dir: Option<PathBuf>,
    /// Name shown to frameworks [default: the host's]
    #[arg(long, env = "BULKHEAD_AGENT_HOSTNAME", global = true)]
    hostname: Option<String>,
    /// Label that frameworks choose by; may be given several times
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = attribute, global = true)]
    attributes: Vec<(String, String)>,
    /// Ports to offer [default: 31000-32000]
    #[arg(long, value_name = "RANGES", env = "BULKHEAD_AGENT_PORTS", global = true)]
    ports: Option<String>,
    /// CPUs to offer at most [default: all]
    #[arg(long, value_name = "NUMBER", env = "BULKHEAD_AGENT_CPUS", global = true)]
    cpus: Option<f64>,
    /// Memory to offer at most, such as 16GiB [default: all]
    #[arg(long, value_name = "SIZE", env = "BULKHEAD_AGENT_MEM", global = true)]
    mem: Option<ByteSize>,
    /// Thousandths of a CPU that are never offered [default: 100]
    #[arg(long, value_name = "MILLI", global = true)]
    reserve_cpu_milli: Option<u64>,
    /// Memory that is never offered [default: 256MiB]
    #[arg(long, value_name = "SIZE", global = true)]
    reserve_mem: Option<ByteSize>,
    /// Disk that is never offered, besides what others use of it [default: 1GiB]
    #[arg(long, value_name = "SIZE", global = true)]
    reserve_disk: Option<ByteSize>,
    /// What the disk below --work-dir can do, from calibrate-disk [default: <work dir>/disk-model.toml, if there]
    #[arg(long, value_name = "FILE", env = "BULKHEAD_AGENT_DISK_MODEL", global = true)]
    disk_model: Option<PathBuf>,
    /// Offer this much of what the disk was measured to do [default: 40]
    #[arg(long, value_name = "PERCENT", global = true)]
    disk_offer_percent: Option<u32>,
    /// Interface of the link whose bandwidth is offered [default: the one that leads outside]
    #[arg(long, value_name = "NAME", env = "BULKHEAD_AGENT_NET_INTERFACE", global = true)]
    net_interface: Option<String>,
    /// Speed of that link, such as 10Gbit [default: what its driver says]
    #[arg(long, value_name = "RATE", env = "BULKHEAD_AGENT_NET_BANDWIDTH", global = true)]
    net_bandwidth: Option<String>,
    /// Offer this much of the link's speed [default: 90]
    #[arg(long, value_name = "PERCENT", global = true)]
    net_offer_percent: Option<u32>,
    /// Put fq in the place of that interface's default queueing discipline, so that packets can wait their turn, or leave
    /// it [default: install]
    #[arg(long, value_name = "WHAT", global = true)]
    net_qdisc: Option<NetQdisc>,
    /// Hold back what everything that is not a task is measured to use [default: true]
    #[arg(long, value_name = "BOOL", global = true)]
    measure_strangers: Option<bool>,
    /// Offer these kinds (cpu,mem,pids,ports,disk,disk_io,net) even where this kernel cannot enforce them
    #[arg(long, value_name = "KINDS", value_delimiter = ',', global = true)]
    allow_unenforced: Vec<String>,
    /// Whom tasks run as that name no user [default: nobody]
    #[arg(long, value_name = "USER", global = true)]
    task_user: Option<String>,
    /// Let tasks have files of this directory of the host, which the agent reads as root; may be given several times
    #[arg(long = "artifact-dir", value_name = "DIR", global = true)]
    artifact_dirs: Vec<PathBuf>,
    /// Let tasks have local images from this directory and below, which the agent reads as root; may be given several
    /// times
    #[arg(long = "image-dir", value_name = "DIR", global = true)]
    image_dirs: Vec<PathBuf>,
    /// Let tasks have images of this registry, with TLS; may be given several times
    #[arg(long = "registry", value_name = "HOST[:PORT]", global = true)]
    registries: Vec<String>,
    /// Let tasks run as root without a user namespace: only for frameworks that are trusted
    #[arg(long, global = true)]
    allow_root_tasks: bool,
    /// Let tasks choose the profile trusted, or weaken the fences of theirs
    #[arg(long, global = true)]
    allow_trusted_tasks: bool,
    /// Profile of tasks that name none: default or trusted [default: default]
    #[arg(long, value_name = "PROFILE", global = true)]
    default_profile: Option<String>,
    /// Path that tasks without an image may read and execute below; may be given several times
    #[arg(long = "readable-path", value_name = "PATH", global = true)]
    readable_paths: Vec<PathBuf>,
    /// Directory that tasks may have as a volume, or below; may be given several times
    #[arg(long = "volume-dir", value_name = "DIR", global = true)]
    volume_dirs: Vec<PathBuf>,
    /// Hold revocable tasks to less while guaranteed ones wait? [default: true]
    #[arg(long, value_name = "BOOL", global = true)]
    qos: Option<bool>,
    /// Tell the master when CPU that is held back or lent has changed by this [default: 100]
    #[arg(long, value_name = "MILLI", global = true)]
    report_cpu_step_milli: Option<u64>,
    /// Tell the master when memory that is held back has changed by this [default: 64MiB]
    #[arg(long, value_name = "SIZE", global = true)]
    report_mem_step: Option<ByteSize>,
    /// Let frameworks ask what is below this directory and how large, which the agent looks at as root; may be given
    /// several times
    #[arg(long = "locality-root", value_name = "DIR", global = true)]
    locality_roots: Vec<PathBuf>,
}

fn attribute(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as rack=a7")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Settings {
    fn resolve(self) -> Result<Config, ConfigError> {
        let mut config = self.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
        macro_rules! overlay {
            ($($field:ident),*) => { $(if let Some(value) = self.$field { config.$field = value; })* };
        }
        overlay!(
            master,
            listen,
            advertise,
            work_dir,
            cgroup_root,
            bpf_dir,
            hostname,
            ports,
            cpus,
            mem,
            reserve_cpu_milli,
            reserve_mem,
            reserve_disk,
            disk_model,
            disk_offer_percent,
            net_interface,
            net_bandwidth,
            net_offer_percent,
            net_qdisc,
            measure_strangers,
            task_user,
            default_profile
        );
        config.attributes.extend(self.attributes);
        config.artifact_dirs.extend(self.artifact_dirs);
        config.image_dirs.extend(self.image_dirs);
        config.registries.extend(self.registries);
        if !self.allow_unenforced.is_empty() {
            config.allow_unenforced = self.allow_unenforced;
        }
        config.allow_root_tasks |= self.allow_root_tasks;
        config.allow_trusted_tasks |= self.allow_trusted_tasks;
        config.readable_paths.extend(self.readable_paths);
        config.volume_dirs.extend(self.volume_dirs);
        config.locality.roots.extend(self.locality_roots);
        config.qos.enabled = self.qos.unwrap_or(config.qos.enabled);
        let report = &mut config.report;
        report.cpu_step_milli = self.report_cpu_step_milli.unwrap_or(report.cpu_step_milli);
        report.mem_step = self.report_mem_step.unwrap_or(report.mem_step);
        config.check()?;
        Ok(config)
    }
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let filter = EnvFilter::try_from_env("BULKHEAD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        let colours = std::io::stderr().is_terminal();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(colours)
            .init();
        match self.command {
            None => serve(self.settings.resolve()?),
            Some(Command::Probe { json }) => probe(&self.settings.resolve()?, json),
            Some(Command::CalibrateDisk(args)) => calibrate::run(&args, &self.settings.resolve()?),
            Some(Command::Locality(args)) => {
                runtime()?.block_on(locality::run(&args, &self.settings.resolve()?))
            }
            Some(Command::Explain(args)) => {
                runtime()?.block_on(explain::run(&args, &self.settings.resolve()?))
            }
            Some(Command::Cleanup) => {
                runtime()?.block_on(node::cleanup(&self.settings.resolve()?))?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::BpfLoad { pin_dir, cgroup, task_level }) => {
                let report = bpf::load_and_pin(&bpf::LoadSpec { pin_dir, cgroup, task_level })?;
                for error in report.missing {
                    // The agent that started this reads it.
                    tracing::warn!("{:#}", anyhow::Error::new(error));
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// A launch blocks a thread for a fraction of a millisecond; more of them at once would only share the CPUs.
const BLOCKING_THREADS: usize = 16;

fn runtime() -> Result<tokio::runtime::Runtime> {
    // Two threads carry thousands of tasks: nearly all the time is waiting.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder.worker_threads(2).max_blocking_threads(BLOCKING_THREADS).enable_all().build();
    built.context("start the runtime")
}

fn serve(config: Config) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the agent needs root: it makes cgroups, loads BPF programs and runs tasks as other users");
    }
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
        tokio::select! {
            result = node::run(config) => result?,
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("stopping; tasks run on and the next agent finds them");
        Ok(ExitCode::SUCCESS)
    })
}

#[expect(clippy::print_stdout, reason = "the output of this subcommand")]
fn probe(config: &Config, json: bool) -> Result<ExitCode> {
    let features = Features::probe(&config.work_dir);
    if json {
        println!("{}", serde_json::to_string_pretty(&features)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "FEATURE",
        "HERE",
        "DETAIL",
        "WHAT IT ENFORCES, OR WHAT HAPPENS WITHOUT IT",
    ]);
    for f in &features.features {
        let effect = if f.available { f.enforces } else { f.without };
        table.add_row([f.name, if f.available { "yes" } else { "no" }, &f.detail, effect]);
    }
    println!("{table}");
    if !nix::unistd::geteuid().is_root() {
        tracing::warn!("asked without root: some features may be there for the agent");
    }
    Ok(ExitCode::SUCCESS)
}
