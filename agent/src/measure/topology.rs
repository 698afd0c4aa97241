//! Which CPUs are one physical core, and which cores share a cache and a memory node.
//!
//! Source: the kernel's `Documentation/admin-guide/cputopology.rst` and `Documentation/ABI/stable/sysfs-devices-node`.

use std::{collections::BTreeMap, fs, io, path::Path};

use crate::kernel::cpu_set::{CpuSet, CpuSetError};

/// Where the kernel describes the machine.
pub const SYSFS: &str = "/sys/devices/system";

/// A physical core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Its hardware threads that are online; never empty.
    pub cpus: CpuSet,
    /// The memory node that it is next to.
    pub node: u32,
    /// Its last-level cache, named by the lowest CPU of that cache.
    pub cache: u32,
}

/// The machine's cores, in the order of their lowest CPUs. No CPU is in two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    cores: Vec<Core>,
    nodes: CpuSet,
    memory_nodes: CpuSet,
    possible: CpuSet,
}

/// The description cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file that every kernel has.
    #[error("read {path}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file with something else in it.
    #[error("{path}")]
    Malformed {
        /// The file.
        path: String,
        /// What is in it.
        source: CpuSetError,
    },
}

impl Topology {
    /// Reads it from `sys`: [`SYSFS`], or a directory of the same form.
    ///
    /// What a kernel leaves out is taken at its plainest: a CPU without siblings is a core, one without caches
    /// shares that of its package, and without nodes all memory is one.
    ///
    /// # Errors
    /// When the list of online CPUs cannot be read, or any list is malformed.
    pub fn read(sys: &Path) -> Result<Self, TopologyError> {
        let cpu_dir = sys.join("cpu");
        let online = match list(&cpu_dir.join("online"))? {
            Some(online) => online,
            None => required(&cpu_dir.join("present"))?,
        };
        let nodes = nodes(sys)?;
        let mut cores: Vec<Core> = Vec::new();
        let mut seen = CpuSet::default();
        for cpu in online.iter() {
            if seen.contains(cpu) {
                continue;
            }
            let dir = cpu_dir.join(format!("cpu{cpu}"));
            let own: CpuSet = [cpu].into_iter().collect();
            let siblings = first_list(&dir, ["topology/core_cpus_list", "topology/thread_siblings_list"])?;
            let cpus = siblings.unwrap_or_default().intersection(&online).difference(&seen).union(&own);
            seen = seen.union(&cpus);
            let node = nodes.iter().find(|(_, of_node)| of_node.contains(cpu)).map_or(0, |(node, _)| *node);
            let cache = last_level_cache(&dir)?.unwrap_or_default().intersection(&online).union(&own);
            cores.push(Core { cpus, node, cache: cache.first().unwrap_or(cpu) });
        }
        let with_memory = first_list(&sys.join("node"), ["has_memory", "has_normal_memory"])?;
        let memory_nodes = with_memory.unwrap_or_else(|| nodes.keys().copied().collect());
        let possible = list(&cpu_dir.join("possible"))?.unwrap_or_default().union(&online);
        Ok(Self { cores, nodes: nodes.keys().copied().collect(), memory_nodes, possible })
    }

    /// All cores with a CPU that is online.
    pub fn cores(&self) -> &[Core] {
        &self.cores
    }

    /// All CPUs that are online.
    pub fn cpus(&self) -> CpuSet {
        self.cores.iter().flat_map(|core| core.cpus.iter()).collect()
    }

    /// The numbers of the nodes that are online, those without memory or without CPUs too; none where the kernel knows of
    /// none.
    pub fn nodes(&self) -> &CpuSet {
        &self.nodes
    }

    /// All CPUs that are or may come online.
    pub fn possible(&self) -> &CpuSet {
        &self.possible
    }

    /// The memory nodes next to these CPUs; empty where they have no memory, or the machine has no nodes.
    pub fn memory_of(&self, cpus: &CpuSet) -> CpuSet {
        let near = self.cores.iter().filter(|core| !core.cpus.intersection(cpus).is_empty());
        near.map(|core| core.node).collect::<CpuSet>().intersection(&self.memory_nodes)
    }
}

/// The CPUs of each memory node.
fn nodes(sys: &Path) -> Result<BTreeMap<u32, CpuSet>, TopologyError> {
    let dir = sys.join("node");
    let online = list(&dir.join("online"))?.unwrap_or_default();
    let cpus = |node: u32| Ok((node, list(&dir.join(format!("node{node}/cpulist")))?.unwrap_or_default()));
    online.iter().map(cpus).collect()
}

/// The CPUs that share the cache of the highest level with the CPU of this directory.
fn last_level_cache(cpu: &Path) -> Result<Option<CpuSet>, TopologyError> {
    let mut last: Option<(u32, CpuSet)> = None;
    for index in 0.. {
        let cache = cpu.join(format!("cache/index{index}"));
        let Ok(level) = fs::read_to_string(cache.join("level")) else { break };
        let level = level.trim().parse().unwrap_or(0);
        let instructions = fs::read_to_string(cache.join("type")).is_ok_and(|t| t.trim() == "Instruction");
        if instructions || last.as_ref().is_some_and(|(highest, _)| *highest >= level) {
            continue;
        }
        if let Some(sharing) = list(&cache.join("shared_cpu_list"))? {
            last = Some((level, sharing));
        }
    }
    match last {
        Some((_, sharing)) => Ok(Some(sharing)),
        None => first_list(cpu, ["topology/package_cpus_list", "topology/core_siblings_list"]),
    }
}

/// The first of these files that is there; newer kernels have both names, older only the second.
fn first_list(dir: &Path, names: [&str; 2]) -> Result<Option<CpuSet>, TopologyError> {
    match list(&dir.join(names[0]))? {
        Some(found) => Ok(Some(found)),
        None => list(&dir.join(names[1])),
    }
}

