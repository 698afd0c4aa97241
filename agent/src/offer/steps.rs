//! What is news: by how much a report has to differ from the last one. Pure.

use bulkhead_proto::v1::{NodePressure, NumaNode, ResourceReport};

/// Smaller changes of what is measured are noise. What is granted matters to the last unit, whatever these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Of CPU that is held back, or lent.
    pub cpu_milli: u64,
    /// Of memory that is held back.
    pub mem_bytes: u64,
    /// Of disk that is held back.
    pub disk_bytes: u64,
    /// Of the link that is held back, in either direction.
    pub net_bits_per_sec: u64,
    /// Of the time in which processes stood still.
    pub pressure_permille: u64,
    /// Of the time that guaranteed tasks waited for a CPU: this many times as long, or short.
    pub runqueue_factor: u64,
    /// Waits below this count as this.
    pub runqueue_noticed_usec: u64,
    /// Of a memory node's memory that is free, in thousandths of it.
    pub numa_permille: u64,
}

impl Steps {
    /// Is `new` worth sending to somebody who has `old`? Symmetric.
    pub fn differ(&self, old: &ResourceReport, new: &ResourceReport) -> bool {
        old.allocated != new.allocated
            || old.capacity != new.capacity
            || old.revocable_allocated_cpu_milli != new.revocable_allocated_cpu_milli
            || old.revocable_cpu_milli.abs_diff(new.revocable_cpu_milli) >= self.cpu_milli
            || self.reserve_differs(old, new)
            || self.pressure_differs(old.pressure.unwrap_or_default(), new.pressure.unwrap_or_default())
            || self.runqueue_differs(old.runqueue_p99_usec, new.runqueue_p99_usec)
            || self.numa_differs(&old.numa, &new.numa)
    }

    fn reserve_differs(&self, old: &ResourceReport, new: &ResourceReport) -> bool {
        let reserve = |r: &ResourceReport| r.reserve.clone().unwrap_or_default();
        let (a, b) = (reserve(old), reserve(new));
        a.ports != b.ports
            || a.cpu_milli.abs_diff(b.cpu_milli) >= self.cpu_milli
            || a.mem_bytes.abs_diff(b.mem_bytes) >= self.mem_bytes
            || a.disk_bytes.abs_diff(b.disk_bytes) >= self.disk_bytes
            || a.net_egress_bits_per_sec.abs_diff(b.net_egress_bits_per_sec) >= self.net_bits_per_sec
            || a.net_ingress_bits_per_sec.abs_diff(b.net_ingress_bits_per_sec) >= self.net_bits_per_sec
    }

    fn pressure_differs(&self, a: NodePressure, b: NodePressure) -> bool {
        let parts = |p: NodePressure| {
            [
                p.cpu_some_permille,
                p.mem_some_permille,
                p.mem_full_permille,
                p.io_some_permille,
                p.io_full_permille,
            ]
        };
        parts(a).iter().zip(parts(b)).any(|(a, b)| a.abs_diff(b) >= self.pressure_permille)
    }

    /// That there is nothing to say of it any more is no news.
    fn runqueue_differs(&self, a: Option<u64>, b: Option<u64>) -> bool {
        let noticed = |usec: Option<u64>| usec.unwrap_or(0).max(self.runqueue_noticed_usec);
        let (less, more) = (noticed(a).min(noticed(b)), noticed(a).max(noticed(b)));
        more >= less.saturating_mul(self.runqueue_factor)
    }

