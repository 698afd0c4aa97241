//! Where loaded programs live: directories in a bpffs, whose names say what is in them.
//!
//! ```text
//! <pin_dir>/ports-v<ABI>-<build>-<cgroup id>-<level>-<network namespace>/ maps and links of `enforce` about ports
//! <pin_dir>/listen-v<ABI>-<builds>-<cgroup id>-<level>-<network namespace>/ links of `observe/listen`, which uses
//!                                                       those maps
//! <pin_dir>/devices-v<ABI>-<build>-<cgroup id>-<level>/ and those that are about devices
//! <pin_dir>/net-v<ABI>-<build>-<cgroup id>-<level>/     and those that are about traffic
//! <pin_dir>/talk-v<ABI>-<build>-<cgroup id>-<level>/    and those that are about who may talk to whom
//! <pin_dir>/connections-v<ABI>-<build>-<cgroup id>-<level>/ map and link of `observe/connections`
//! <pin_dir>/exits-v<ABI>-<build>-<level>/               map and link of `observe/exits`
//! <pin_dir>/ooms-v<ABI>-<build>-<level>/                map and link of `observe/ooms`
//! <pin_dir>/runqueue-v<ABI>-<build>-<level>/            maps of `observe/runqueue`, the link of the program that makes
//!                                                       room, and the program that the agent attaches at times
//! <pin_dir>/block_io-v<ABI>-<build>-<level>/            map and link of `observe/block_io`
//! <pin_dir>/foreign-v<ABI>-<build>-<level>/             maps and program of `observe/foreign`, and its link
//!                                                       while some core has an owner
//! ```
//!
//! A directory gets its name when it is complete, so whoever finds the name can adopt what is in it.
//! Anything that would make adopting wrong (another layout, another build of the programs, a cgroup
//! that was removed and made again) makes another name. Dots in names are reserved by bpffs.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bulkhead_abi::{ABI_VERSION, OLDEST_PORTS_VERSION, PORTS_VERSION, names};
use bulkhead_ebpf::{ENFORCE_ID, OBSERVE_ID};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{BpfError, probe::probe_listen};
use crate::kernel::netns;

/// The hidden subcommand of the agent's binary that calls [`load_and_pin`](super::load_and_pin).
pub const LOAD_SUBCOMMAND: &str = "bpf-load";
/// The part of a name that stands for the port rules.
const PORTS: &str = "ports";
/// Where distributions mount the bpffs.
const BPFFS: &str = "/sys/fs/bpf";
/// Part of the name of a directory that is not complete, before the loader's process id.
const UNFINISHED: &str = "-new-";

/// What to load, and where to keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadSpec {
    /// A directory in a bpffs, of this agent alone: what else is found in it is removed.
    pub pin_dir: PathBuf,
    /// The cgroup directory below which all tasks run; the hooks are attached here.
    pub cgroup: PathBuf,
    /// The level of task cgroups below the root of the cgroup hierarchy; the root is level 0.
    pub task_level: u32,
}

