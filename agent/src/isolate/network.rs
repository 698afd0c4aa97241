//! Bandwidth: BPF programs at each packet pace what a task sends, police what it receives, and count both.
//!
//! # What a grant of bandwidth promises
//! A task may send what it was granted whatever the others do, and borrow what nobody uses of the link, up to its ceiling.
//! All that tasks send over the link is held to the part of it that is offered, so a task without a grant gets what is
//! left. What is received can only be held to its grant or ceiling: when it arrives, the link has carried it already.
//!
//! On the link's interface packets are given a time of departure, which its queueing discipline keeps if that is fq; see
//! [`uplink`]. On others (loopback, veth) nothing is guaranteed, since they have no bandwidth of their own that could be
//! shared out; ceilings hold there too.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use bulkhead_proto::{rate::bits_per_sec, v1};
use nix::unistd::Pid;

use super::{IsolateError, Isolator, TaskPlace, counted::Names};
use crate::{
    grant::{Bandwidth, Grant},
    kernel::bpf::{BpfError, NetCounters, NetRuleDrops, NetRules, Rates},
    measure::NetSampler,
    offer::ledger::TaskKey,
};

pub mod uplink;
use uplink::Uplink;

/// Needs the BPF programs `net_egress` and `net_ingress` of `ebpf/enforce`. Without them every grant that limits
/// bandwidth is refused.
pub struct Network {
    held: Option<Held>,
    /// The operator takes grants that nothing holds.
    unenforced: bool,
}

struct Held {
    rules: Arc<NetRules>,
    uplink: Arc<Uplink>,
    /// Whose traffic is counted.
    tasks: Names,
}

/// What a task sent and received, and what it did not because of its rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// What passed, and what was dropped for its rates.
    pub counters: NetCounters,
    /// Packets that were dropped because of its rules on whom it talks to.
    pub rule_drops: NetRuleDrops,
}

impl Network {
    /// Holds tasks to their bandwidth by `rules`, if this kernel has them.
    pub fn new(held: Option<(Arc<NetRules>, Arc<Uplink>)>, unenforced: bool) -> Self {
        let held = held.map(|(rules, uplink)| Held { rules, uplink, tasks: Names::default() });
        Self { held, unenforced }
    }

    /// What all tasks sent and received so far, by two system calls whatever their number.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn traffic(&self) -> Result<Vec<(TaskKey, Traffic)>, BpfError> {
        let Some(held) = &self.held else { return Ok(Vec::new()) };
        let mut drops = held.rules.all_rule_drops()?;
        let with_drops =
            |(id, counters)| (id, Traffic { counters, rule_drops: drops.remove(&id).unwrap_or_default() });
        Ok(held.tasks.name(held.rules.all()?.into_iter().map(with_drops).collect()))
    }

    /// The speed of the link; 0 where bandwidth is not held.
    pub fn link_bits_per_sec(&self) -> u64 {
        self.held.as_ref().and_then(|held| held.uplink.bits_per_sec()).unwrap_or(0)
    }

    /// Measures what is no task's, where that can be known.
    pub fn sampler(&self) -> Option<NetSampler> {
        let held = self.held.as_ref()?;
        Some(NetSampler::new(Arc::clone(&held.uplink), Arc::clone(&held.rules)))
    }

    /// Leaves the link as it was found when the result is dropped; see [`Uplink::close`].
    pub fn closed_on_drop(&self) -> impl Drop + use<> {
        OnDrop(self.held.as_ref().map(|held| Arc::clone(&held.uplink)))
    }

    fn set(&self, task: &TaskPlace, bandwidth: &Bandwidth) -> Result<(), IsolateError> {
        match &self.held {
            Some(held) => {
                let rates = rates(bandwidth, held.uplink.bits_per_sec()).map_err(IsolateError::Refused)?;
                Ok(held.rules.set(task.id, rates)?)
            }
            None if *bandwidth == Bandwidth::default() || self.unenforced => Ok(()),
            None => Err(IsolateError::Refused(
                "this kernel cannot hold bandwidth (see `bulkhead-agent probe`, bpf_net)".to_owned(),
            )),
        }
    }
}

struct OnDrop(Option<Arc<Uplink>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(uplink) = &self.0 {
            uplink.close();
        }
    }
}

