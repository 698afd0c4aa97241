//! A grant that was checked: the set of limits that the isolators turn into kernel state. Pure.

use std::{
    ops::RangeInclusive,
    path::{Component, PathBuf},
    time::Duration,
};

use bulkhead_proto::{
    rate::bits_per_sec,
    resources::{PortSet, PortSetError},
    v1,
};

pub mod talk;

use talk::{TalkError, TalkGrant};

/// How firmly a grant is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The promise: held until the task ends.
    Guaranteed,
    /// CPU that is idle otherwise; may be taken back.
    Revocable,
}

/// What a task may use, checked once on arrival. Each isolator reads its own part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Thousandths of a CPU; at least [`MIN_CPU_MILLI`].
    pub cpu_milli: u64,
    /// Bytes of memory, page cache included; at least [`MIN_MEM_BYTES`].
    pub mem_bytes: u64,
    /// Ports it may bind.
    pub ports: PortSet,
    /// How firmly all this is held.
    pub class: Class,
    /// Processes and threads at once.
    pub pids_max: u64,
    /// How the CPU is held.
    pub cpu: CpuGrant,
    /// How the memory is held.
    pub mem: MemGrant,
    /// Space and traffic of the disk.
    pub disk: DiskGrant,
    /// Devices besides the harmless ones.
    pub devices: Vec<DeviceRule>,
    /// What it may do on the network besides binding ports.
    pub net: NetGrant,
    /// What it may send and receive.
    pub bandwidth: Bandwidth,
    /// Whom it may talk to.
    pub talk: TalkGrant,
}

/// What a task may do on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetGrant {
    /// What a port may be that the kernel is asked to choose; never unspecified.
    pub port_choice: v1::PortChoice,
    /// Besides TCP, UDP and ping sockets; ascending, each once.
    pub sockets: Vec<v1::SocketKind>,
}

/// Of a task that names nothing.
impl Default for NetGrant {
    fn default() -> Self {
        Self { port_choice: v1::PortChoice::ClientsEphemeral, sockets: Vec::new() }
    }
}

/// How the granted CPU is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuGrant {
    /// The cap in thousandths of a CPU; `None` is no cap.
    pub cap_milli: Option<u64>,
    /// Length of the accounting period.
    pub period_usec: u64,
    /// CPU time that may be saved up while idle; at most the quota of one period.
    pub burst_usec: u64,
    /// Whole cores of its own.
    pub exclusive: bool,
    /// And those out of the scheduler's load balancing.
    pub isolated: bool,
    /// Never beside another task on one physical core.
    pub core_scheduling: bool,
}

/// How the granted memory is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemGrant {
    /// The hard limit; at least the grant.
    pub max_bytes: u64,
    /// From here on the task is slowed down and reclaimed from.
    pub high_bytes: Option<u64>,
    /// Swap it may use.
    pub swap_bytes: u64,
    /// Above `high_bytes`: ended when this percentage of its time is lost to memory stalls...
    pub stall_percent: u32,
    /// ... for this long.
    pub stall_for: Duration,
    /// Does the whole task end at the limit, or only one process?
    pub oom_group: bool,
}

/// Space and traffic of the disk below the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskGrant {
    /// Limit of the sandbox, and what is booked for it: what was asked for, or else the default. A default that was not
    /// booked could fill the disk that others were promised. 0 where nothing holds the task to a default.
    pub bytes: u64,
    /// Files and directories in it.
    pub inodes: u64,
    /// What each of stdout and stderr keeps of its end.
    pub output_bytes: u64,
    /// Share under contention.
    pub io_weight: u32,
    /// What it may move; `None` is no cap.
    pub read_bytes_per_sec: Option<u64>,
    /// As above, written.
    pub write_bytes_per_sec: Option<u64>,
    /// Read operations.
    pub read_ops_per_sec: Option<u64>,
    /// Write operations.
    pub write_ops_per_sec: Option<u64>,
}

/// What a task may send and receive, in bits a second; `None` is nothing granted, or no ceiling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Sent whatever others do.
    pub egress_bits_per_sec: Option<u64>,
    /// Sent at most; at least the grant.
    pub egress_ceiling_bits_per_sec: Option<u64>,
    /// Received.
    pub ingress_bits_per_sec: Option<u64>,
    /// Received at most; at least the grant.
    pub ingress_ceiling_bits_per_sec: Option<u64>,
}

