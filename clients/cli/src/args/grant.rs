//! What else a grant says: the same options for `run` and `resize`.

use std::time::Duration;

use bulkhead_proto::{
    rate::parse_bits_per_sec,
    v1::{Device, Grant, PortChoice, Resources, SocketKind},
};
use clap::Args;

use super::peer::PeerArgs;
use crate::quantity::{parse_cpus, parse_duration, parse_size};

/// What is not given stays as it is: nothing in a new grant, the present value in a resize.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "CPU, memory, disk, devices and network")]
pub(crate) struct GrantArgs {
    /// Let the task use idle CPU beyond its grant
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    cpu_burst: Option<bool>,
    /// Cap the CPU here instead of at the grant
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus, allow_negative_numbers = true)]
    cpu_limit: Option<u64>,
    /// Account the cap over this period: 1ms to 1s; 100ms unless given
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    cpu_period: Option<Duration>,
    /// CPU time that may be saved up while idle and used on top of the cap
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    cpu_savings: Option<Duration>,
    /// Whole physical cores of its own, with memory from their NUMA node
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    exclusive_cores: Option<bool>,
    /// Take these cores out of the scheduler's load balancing
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    isolated_cores: Option<bool>,
    /// Never run beside another task on one physical core
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    core_scheduling: Option<bool>,

    /// Limit the memory here instead of at the grant; what exceeds the grant is not protected
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    mem_limit: Option<u64>,
    /// Slow the task down and reclaim from it above this
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    mem_high: Option<u64>,
    /// Swap that it may use; none unless given
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    swap: Option<u64>,
    /// End the task when it loses this percentage of its time to memory stalls ...
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    mem_stall_percent: Option<u32>,
    /// ... for this long
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    mem_stall_time: Option<Duration>,
    /// At the memory limit, end one process and not the whole task
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oom_one_process: Option<bool>,

    /// Space for the sandbox, output included; the agent's default unless given
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    disk: Option<u64>,
    /// Files and directories in the sandbox
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    inodes: Option<u64>,
    /// Keep this much of the end of standard output, and of standard error
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    output: Option<u64>,
    /// Bytes to read from disk in a second
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    disk_read: Option<u64>,
    /// Bytes to write to disk in a second
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    disk_write: Option<u64>,
    /// Disk reads in a second
    #[arg(long, value_name = "NUMBER")]
    disk_read_iops: Option<u64>,
    /// Disk writes in a second
    #[arg(long, value_name = "NUMBER")]
    disk_write_iops: Option<u64>,
    /// Share of the disk under contention, 1 to 10000; 100 unless given
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    io_weight: Option<u32>,

    /// Bandwidth to send with whatever others do, such as 100Mbit
    #[arg(long, value_name = "RATE", value_parser = parse_bits_per_sec)]
    net_egress: Option<u64>,
    /// Send at this rate at most; the whole link, as far as others leave it, unless given
    #[arg(long, value_name = "RATE", value_parser = parse_bits_per_sec)]
    net_egress_ceiling: Option<u64>,
    /// Bandwidth to receive with
    #[arg(long, value_name = "RATE", value_parser = parse_bits_per_sec)]
    net_ingress: Option<u64>,
    /// Receive at this rate at most, instead of at the grant
    #[arg(long, value_name = "RATE", value_parser = parse_bits_per_sec)]
    net_ingress_ceiling: Option<u64>,

    /// Most processes and threads at once; the agent's default unless given
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    /// A device besides the harmless ones: /dev/fuse or /dev/fuse:r, of r, w and m
    #[arg(long, value_name = "PATH[:ACCESS]", value_parser = parse_device)]
    device: Vec<Device>,

    /// What a port may be that the kernel chooses; clients-ephemeral unless given
    #[arg(long, value_enum, value_name = "POLICY")]
    port_choice: Option<Choice>,
    /// A kind of socket besides TCP and UDP, where the agent allows it
    #[arg(long, value_enum, value_name = "KIND")]
    socket: Vec<Socket>,

    #[command(flatten)]
    peers: PeerArgs,
}

