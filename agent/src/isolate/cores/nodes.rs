//! What each memory node has of cores, and which of them are nobody's own. Pure.

use bulkhead_proto::v1::NumaNode;

use crate::{
    kernel::cpu_set::CpuSet,
    measure::topology::{Core, Topology},
};

/// The machine's nodes, ascending, without their memory; none where the kernel tells of none. `taken` are CPUs of tasks with
/// cores of their own, `placeable` the cores that such tasks may get.
pub(super) fn by_node(topology: &Topology, placeable: &[Core], taken: &CpuSet) -> Vec<NumaNode> {
    let milli = |cpus: usize| cpus as u64 * 1000;
    let of_node = |node: u32| {
        let cores = topology.cores().iter().filter(move |core| core.node == node);
        let cpus: CpuSet = cores.flat_map(|core| core.cpus.iter()).collect();
        let is_free = |core: &&Core| core.node == node && core.cpus.intersection(taken).is_empty();
        let free: Vec<_> = placeable.iter().filter(is_free).collect();
        NumaNode {
            node,
            cpu_milli: milli(cpus.len()),
            shared_cpu_milli: milli(cpus.difference(taken).len()),
            free_cores: free.len() as u64,
            free_core_cpu_milli: milli(free.iter().map(|core| core.cpus.len()).sum()),
            ..NumaNode::default()
        }
    };
    topology.nodes().iter().map(of_node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::topology::tests::machine;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    fn node(node: u32, cpu: u64, shared: u64, free_cores: u64, free_core_cpu: u64) -> NumaNode {
        NumaNode {
            node,
            cpu_milli: cpu * 1000,
            shared_cpu_milli: shared * 1000,
            free_cores,
            free_core_cpu_milli: free_core_cpu * 1000,
            ..NumaNode::default()
        }
    }

    #[test]
    fn cores_of_tasks_are_not_shared_and_not_free() {
        let two = machine([(vec![0, 4], 0, 0), (vec![1, 5], 0, 0), (vec![2, 6], 1, 2), (vec![3, 7], 1, 2)]);
        let placeable = two.cores().get(1..).unwrap();
        assert_eq!(by_node(&two, placeable, &set("")), [node(0, 4, 4, 1, 2), node(1, 4, 4, 2, 4)]);
        assert_eq!(by_node(&two, placeable, &set("3,7")), [node(0, 4, 4, 1, 2), node(1, 4, 2, 1, 2)]);
        assert_eq!(by_node(&two, placeable, &set("1-3,5-7")), [node(0, 4, 2, 0, 0), node(1, 4, 0, 0, 0)]);
        assert_eq!(by_node(&two, &[], &set("")), [node(0, 4, 4, 0, 0), node(1, 4, 4, 0, 0)]);
    }

    #[test]
    fn a_machine_without_nodes_has_none() {
        assert_eq!(by_node(&Topology::default(), &[], &set("")), []);
    }
}
