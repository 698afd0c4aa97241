//! A cgroup tree with the programs attached to it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};

use bulkhead_agent::kernel::{
    bpf::{self, BpfError, LoadSpec, Loaded, PortGrant, PortRules},
    cgroupfs::cgroup2_mount,
};
use bulkhead_proto::resources::PortSet;

use crate::helper::{self, Helper};

/// Up to the range that kernels choose ports from.
const FIRST_PORT: u16 = 20_000;
const PORTS_PER_TEST: u16 = 200;

/// What an agent has: `<root>/guaranteed/<task>`, hooks on `<root>`, grants keyed by task.
pub(crate) struct Node {
    pub(crate) spec: LoadSpec,
    /// The lowest of 200 ports that no other test uses.
    pub(crate) port: u16,
    tasks: PathBuf,
}

/// One task's cgroup.
pub(crate) struct Task {
    pub(crate) cgroup: PathBuf,
    pub(crate) id: u64,
}

impl Node {
    /// `None`, and the reason is printed, where these tests cannot run.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let skip = |reason: &dyn std::fmt::Display| {
            println!("SKIP {test}: {reason}");
            None
        };
        if !nix::unistd::geteuid().is_root() {
            return skip(&"needs root");
        }
        let mount = match cgroup2_mount() {
            Ok(mount) => mount,
            Err(error) => return skip(&error),
        };
        let support = bpf::probe_ports();
        if !support.available {
            return skip(&support.reason);
        }
        let port = free_ports();
        let name = format!("bulkhead-test-{}-{port}", std::process::id());
        let root = mount.join(&name);
        let tasks = root.join("guaranteed");
        fs::create_dir_all(&tasks).unwrap();
        let spec = LoadSpec { pin_dir: Path::new("/sys/fs/bpf").join(&name), cgroup: root, task_level: 3 };
        Some(Self { spec, port, tasks })
    }

    /// Adopts or loads, as an agent does at its start.
    pub(crate) fn load(&self) -> Loaded {
        bpf::ensure_loaded(&self.spec, helper::loader(&self.spec)).unwrap()
    }

    /// The same with a loader that cannot load.
    pub(crate) fn adopt(&self) -> Result<Loaded, BpfError> {
        bpf::ensure_loaded(&self.spec, Command::new("false"))
    }

    /// Loads, and opens the rules.
    pub(crate) fn rules(&self) -> PortRules {
        PortRules::open(&self.load().ports).unwrap()
    }

    pub(crate) fn task(&self, name: &str) -> Task {
        use std::os::unix::fs::MetadataExt as _;
        let cgroup = self.tasks.join(name);
        fs::create_dir(&cgroup).unwrap();
        let id = fs::metadata(&cgroup).unwrap().ino();
        Task { cgroup, id }
    }

    /// Some of this test's ports, for both protocols, with the default policy.
    pub(crate) fn ports(&self, offsets: &[u16]) -> PortGrant {
        PortSet::from_ports(offsets.iter().map(|o| self.port + o)).into()
    }
}

impl Task {
    /// A process in the task's cgroup that does as it is told.
    pub(crate) fn helper(&self) -> Helper {
        Helper::start(&self.cgroup)
    }
}

/// The first of 200 ports that neither another test nor anything else on this machine uses.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    let used = used_ports();
    loop {
        let first = NEXT.fetch_add(PORTS_PER_TEST, Ordering::Relaxed);
        if !used.iter().any(|port| (first..first + PORTS_PER_TEST).contains(port)) {
            return first;
        }
    }
}

/// Local ports of all sockets, those in TIME_WAIT included.
fn used_ports() -> Vec<u16> {
    let port = |line: &str| {
        let address = line.split_whitespace().nth(1)?;
        u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok()
    };
    let list = |name| fs::read_to_string(Path::new("/proc/net").join(name)).unwrap_or_default();
    let all = ["tcp", "tcp6", "udp", "udp6"].map(list);
    all.iter().flat_map(|text| text.lines()).filter_map(port).collect()
}

/// Removes directories of cgroups, deepest first; files in them go with them.
fn remove_tree(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    // A process that was just killed may be on its way out: the cgroup says when the last is gone.
    while fs::remove_dir(cgroup).is_err_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy) {
        std::thread::yield_now();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = bpf::remove(&self.spec.pin_dir) {
            println!("{error}");
        }
        remove_tree(&self.spec.cgroup);
    }
}

/// The binary that runs these tests, to run one of them in a child.
pub(crate) fn this_test(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1", "--quiet"]);
    command
}