/// Access to one device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Its file, below /dev.
    pub path: PathBuf,
    /// May it be read?
    pub read: bool,
    /// May it be written?
    pub write: bool,
    /// May its file be made?
    pub make: bool,
}

/// What stands in where a grant names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantDefaults {
    /// Processes and threads.
    pub pids_max: u64,
    /// Space of a sandbox; 0 where no quota holds it.
    pub disk_bytes: u64,
    /// Of each output.
    pub output_bytes: u64,
    /// See [`MemGrant::stall_percent`].
    pub stall_percent: u32,
    /// See [`MemGrant::stall_for`].
    pub stall_for: Duration,
}

/// The kernel's own accounting period: long enough that the cost of throttling does not show, short enough that
/// a capped service is not away for long.
pub const PERIOD_USEC: u64 = 100_000;
/// The periods that `cpu.max` takes.
const PERIODS_USEC: RangeInclusive<u64> = 1_000..=1_000_000;
/// One inode for each of this many granted bytes, as ext4 is made by default.
const BYTES_PER_INODE: u64 = 16 * 1024;
/// Even a small sandbox holds a few files.
const MIN_INODES: u64 = 128;
/// The kernel's default share.
pub const IO_WEIGHT: u32 = 100;
/// The shares that `io.weight` takes.
const IO_WEIGHTS: RangeInclusive<u32> = 1..=10_000;
/// The least quota of a period that `cpu.max` takes.
pub const MIN_QUOTA_USEC: u64 = 1000;
/// That quota, of the default period.
pub const MIN_CPU_MILLI: u64 = 10;
/// Twice what the smallest dynamically linked program needs to get as far as its `main`. What needs more is ended by
/// the kernel, or crawls because its own code is taken from it again and again.
pub const MIN_MEM_BYTES: u64 = 1 << 20;
/// The directories of an empty sandbox and the first lines of its output.
pub const MIN_DISK_BYTES: u64 = 128 * 1024;
/// The least rate of a network that can be kept: a packet of 1500 bytes a fifth of a second.
pub const MIN_BITS_PER_SEC: u64 = 64_000;
/// More than any interface has: such a rate is a mistake in a unit.
pub const MAX_BITS_PER_SEC: u64 = 10_000_000_000_000;
/// Larger requests are mistakes in a unit: no machine has a million CPUs or an exbibyte of memory.
const MAX_CPU_MILLI: u64 = 1_000_000_000;
const MAX_MEM_BYTES: u64 = 1 << 60;
const MAX_DISK_BYTES: u64 = 1 << 60;

/// PID_MAX_LIMIT of 64-bit kernels.
const MAX_PIDS: u64 = 4_194_304;