/// What is in place after [`ensure_loaded`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// For [`PortRules::open`](super::PortRules::open) and [`DenialStream::open`](super::DenialStream::open).
    pub ports: PathBuf,
    /// Links alone; or why this kernel refuses neither listen() without bind nor packet sockets.
    pub listen: Result<PathBuf, String>,
    /// For [`DeviceRules::open`](super::DeviceRules::open), or why this kernel holds no devices.
    pub devices: Result<PathBuf, String>,
    /// For [`NetRules::open`](super::NetRules::open), or why this kernel holds no traffic.
    pub net: Result<PathBuf, String>,
    /// For [`TalkRules::open`](super::TalkRules::open), or why this kernel keeps nobody from talking to anybody.
    pub talk: Result<PathBuf, String>,
    /// For [`ConnectionCounts::open`](super::ConnectionCounts::open), or why this kernel counts no connections.
    pub connections: Result<PathBuf, String>,
    /// For [`ExitRecords::open`](super::ExitRecords::open), or why this kernel records no exits.
    pub exits: Result<PathBuf, String>,
    /// For [`OomRecords::open`](super::OomRecords::open), or why this kernel records no victims.
    pub ooms: Result<PathBuf, String>,
    /// For [`ForeignTimes::open`](super::ForeignTimes::open), or why this kernel counts no foreign time.
    pub foreign: Result<PathBuf, String>,
    /// For [`RunqueueCounts::open`](super::RunqueueCounts::open), or why this kernel counts no waits for a CPU.
    pub runqueue: Result<PathBuf, String>,
    /// For [`BlockIoCounts::open`](super::BlockIoCounts::open), or why this kernel counts no requests for disks.
    pub block_io: Result<PathBuf, String>,
    /// The programs were loaded now. False: they were adopted, with all grants and counts in them.
    pub fresh: bool,
    /// A bpffs was mounted on `/sys/fs/bpf` for this.
    pub mounted: bool,
}

/// Names of the directories of one spec, by part.
pub(super) struct PinNames {
    pub(super) ports: String,
    pub(super) listen: String,
    pub(super) devices: String,
    pub(super) talk: String,
    pub(super) net: String,
    pub(super) connections: String,
    pub(super) exits: String,
    pub(super) ooms: String,
    pub(super) foreign: String,
    pub(super) runqueue: String,
    pub(super) block_io: String,
}

impl PinNames {
    /// Pure: the names for an attachment to the cgroup with this id, made in the network namespace with this cookie.
    pub(super) fn new(cgroup_id: u64, task_level: u32, netns: u64) -> Self {
        Self {
            ports: format!("{PORTS}-v{PORTS_VERSION}-{ENFORCE_ID}-{cgroup_id}-{task_level}-{netns}"),
            // Of both builds: its programs use the maps of the one beside it.
            listen: format!(
                "listen-v{PORTS_VERSION}-{OBSERVE_ID}{ENFORCE_ID}-{cgroup_id}-{task_level}-{netns}"
            ),
            devices: format!("devices-v{ABI_VERSION}-{ENFORCE_ID}-{cgroup_id}-{task_level}"),
            net: format!("net-v{ABI_VERSION}-{ENFORCE_ID}-{cgroup_id}-{task_level}"),
            talk: format!("talk-v{ABI_VERSION}-{ENFORCE_ID}-{cgroup_id}-{task_level}-{netns}"),
            connections: format!("connections-v{ABI_VERSION}-{OBSERVE_ID}-{cgroup_id}-{task_level}"),
            exits: format!("exits-v{ABI_VERSION}-{OBSERVE_ID}-{task_level}"),
            ooms: format!("ooms-v{ABI_VERSION}-{OBSERVE_ID}-{task_level}"),
            foreign: format!("foreign-v{ABI_VERSION}-{OBSERVE_ID}-{task_level}"),
            runqueue: format!("runqueue-v{ABI_VERSION}-{OBSERVE_ID}-{task_level}"),
            block_io: format!("block_io-v{ABI_VERSION}-{OBSERVE_ID}-{task_level}"),
        }
    }

    /// The names for this spec, on this machine as it is now.
    pub(super) fn of(spec: &LoadSpec) -> Result<Self, BpfError> {
        let cgroup = fs::metadata(&spec.cgroup).map_err(BpfError::io("look up", &spec.cgroup))?;
        Ok(Self::new(cgroup.ino(), spec.task_level, host_netns()))
    }

    fn is_current(&self, name: &str) -> bool {
        let enforcing = [&self.ports, &self.listen, &self.devices, &self.talk, &self.net];
        let observing =
            [&self.connections, &self.exits, &self.ooms, &self.foreign, &self.runqueue, &self.block_io];
        enforcing.into_iter().chain(observing).any(|current| name == current)
    }
}

/// What the name of a directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PinName<'a> {
    part: &'a str,
    /// Of the layout.
    pub(super) version: u32,
    build: &'a str,
    /// Where the programs are attached, and what else their constants say.
    place: &'a str,
}

