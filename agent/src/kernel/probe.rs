//! What this kernel can do: asked once, by trying; never by comparing versions.

use std::path::Path;

use serde::Serialize;

use crate::isolate::output;

use super::{
    appender::io_uring_works,
    bpf,
    cgroupfs::{Cgroup, CgroupError, cgroup2_mount},
    core_scheduling, io_cost, landlock,
    page_cache::PageCache,
    pressure::MemoryTrigger,
    quota, quota_warnings, reserved_ports, sock_diag,
    spawn::Namespaces,
};

mod fences;

/// One thing that a kernel has or has not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// A stable name, also the label of the metric.
    pub name: &'static str,
    /// Is it there?
    pub available: bool,
    /// Where it was found, or why it is not there.
    pub detail: String,
    /// What Bulkhead does with it.
    pub enforces: &'static str,
    /// What happens without it.
    pub without: &'static str,
}

/// Everything that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Features {
    /// In the order of importance.
    pub features: Vec<Feature>,
}

impl Features {
    /// Asks everything, about the disk for an agent that works in `work_dir`. Makes one cgroup for the purpose and
    /// removes it again; needs root for true answers.
    pub fn probe(work_dir: &Path) -> Self {
        let mount = cgroup2_mount();
        let mut features = vec![feature(
            "cgroup2",
            mount.as_ref().map(|m| m.display().to_string()).map_err(ToString::to_string),
            "everything: the cgroup v2 tree holds the tasks",
            "the agent does not start",
        )];
        let mount = mount.ok();
        features.extend(controllers(mount.as_deref()));
        features.extend(cgroup_calls(mount.as_deref()));
        features.extend(cpu_files(mount.as_deref()));
        features.push(feature(
            "core_scheduling",
            core_scheduling::supported().map(|()| "prctl(PR_SCHED_CORE)".to_owned()),
            "tasks that share no physical core with others at any moment",
            "tasks that ask for it are refused",
        ));
        features.push(feature(
            "bpf_ports",
            supported(bpf::probe_ports(), "cgroup socket hooks, ring buffer"),
            "ports: a bind outside the grant is EPERM in the task's own call",
            "ports are not offered",
        ));
        features.push(feature(
            "port_listen",
            supported(bpf::probe_listen(), "lsm_cgroup hooks, and bpf among the active security modules"),
            "ports: listen() without bind, and packet sockets",
            "uncovered: such a listen() takes an ephemeral port, and tasks whose port_choice forbids it are refused; \
             packet sockets are held by CAP_NET_RAW alone",
        ));
        features.push(feature(
            "ports_reserved",
            reserved_ports::probe(),
            "offered ports: no connection of anybody takes one of them by the kernel's choice",
            "an offered port can be in use by a client of the host, and is not offered meanwhile",
        ));
        features.push(feature(
            "sock_diag",
            sock_diag::ports_in_use(&(1..=1))
                .map(|_| "NETLINK_SOCK_DIAG".to_owned())
                .map_err(|e| e.to_string()),
            "offered ports: those that strangers hold are left out",
            "offers stay as they are at the start",
        ));
        features.push(feature(
            "bpf_devices",
            supported(bpf::probe_devices(), "cgroup device hook, ring buffer"),
            "devices: the harmless ones and those of the grant, everything else is EPERM in the task's own call",
            "tasks whose grant names a device are refused",
        ));
        features.push(feature(
            "bpf_net",
            supported(bpf::probe_net(), "cgroup packet hooks"),
            "bandwidth: what tasks send is paced, what they receive is policed, and all of it is counted",
            "bandwidth is not offered, and traffic is not counted",
        ));
        features.push(feature(
            "bpf_connections",
            supported(bpf::probe_connections(), "hook on TCP sockets, BTF"),
            "connections: those of each task are counted, with retransmissions and round trips",
            "none of that is counted",
        ));
        features.push(feature(
            "bpf_talk",
            supported(bpf::probe_talk(), "cgroup address hooks, longest-prefix tables, ring buffer"),
            "who may talk to whom: a connect or a send against the rules is EPERM in the task's own call",
            "tasks whose grant has rules that refuse something are refused",
        ));
        features.push(feature(
            "cachestat",
            match PageCache::probe() {
                PageCache::Counted => Ok("cachestat(2)".to_owned()),
                PageCache::Mapped => Err("no such system call".to_owned()),
            },
            "data locality: what of a file is in memory is counted",
            "mincore(2) is asked about each page, which takes longer: large data sets are sampled more thinly",
        ));
        features.push(feature(
            "bpf_exits",
            supported(bpf::probe_exits(), "raw tracepoint, BTF"),
            "exit codes of tasks that end while no agent runs",
            "such tasks are reported as failed, exit unknown",
        ));
        features.push(feature(
            "bpf_foreign",
            supported(bpf::probe_exits(), "raw tracepoint, BTF"),
            "proof of exclusive cores: the time of others on them is counted",
            "cores are exclusive all the same, and nothing is counted",
        ));
        features.push(feature(
            "bpf_runqueue",
            supported(bpf::probe_runqueue(), "typed tracepoints, BTF, task storage"),
            "how long tasks wait for a CPU, and whom they have to leave one to",
            "of that only the pressure is known",
        ));
        features.push(feature(
            "bpf_block_io",
            supported(bpf::probe_exits(), "raw tracepoint, BTF"),
            "how long requests of tasks for disks take",
            "of that only the pressure is known",
        ));
        features.push(feature(
            "disk_quota",
            quota::probe(work_dir),
            "disk space: project quotas of bytes and files, refused in the task's own call",
            "disk is not offered, and tasks are not bounded in it",
        ));
        features.push(feature(
            "seccomp",
            seccomp(),
            "which system calls a task may make",
            "tasks that are to be confined are refused",
        ));
        features.push(feature(
            "landlock",
            landlock::version().map_err(str::to_owned).map(|(abi, scopes)| {
                let scopes = if scopes { "with" } else { "without" };
                format!("version {abi}, {scopes} scopes for signals and abstract sockets")
            }),
            "which of the host's files a task without an image reaches",
            "tasks that are to be confined are refused, unless they have an image",
        ));
        features.push(feature(
            "quota_netlink",
            quota_warnings::probe(),
            "an event when a sandbox is full",
            "full sandboxes are told only to their tasks",
        ));
        features.push(feature(
            "punch_hole",
            output::probe(work_dir),
            "stdout and stderr: their heads are cut off",
            "outputs grow without bound, or to the quota",
        ));
        features.push(feature(
            "bpf_ooms",
            supported(bpf::probe_ooms(), "typed tracepoints, BTF"),
            "which process was ended for memory, and how large it was",
            "a task that ran out of memory is told so without the process",
        ));
        features.push(feature(
            "io_uring",
            if io_uring_works() {
                Ok("a ring can be made".into())
            } else {
                Err("refused by the kernel".into())
            },
            "the journal: one write and one fdatasync for all that waits",
            "the journal uses plain system calls",
        ));
        features.push(feature(
            "psi",
            present("/proc/pressure/memory"),
            "pressure of CPU, memory and disk in reports",
            "no pressure is reported",
        ));
        Self { features }
    }