fn required(path: &Path) -> Result<CpuSet, TopologyError> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    list(path)?.ok_or_else(|| TopologyError::Io { path: path.display().to_string(), source: missing() })
}

/// `None` where there is no such file.
fn list(path: &Path) -> Result<Option<CpuSet>, TopologyError> {
    let name = || path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => {
            text.parse().map(Some).map_err(|source| TopologyError::Malformed { path: name(), source })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TopologyError::Io { path: name(), source }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Files below a directory of their own.
    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        dir
    }

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    /// A topology from (CPUs, node, cache) of each core.
    pub(crate) fn machine(cores: impl IntoIterator<Item = (Vec<u32>, u32, u32)>) -> Topology {
        let core = |(cpus, node, cache): (Vec<u32>, u32, u32)| Core {
            cpus: cpus.into_iter().collect(),
            node,
            cache,
        };
        let cores: Vec<_> = cores.into_iter().map(core).collect();
        let memory_nodes: CpuSet = cores.iter().map(|c| c.node).collect();
        let possible = cores.iter().flat_map(|c| c.cpus.iter()).collect();
        Topology { cores, nodes: memory_nodes.clone(), memory_nodes, possible }
    }

    #[test]
    fn siblings_caches_and_nodes_are_told_apart() {
        let mut files = vec![
            ("cpu/online".to_owned(), "0-7".to_owned()),
            ("node/online".into(), "0-1".into()),
            ("node/has_memory".into(), "0".into()),
            ("node/node0/cpulist".into(), "0-1,4-5".into()),
            ("node/node1/cpulist".into(), "2-3,6-7".into()),
        ];
        for cpu in 0..8 {
            let core = cpu % 4;
            let cache = if core < 2 { "0-1,4-5" } else { "2-3,6-7" };
            let dir = format!("cpu/cpu{cpu}");
            files.push((format!("{dir}/topology/core_cpus_list"), format!("{core},{}", core + 4)));
            for (index, level, kind, sharing) in
                [(0, "1", "Data", "0"), (1, "1", "Instruction", "0"), (2, "3", "Unified", cache)]
            {
                files.push((format!("{dir}/cache/index{index}/level"), level.into()));
                files.push((format!("{dir}/cache/index{index}/type"), kind.into()));
                files.push((format!("{dir}/cache/index{index}/shared_cpu_list"), sharing.into()));
            }
        }
        let files: Vec<_> = files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
        let found = Topology::read(sysfs(&files).path()).unwrap();
        let core = |cpus, node, cache| Core { cpus: set(cpus), node, cache };
        assert_eq!(
            found.cores(),
            [core("0,4", 0, 0), core("1,5", 0, 0), core("2,6", 1, 2), core("3,7", 1, 2)]
        );
        assert_eq!(found.memory_of(&set("0,4")), set("0"));
        assert_eq!(found.memory_of(&set("3,7")), CpuSet::default(), "node 1 has no memory");
        assert_eq!(found.memory_of(&set("0,3")), set("0"));
    }

    #[test]
    fn offline_siblings_and_gaps_in_the_numbers_are_left_out() {
        let found = Topology::read(
            sysfs(&[
                ("cpu/online", "0,4,10-11"),
                ("cpu/cpu0/topology/thread_siblings_list", "0-1"),
                ("cpu/cpu4/topology/thread_siblings_list", "4-5"),
                ("cpu/cpu10/topology/thread_siblings_list", "10-11"),
                ("cpu/cpu0/topology/core_siblings_list", "0-5"),
                ("cpu/cpu4/topology/core_siblings_list", "0-5"),
                ("cpu/cpu10/topology/core_siblings_list", "10-11"),
                ("node/online", "0,2"),
                ("node/node0/cpulist", "0-5"),
                ("node/node2/cpulist", "10-11"),
            ])
            .path(),
        )
        .unwrap();
        assert_eq!(found, machine([(vec![0], 0, 0), (vec![4], 0, 0), (vec![10, 11], 2, 10)]));
    }

    #[test]
    fn a_kernel_that_says_nothing_has_single_cores_and_one_memory() {
        let found = Topology::read(sysfs(&[("cpu/present", "0-1")]).path()).unwrap();
        assert_eq!(found.cores().len(), 2);
        assert_eq!(found.memory_of(&set("0-1")), CpuSet::default());
        assert_eq!(found.cpus(), set("0-1"));
    }

    #[test]
    fn contradicting_siblings_never_put_a_cpu_into_two_cores() {
        let found = Topology::read(
            sysfs(&[
                ("cpu/online", "0-3"),
                ("cpu/cpu0/topology/core_cpus_list", "0-1"),
                ("cpu/cpu2/topology/core_cpus_list", "1-3"),
            ])
            .path(),
        )
        .unwrap();
        let cpus: Vec<_> = found.cores().iter().map(|c| c.cpus.to_string()).collect();
        assert_eq!(cpus, ["0-1", "2-3"]);
    }

    #[test]
    fn a_malformed_list_is_named() {
        let error = Topology::read(sysfs(&[("cpu/online", "all")]).path()).unwrap_err();
        assert!(matches!(&error, TopologyError::Malformed { path, .. } if path.ends_with("cpu/online")));
        assert!(matches!(Topology::read(sysfs(&[]).path()), Err(TopologyError::Io { .. })));
    }

    #[test]
    fn this_machine_has_whole_cores() {
        let here = Topology::read(Path::new(SYSFS)).unwrap();
        assert!(!here.cores().is_empty());
        assert_eq!(here.cores().iter().map(|c| c.cpus.len()).sum::<usize>(), here.cpus().len());
    }
}