/// A grant that no kernel can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// There is no grant in the task.
    #[error("the task names no grant: say how much CPU and memory it may use")]
    Missing,
    /// The class is not one of the two.
    #[error("class {0} is neither guaranteed (1) nor revocable (2)")]
    Class(i32),
    /// Too little or too much CPU.
    #[error("{0} thousandths of a CPU: ask for {MIN_CPU_MILLI} to {MAX_CPU_MILLI}")]
    Cpu(u64),
    /// Too little or too much memory.
    #[error("{0} bytes of memory: ask for {MIN_MEM_BYTES} to {MAX_MEM_BYTES}")]
    Memory(u64),
    /// More processes than any kernel numbers.
    #[error("{0} processes: ask for 1 to {MAX_PIDS}")]
    Pids(u64),
    /// Ports that do not exist.
    #[error(transparent)]
    Ports(#[from] PortSetError),
    /// An option of the CPU that no kernel takes.
    #[error("cpu: {0}")]
    CpuOption(String),
    /// An option of the memory that no kernel takes.
    #[error("memory: {0}")]
    MemOption(String),
    /// An option of the disk that no kernel takes.
    #[error("disk: {0}")]
    DiskOption(String),
    /// An option of the network that does not exist.
    #[error("net: {0}")]
    NetOption(String),
    /// A bandwidth that nothing can be held to.
    #[error("bandwidth: {0}")]
    Bandwidth(String),
    /// A rule about peers that no kernel takes.
    #[error("network: {0}")]
    Talk(#[from] TalkError),
    /// No device of the host.
    #[error("device {path:?}: {why}")]
    Device {
        /// As it was asked for.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl Grant {
    /// Checks a grant from outside; `defaults` stand in where it names nothing.
    ///
    /// # Errors
    /// [`GrantError`] says what is impossible about it.
    pub fn check(grant: Option<&v1::Grant>, defaults: &GrantDefaults) -> Result<Self, GrantError> {
        let grant = grant.ok_or(GrantError::Missing)?;
        let resources = grant.resources.as_ref().ok_or(GrantError::Missing)?;
        let class = match v1::ResourceClass::try_from(grant.class) {
            Ok(v1::ResourceClass::Guaranteed) => Class::Guaranteed,
            Ok(v1::ResourceClass::Revocable) => Class::Revocable,
            Ok(v1::ResourceClass::Unspecified) | Err(_) => return Err(GrantError::Class(grant.class)),
        };
        if !(MIN_CPU_MILLI..=MAX_CPU_MILLI).contains(&resources.cpu_milli) {
            return Err(GrantError::Cpu(resources.cpu_milli));
        }
        if !(MIN_MEM_BYTES..=MAX_MEM_BYTES).contains(&resources.mem_bytes) {
            return Err(GrantError::Memory(resources.mem_bytes));
        }
        let pids_max = or_default(grant.pids_max, defaults.pids_max);
        if pids_max > MAX_PIDS {
            return Err(GrantError::Pids(pids_max));
        }
        Ok(Self {
            cpu_milli: resources.cpu_milli,
            mem_bytes: resources.mem_bytes,
            ports: resources.port_set()?,
            class,
            pids_max,
            cpu: cpu(grant, resources.cpu_milli, class)?,
            mem: mem(grant, resources.mem_bytes, defaults)?,
            disk: disk(grant, resources, defaults)?,
            devices: grant.devices.iter().map(device).collect::<Result<_, _>>()?,
            net: net(grant)?,
            bandwidth: bandwidth(grant, resources)?,
            talk: grant.net.as_ref().map(TalkGrant::check).transpose()?.unwrap_or_default(),
        })
    }
}

fn or_default(asked: u64, default: u64) -> u64 {
    if asked == 0 { default } else { asked }
}

fn cpu(grant: &v1::Grant, cpu_milli: u64, class: Class) -> Result<CpuGrant, GrantError> {
    let options = grant.cpu.unwrap_or_default();
    let bad = |why: String| Err(GrantError::CpuOption(why));
    let period_usec = or_default(options.period_usec.into(), PERIOD_USEC);
    if !PERIODS_USEC.contains(&period_usec) {
        return bad(format!("a period of {period_usec} us: give {PERIODS_USEC:?} us"));
    }
    let cap_milli = match options.limit_milli {
        0 if grant.cpu_burst => None,
        limit => Some(or_default(limit, cpu_milli)),
    };
    if let Some(cap) = cap_milli.filter(|cap| !(cpu_milli..=MAX_CPU_MILLI).contains(cap)) {
        return bad(format!(
            "a limit of {cap} thousandths of a CPU is below the grant of {cpu_milli}, or absurd"
        ));
    }
    let quota_usec = cap_milli.unwrap_or(0).saturating_mul(period_usec) / 1000;
    if cap_milli.is_some() && quota_usec < MIN_QUOTA_USEC {
        return bad(format!(
            "the cap is {quota_usec} us of each period, and the kernel takes {MIN_QUOTA_USEC} us or more: choose a \
             period of at least {} us",
            (MIN_QUOTA_USEC * 1000).div_ceil(cap_milli.unwrap_or(1))
        ));
    }
    if options.burst_usec > quota_usec {
        return bad(format!(
            "a burst of {} us is more than the quota of one period, {quota_usec} us",
            options.burst_usec
        ));
    }
    if options.exclusive && class == Class::Revocable {
        return bad("exclusive cores are never revocable: choose one".to_owned());
    }
    if options.exclusive && !cpu_milli.is_multiple_of(1000) {
        return bad(format!("exclusive cores are whole: {cpu_milli} thousandths of a CPU are not"));
    }
    if options.isolated && !options.exclusive {
        return bad("only exclusive cores can be isolated: ask for both".to_owned());
    }
    Ok(CpuGrant {
        cap_milli,
        period_usec,
        burst_usec: options.burst_usec,
        exclusive: options.exclusive,
        isolated: options.isolated,
        core_scheduling: options.core_scheduling,
    })
}

fn mem(grant: &v1::Grant, mem_bytes: u64, defaults: &GrantDefaults) -> Result<MemGrant, GrantError> {
    let options = grant.mem.unwrap_or_default();
    let bad = |why: String| Err(GrantError::MemOption(why));
    let max_bytes = or_default(options.limit_bytes, mem_bytes);
    if !(mem_bytes..=MAX_MEM_BYTES).contains(&max_bytes) {
        return bad(format!("a limit of {max_bytes} bytes is below the grant of {mem_bytes}, or absurd"));
    }
    let high_bytes = Some(options.high_bytes).filter(|high| *high > 0);
    if let Some(high) = high_bytes.filter(|high| !(MIN_MEM_BYTES..=max_bytes).contains(high)) {
        return bad(format!(
            "slowing down at {high} bytes: choose {MIN_MEM_BYTES} to {max_bytes}, the limit"
        ));
    }
    if options.swap_bytes > MAX_MEM_BYTES {
        return bad(format!("{} bytes of swap", options.swap_bytes));
    }
    if options.stall_percent > 100 {
        return bad(format!("stalled for {} % of the time: give 1 to 100", options.stall_percent));
    }
    let stall_percent =
        if options.stall_percent == 0 { defaults.stall_percent } else { options.stall_percent };
    let stall_for =
        if options.stall_ms == 0 { defaults.stall_for } else { Duration::from_millis(options.stall_ms) };
    Ok(MemGrant {
        max_bytes,
        high_bytes,
        swap_bytes: options.swap_bytes,
        stall_percent,
        stall_for,
        oom_group: !options.oom_one_process,
    })
}

fn disk(
    grant: &v1::Grant,
    resources: &v1::Resources,
    defaults: &GrantDefaults,
) -> Result<DiskGrant, GrantError> {
    let options = grant.disk.unwrap_or_default();
    let bytes = or_default(resources.disk_bytes, defaults.disk_bytes);
    if bytes > 0 && !(MIN_DISK_BYTES..=MAX_DISK_BYTES).contains(&bytes) {
        let range = format!("{MIN_DISK_BYTES} to {MAX_DISK_BYTES}");
        return Err(GrantError::DiskOption(format!("{bytes} bytes: ask for {range}")));
    }
    let io_weight = if options.io_weight == 0 { IO_WEIGHT } else { options.io_weight };
    if !IO_WEIGHTS.contains(&io_weight) {
        return Err(GrantError::DiskOption(format!("a weight of {io_weight}: give {IO_WEIGHTS:?}")));
    }
    let cap = |rate: u64| Some(rate).filter(|rate| *rate > 0);
    Ok(DiskGrant {
        bytes,
        inodes: or_default(options.inodes, (bytes / BYTES_PER_INODE).max(MIN_INODES)),
        output_bytes: or_default(options.output_bytes, defaults.output_bytes),
        io_weight,
        read_bytes_per_sec: cap(resources.disk_read_bytes_per_sec),
        write_bytes_per_sec: cap(resources.disk_write_bytes_per_sec),
        read_ops_per_sec: cap(resources.disk_read_ops_per_sec),
        write_ops_per_sec: cap(resources.disk_write_ops_per_sec),
    })
}

fn net(grant: &v1::Grant) -> Result<NetGrant, GrantError> {
    let options = grant.net.clone().unwrap_or_default();
    let port_choice = match v1::PortChoice::try_from(options.port_choice) {
        Ok(v1::PortChoice::Unspecified) => NetGrant::default().port_choice,
        Ok(choice) => choice,
        Err(_) => {
            let choice = options.port_choice;
            return Err(GrantError::NetOption(format!("port_choice {choice} is none that this agent knows")));
        }
    };
    let kind = |number: &i32| match v1::SocketKind::try_from(*number) {
        Ok(v1::SocketKind::Unspecified) | Err(_) => {
            let known = "raw (1), sctp (2) or packet (3)";
            Err(GrantError::NetOption(format!("sockets of kind {number}: name {known}")))
        }
        Ok(kind) => Ok(kind),
    };
    let mut sockets = options.sockets.iter().map(kind).collect::<Result<Vec<_>, _>>()?;
    sockets.sort_unstable();
    sockets.dedup();
    Ok(NetGrant { port_choice, sockets })
}

fn bandwidth(grant: &v1::Grant, resources: &v1::Resources) -> Result<Bandwidth, GrantError> {
    let (egress_ceiling, ingress_ceiling) = grant.net.as_ref().map_or((0, 0), |options| {
        (options.egress_ceiling_bits_per_sec, options.ingress_ceiling_bits_per_sec)
    });
    let one = |what: &str, granted: u64, ceiling: u64| {
        let bad = |why: String| Err(GrantError::Bandwidth(format!("{what} {why}")));
        for bits in [granted, ceiling].into_iter().filter(|bits| *bits > 0) {
            if !(MIN_BITS_PER_SEC..=MAX_BITS_PER_SEC).contains(&bits) {
                let (least, most) = (bits_per_sec(MIN_BITS_PER_SEC), bits_per_sec(MAX_BITS_PER_SEC));
                return bad(format!("{}: ask for {least} to {most}", bits_per_sec(bits)));
            }
        }
        if ceiling > 0 && ceiling < granted {
            let (ceiling, granted) = (bits_per_sec(ceiling), bits_per_sec(granted));
            return bad(format!("at most {ceiling}, which is less than the {granted} of the grant"));
        }
        let some = |bits: u64| Some(bits).filter(|bits| *bits > 0);
        Ok((some(granted), some(ceiling)))
    };
    let egress = one("to send", resources.net_egress_bits_per_sec, egress_ceiling)?;
    let ingress = one("to receive", resources.net_ingress_bits_per_sec, ingress_ceiling)?;
    Ok(Bandwidth {
        egress_bits_per_sec: egress.0,
        egress_ceiling_bits_per_sec: egress.1,
        ingress_bits_per_sec: ingress.0,
        ingress_ceiling_bits_per_sec: ingress.1,
    })
}

fn device(asked: &v1::Device) -> Result<DeviceRule, GrantError> {
    let bad = |why| GrantError::Device { path: asked.path.clone(), why };
    let path = PathBuf::from(&asked.path);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.starts_with("/dev") || path.components().count() < 3 || !plain {
        return Err(bad("name a file below /dev"));
    }
    let access = if asked.access.is_empty() { "rw" } else { &asked.access };
    if !access.chars().all(|c| "rwm".contains(c)) {
        return Err(bad("access is any of r, w and m"));
    }
    Ok(DeviceRule {
        path,
        read: access.contains('r'),
        write: access.contains('w'),
        make: access.contains('m'),
    })
}

/// Defaults for tests of this crate.
#[cfg(test)]
pub(crate) const TEST_DEFAULTS: GrantDefaults = GrantDefaults {
    pids_max: 9,
    disk_bytes: 0,
    output_bytes: 1 << 16,
    stall_percent: 50,
    stall_for: Duration::from_secs(10),
};

/// A grant of CPU and memory alone, for tests of this crate.
#[cfg(test)]
pub(crate) fn plain(class: Class, cpu_milli: u64, mem_bytes: u64) -> Grant {
    let resources = v1::Resources { cpu_milli, mem_bytes, ..v1::Resources::default() };
    let mut grant = v1::Grant { resources: Some(resources.clone()), class: 1, ..v1::Grant::default() };
    if class == Class::Revocable {
        grant.class = 2;
    }
    Grant {
        cpu_milli,
        mem_bytes,
        ports: PortSet::default(),
        class,
        pids_max: TEST_DEFAULTS.pids_max,
        cpu: cpu(&grant, cpu_milli.max(MIN_CPU_MILLI), class).unwrap(),
        mem: mem(&grant, mem_bytes, &TEST_DEFAULTS).unwrap(),
        disk: disk(&grant, &resources, &TEST_DEFAULTS).unwrap(),
        devices: vec![],
        net: NetGrant::default(),
        bandwidth: Bandwidth::default(),
        talk: TalkGrant::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(cpu_milli: u64, mem_bytes: u64) -> v1::Grant {
        let resources = v1::Resources { cpu_milli, mem_bytes, ports: vec![], ..v1::Resources::default() };
        v1::Grant {
            resources: Some(resources),
            class: v1::ResourceClass::Guaranteed.into(),
            ..Default::default()
        }
    }

    #[test]
    fn impossible_grants_are_named() {
        let check = |grant: &v1::Grant| Grant::check(Some(grant), &TEST_DEFAULTS);
        assert_eq!(check(&asked(0, 1 << 20)), Err(GrantError::Cpu(0)));
        assert_eq!(check(&asked(u64::MAX, 1 << 20)), Err(GrantError::Cpu(u64::MAX)));
        assert_eq!(check(&asked(100, 4096)), Err(GrantError::Memory(4096)));
        assert_eq!(check(&asked(100, u64::MAX)), Err(GrantError::Memory(u64::MAX)));
        assert_eq!(Grant::check(None, &TEST_DEFAULTS), Err(GrantError::Missing));
        let class = v1::Grant { class: 7, ..asked(100, 1 << 20) };
        assert_eq!(check(&class), Err(GrantError::Class(7)));
        let pids = v1::Grant { pids_max: u64::MAX, ..asked(100, 1 << 20) };
        assert_eq!(check(&pids), Err(GrantError::Pids(u64::MAX)));
        let mut ports = asked(100, 1 << 20);
        ports.resources.as_mut().unwrap().ports.push(v1::PortRange {
            first: 0,
            last: 70_000,
            ..v1::PortRange::default()
        });
        assert!(matches!(check(&ports), Err(GrantError::Ports(_))));
    }

    #[test]
    fn the_default_number_of_processes_is_the_agents() {
        assert_eq!(Grant::check(Some(&asked(100, 1 << 20)), &TEST_DEFAULTS).unwrap().pids_max, 9);
        let own = v1::Grant { pids_max: 3, ..asked(100, 1 << 20) };
        assert_eq!(Grant::check(Some(&own), &TEST_DEFAULTS).unwrap().pids_max, 3);
    }

    #[test]
    fn options_that_no_kernel_takes_are_named() {
        let refused = |grant: v1::Grant| Grant::check(Some(&grant), &TEST_DEFAULTS).unwrap_err().to_string();
        let cpu = |cpu| v1::Grant { cpu: Some(cpu), ..asked(1500, 1 << 20) };
        let options = v1::CpuOptions::default();
        assert!(refused(cpu(v1::CpuOptions { limit_milli: 1000, ..options })).contains("below the grant"));
        assert!(refused(cpu(v1::CpuOptions { period_usec: 10, ..options })).contains("period"));
        let short = v1::CpuOptions { period_usec: 1000, limit_milli: 0, ..options };
        let short = refused(v1::Grant { cpu: Some(short), ..asked(300, 1 << 20) });
        assert!(short.contains("at least 3334 us"), "{short}");
        assert!(refused(cpu(v1::CpuOptions { burst_usec: 150_001, ..options })).contains("150000 us"));
        assert!(refused(cpu(v1::CpuOptions { exclusive: true, ..options })).contains("whole"));
        assert!(refused(cpu(v1::CpuOptions { isolated: true, ..options })).contains("exclusive"));
        let both = v1::CpuOptions { exclusive: true, ..options };
        let revocable = v1::Grant { class: 2, cpu: Some(both), ..asked(1000, 1 << 20) };
        assert!(refused(revocable).contains("never revocable"));

        let mem = |mem| v1::Grant { mem: Some(mem), ..asked(100, 1 << 20) };
        let options = v1::MemOptions::default();
        assert!(refused(mem(v1::MemOptions { limit_bytes: 1, ..options })).contains("below the grant"));
        assert!(refused(mem(v1::MemOptions { high_bytes: 1 << 21, ..options })).contains("slowing down"));
        assert!(refused(mem(v1::MemOptions { stall_percent: 101, ..options })).contains("101 %"));

        let weight = v1::DiskOptions { io_weight: 10_001, ..v1::DiskOptions::default() };
        assert!(refused(v1::Grant { disk: Some(weight), ..asked(100, 1 << 20) }).contains("10001"));
        for path in ["/etc/passwd", "/dev", "/dev/../etc/passwd", "null", ""] {
            let device = v1::Device { path: path.into(), access: "r".into() };
            assert!(
                refused(v1::Grant { devices: vec![device], ..asked(100, 1 << 20) }).contains("below /dev")
            );
        }
        let mut little = asked(100, 1 << 20);
        little.resources.as_mut().unwrap().disk_bytes = 4096;
        assert!(refused(little).contains("4096 bytes"));
        let device = v1::Device { path: "/dev/fuse".into(), access: "rx".into() };
        assert!(refused(v1::Grant { devices: vec![device], ..asked(100, 1 << 20) }).contains("r, w and m"));

        let net = |net| refused(v1::Grant { net: Some(net), ..asked(100, 1 << 20) });
        assert!(
            net(v1::NetOptions { port_choice: 9, ..v1::NetOptions::default() }).contains("port_choice 9")
        );
        for kind in [0, 9] {
            let options = v1::NetOptions { sockets: vec![1, kind], ..v1::NetOptions::default() };
            assert!(net(options).contains(&format!("kind {kind}")));
        }
    }

    #[test]
    fn bandwidths_that_nothing_can_be_held_to_are_named() {
        let refused = |egress: u64, ceiling: u64| {
            let mut grant = asked(100, 1 << 20);
            grant.resources.as_mut().unwrap().net_egress_bits_per_sec = egress;
            grant.net =
                Some(v1::NetOptions { egress_ceiling_bits_per_sec: ceiling, ..v1::NetOptions::default() });
            Grant::check(Some(&grant), &TEST_DEFAULTS).map(|grant| grant.bandwidth).map_err(|e| e.to_string())
        };
        assert!(refused(1000, 0).unwrap_err().contains("to send 1 kbit/s: ask for 64 kbit/s"));
        assert!(refused(u64::MAX, 0).unwrap_err().contains("to 10 Tbit/s"));
        let below = refused(2_000_000, 1_000_000).unwrap_err();
        assert!(below.contains("at most 1 Mbit/s, which is less than the 2 Mbit/s"), "{below}");
        let capped = refused(2_000_000, 2_000_000).unwrap();
        assert_eq!(capped.egress_ceiling_bits_per_sec, capped.egress_bits_per_sec);
        assert_eq!(refused(0, 0).unwrap(), Bandwidth::default());
    }

    #[test]
    fn what_a_grant_leaves_out_follows_from_it() {
        let check = |grant: v1::Grant| Grant::check(Some(&grant), &TEST_DEFAULTS).unwrap();
        let plain = check(asked(500, 1 << 20));
        assert_eq!((plain.cpu.cap_milli, plain.cpu.period_usec), (Some(500), PERIOD_USEC));
        assert_eq!((plain.mem.max_bytes, plain.mem.high_bytes, plain.mem.oom_group), (1 << 20, None, true));
        assert_eq!((plain.disk.bytes, plain.disk.inodes), (0, MIN_INODES));
        let held = GrantDefaults { disk_bytes: 64 << 20, ..TEST_DEFAULTS };
        let disk = Grant::check(Some(&asked(500, 1 << 20)), &held).unwrap().disk;
        assert_eq!((disk.bytes, disk.inodes), (64 << 20, (64 << 20) / BYTES_PER_INODE));
        assert_eq!(plain.disk.read_bytes_per_sec, None);
        assert_eq!(plain.net, NetGrant::default());
        let bursting = check(v1::Grant { cpu_burst: true, ..asked(500, 1 << 20) });
        assert_eq!(bursting.cpu.cap_milli, None);
    }
}
