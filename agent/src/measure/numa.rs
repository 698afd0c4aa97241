//! Memory of each memory node: how much there is, and how much could be had.
//!
//! Source: `node_read_meminfo` in the kernel's `drivers/base/node.c`, and `Documentation/ABI/stable/sysfs-devices-node`.

use std::path::Path;

use bulkhead_proto::v1::NumaNode;

use super::topology::Topology;
use crate::kernel::reread::{Reread, Room};

/// What is free is rounded down to this, so that noise does not become news.
const STEP_BYTES: u64 = 32 << 20;

/// The nodes' files, kept open.
#[derive(Debug)]
pub struct NumaMemory {
    files: Vec<(u32, Reread)>,
    room: Room,
}

impl NumaMemory {
    /// Opens them below `sys`, as [`Topology::read`] does. A node that cannot be opened is left out.
    pub fn open(sys: &Path, topology: &Topology) -> Self {
        let open = |node: u32| match Reread::open(sys.join(format!("node/node{node}/meminfo"))) {
            Ok(file) => Some((node, file)),
            Err(error) => {
                tracing::warn!(node, %error, "read the memory of a memory node; it is not reported");
                None
            }
        };
        Self { files: topology.nodes().iter().filter_map(open).collect(), room: Room::default() }
    }

    /// Adds their memory to the nodes. One of which the memory is not known now, because it went away or its file is none
    /// of the kernel's, is taken out: half of it would be taken for all.
    pub fn add_to(&mut self, nodes: &mut Vec<NumaNode>) {
        nodes.retain_mut(|node| {
            let file = self.files.iter().find(|(number, _)| *number == node.node);
            let text = file.and_then(|(_, file)| file.read(&mut self.room).ok());
            let Some((all_bytes, free_bytes)) = text.and_then(memory) else { return false };
            node.mem_bytes = all_bytes;
            node.mem_free_bytes = free_bytes / STEP_BYTES * STEP_BYTES;
            true
        });
    }
}

/// All of a node's memory, and what is unused, or a cache that the kernel drops when it is wanted; never more than all.
fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.split_once(&format!(" {name}:")))?.1;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let all = bytes("MemTotal")?;
    let caches = ["Active(file)", "Inactive(file)", "SReclaimable"].map(|name| bytes(name).unwrap_or(0));
    let free = caches.iter().fold(bytes("MemFree")?, |sum, more| sum.saturating_add(*more));
    Some((all, free.min(all)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn meminfo(node: u32, lines: &[(&str, u64)]) -> String {
        lines.iter().map(|(name, kib)| format!("Node {node} {name}: {kib:>12} kB\n")).collect()
    }

    fn with_nodes(nodes: &[(u32, &str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: String, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cpu/online".into(), "0-3\n");
        let numbers: Vec<_> = nodes.iter().map(|(node, ..)| node.to_string()).collect();
        write("node/online".into(), &numbers.join(","));
        for (node, cpus, meminfo) in nodes {
            write(format!("node/node{node}/cpulist"), cpus);
            write(format!("node/node{node}/meminfo"), meminfo);
        }
        dir
    }

    fn read(sys: &Path) -> Vec<(u32, u64, u64)> {
        let topology = Topology::read(sys).unwrap();
        let node = |node| NumaNode { node, ..NumaNode::default() };
        let mut nodes = topology.nodes().iter().map(node).collect();
        NumaMemory::open(sys, &topology).add_to(&mut nodes);
        nodes.iter().map(|n| (n.node, n.mem_bytes >> 20, n.mem_free_bytes >> 20)).collect()
    }

    #[test]
    fn caches_are_free_and_what_programs_hold_is_not() {
        let first = meminfo(
            0,
            &[
                ("MemTotal", 4 << 20),
                ("MemFree", 1 << 20),
                ("Active(anon)", 1 << 20),
                ("Active(file)", 40 << 10),
                ("Inactive(file)", 20 << 10),
                ("SReclaimable", 10 << 10),
            ],
        );
        let second = meminfo(1, &[("MemTotal", 2 << 20), ("MemFree", 3 << 20)]);
        let dir = with_nodes(&[(0, "0-1", &first), (1, "2-3", &second)]);
        assert_eq!(read(dir.path()), [(0, 4096, 1088), (1, 2048, 2048)], "never more free than there is");
    }

    #[test]
    fn a_node_that_cannot_be_read_is_left_out() {
        let good = meminfo(2, &[("MemTotal", 1 << 20), ("MemFree", 1 << 20)]);
        let no_number = "Node 3 MemTotal: many kB\nNode 3 MemFree: 1 kB\n";
        let too_large = meminfo(4, &[("MemTotal", u64::MAX), ("MemFree", 1)]);
        let dir = with_nodes(&[(0, "0", ""), (2, "1-3", &good), (3, "", no_number), (4, "", &too_large)]);
        assert_eq!(read(dir.path()), [(2, 1024, 1024)]);
        fs::remove_file(dir.path().join("node/node2/meminfo")).unwrap();
        assert_eq!(read(dir.path()), []);
    }

    #[test]
    fn a_node_that_goes_away_goes_from_the_map() {
        let text = meminfo(0, &[("MemTotal", 1 << 20), ("MemFree", 1 << 20)]);
        let dir = with_nodes(&[(0, "0-3", &text)]);
        let topology = Topology::read(dir.path()).unwrap();
        let mut memory = NumaMemory::open(dir.path(), &topology);
        fs::write(dir.path().join("node/node0/meminfo"), "").unwrap();
        let mut nodes = vec![NumaNode::default()];
        memory.add_to(&mut nodes);
        assert_eq!(nodes, []);
    }

    #[test]
    fn a_machine_without_nodes_reports_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("cpu")).unwrap();
        fs::write(dir.path().join("cpu/online"), "0-1\n").unwrap();
        assert_eq!(read(dir.path()), []);
    }

    #[test]
    fn this_machine_has_no_more_free_than_it_has() {
        for (node, all, free) in read(Path::new(super::super::topology::SYSFS)) {
            assert!(free <= all, "node {node}: {free} of {all} MiB");
        }
    }
}