/// As [`PortChoice`].
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Choice {
    /// bind() to port 0 takes a granted port, clients an ephemeral one
    ClientsEphemeral,
    /// Granted ports alone, for clients too
    Granted,
    /// Ephemeral ports
    Ephemeral,
    /// None: the task binds granted ports by number
    None,
}

/// As [`SocketKind`].
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Socket {
    /// Raw IP
    Raw,
    /// SCTP
    Sctp,
    /// Whole frames
    Packet,
}

impl From<Choice> for PortChoice {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::ClientsEphemeral => Self::ClientsEphemeral,
            Choice::Granted => Self::Granted,
            Choice::Ephemeral => Self::Ephemeral,
            Choice::None => Self::None,
        }
    }
}

impl From<Socket> for SocketKind {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Raw => Self::Raw,
            Socket::Sctp => Self::Sctp,
            Socket::Packet => Self::Packet,
        }
    }
}

impl GrantArgs {
    /// Changes the amounts that were given.
    pub(crate) fn amounts(&self, amounts: &mut Resources) {
        set(&mut amounts.disk_bytes, self.disk);
        set(&mut amounts.disk_read_bytes_per_sec, self.disk_read);
        set(&mut amounts.disk_write_bytes_per_sec, self.disk_write);
        set(&mut amounts.disk_read_ops_per_sec, self.disk_read_iops);
        set(&mut amounts.disk_write_ops_per_sec, self.disk_write_iops);
        set(&mut amounts.net_egress_bits_per_sec, self.net_egress);
        set(&mut amounts.net_ingress_bits_per_sec, self.net_ingress);
    }

    /// Changes the rest of what was given.
    pub(crate) fn options(&self, grant: &mut Grant) {
        set(&mut grant.cpu_burst, self.cpu_burst);
        set(&mut grant.pids_max, self.pids);
        if !self.device.is_empty() {
            grant.devices.clone_from(&self.device);
        }
        let mut cpu = grant.cpu.unwrap_or_default();
        set(&mut cpu.limit_milli, self.cpu_limit);
        set(&mut cpu.period_usec, self.cpu_period.map(|t| usec(t).try_into().unwrap_or(u32::MAX)));
        set(&mut cpu.burst_usec, self.cpu_savings.map(usec));
        set(&mut cpu.exclusive, self.exclusive_cores);
        set(&mut cpu.isolated, self.isolated_cores);
        set(&mut cpu.core_scheduling, self.core_scheduling);
        grant.cpu = Some(cpu).filter(|options| *options != Default::default());

        let mut mem = grant.mem.unwrap_or_default();
        set(&mut mem.limit_bytes, self.mem_limit);
        set(&mut mem.high_bytes, self.mem_high);
        set(&mut mem.swap_bytes, self.swap);
        set(&mut mem.stall_percent, self.mem_stall_percent);
        set(&mut mem.stall_ms, self.mem_stall_time.map(crate::quantity::millis));
        set(&mut mem.oom_one_process, self.oom_one_process);
        grant.mem = Some(mem).filter(|options| *options != Default::default());

        let mut disk = grant.disk.unwrap_or_default();
        set(&mut disk.inodes, self.inodes);
        set(&mut disk.output_bytes, self.output);
        set(&mut disk.io_weight, self.io_weight);
        grant.disk = Some(disk).filter(|options| *options != Default::default());

        let mut net = grant.net.take().unwrap_or_default();
        self.peers.apply(&mut net);
        set(&mut net.port_choice, self.port_choice.map(|choice| PortChoice::from(choice).into()));
        if !self.socket.is_empty() {
            net.sockets = self.socket.iter().map(|&kind| SocketKind::from(kind).into()).collect();
        }
        set(&mut net.egress_ceiling_bits_per_sec, self.net_egress_ceiling);
        set(&mut net.ingress_ceiling_bits_per_sec, self.net_ingress_ceiling);
        grant.net = Some(net).filter(|options| *options != Default::default());
    }
}

