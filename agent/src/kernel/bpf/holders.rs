//! Which task holds a port of the host, in a pinned table of prefixes.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bulkhead_abi::{HELD_CLASS_BITS, HELD_PORT_BYTES, class, names};
use bulkhead_proto::resources::PortSet;

use super::{
    BpfError,
    trie::{Trie, TrieKey},
};

type Key = TrieKey<HELD_PORT_BYTES>;

/// A range of any length takes at most 30 entries.
pub(super) struct PortHolders {
    table: Trie<HELD_PORT_BYTES, u64>,
    /// What is in the table, by cgroup id.
    held: Mutex<BTreeMap<u64, Vec<Key>>>,
}

impl PortHolders {
    /// Opens the map in `dir`, with what it holds.
    pub(super) fn open(dir: &Path) -> Result<Self, BpfError> {
        let table: Trie<HELD_PORT_BYTES, u64> = Trie::open(dir, names::PORT_HOLDERS)?;
        let mut held = BTreeMap::<_, Vec<_>>::new();
        for (key, cgroup_id) in table.all()? {
            held.entry(cgroup_id).or_default().push(key);
        }
        Ok(Self { table, held: Mutex::new(held) })
    }

    /// Makes exactly these ports the task's. Nobody else may hold one of them.
    pub(super) fn hold(&self, cgroup_id: u64, ports: &PortSet) -> Result<(), BpfError> {
        let wanted = keys(ports);
        let mut held = self.lock();
        let before = held.insert(cgroup_id, wanted.clone()).unwrap_or_default();
        for key in wanted.iter().filter(|key| !before.contains(key)) {
            self.table.set(key, cgroup_id)?;
        }
        before.iter().filter(|key| !wanted.contains(key)).try_for_each(|key| self.table.delete(key))
    }

    /// The task holds none any more.
    pub(super) fn release(&self, cgroup_id: u64) -> Result<(), BpfError> {
        let held = self.lock().remove(&cgroup_id).unwrap_or_default();
        held.iter().try_for_each(|key| self.table.delete(key))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<Key>>> {
        // A list that is ahead of the table after a failure names entries whose deletion does no harm.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keys(ports: &PortSet) -> Vec<Key> {
    let of = |class: u32, ranges: &[(u16, u16)]| {
        let prefixes = ranges.iter().flat_map(|&(first, last)| prefixes(first, last)).collect::<Vec<_>>();
        prefixes.into_iter().map(move |(port, bits)| {
            let bytes = (class << u16::BITS | u32::from(port)).to_be_bytes();
            Key { bits: HELD_CLASS_BITS + bits, bytes }
        })
    };
    of(class::TCP, ports.tcp().ranges()).chain(of(class::UDP, ports.udp().ranges())).collect()
}

/// The fewest prefixes that cover a range, with their length in bits.
fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    let mut found = Vec::new();
    while let Some(port) = u16::try_from(at).ok().filter(|_| at < end) {
        // As large as its beginning is aligned, and as what is left.
        let size_bits = at.trailing_zeros().min((end - at).ilog2()).min(16);
        found.push((port, 16 - size_bits));
        at += 1 << size_bits;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_becomes_few_prefixes() {
        assert_eq!(prefixes(8080, 8080), [(8080, 16)]);
        assert_eq!(prefixes(31000, 31007), [(31000, 13)]);
        assert_eq!(prefixes(1, u16::MAX).len(), 16);
        assert_eq!(prefixes(0, u16::MAX), [(0, 0)]);
        assert_eq!(prefixes(1, u16::MAX - 1).len(), 30);
    }

    proptest! {
        #[test]
        fn prefixes_cover_their_range_exactly(a: u16, b: u16) {
            let (first, last) = (a.min(b), a.max(b));
            let mut next = u32::from(first);
            for (port, bits) in prefixes(first, last) {
                let size = 1u32 << (16 - bits);
                prop_assert_eq!(u32::from(port), next);
                prop_assert_eq!(u32::from(port) % size, 0);
                next += size;
            }
            prop_assert_eq!(next, u32::from(last) + 1);
        }
    }
}