    /// Is the feature of this name there?
    pub fn has(&self, name: &str) -> bool {
        self.features.iter().any(|f| f.name == name && f.available)
    }
}

fn feature(
    name: &'static str,
    found: Result<String, String>,
    enforces: &'static str,
    without: &'static str,
) -> Feature {
    let available = found.is_ok();
    Feature { name, available, detail: found.unwrap_or_else(|why| why), enforces, without }
}

fn supported(support: bpf::Support, with: &str) -> Result<String, String> {
    if support.available { Ok(with.to_owned()) } else { Err(support.reason) }
}

fn present(path: &str) -> Result<String, String> {
    match std::fs::read(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(e) => Err(format!("{path}: {e}")),
    }
}

fn controllers(mount: Option<&Path>) -> Vec<Feature> {
    let available = mount.and_then(|m| Cgroup::at(m).controllers().ok()).unwrap_or_default();
    let find = |name: &str| {
        if available.iter().any(|a| a == name) {
            Ok("cgroup.controllers".to_owned())
        } else {
            Err("not a v2 controller here: disabled, or bound to a v1 hierarchy".to_owned())
        }
    };
    vec![
        feature("cgroup_cpu", find("cpu"), "CPU shares and caps: cpu.weight, cpu.max", "CPU is not offered"),
        feature(
            "cgroup_cpuset",
            find("cpuset"),
            "cores of a task's own: cpuset.cpus, cpuset.mems",
            "tasks that ask for exclusive cores are refused",
        ),
        feature(
            "cgroup_memory",
            find("memory"),
            "memory limits: memory.max, oom.group",
            "memory is not offered",
        ),
        feature("cgroup_pids", find("pids"), "the number of processes: pids.max", "nothing is offered"),
        feature(
            "cgroup_io",
            find("io"),
            "disk I/O: io.max, for bytes and operations, buffered writes too",
            "disk I/O is not offered",
        ),
        feature(
            "io_cost",
            match mount {
                Some(root) if io_cost::available(&Cgroup::at(root)) => {
                    Ok("io.cost.model, io.cost.qos".to_owned())
                }
                _ => Err("no io.cost.model in the root cgroup (CONFIG_BLK_CGROUP_IOCOST)".to_owned()),
            },
            "shares of a disk by the cost of each request, with a model from calibrate-disk",
            "disk I/O is not offered, unless the disk's scheduler is bfq",
        ),
    ]
}

/// What newer kernels have for CPUs: files, which only a cgroup with the controllers has.
fn cpu_files(mount: Option<&Path>) -> Vec<Feature> {
    let files = ["cpu.max.burst", "cpu.idle", "cpuset.cpus.exclusive"];
    let found = mount.map_or_else(|| Err("no cgroup2".to_owned()), |m| files_with_controllers(m, files));
    let [burst, idle, exclusive] = match found {
        Ok(found) => {
            found.map(|(file, there)| if there { Ok(file.to_owned()) } else { Err(format!("no {file}")) })
        }
        Err(why) => std::array::from_fn(|_| Err(why.clone())),
    };
    vec![
        feature(
            "cpu_burst",
            burst,
            "CPU time saved up while idle: cpu.max.burst",
            "tasks that ask for it are refused",
        ),
        feature(
            "cpu_idle",
            idle,
            "revocable tasks run only on CPU that nobody else wants: cpu.idle",
            "they have the smallest weight instead",
        ),
        feature(
            "cpuset_partition",
            exclusive,
            "the whole host is kept off exclusive cores by the kernel: cpuset.cpus.partition",
            "other cgroups are kept off by their own cpuset.cpus; isolated cores are refused",
        ),
    ]
}

