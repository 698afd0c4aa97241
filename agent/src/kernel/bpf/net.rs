//! Rates and counts of tasks' traffic, in the pinned maps.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    BpfError,
    per_cpu::CpuSlots,
    table::{Table, open_map},
    talk::Verdicts,
};
use crate::grant::{MAX_BITS_PER_SEC, MIN_BITS_PER_SEC};
use aya::{
    Pod,
    maps::{Array, Map, MapData, MapError},
};
use bulkhead_abi::{
    MAX_NET_TASKS, NET_INTERFACES, NS_PER_BYTE_SHIFT, NetClocks, NetCounters, NetInterface, NetLink, NetRate,
    NetRuleDrops, NetTask, names, net_task, talk_flag,
};

/// Packets wait for up to a second; at low rates, for as long as two of the largest take.
const LEAST_HORIZON_NS: u64 = 1_000_000_000;
const TWO_LARGEST_PACKETS_BYTES: u64 = 2 * 65_536;
/// Bits of a task's flags that its rules decide.
const ABOUT_RULES: u32 = net_task::RULES | net_task::NAMES;

/// How fast a task may send and receive, in bits a second; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// What it may send whatever others do.
    pub guaranteed: Option<u64>,
    /// What it may send at most.
    pub ceiling: Option<u64>,
    /// What it may receive at most.
    pub ingress: Option<u64>,
}

/// What tasks may send and receive, and what they did. Keyed by the id of the task's cgroup, which is never used again
/// for another.
///
/// A task that is not known here is neither held nor counted.
pub struct NetRules {
    tasks: Table<u64, NetTask>,
    devices: Slots<NetInterface>,
    link: Slots<NetLink>,
    clocks: Slots<NetClocks>,
    counters: CpuSlots<NetCounters>,
    rule_drops: CpuSlots<NetRuleDrops>,
    /// Who has which slot. Locked while a task's entry changes.
    owners: Mutex<Owners>,
}

/// Slots of tasks, and what those counted that are gone.
struct Owners {
    by_slot: BTreeMap<u32, u64>,
    past: NetCounters,
}