impl Isolator for Arc<Network> {
    fn part(&self) -> &'static str {
        "network"
    }

    fn features(&self) -> &'static [&'static str] {
        &["bpf_net"]
    }

    fn prepare(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        self.set(task, &grant.bandwidth)?;
        if let Some(held) = &self.held {
            held.tasks.insert(task);
        }
        Ok(())
    }

    fn attach(&self, task: &TaskPlace, _grant: &Grant, process: Pid) -> Result<(), IsolateError> {
        let Some(held) = &self.held else { return Ok(()) };
        // A process that has ended already needs nothing.
        let own = has_own_namespace(process).unwrap_or(false);
        if own { Ok(held.rules.set_own_namespace(task.id, true)?) } else { Ok(()) }
    }

    fn update(&self, task: &TaskPlace, before: &Grant, after: &Grant) -> Result<(), IsolateError> {
        if before.bandwidth == after.bandwidth { Ok(()) } else { self.set(task, &after.bandwidth) }
    }

    fn recover(&self, task: &TaskPlace, grant: &Grant) -> Result<(), IsolateError> {
        // A newer agent may have brought newer programs, whose tables begin empty.
        self.prepare(task, grant)?;
        let processes = task.cgroup.read("cgroup.procs")?;
        let first = processes.lines().next().and_then(|pid| pid.parse().ok());
        first.map_or(Ok(()), |pid| self.attach(task, grant, Pid::from_raw(pid)))
    }

    fn measure(&self, task: &TaskPlace, usage: &mut v1::TaskUsage) {
        let Some(held) = &self.held else { return };
        let Ok(Some(counters)) = held.rules.counters(task.id) else { return };
        let (sent, received) = (counters.sent, counters.received);
        usage.net_sent_bytes = sent.bytes();
        usage.net_sent_packets = sent.packets();
        usage.net_sent_dropped = sent.dropped;
        usage.net_sent_marked = sent.marked;
        usage.net_received_bytes = received.bytes();
        usage.net_received_packets = received.packets();
        usage.net_received_dropped = received.dropped;
        usage.net_received_marked = received.marked;
        if let Ok(Some(drops)) = held.rules.rule_drops(task.id) {
            usage.net_sent_dropped_by_rules = drops.sent;
            usage.net_received_dropped_by_rules = drops.received;
        }
    }

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        let Some(held) = &self.held else { return Ok(()) };
        held.tasks.remove(task);
        Ok(held.rules.forget(task.id)?)
    }
}

/// What programs are told of a grant; `link` is the speed of the link, where it is known.
fn rates(bandwidth: &Bandwidth, link: Option<u64>) -> Result<Rates, String> {
    let asked = [
        ("sending", bandwidth.egress_bits_per_sec.max(bandwidth.egress_ceiling_bits_per_sec)),
        ("receiving", bandwidth.ingress_bits_per_sec.max(bandwidth.ingress_ceiling_bits_per_sec)),
    ];
    for (what, asked) in asked {
        if let (Some(asked), Some(link)) = (asked, link)
            && asked > link
        {
            let (asked, link) = (bits_per_sec(asked), bits_per_sec(link));
            return Err(format!("{what} at {asked}: the link has {link}"));
        }
    }
    Ok(Rates {
        guaranteed: bandwidth.egress_bits_per_sec,
        ceiling: bandwidth.egress_ceiling_bits_per_sec,
        ingress: bandwidth.ingress_ceiling_bits_per_sec.or(bandwidth.ingress_bits_per_sec),
    })
}

/// Is the process in another network namespace than the agent?
fn has_own_namespace(process: Pid) -> io::Result<bool> {
    let of = |who: &Path| fs::metadata(who.join("ns/net")).map(|ns| ns.ino());
    Ok(of(&Path::new("/proc").join(process.to_string()))? != of(Path::new("/proc/self"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIGABIT: u64 = 1_000_000_000;

    #[test]
    fn the_agents_own_processes_share_its_namespace() {
        assert!(!has_own_namespace(Pid::this()).unwrap());
        assert!(has_own_namespace(Pid::from_raw(i32::MAX)).is_err());
    }

    #[test]
    fn nothing_beyond_the_link_is_granted() {
        let sending = Bandwidth { egress_ceiling_bits_per_sec: Some(2 * GIGABIT), ..Bandwidth::default() };
        let refused = rates(&sending, Some(GIGABIT)).unwrap_err();
        assert_eq!(refused, "sending at 2 Gbit/s: the link has 1 Gbit/s");
        let receiving = Bandwidth { ingress_bits_per_sec: Some(GIGABIT + 1), ..Bandwidth::default() };
        assert!(rates(&receiving, Some(GIGABIT)).unwrap_err().starts_with("receiving"));
        assert!(rates(&sending, None).is_ok(), "of a link that is not known nothing can be said");
        assert_eq!(rates(&Bandwidth::default(), Some(GIGABIT)), Ok(Rates::default()));
    }

    #[test]
    fn what_is_received_is_held_to_its_ceiling_or_else_to_the_grant() {
        let both = Bandwidth {
            ingress_bits_per_sec: Some(1_000_000),
            ingress_ceiling_bits_per_sec: Some(5_000_000),
            ..Bandwidth::default()
        };
        assert_eq!(rates(&both, None).unwrap().ingress, Some(5_000_000));
        let grant = Bandwidth { ingress_ceiling_bits_per_sec: None, ..both };
        assert_eq!(rates(&grant, None).unwrap().ingress, Some(1_000_000));
    }
}
