//! Port grants and denials of tasks, in the pinned maps.

use std::{collections::BTreeMap, path::Path};

use bulkhead_abi::{
    Denial, DenialKey, GrantIndex, PORTS_PER_WORD, PortUse, PortWordKey, Protocol, TaskCounters, names,
};
use bulkhead_proto::resources::PortSet;

use super::{BpfError, table::Table};

/// What each task may bind. Keyed by the id of the task's cgroup, which is never used again for another.
///
/// A task that was never granted anything may bind nothing.
pub struct PortRules {
    index: Table<u64, GrantIndex>,
    grants: Table<PortWordKey, u64>,
    usage: Table<PortWordKey, PortUse>,
    counters: Table<u64, TaskCounters>,
    denials: Table<DenialKey, Denial>,
}

impl PortRules {
    /// Opens the maps in [`Loaded::ports`](super::Loaded::ports).
    ///
    /// # Errors
    /// A map that is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            index: Table::open(dir, names::GRANT_INDEX)?,
            grants: Table::open(dir, names::GRANTS)?,
            usage: Table::open(dir, names::PORT_USE)?,
            counters: Table::open(dir, names::COUNTERS)?,
            denials: Table::open(dir, names::DENIALS)?,
        })
    }

    /// Grants exactly these ports, for TCP and UDP. Ports of an earlier grant that are not among them
    /// are taken back: sockets that are bound to them stay so. Counts and what is in use are kept.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer; then some of the ports may be granted, until
    /// [`revoke`](Self::revoke).
    pub fn grant(&self, cgroup_id: u64, ports: &PortSet) -> Result<(), BpfError> {
        let new = words(ports);
        let new_index = index_of(&new);
        let old_index = self.index.get(&cgroup_id)?.unwrap_or(GrantIndex::EMPTY);
        self.counters.make(cgroup_id, TaskCounters::default())?;
        // Whatever happens in between, the index names every word there is, so that none is forgotten.
        self.index.set(cgroup_id, union(&old_index, &new_index))?;
        for protocol in Protocol::ALL {
            for (&word, &bits) in &new {
                let key = word_key(cgroup_id, protocol, word);
                self.usage.make(key, PortUse::UNUSED)?;
                if self.grants.get(&key)? != Some(bits) {
                    self.grants.set(key, bits)?;
                }
            }
        }
        for key in keys(cgroup_id, &old_index).filter(|key| !new.contains_key(&key.word)) {
            self.delete_word(&key)?;
        }
        self.index.set(cgroup_id, new_index)
    }

    /// Takes everything back, and forgets the denials. Harmless for a task that is not known.
    ///
    /// # Errors
    /// The kernel's answer; calling again goes on where it stopped.
    pub fn revoke(&self, cgroup_id: u64) -> Result<(), BpfError> {
        if let Some(index) = self.index.get(&cgroup_id)? {
            for key in keys(cgroup_id, &index) {
                self.delete_word(&key)?;
            }
        }
        // Going through all denials takes a system call for each: not for a task that is known to have none.
        if self.counters.get(&cgroup_id)?.is_none_or(|counters| counters.denied > 0) {
            for (key, _) in self.denials(cgroup_id)? {
                self.denials.delete(&key)?;
            }
        }
        self.counters.delete(&cgroup_id)?;
        self.index.delete(&cgroup_id)
    }

    /// How many binds were denied to this task since it was first granted something. Exact.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn total_denied(&self, cgroup_id: u64) -> Result<u64, BpfError> {
        Ok(self.counters.get(&cgroup_id)?.map_or(0, |c| c.denied))
    }

    /// What was denied to this task, by protocol, IP version and port, in that order. At most
    /// [`MAX_DENIED_PORTS`](bulkhead_abi::MAX_DENIED_PORTS) ports are told apart; the rest is one entry.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn denials(&self, cgroup_id: u64) -> Result<Vec<(DenialKey, Denial)>, BpfError> {
        let mut found = self.denials.select(|key| key.cgroup_id == cgroup_id)?;
        found.sort_by_key(|(key, _)| (key.protocol, key.ip_version, key.other, key.port));
        Ok(found)
    }

    fn delete_word(&self, key: &PortWordKey) -> Result<(), BpfError> {
        self.grants.delete(key)?;
        self.usage.delete(key)
    }
}

/// The ports as words of 64 bits; words without a port are left out.
fn words(ports: &PortSet) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    for port in ports.iter().map(u32::from) {
        *words.entry(port / PORTS_PER_WORD).or_insert(0) |= 1 << (port % PORTS_PER_WORD);
    }
    words
}

/// The index that names these words, for both protocols.
fn index_of(words: &BTreeMap<u32, u64>) -> GrantIndex {
    let mut index = GrantIndex::EMPTY;
    for &word in words.keys() {
        for protocol in &mut index.words {
            protocol[word as usize / 64] |= 1 << (word % 64);
        }
    }
    index
}

fn union(a: &GrantIndex, b: &GrantIndex) -> GrantIndex {
    let mut both = *a;
    for (to, from) in both.words.as_flattened_mut().iter_mut().zip(b.words.as_flattened()) {
        *to |= from;
    }
    both
}

/// The words that an index names.
fn keys(cgroup_id: u64, index: &GrantIndex) -> impl Iterator<Item = PortWordKey> + use<'_> {
    Protocol::ALL.into_iter().flat_map(move |protocol| {
        let bits = &index.words[protocol as usize];
        (0..65_536 / PORTS_PER_WORD)
            .filter(move |word| bits[*word as usize / 64] >> (word % 64) & 1 == 1)
            .map(move |word| word_key(cgroup_id, protocol, word))
    })
}

fn word_key(cgroup_id: u64, protocol: Protocol, word: u32) -> PortWordKey {
    PortWordKey { cgroup_id, word, protocol: protocol as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_hold_exactly_the_ports(ports in prop::collection::btree_set(1u16.., 0..300)) {
            let words = words(&PortSet::from_ports(ports.iter().copied()));
            let back: Vec<u16> = (0..=u16::MAX)
                .filter(|&p| words.get(&(u32::from(p) / 64)).is_some_and(|w| w >> (p % 64) & 1 == 1))
                .collect();
            prop_assert_eq!(back, ports.into_iter().collect::<Vec<_>>());
            prop_assert!(words.values().all(|&w| w != 0));
        }

        #[test]
        fn the_index_names_exactly_the_words(ports in prop::collection::btree_set(1u16.., 0..300)) {
            let words = words(&PortSet::from_ports(ports));
            let index = index_of(&words);
            for protocol in Protocol::ALL {
                let named: Vec<_> =
                    keys(9, &index).filter(|k| k.protocol == protocol as u32).map(|k| k.word).collect();
                prop_assert_eq!(named, words.keys().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_union_names_the_words_of_both() {
        let of = |text: &str| index_of(&words(&text.parse().unwrap()));
        assert_eq!(union(&of("80,8080"), &of("80,65535")), of("80,8080,65535"));
    }
}