impl NetRules {
    /// Opens the maps in [`Loaded::net`](super::Loaded::net).
    ///
    /// # Errors
    /// A map that is not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        let tasks: Table<u64, NetTask> = Table::open(dir, names::NET_TASKS)?;
        let by_slot = tasks.select(|_| true)?.into_iter().map(|(id, task)| (task.slot, id)).collect();
        Ok(Self {
            tasks,
            devices: Slots::open(dir, names::NET_DEVICES)?,
            link: Slots::open(dir, names::NET_LINK)?,
            clocks: Slots::open(dir, names::NET_CLOCKS)?,
            counters: CpuSlots::open(dir, names::NET_COUNTERS)?,
            rule_drops: CpuSlots::open(dir, names::NET_RULE_DROPS)?,
            owners: Mutex::new(Owners { by_slot, past: NetCounters::default() }),
        })
    }

    /// Holds a task to exactly these rates from the next packet on, and counts what it sends and receives. What is
    /// waiting goes on waiting; counts are kept.
    ///
    /// # Errors
    /// [`BpfError::Full`] or the kernel's answer; the rates before are then in force.
    pub fn set(&self, cgroup_id: u64, rates: Rates) -> Result<(), BpfError> {
        let mut owners = self.owners();
        if let Some(before) = self.tasks.get(&cgroup_id)? {
            let own = before.flags & (net_task::OWN_NAMESPACE | ABOUT_RULES);
            return self.tasks.set(cgroup_id, entry(rates, before.slot, own));
        }
        let slot = owners.free().ok_or(BpfError::Full { name: names::NET_TASKS })?;
        // Of the task that had it before.
        self.clocks.set(slot, NetClocks::default())?;
        self.counters.clear(slot)?;
        self.rule_drops.clear(slot)?;
        self.tasks.set(cgroup_id, entry(rates, slot, 0))?;
        owners.by_slot.insert(slot, cgroup_id);
        Ok(())
    }

    /// Tells whether the task has a network namespace of its own, whose interfaces are not the host's.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_own_namespace(&self, cgroup_id: u64, own: bool) -> Result<(), BpfError> {
        let flags = if own { net_task::OWN_NAMESPACE } else { 0 };
        self.set_flags(cgroup_id, net_task::OWN_NAMESPACE, flags)
    }

    /// Was that told of the task? Not of one that is not known.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn has_own_namespace(&self, cgroup_id: u64) -> Result<bool, BpfError> {
        let task = self.tasks.get(&cgroup_id)?;
        Ok(task.is_some_and(|task| task.flags & net_task::OWN_NAMESPACE != 0))
    }

    /// Tells what of the task's packets is asked about in [`TalkRules`](super::TalkRules), by the rules that it has there.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_rules(&self, cgroup_id: u64, rules: Option<&Verdicts>) -> Result<(), BpfError> {
        let flags = match rules {
            Some(rules) if rules.flags & talk_flag::NAMES != 0 => net_task::RULES | net_task::NAMES,
            Some(_) => net_task::RULES,
            None => 0,
        };
        self.set_flags(cgroup_id, ABOUT_RULES, flags)
    }

    fn set_flags(&self, cgroup_id: u64, mask: u32, flags: u32) -> Result<(), BpfError> {
        let _owners = self.owners();
        let Some(mut task) = self.tasks.get(&cgroup_id)? else { return Ok(()) };
        let before = task.flags;
        task.flags = before & !mask | flags;
        if task.flags == before { Ok(()) } else { self.tasks.set(cgroup_id, task) }
    }

    /// Forgets the task: it is no longer held. Harmless for one that is not known.
    ///
    /// # Errors
    /// The kernel's answer; calling again goes on where it stopped.
    pub fn forget(&self, cgroup_id: u64) -> Result<(), BpfError> {
        let mut owners = self.owners();
        let Some(task) = self.tasks.get(&cgroup_id)? else { return Ok(()) };
        let last = sum(&self.counters.get(task.slot)?);
        self.tasks.delete(&cgroup_id)?;
        owners.by_slot.remove(&task.slot);
        owners.past = owners.past.plus(&last);
        Ok(())
    }

    /// What the task sent and received so far; `None` for one that is not known.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn counters(&self, cgroup_id: u64) -> Result<Option<NetCounters>, BpfError> {
        let Some(task) = self.tasks.get(&cgroup_id)? else { return Ok(None) };
        Ok(Some(sum(&self.counters.get(task.slot)?)))
    }

    /// What was dropped because of the task's rules on whom it talks to; `None` for one that is not known.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn rule_drops(&self, cgroup_id: u64) -> Result<Option<NetRuleDrops>, BpfError> {
        let Some(task) = self.tasks.get(&cgroup_id)? else { return Ok(None) };
        Ok(Some(sum_drops(&self.rule_drops.get(task.slot)?)))
    }

    /// [`NetRules::counters`] of all tasks, by one system call whatever their number.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn all(&self) -> Result<BTreeMap<u64, NetCounters>, BpfError> {
        let owners = self.owners();
        Ok(owners.name(&self.counters.first(owners.end(), sum)?))
    }

    /// [`NetRules::rule_drops`] of all tasks, by one system call whatever their number.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn all_rule_drops(&self) -> Result<BTreeMap<u64, NetRuleDrops>, BpfError> {
        let owners = self.owners();
        Ok(owners.name(&self.rule_drops.first(owners.end(), sum_drops)?))
    }

    /// Of all tasks since this handle was opened, and what those counted before that still run.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn total(&self) -> Result<NetCounters, BpfError> {
        let owners = self.owners();
        let all = owners.name(&self.counters.first(owners.end(), sum)?);
        Ok(all.values().fold(owners.past, |sum, counters| sum.plus(counters)))
    }

    /// Makes exactly these the interfaces that something is known of. Two whose indexes meet in one place cannot both
    /// be known: the one that is not the link is left out.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_interfaces(&self, known: &[NetInterface]) -> Result<(), BpfError> {
        let link_last = |interface: &&NetInterface| interface.flags & bulkhead_abi::net_interface::LINK;
        for place in 0..NET_INTERFACES {
            let here = known.iter().filter(|interface| interface.ifindex % NET_INTERFACES == place);
            let wanted = here.max_by_key(link_last).copied().unwrap_or_default();
            if self.devices.get(place)? != wanted {
                self.devices.set(place, wanted)?;
            }
        }
        Ok(())
    }

    /// What all tasks together may send over the link; `None` where that is not known: nothing is then guaranteed.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_link(&self, bits_per_sec: Option<u64>) -> Result<(), BpfError> {
        let wanted = NetLink { rate: rate(bits_per_sec) };
        if self.link.get(0)? == wanted { Ok(()) } else { self.link.set(0, wanted) }
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        // A slot is entered last, so a panic in between leaves it free.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owners {
    /// The lowest, so that few are read; 0 is the link's.
    fn free(&self) -> Option<u32> {
        (1..MAX_NET_TASKS).find(|slot| !self.by_slot.contains_key(slot))
    }

    /// After the last slot that somebody has.
    fn end(&self) -> u32 {
        self.by_slot.last_key_value().map_or(0, |(last, _)| last + 1)
    }

    /// What is in the first slots, by whose it is.
    fn name<T: Copy>(&self, slots: &[T]) -> BTreeMap<u64, T> {
        let of = |slot: u32| usize::try_from(slot).ok().and_then(|slot| slots.get(slot).copied());
        self.by_slot.iter().filter_map(|(slot, id)| Some((*id, of(*slot)?))).collect()
    }
}