impl<'a> PinName<'a> {
    /// `None` for what is not complete, and for what no agent made.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        if name.contains(UNFINISHED) {
            return None;
        }
        let mut parts = name.splitn(4, '-');
        let part = parts.next()?;
        let version = parts.next()?.strip_prefix('v')?.parse().ok()?;
        Some(Self { part, version, build: parts.next()?, place: parts.next()? })
    }

    /// Does a directory of this name have, for the same place, what `self` takes over: maps that another build of the
    /// programs left, in a layout that this one knows?
    pub(super) fn takes_over(&self, other: &PinName<'_>) -> bool {
        let is_other = (self.version, self.build) != (other.version, other.build);
        if self.part != other.part || !is_other {
            return false;
        }
        if self.part != PORTS || self.version == other.version {
            return self.version == other.version && self.place == other.place;
        }
        // The first layout knew no network namespaces.
        let place = if other.version == 1 { without_last(self.place) } else { self.place };
        (OLDEST_PORTS_VERSION..self.version).contains(&other.version) && place == other.place
    }
}

/// What is before the last dash.
fn without_last(place: &str) -> &str {
    place.rsplit_once('-').map_or(place, |(rest, _)| rest)
}

/// The cookie of the network namespace in which tasks are held; 0 is all of them, on kernels that do not tell.
pub(super) fn host_netns() -> u64 {
    netns::cookie().unwrap_or(0)
}

/// The command that loads in a child; for [`ensure_loaded`].
pub fn loader_command(agent: &Path, spec: &LoadSpec) -> Command {
    let mut command = Command::new(agent);
    command.arg(LOAD_SUBCOMMAND).arg("--pin-dir").arg(&spec.pin_dir).arg("--cgroup").arg(&spec.cgroup);
    command.arg("--task-level").arg(spec.task_level.to_string());
    command
}

/// Adopts what an earlier agent left, or has it loaded by `loader`, a process that calls
/// [`load_and_pin`](super::load_and_pin) with the same spec. Blocks for some 100 ms when it loads.
///
/// After a fresh load nothing is granted, except that grants are taken over from another build of
/// the same layout: grant again whatever runs. Granting what is granted already changes nothing.
///
/// # Errors
/// No bpffs, no cgroup, or the loader's own message. Devices that cannot be held, and what cannot be
/// recorded, are no error.
pub fn ensure_loaded(spec: &LoadSpec, mut loader: Command) -> Result<Loaded, BpfError> {
    let mounted = ensure_bpffs(&spec.pin_dir)?;
    let names = PinNames::of(spec)?;
    let ports = spec.pin_dir.join(&names.ports);
    let parts = [
        &names.devices,
        &names.talk,
        &names.net,
        &names.connections,
        &names.exits,
        &names.ooms,
        &names.foreign,
        &names.runqueue,
        &names.block_io,
    ];
    let parts = parts.map(|name| spec.pin_dir.join(name));
    let listen = spec.pin_dir.join(&names.listen);
    // Few kernels have this one, so it is asked for first: not every start shall load for nothing.
    let no_listen =
        if listen.exists() { None } else { Some(probe_listen()).filter(|found| !found.available) };
    let fresh = !ports.exists();
    if !fresh && (listen.exists() || no_listen.is_some()) && parts.iter().all(|dir| dir.exists()) {
        let [devices, talk, net, connections, exits, ooms, foreign, runqueue, block_io] = parts.map(Ok);
        let listen = no_listen.map_or(Ok(listen), |found| Err(found.reason));
        return Ok(Loaded {
            ports,
            listen,
            devices,
            talk,
            net,
            connections,
            exits,
            ooms,
            foreign,
            runqueue,
            block_io,
            fresh,
            mounted,
        });
    }
    let program = loader.get_program().to_string_lossy().into_owned();
    let output = loader
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|source| BpfError::Start { program, source })?;
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if !output.status.success() || !ports.exists() {
        return Err(BpfError::Loader { status: output.status, message });
    }
    let made = |dir: PathBuf| if dir.exists() { Ok(dir) } else { Err(message.clone()) };
    let listen = made(listen);
    let [devices, talk, net, connections, exits, ooms, foreign, runqueue, block_io] = parts.map(made);
    Ok(Loaded {
        ports,
        listen,
        devices,
        net,
        talk,
        connections,
        exits,
        ooms,
        foreign,
        runqueue,
        block_io,
        fresh,
        mounted,
    })
}

