//! Whom tasks may talk to, and what they were refused, in the pinned maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bulkhead_abi::{
    CELLS, Cells, Denial, PortVerdicts, SET_BITS, TalkCounters, TalkGroups, TalkKey, TalkTask, V4_KEY_BYTES,
    V6_KEY_BYTES, names, talk_flag, verdict,
};

use super::{
    BpfError, grace,
    holders::PortHolders,
    net::Slots,
    table::Table,
    trie::{Trie, TrieKey},
};
use bulkhead_proto::resources::PortSet;

use crate::grant::talk::Prefix;

/// Rules as programs look them up. Numbers of port verdicts begin at [`verdict::FIRST_PORTS`], in the order of `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// Bits of [`bulkhead_abi::talk_flag`].
    pub flags: u32,
    /// For tasks of the same framework.
    pub of_framework: Cells,
    /// For tasks of the same role.
    pub of_role: Cells,
    /// For this node.
    pub node: Cells,
    /// For everybody else.
    pub outside: Cells,
    /// For the prefixes that rules name, each once.
    pub prefixes: Vec<PrefixVerdicts>,
    /// What cells point to.
    pub ports: Vec<PortVerdicts>,
}

/// What holds for a prefix, shorter ones considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixVerdicts {
    /// Whom.
    pub prefix: Prefix,
    /// The verdicts.
    pub cells: Cells,
}

/// Whom each task may talk to. Keyed by the id of the task's cgroup, which is never used again for another.
///
/// Versions of a task's rules lie beside each other in the maps, each under a number of its own; the one that the task's
/// entry names is in force. Who changes rules writes the new version, names it, waits until no program can
/// still be looking at the old one, and deletes that.
pub struct TalkRules {
    tasks: Table<u64, TalkTask>,
    v4: Trie<V4_KEY_BYTES, Cells>,
    v6: Trie<V6_KEY_BYTES, Cells>,
    ports: Table<u32, PortVerdicts>,
    groups: Table<u64, TalkGroups>,
    holders: PortHolders,
    naming: Slots<u32>,
    node: Table<[u8; 16], u32>,
    counters: Table<u64, TalkCounters>,
    denials: Table<TalkKey, Denial>,
    books: Mutex<Books>,
}

/// What is in the maps: they can be listed, but not by set.
#[derive(Default)]
struct Books {
    next_set: u32,
    next_ports: u32,
    sets: BTreeMap<u32, Written>,
    /// Tasks whose rules name tasks.
    naming: BTreeSet<u64>,
}

/// The entries of one set.
#[derive(Default)]
struct Written {
    v4: Vec<TrieKey<V4_KEY_BYTES>>,
    v6: Vec<TrieKey<V6_KEY_BYTES>>,
    ports: BTreeSet<u32>,
}