/// A pinned array of typed values.
pub(super) struct Slots<V: Pod> {
    name: &'static str,
    map: Mutex<Array<MapData, V>>,
}

impl<V: Pod> Slots<V> {
    pub(super) fn open(dir: &Path, name: &'static str) -> Result<Self, BpfError> {
        let map: Map = open_map(dir, name)?;
        Ok(Self { name, map: Mutex::new(Array::try_from(map).map_err(failed("open", name))?) })
    }

    fn get(&self, slot: u32) -> Result<V, BpfError> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(&slot, 0).map_err(failed("read", self.name))
    }

    pub(super) fn set(&self, slot: u32, value: V) -> Result<(), BpfError> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.set(slot, value, 0).map_err(failed("write", self.name))
    }
}

fn failed(op: &'static str, name: &'static str) -> impl FnOnce(MapError) -> BpfError {
    move |source| BpfError::Map { op, name, source }
}

fn entry(rates: Rates, slot: u32, flags: u32) -> NetTask {
    let capped = rates.ceiling.is_some() && rates.ceiling == rates.guaranteed;
    NetTask {
        slot,
        flags: flags | if capped { net_task::CAPPED } else { 0 },
        guaranteed: rate(rates.guaranteed),
        ceiling: rate(rates.ceiling),
        ingress: rate(rates.ingress),
    }
}

fn rate(bits_per_sec: Option<u64>) -> NetRate {
    const NS_BITS_PER_BYTE: u64 = 8_000_000_000 << NS_PER_BYTE_SHIFT;
    let Some(bits_per_sec) = bits_per_sec else { return NetRate::default() };
    let ns_per_byte = NS_BITS_PER_BYTE / bits_per_sec.clamp(MIN_BITS_PER_SEC, MAX_BITS_PER_SEC);
    let two_largest_ns = (TWO_LARGEST_PACKETS_BYTES * ns_per_byte) >> NS_PER_BYTE_SHIFT;
    NetRate { ns_per_byte, horizon_ns: two_largest_ns.max(LEAST_HORIZON_NS) }
}

fn sum(of_cpus: &[NetCounters]) -> NetCounters {
    of_cpus.iter().fold(NetCounters::default(), |sum, one| sum.plus(one))
}

fn sum_drops(of_cpus: &[NetRuleDrops]) -> NetRuleDrops {
    of_cpus.iter().fold(NetRuleDrops::default(), |sum, one| sum.plus(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hard_cap_is_known_as_such() {
        let rates = |guaranteed, ceiling| Rates { guaranteed, ceiling, ingress: None };
        let capped = |rates| entry(rates, 1, 0).flags & net_task::CAPPED != 0;
        assert!(capped(rates(Some(1_000_000), Some(1_000_000))));
        assert!(!capped(rates(Some(1_000_000), Some(2_000_000))));
        assert!(!capped(rates(Some(1_000_000), None)));
        assert!(!capped(rates(None, None)));
        assert_eq!(entry(rates(None, None), 1, 0).guaranteed, NetRate::default(), "no rate");
    }

    #[test]
    fn slow_rates_let_the_largest_packets_wait() {
        assert_eq!(rate(Some(1_000_000_000)).horizon_ns, LEAST_HORIZON_NS);
        let slow = rate(Some(MIN_BITS_PER_SEC));
        assert_eq!(slow.horizon_ns, TWO_LARGEST_PACKETS_BYTES * 8 * 1_000_000_000 / MIN_BITS_PER_SEC);
    }

    #[test]
    fn slots_of_tasks_that_ended_are_used_again() {
        let mut owners = Owners { by_slot: BTreeMap::new(), past: NetCounters::default() };
        for id in 0..3 {
            let slot = owners.free().unwrap();
            owners.by_slot.insert(slot, id);
        }
        owners.by_slot.remove(&2);
        assert_eq!(owners.free(), Some(2));
    }

    proptest! {
        /// What programs compute for a packet of any size differs from the exact time by less than 0.1 %, or a
        /// nanosecond, and never overflows.
        #[test]
        fn rates_are_exact(bits in MIN_BITS_PER_SEC..400_000_000_000, bytes in 1u64..600_000) {
            let product = bytes.checked_mul(rate(Some(bits)).ns_per_byte).unwrap();
            let cost_ns = u128::from(product >> NS_PER_BYTE_SHIFT);
            let exact_ns = u128::from(bytes) * 8_000_000_000 / u128::from(bits);
            prop_assert!(cost_ns.abs_diff(exact_ns) <= exact_ns / 1000 + 1, "{cost_ns} {exact_ns}");
        }
    }
}