/// Takes everything away: programs are detached, maps are freed once nobody has them open.
/// Tasks that still run are no longer held to their ports, devices, peers and rates. Harmless where there is nothing.
///
/// # Errors
/// The first directory that could not be removed.
pub fn remove(pin_dir: &Path) -> Result<(), BpfError> {
    for path in entries(pin_dir)? {
        // Only here: two sets of pins may have these links between them, of which one stays.
        detach(&path, &names::NET_PROGRAMS);
        detach(&path, &names::TALK_PROGRAMS);
        detach(&path, &[names::CONNECTIONS_PROGRAM]);
        remove_pins(&path)?;
    }
    ignore_missing(fs::remove_dir(pin_dir)).map_err(BpfError::io("remove", pin_dir))
}

/// Removes what is neither current nor being made by a process that lives.
pub(super) fn remove_stale(spec: &LoadSpec, names: &PinNames) -> Result<(), BpfError> {
    for path in entries(&spec.pin_dir)? {
        let name = name_of(&path);
        let maker = name.split_once(UNFINISHED).map(|(_, pid)| Path::new("/proc").join(pid));
        if !names.is_current(&name) && !maker.is_some_and(|process| process.exists()) {
            remove_pins(&path)?;
        }
    }
    Ok(())
}

/// The last component, which in a bpffs is always text.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What is in a directory; nothing where there is none.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let list = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(BpfError::io("list", dir))?,
    };
    list.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(BpfError::io("list", dir))
}

/// Makes a directory, and those above it, for root alone.
pub(super) fn create_dir(path: &Path) -> Result<(), BpfError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(BpfError::io("make", path))
}

/// The name under which the parts of `name` are collected until they are complete.
pub(super) fn unfinished(spec: &LoadSpec, name: &str) -> PathBuf {
    spec.pin_dir.join(format!("{name}{UNFINISHED}{}", std::process::id()))
}

/// Detaches at once, where the kernel can; unlinking alone detaches a little later.
pub(super) fn remove_pins(dir: &Path) -> Result<(), BpfError> {
    detach(dir, &names::ENFORCE_PROGRAMS);
    detach(dir, &names::LISTEN_PROGRAMS);
    detach(dir, &[names::DEVICE_PROGRAM]);
    ignore_missing(fs::remove_dir_all(dir)).map_err(BpfError::io("remove", dir))
}

/// Sees to it that `pin_dir` is in a bpffs. True when one was mounted for it.
pub(super) fn ensure_bpffs(pin_dir: &Path) -> Result<bool, BpfError> {
    if is_bpffs(pin_dir)? {
        return Ok(false);
    }
    let not_bpffs = |source| BpfError::NotBpffs { path: pin_dir.to_owned(), source };
    if !pin_dir.starts_with(BPFFS) {
        return Err(not_bpffs(None));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| not_bpffs(Some(errno.into())))?;
    Ok(true)
}