/// Looks for files in a cgroup that has the cpu and cpuset controllers; they are handed down for a moment where
/// nobody has done so yet.
fn files_with_controllers<const N: usize>(
    mount: &Path,
    files: [&'static str; N],
) -> Result<[(&'static str, bool); N], String> {
    let explain = |e: CgroupError| crate::error_chain(&e);
    let root = Cgroup::at(mount);
    let available = root.controllers().map_err(explain)?;
    let on = root.read("cgroup.subtree_control").map_err(explain)?;
    let missing: Vec<_> = ["cpu", "cpuset"]
        .into_iter()
        .filter(|c| available.iter().any(|a| a == c) && !on.split_whitespace().any(|o| o == *c))
        .collect();
    root.enable(&missing).map_err(explain)?;
    let probe = Cgroup::create(mount.join(format!("bulkhead-probe-cpu-{}", std::process::id())));
    let found = probe.and_then(|cgroup| {
        let found = files.map(|file| (file, cgroup.has(file)));
        cgroup.remove().map(|()| found)
    });
    for controller in missing {
        // An agent that starts at this moment may use it already, and keeps it.
        let _ = root.write("cgroup.subtree_control", &format!("-{controller}"));
    }
    found.map_err(explain)
}

/// Tries what needs a cgroup, in one that is made for it.
fn cgroup_calls(mount: Option<&Path>) -> Vec<Feature> {
    let made = match mount.map(|m| Cgroup::create(m.join(format!("bulkhead-probe-{}", std::process::id())))) {
        Some(made) => made.map_err(|error| crate::error_chain(&error)),
        None => Err("no cgroup2".to_owned()),
    };
    let cgroup = made.as_ref().map_err(Clone::clone);
    let kill = cgroup.clone().and_then(|cgroup| match cgroup.has("cgroup.kill") {
        true => Ok("cgroup.kill".to_owned()),
        false => Err("no cgroup.kill".to_owned()),
    });
    let clone = cgroup.and_then(|cgroup| fences::attempt(cgroup, Namespaces::default(), Vec::new()));
    let at_once = "the end of every process of a task at once, whatever it forks";
    let mut features = vec![
        feature("cgroup_kill", kill, at_once, "the agent does not start"),
        feature(
            "clone_into_cgroup",
            clone.map(|()| "clone3 with CLONE_INTO_CGROUP and CLONE_PIDFD".to_owned()),
            "tasks start inside their limits, with a pidfd",
            "the agent does not start",
        ),
    ];
    if let (Ok(cgroup), Some(mount)) = (&made, mount) {
        features.extend(memory_files(mount, cgroup));
    }
    features.extend(fences::fences(&made));
    if let Some(Err(error)) = made.ok().map(|cgroup| cgroup.remove()) {
        tracing::warn!(error = crate::error_chain(&error), "remove the probe's cgroup");
    }
    features
}

/// What the memory of a task is held and watched with. Files of the controller are in cgroups that it was handed down
/// to, which may be none before an agent has started.
fn memory_files(mount: &Path, cgroup: &Cgroup) -> Vec<Feature> {
    let mut seen = vec![cgroup.clone(), Cgroup::at(mount)];
    seen.extend(Cgroup::at(mount).children().unwrap_or_default());
    let file = |name: &str| {
        if seen.iter().any(|cgroup| cgroup.has(name)) {
            Ok(name.to_owned())
        } else {
            Err(format!("no {name} is to be seen"))
        }
    };
    let pressure = MemoryTrigger::try_arm(cgroup).map(|()| "a trigger in memory.pressure".to_owned());
    vec![
        feature(
            "psi_cgroup",
            pressure.map_err(|error| crate::error_chain(&error)),
            "the end of tasks that stand still at their memory limit",
            "launches that ask for high_bytes are refused; a task can crawl at its limit",
        ),
        feature(
            "memory_reclaim",
            file("memory.reclaim"),
            "a lower memory limit for a running task: what it needs least is taken back first",
            "the kernel takes back what the lower limit asks for, in one go",
        ),
        feature(
            "memory_peak",
            file("memory.peak"),
            "the most memory that a task ever used, in its usage",
            "the memory in use at its end is told instead",
        ),
    ]
}

/// Asks whether filters may answer with an errno, which every profile does.
fn seccomp() -> Result<String, String> {
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one word, which lives through the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    match answer {
        0 => Ok("filters that answer with an errno".to_owned()),
        _ => Err(format!("seccomp(SECCOMP_GET_ACTION_AVAIL): {}", std::io::Error::last_os_error())),
    }
}