fn set<T>(field: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *field = value;
    }
}

fn usec(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn parse_device(text: &str) -> Result<Device, String> {
    let (path, access) = text.rsplit_once(':').unwrap_or((text, ""));
    if !path.starts_with("/dev/") {
        return Err("name a file below /dev, like /dev/fuse".to_owned());
    }
    if access.chars().any(|c| !"rwm".contains(c)) {
        return Err("access is any of r (read), w (write) and m (make)".to_owned());
    }
    Ok(Device { path: path.to_owned(), access: access.to_owned() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GrantArgs,
    }

    fn args(line: &[&str]) -> GrantArgs {
        Line::try_parse_from([&["x"], line].concat()).unwrap().args
    }

    #[test]
    fn what_is_not_given_stays() {
        let mut grant = Grant { pids_max: 7, cpu_burst: true, ..Grant::default() };
        let before = grant.clone();
        args(&[]).options(&mut grant);
        assert_eq!(grant, before);
        args(&["--cpu-burst=false", "--mem-high", "64MiB"]).options(&mut grant);
        assert_eq!((grant.pids_max, grant.cpu_burst), (7, false));
        assert_eq!(grant.mem.unwrap().high_bytes, 64 << 20);
        assert_eq!((grant.cpu, grant.disk), (None, None));
    }

    #[test]
    fn units_are_the_protocols() {
        let mut grant = Grant::default();
        args(&["--cpu-period", "50ms", "--cpu-savings", "1ms", "--mem-stall-time", "3s"]).options(&mut grant);
        let (cpu, mem) = (grant.cpu.unwrap(), grant.mem.unwrap());
        assert_eq!((cpu.period_usec, cpu.burst_usec, mem.stall_ms), (50_000, 1_000, 3_000));
        let mut amounts = Resources::default();
        args(&["--disk", "1GiB", "--disk-read", "10MB", "--disk-write-iops", "50"]).amounts(&mut amounts);
        let got = (amounts.disk_bytes, amounts.disk_read_bytes_per_sec, amounts.disk_write_ops_per_sec);
        assert_eq!(got, (1 << 30, 10_000_000, 50));
        let net = args(&["--net-egress", "100Mbit", "--net-egress-ceiling", "1Gbit"]);
        net.amounts(&mut amounts);
        net.options(&mut grant);
        let ceiling = grant.net.unwrap().egress_ceiling_bits_per_sec;
        assert_eq!((amounts.net_egress_bits_per_sec, ceiling), (100_000_000, 1_000_000_000));
        let zero = Line::try_parse_from(["x", "--net-egress", "0Mbit"]);
        assert!(zero.err().unwrap().to_string().contains("above zero"));
    }

    #[test]
    fn policies_and_sockets_are_named() {
        let mut grant = Grant::default();
        args(&["--port-choice", "granted", "--socket", "raw", "--socket", "sctp"]).options(&mut grant);
        let net = grant.net.clone().unwrap();
        assert_eq!((net.port_choice(), net.sockets), (PortChoice::Granted, vec![1, 2]));
        args(&["--port-choice", "none"]).options(&mut grant);
        let net = grant.net.unwrap();
        assert_eq!((net.port_choice(), net.sockets.len()), (PortChoice::None, 2), "what is not given stays");
    }

    #[test]
    fn devices_are_files_below_dev() {
        let device = |path: &str, access: &str| Device { path: path.into(), access: access.into() };
        assert_eq!(parse_device("/dev/fuse"), Ok(device("/dev/fuse", "")));
        assert_eq!(parse_device("/dev/net/tun:rw"), Ok(device("/dev/net/tun", "rw")));
        assert!(parse_device("/etc/passwd:r").is_err());
        assert!(parse_device("/dev/fuse:x").is_err());
    }
}
