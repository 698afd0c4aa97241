//! What tasks could leave behind in the kernel and in the agent, counted.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapHandle, MapType};

use crate::Cluster;

/// Equal before the first task and after the last, once what stays for good is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// Of tasks.
    pub cgroups: usize,
    /// In the agent's mount namespace.
    pub mounts: usize,
    /// Each pinned hash map with its number of entries.
    pub map_entries: Vec<(String, usize)>,
    /// Children of the agent that nobody has waited for.
    pub zombies: usize,
    /// Of the agent.
    pub descriptors: usize,
}

impl Traces {
    /// Counts now.
    ///
    /// # Errors
    /// When the agent is not running.
    pub fn count(cluster: &Cluster) -> Result<Self> {
        let agent = cluster.agent_pid()?;
        let below = |class: &str| directories(&cluster.cgroup()?.join(class));
        let processes = procfs::process::all_processes()?.flatten().filter_map(|p| p.stat().ok());
        let mut map_entries = Vec::new();
        count_map_entries(&cluster.bpf_dir(), &mut map_entries)?;
        map_entries.sort_unstable();
        Ok(Self {
            cgroups: below("guaranteed")? + below("revocable")?,
            mounts: fs::read_to_string(format!("/proc/{agent}/mountinfo"))?.lines().count(),
            map_entries,
            zombies: processes.filter(|stat| stat.ppid == agent && stat.state == 'Z').count(),
            descriptors: fs::read_dir(format!("/proc/{agent}/fd"))?.count(),
        })
    }
}

fn directories(path: &Path) -> Result<usize> {
    let entries = fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
    Ok(entries.flatten().filter(|e| e.path().is_dir()).count())
}

fn count_map_entries(dir: &Path, counts: &mut Vec<(String, usize)>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            count_map_entries(&path, counts)?;
        } else if let Ok(map) = MapHandle::from_pinned_path(&path)
            && matches!(map.map_type(), MapType::Hash | MapType::PercpuHash)
        {
            counts.push((path.display().to_string(), map.keys().count()));
        }
    }
    Ok(())
}