    /// Cores are granted; only the memory is measured.
    fn numa_differs(&self, old: &[NumaNode], new: &[NumaNode]) -> bool {
        let granted = |node: &NumaNode| NumaNode { mem_free_bytes: 0, ..*node };
        let step = |node: &NumaNode| (node.mem_bytes / 1000).saturating_mul(self.numa_permille).max(1);
        !old.iter().map(granted).eq(new.iter().map(granted))
            || old.iter().zip(new).any(|(a, b)| a.mem_free_bytes.abs_diff(b.mem_free_bytes) >= step(a))
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::Resources;

    use super::*;
    use crate::config::ReportConfig;

    fn defaults() -> Steps {
        ReportConfig::default().steps().unwrap()
    }

    fn strained(io_some_permille: u64, runqueue_p99_usec: Option<u64>) -> ResourceReport {
        let pressure = Some(NodePressure { io_some_permille, ..NodePressure::default() });
        ResourceReport { pressure, runqueue_p99_usec, ..ResourceReport::default() }
    }

    fn holding_back(reserve: Resources) -> ResourceReport {
        ResourceReport { reserve: Some(reserve), ..ResourceReport::default() }
    }

    #[test]
    fn a_busier_node_is_news_and_a_twitch_is_none() {
        let calm = strained(20, None);
        for (other, is_news) in [
            (strained(119, None), false),
            (strained(120, None), true),
            (strained(20, Some(4096)), true),
            (strained(20, Some(2048)), false),
            (strained(20, Some(1)), false),
        ] {
            assert_eq!(defaults().differ(&calm, &other), is_news, "{other:?}");
            assert_eq!(defaults().differ(&other, &calm), is_news, "{other:?}");
        }
        assert!(!defaults().differ(&strained(20, Some(8192)), &strained(20, Some(16_384))));
        assert!(defaults().differ(&strained(20, Some(8192)), &strained(20, Some(u64::MAX))));
    }

    #[test]
    fn a_memory_node_is_news_by_its_cores_or_a_part_of_its_memory() {
        let node = NumaNode {
            cpu_milli: 4000,
            shared_cpu_milli: 4000,
            free_cores: 2,
            mem_bytes: 100_000,
            mem_free_bytes: 50_000,
            ..NumaNode::default()
        };
        let with = |nodes: &[NumaNode]| ResourceReport { numa: nodes.to_vec(), ..ResourceReport::default() };
        for (other, is_news) in [
            (with(&[NumaNode { mem_free_bytes: 45_001, ..node }]), false),
            (with(&[NumaNode { mem_free_bytes: 55_000, ..node }]), true),
            (with(&[NumaNode { free_cores: 1, ..node }]), true),
            (with(&[NumaNode { shared_cpu_milli: 3000, ..node }]), true),
            (with(&[NumaNode { node: 1, ..node }]), true),
            (with(&[node, node]), true),
            (with(&[]), true),
        ] {
            assert_eq!(defaults().differ(&with(&[node]), &other), is_news, "{other:?}");
            assert_eq!(defaults().differ(&other, &with(&[node])), is_news, "{other:?}");
        }
        let empty = with(&[NumaNode::default()]);
        assert!(!defaults().differ(&empty, &empty), "a node without memory");
    }

    #[test]
    fn each_threshold_decides_about_its_own_kind() {
        let fine = Steps {
            cpu_milli: 5,
            mem_bytes: 5,
            disk_bytes: 5,
            net_bits_per_sec: 5,
            pressure_permille: 5,
            ..defaults()
        };
        let none = holding_back(Resources::default());
        let kinds: [fn(u64) -> Resources; 5] = [
            |n| Resources { cpu_milli: n, ..Resources::default() },
            |n| Resources { mem_bytes: n, ..Resources::default() },
            |n| Resources { disk_bytes: n, ..Resources::default() },
            |n| Resources { net_egress_bits_per_sec: n, ..Resources::default() },
            |n| Resources { net_ingress_bits_per_sec: n, ..Resources::default() },
        ];
        for kind in kinds {
            assert!(!fine.differ(&none, &holding_back(kind(4))), "{:?}", kind(4));
            assert!(fine.differ(&none, &holding_back(kind(5))), "{:?}", kind(5));
            assert!(!defaults().differ(&none, &holding_back(kind(5))), "{:?}", kind(5));
        }
        assert!(fine.differ(&strained(0, None), &strained(5, None)));
        let lent = ResourceReport { revocable_cpu_milli: 5, ..none.clone() };
        assert!(fine.differ(&none, &lent) && !defaults().differ(&none, &lent));
        let granted = ResourceReport { revocable_allocated_cpu_milli: 1, ..none.clone() };
        assert!(defaults().differ(&none, &granted), "what is granted is no measurement");
    }
}