impl TalkRules {
    /// Opens the maps in [`Loaded::talk`](super::Loaded::talk), and removes what an agent that was killed in the middle
    /// of a change left in them. Nobody else may be changing rules.
    ///
    /// # Errors
    /// A map that is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        let rules = Self {
            tasks: Table::open(dir, names::TALK_TASKS)?,
            v4: Trie::open(dir, names::TALK_V4)?,
            v6: Trie::open(dir, names::TALK_V6)?,
            ports: Table::open(dir, names::TALK_PORTS)?,
            groups: Table::open(dir, names::TALK_GROUPS)?,
            holders: PortHolders::open(dir)?,
            naming: Slots::open(dir, names::TALK_NAMING)?,
            node: Table::open(dir, names::NODE_ADDRESSES)?,
            counters: Table::open(dir, names::TALK_COUNTERS)?,
            denials: Table::open(dir, names::TALK_DENIALS)?,
            books: Mutex::default(),
        };
        let mut found = rules.take_stock()?;
        let tasks = rules.tasks.select(|_| true)?;
        let in_force: BTreeSet<_> = tasks.iter().map(|(_, task)| task.set).collect();
        let naming = tasks.iter().filter(|(_, task)| task.flags & talk_flag::NAMES != 0).map(|(id, _)| *id);
        found.naming = naming.collect();
        let (kept, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut found.sets).into_iter().partition(|(set, _)| in_force.contains(set));
        for written in left.values() {
            rules.delete(written)?;
        }
        let pointed_to: BTreeSet<u32> = kept.values().flat_map(|w| w.ports.iter().copied()).collect();
        for (number, _) in rules.ports.select(|number| !pointed_to.contains(number))? {
            rules.ports.delete(&number)?;
        }
        let after = |last: Option<u32>, first| last.map_or(first, |last| last.wrapping_add(1).max(first));
        found.next_set = after(in_force.last().copied(), 1);
        found.next_ports = after(pointed_to.last().copied(), verdict::FIRST_PORTS);
        found.sets = kept;
        *rules.lock() = found;
        Ok(rules)
    }

    /// Makes exactly these the addresses of this node, besides loopback.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer; then some of them may be missing.
    pub fn set_node_addresses(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), BpfError> {
        let bytes = |address: &IpAddr| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let wanted: BTreeSet<_> = addresses.iter().map(bytes).collect();
        let known: BTreeSet<_> = self.node.select(|_| true)?.into_iter().map(|(key, _)| key).collect();
        wanted.difference(&known).try_for_each(|key| self.node.set(*key, 1))?;
        known.difference(&wanted).try_for_each(|key| self.node.delete(key))
    }

    /// Puts these rules into force, all at once; `None` lets the task talk to everybody. Connections that are open stay
    /// so. Counts are kept.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer; what was in force still is, unless it is the old version
    /// that could not be deleted.
    pub fn grant(
        &self,
        cgroup_id: u64,
        groups: TalkGroups,
        rules: Option<&Verdicts>,
    ) -> Result<(), BpfError> {
        let before = self.tasks.get(&cgroup_id)?.map(|task| task.set);
        self.groups.set(cgroup_id, groups)?;
        match rules {
            Some(rules) => {
                self.counters.make(cgroup_id, TalkCounters::default())?;
                let names = rules.flags & talk_flag::NAMES != 0;
                if names {
                    self.note_naming(cgroup_id, true)?;
                }
                let task = self.write(groups, rules)?;
                if let Err(error) = self.tasks.set(cgroup_id, task) {
                    self.forget(task.set)?;
                    return Err(error);
                }
                self.note_naming(cgroup_id, names)?;
            }
            None => {
                self.tasks.delete(&cgroup_id)?;
                self.note_naming(cgroup_id, false)?;
            }
        }
        before.map_or(Ok(()), |set| self.retire(set))
    }

    /// Makes these the ports of the host by which others find this task. Nobody else may hold one of them.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer; then some of them may be missing.
    pub fn hold_ports(&self, cgroup_id: u64, ports: &PortSet) -> Result<(), BpfError> {
        self.holders.hold(cgroup_id, ports)
    }

    /// Programs look for tasks only while any rules name them.
    fn note_naming(&self, cgroup_id: u64, names: bool) -> Result<(), BpfError> {
        let mut books = self.lock();
        let changed = if names { books.naming.insert(cgroup_id) } else { books.naming.remove(&cgroup_id) };
        match changed {
            true => self.naming.set(0, u32::try_from(books.naming.len()).unwrap_or(u32::MAX)),
            false => Ok(()),
        }
    }

    /// Forgets the task, its rules and its denials. Harmless for a task that is not known.
    ///
    /// # Errors
    /// The kernel's answer; calling again goes on where it stopped.
    pub fn revoke(&self, cgroup_id: u64) -> Result<(), BpfError> {
        if let Some(task) = self.tasks.get(&cgroup_id)? {
            self.tasks.delete(&cgroup_id)?;
            self.retire(task.set)?;
        }
        // Going through all denials takes a system call for each: not for a task that is known to have none.
        if self.counted(cgroup_id)?.is_some_and(|counters| counters.refused + counters.dropped > 0) {
            for (key, _) in self.denials(cgroup_id)? {
                self.denials.delete(&key)?;
            }
        }
        self.counters.delete(&cgroup_id)?;
        self.note_naming(cgroup_id, false)?;
        self.holders.release(cgroup_id)?;
        self.groups.delete(&cgroup_id)
    }

    /// What was refused to this task since it first had rules. Exact. `None` where it never had any.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn counted(&self, cgroup_id: u64) -> Result<Option<TalkCounters>, BpfError> {
        self.counters.get(&cgroup_id)
    }

    /// What was refused to this task, in order. At most
    /// [`MAX_DENIED_PEERS`](bulkhead_abi::MAX_DENIED_PEERS) peers are told apart; the rest is one entry for each protocol
    /// and way.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn denials(&self, cgroup_id: u64) -> Result<Vec<(TalkKey, Denial)>, BpfError> {
        let mut found = self.denials.select(|key| key.cgroup_id == cgroup_id)?;
        found.sort_by_key(|(key, _)| *key);
        Ok(found)
    }

    /// How many entries there are for prefixes and for ports, of all tasks together.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn entries(&self) -> Result<(usize, usize), BpfError> {
        let prefixes = self.v4.all()?.len() + self.v6.all()?.len();
        Ok((prefixes, self.ports.select(|_| true)?.len()))
    }

    /// Writes a version that nothing names yet.
    fn write(&self, groups: TalkGroups, rules: &Verdicts) -> Result<TalkTask, BpfError> {
        let (set, first_ports) = self.reserve(rules.ports.len());
        let moved = |cells: &Cells| move_ports(cells, first_ports);
        let mut written = Written::default();
        let result = (|| {
            for (number, table) in (first_ports..).zip(&rules.ports) {
                written.ports.insert(number);
                self.ports.set(number, *table)?;
            }
            for PrefixVerdicts { prefix, cells } in &rules.prefixes {
                let bits = SET_BITS + u32::from(prefix.bits());
                match prefix.address() {
                    IpAddr::V4(v4) => {
                        let key = TrieKey { bits, bytes: key_bytes(set, &v4.octets()) };
                        written.v4.push(key);
                        self.v4.set(&key, moved(cells))?;
                    }
                    IpAddr::V6(v6) => {
                        let key = TrieKey { bits, bytes: key_bytes(set, &v6.octets()) };
                        written.v6.push(key);
                        self.v6.set(&key, moved(cells))?;
                    }
                }
            }
            Ok(())
        })();
        self.lock().sets.insert(set, written);
        if let Err(error) = result {
            self.forget(set)?;
            return Err(error);
        }
        Ok(TalkTask {
            set,
            flags: rules.flags,
            framework: groups.framework,
            role: groups.role,
            of_framework: moved(&rules.of_framework),
            of_role: moved(&rules.of_role),
            node: moved(&rules.node),
            outside: moved(&rules.outside),
        })
    }

    /// A number for a set, and the first of as many for its ports.
    fn reserve(&self, tables: usize) -> (u32, u32) {
        let mut books = self.lock();
        let reserved = (books.next_set, books.next_ports);
        books.next_set = books.next_set.wrapping_add(1).max(1);
        let tables = u32::try_from(tables).unwrap_or(u32::MAX);
        books.next_ports = books.next_ports.checked_add(tables).unwrap_or(verdict::FIRST_PORTS);
        reserved
    }

    /// Deletes a set that no task's entry names any more, once no program looks at it.
    fn retire(&self, set: u32) -> Result<(), BpfError> {
        grace::wait();
        self.forget(set)
    }

    /// Deletes a set that nobody looks at.
    fn forget(&self, set: u32) -> Result<(), BpfError> {
        let Some(written) = self.lock().sets.remove(&set) else { return Ok(()) };
        let result = self.delete(&written);
        if result.is_err() {
            self.lock().sets.insert(set, written);
        }
        result
    }

    fn delete(&self, written: &Written) -> Result<(), BpfError> {
        written.v4.iter().try_for_each(|key| self.v4.delete(key))?;
        written.v6.iter().try_for_each(|key| self.v6.delete(key))?;
        written.ports.iter().try_for_each(|number| self.ports.delete(number))
    }

    /// Everything in the maps, by set.
    fn take_stock(&self) -> Result<Books, BpfError> {
        let mut books = Books::default();
        for (key, cells) in self.v4.all()? {
            let written = books.sets.entry(set_of(&key.bytes)).or_default();
            written.v4.push(key);
            written.ports.extend(ports_in(&cells));
        }
        for (key, cells) in self.v6.all()? {
            let written = books.sets.entry(set_of(&key.bytes)).or_default();
            written.v6.push(key);
            written.ports.extend(ports_in(&cells));
        }
        for (_, task) in self.tasks.select(|_| true)? {
            let written = books.sets.entry(task.set).or_default();
            let cells = [&task.of_framework, &task.of_role, &task.node, &task.outside];
            written.ports.extend(cells.into_iter().flat_map(ports_in));
        }
        Ok(books)
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // Every change of the books is complete before anything in it could panic.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_bytes<const N: usize>(set: u32, address: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let source = set.to_be_bytes().into_iter().chain(address.iter().copied());
    bytes.iter_mut().zip(source).for_each(|(to, from)| *to = from);
    bytes
}

fn set_of(key: &[u8]) -> u32 {
    key.first_chunk().map_or(0, |set| u32::from_be_bytes(*set))
}

fn ports_in(cells: &Cells) -> impl Iterator<Item = u32> {
    cells.iter().copied().filter(|word| *word >= verdict::FIRST_PORTS)
}

/// The cells with numbers that begin where the caller's do.
fn move_ports(cells: &Cells, first: u32) -> Cells {
    let mut moved = [verdict::DENY; CELLS];
    for (to, from) in moved.iter_mut().zip(cells) {
        *to = match from.checked_sub(verdict::FIRST_PORTS) {
            Some(index) => first.wrapping_add(index),
            None => *from,
        };
    }
    moved
}
