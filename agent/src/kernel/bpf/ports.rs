//! Port grants and denials of tasks, in the pinned maps.

use std::{collections::BTreeMap, path::Path};

use bulkhead_abi::{
    Denial, DenialKey, INDEX_WORDS, PORTS_PER_WORD, PortWord, PortWordKey, Protocol, TaskCounters, TaskPorts,
    names, port_choice,
};
use bulkhead_proto::resources::{PortNumbers, PortSet};

use super::{BpfError, table::Table};

/// What a task may do with ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGrant {
    /// May be bound.
    pub ports: PortSet,
    /// What the kernel may choose: bits of [`port_choice`].
    pub choice: u32,
    /// Sockets besides the usual ones: bits of [`bulkhead_abi::socket_kind`].
    pub sockets: u32,
}

/// These ports, and the default policy.
impl From<PortSet> for PortGrant {
    fn from(ports: PortSet) -> Self {
        Self { ports, choice: port_choice::DEFAULT, sockets: 0 }
    }
}

/// What each task may bind. Keyed by the id of the task's cgroup, which is never used again for another.
///
/// A task that was never granted anything may bind nothing.
pub struct PortRules {
    tasks: Table<u64, TaskPorts>,
    ports: Table<PortWordKey, PortWord>,
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
            tasks: Table::open(dir, names::TASK_PORTS)?,
            ports: Table::open(dir, names::PORTS)?,
            counters: Table::open(dir, names::COUNTERS)?,
            denials: Table::open(dir, names::DENIALS)?,
        })
    }

    /// Grants exactly this. Ports of an earlier grant that are not among it are taken back: sockets that are bound to
    /// them stay so. Counts and what is in use are kept.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer; then some of it may be granted, until
    /// [`revoke`](Self::revoke).
    pub fn grant(&self, cgroup_id: u64, grant: &PortGrant) -> Result<(), BpfError> {
        let new = [words(grant.ports.tcp()), words(grant.ports.udp())];
        let old = self.tasks.get(&cgroup_id)?;
        let old_index = old.unwrap_or(TaskPorts::EMPTY).words;
        let task = task_of(&new, grant);
        self.counters.make(cgroup_id, TaskCounters::default())?;
        // Whatever happens in between, the index names every word there is, so that none is forgotten.
        let words = union(&old_index, &task.words);
        if old.is_none_or(|old| old.words != words) {
            self.tasks.set(cgroup_id, TaskPorts { words, round: round_of(&words), ..task })?;
        }
        for (protocol, words) in Protocol::ALL.into_iter().zip(&new) {
            for (&word, &granted) in words {
                self.grant_word(word_key(cgroup_id, protocol, word), granted)?;
            }
        }
        let gone = |key: &PortWordKey| !new[key.protocol as usize].contains_key(&key.word);
        for key in keys(cgroup_id, &old_index).filter(gone) {
            self.ports.delete(&key)?;
        }
        self.tasks.set(cgroup_id, task)
    }

    /// Takes everything back, and forgets the denials. Harmless for a task that is not known.
    ///
    /// # Errors
    /// The kernel's answer; calling again goes on where it stopped.
    pub fn revoke(&self, cgroup_id: u64) -> Result<(), BpfError> {
        if let Some(task) = self.tasks.get(&cgroup_id)? {
            for key in keys(cgroup_id, &task.words) {
                self.ports.delete(&key)?;
            }
        }
        // Going through all denials takes a system call for each: not for a task that is known to have none.
        if self.counters.get(&cgroup_id)?.is_none_or(|counters| counters.denied > 0) {
            for (key, _) in self.denials(cgroup_id)? {
                self.denials.delete(&key)?;
            }
        }
        self.counters.delete(&cgroup_id)?;
        self.tasks.delete(&cgroup_id)
    }

    /// How many calls were denied to this task since it was first granted something. Exact.
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
        found.sort_by_key(|(key, _)| (key.protocol, key.ip_version, key.call, key.port));
        Ok(found)
    }

    /// Hints that programs write between the read and the write are lost: one port is then chosen later than it
    /// could be, or tried in vain.
    fn grant_word(&self, key: PortWordKey, granted: u64) -> Result<(), BpfError> {
        match self.ports.get(&key)? {
            None => self.ports.make(key, PortWord { granted, ..PortWord::default() }),
            Some(word) if word.granted == granted => Ok(()),
            Some(word) => self.ports.set(key, PortWord { granted, ..word }),
        }
    }
}

/// The numbers as words of 64 bits; words without a port are left out.
fn words(ports: &PortNumbers) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    for port in ports.iter().map(u32::from) {
        *words.entry(port / PORTS_PER_WORD).or_insert(0) |= 1 << (port % PORTS_PER_WORD);
    }
    words
}

type Index = [[u64; INDEX_WORDS]; 2];

/// The task's value, whose index names these words.
fn task_of(words: &[BTreeMap<u32, u64>; 2], grant: &PortGrant) -> TaskPorts {
    let mut index = TaskPorts::EMPTY.words;
    for (index, words) in index.iter_mut().zip(words) {
        for &word in words.keys() {
            index[word as usize / 64] |= 1 << (word % 64);
        }
    }
    TaskPorts { words: index, round: round_of(&index), choice: grant.choice, sockets: grant.sockets }
}

/// Steps of a search that goes round the words of an index once, from anywhere: each word, the empty stretches between
/// them, and the rest of the word that it began in.
pub(super) fn round_of(index: &Index) -> [u32; 2] {
    let stretches = u32::try_from(INDEX_WORDS).unwrap_or(u32::MAX);
    index.map(|words| words.iter().map(|bits| bits.count_ones()).sum::<u32>() + stretches + 1)
}

fn union(a: &Index, b: &Index) -> Index {
    let mut both = *a;
    for (to, from) in both.as_flattened_mut().iter_mut().zip(b.as_flattened()) {
        *to |= from;
    }
    both
}

/// The words that an index names.
fn keys(cgroup_id: u64, index: &Index) -> impl Iterator<Item = PortWordKey> + use<'_> {
    Protocol::ALL.into_iter().flat_map(move |protocol| {
        let bits = &index[protocol as usize];
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
            let words = words(&ports.iter().copied().collect());
            let back: Vec<u16> = (0..=u16::MAX)
                .filter(|&p| words.get(&(u32::from(p) / 64)).is_some_and(|w| w >> (p % 64) & 1 == 1))
                .collect();
            prop_assert_eq!(back, ports.into_iter().collect::<Vec<_>>());
            prop_assert!(words.values().all(|&w| w != 0));
        }

        #[test]
        fn the_index_names_exactly_the_words(
            tcp in prop::collection::btree_set(1u16.., 0..300),
            udp in prop::collection::btree_set(1u16.., 0..300),
        ) {
            let words = [words(&tcp.into_iter().collect()), words(&udp.into_iter().collect())];
            let task = task_of(&words, &PortGrant::from(PortSet::default()));
            for protocol in Protocol::ALL {
                let named: Vec<_> =
                    keys(9, &task.words).filter(|k| k.protocol == protocol as u32).map(|k| k.word).collect();
                prop_assert_eq!(named, words[protocol as usize].keys().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_union_names_the_words_of_both() {
        let of = |text: &str| {
            let ports: PortSet = text.parse().unwrap();
            task_of(&[words(ports.tcp()), words(ports.udp())], &PortGrant::from(ports)).words
        };
        assert_eq!(union(&of("80,8080/tcp"), &of("80,65535/udp")), of("80,8080/tcp,65535/udp"));
    }
}