/// Is the nearest directory that exists in a bpffs?
fn is_bpffs(path: &Path) -> Result<bool, BpfError> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or_else(|| Path::new("/"));
    let found = statfs(existing)
        .map_err(io::Error::from)
        .map_err(BpfError::io("look up the file system of", existing))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn detach(dir: &Path, links: &[&str]) {
    for link in links.iter().map(|name| dir.join(name)).filter(|path| path.exists()) {
        // A link that cannot be opened or detached goes with its pin.
        let _ = libbpf_rs::Link::open(&link).and_then(|link| link.detach());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_in_whatever_makes_adopting_wrong() {
        let names = PinNames::new(7, 3, 1);
        assert_ne!(names.ports, PinNames::new(8, 3, 1).ports, "cgroup");
        assert_ne!(names.ports, PinNames::new(7, 4, 1).ports, "level");
        assert_ne!(names.ports, PinNames::new(7, 3, 2).ports, "network namespace");
        assert_ne!(names.listen, PinNames::new(8, 3, 1).listen, "cgroup");
        assert_ne!(names.listen, PinNames::new(7, 3, 2).listen, "network namespace");
        assert_ne!(names.devices, PinNames::new(8, 3, 1).devices, "cgroup");
        assert_ne!(names.net, PinNames::new(8, 3, 1).net, "cgroup");
        assert_ne!(names.talk, PinNames::new(8, 3, 1).talk, "cgroup");
        assert_ne!(names.connections, PinNames::new(8, 3, 1).connections, "cgroup");
        assert_ne!(names.exits, PinNames::new(7, 4, 1).exits, "level");
        assert_ne!(names.ooms, PinNames::new(7, 4, 1).ooms, "level");
        assert_ne!(names.foreign, PinNames::new(7, 4, 1).foreign, "level");
        assert_ne!(names.runqueue, PinNames::new(7, 4, 1).runqueue, "level");
        assert_ne!(names.block_io, PinNames::new(7, 4, 1).block_io, "level");
        let all = [&names.ports, &names.devices, &names.talk, &names.net, &names.exits, &names.ooms];
        let observing = [&names.foreign, &names.connections, &names.runqueue, &names.block_io];
        let mut all = all.into_iter().chain(observing);
        assert!(!all.any(|name| name.contains('.')), "reserved by bpffs");
    }

    #[test]
    fn state_is_taken_over_from_other_builds_and_known_layouts() {
        let takes_over = |current: &str, other: &str| {
            let current = PinName::parse(current).unwrap();
            PinName::parse(other).is_some_and(|other| current.takes_over(&other))
        };
        let name = "ports-v2-aaaa-7-3-9";
        for other in ["ports-v2-bbbb-7-3-9", "ports-v1-bbbb-7-3", "ports-v1-aaaa-7-3"] {
            assert!(takes_over(name, other), "{other}");
        }
        for other in [
            "ports-v2-aaaa-7-3-9",
            "ports-v3-bbbb-7-3-9",
            "ports-v0-bbbb-7-3",
            "ports-v2-bbbb-8-3-9",
            "ports-v2-bbbb-7-4-9",
            "ports-v2-bbbb-7-3-8",
            "ports-v1-bbbb-8-3",
            "exits-v2-bbbb-7-3-9",
            "ports-v2-bbbb-7-3-9-new-99",
            "ports-v2-bbbb",
            "ports-2-bbbb-7-3-9",
            "ports",
            "",
        ] {
            assert!(!takes_over(name, other), "{other}");
        }
        assert!(takes_over("devices-v1-aaaa-7-3", "devices-v1-bbbb-7-3"));
        assert!(!takes_over("devices-v2-aaaa-7-3", "devices-v1-bbbb-7-3"), "nobody converts these");
    }

    #[test]
    fn a_pin_directory_elsewhere_is_refused_with_advice() {
        let error = ensure_bpffs(Path::new("/tmp/bulkhead-no-bpffs/pins")).unwrap_err();
        assert!(matches!(error, BpfError::NotBpffs { source: None, .. }), "{error:?}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
    }

    #[test]
    fn the_loader_gets_the_whole_spec() {
        let spec = LoadSpec { pin_dir: "/p".into(), cgroup: "/c".into(), task_level: 3 };
        let command = loader_command(Path::new("/a"), &spec);
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(args, ["bpf-load", "--pin-dir", "/p", "--cgroup", "/c", "--task-level", "3"]);
    }
}
