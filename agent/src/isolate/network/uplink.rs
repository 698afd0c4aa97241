//! The link whose bandwidth is granted: the interface that leads outside, its speed, and its queueing discipline.
//!
//! Packets leave when they were told to only where that discipline is fq. Where the kernel's own default is, the agent puts fq
//! (below mq, on a card with several queues), under a number of its own, so that it is known again after a restart and by
//! `cleanup`; taking it away brings the default back. What somebody else put there is left alone. Interfaces, disciplines and
//! routes that change are followed by the kernel's notifications.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bulkhead_abi::{NetInterface, net_interface};
use bulkhead_proto::rate::bits_per_sec;

use crate::kernel::{
    bpf::{BpfError, NetRules},
    rtnetlink::{self, Changes, Interface, Qdisc, ROOT},
};

/// Marks what this agent put there: a number that neither the kernel nor people choose.
const OURS: u32 = 0x0b1f_0000;
/// Changes come in swarms; they are looked at together.
const SETTLE: Duration = Duration::from_millis(200);

/// What the operator says about the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSettings {
    /// Its interface; empty is the one that leads outside.
    pub interface: String,
    /// Its speed in bits a second, where the kernel does not know better.
    pub bits_per_sec: Option<u64>,
    /// May the agent put fq in the place of the kernel's default?
    pub install_fq: bool,
    /// What all tasks together may send, of its speed.
    pub offer_percent: u32,
}

/// The link as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its interface.
    pub name: String,
    /// Its speed in each direction, where it is known.
    pub bits_per_sec: Option<u64>,
    /// Does its interface keep times of departure? If not, why.
    pub paced: Result<(), String>,
}

/// Keeps the kernel's rules in step with the link.
pub struct Uplink {
    settings: LinkSettings,
    rules: Arc<NetRules>,
    /// Locked while the disciplines are looked at and changed.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    /// Nothing is changed any more.
    over: bool,
}

/// The link cannot be looked at.
#[derive(Debug, thiserror::Error)]
enum UplinkError {
    /// rtnetlink.
    #[error("look at the network interfaces")]
    Netlink(#[from] io::Error),
    /// The rules in the kernel.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

impl Uplink {
    /// Finds the link, and has its interface keep times of departure where that may be changed. Where there is no link, or
    /// none can be found, no bandwidth is offered.
    pub fn set_up(settings: LinkSettings, rules: Arc<NetRules>) -> Self {
        let uplink = Self { settings, rules, state: Mutex::default() };
        match uplink.refresh() {
            Err(error) => {
                tracing::error!(
                    error = crate::error_chain(&error),
                    "look at the link: no bandwidth is offered"
                );
            }
            Ok(()) if uplink.link().is_none() => {
                tracing::info!("no interface leads outside: no bandwidth is offered");
            }
            Ok(()) => {}
        }
        uplink
    }

    /// Follows changes until that is no longer possible.
    pub async fn follow(self: Arc<Self>) {
        let mut changes = match Changes::open() {
            Ok(changes) => changes,
            Err(error) => {
                tracing::error!(%error, "follow the network interfaces: changes are not seen");
                return;
            }
        };
        while let Ok(()) = changes.next().await {
            tokio::time::sleep(SETTLE).await;
            let this = Arc::clone(&self);
            let done = tokio::task::spawn_blocking(move || this.refresh()).await;
            if let Ok(Err(error)) = done {
                tracing::warn!(error = crate::error_chain(&error), "look at the link");
            }
        }
    }

    /// The link as it is now, if there is one.
    pub fn link(&self) -> Option<Link> {
        self.lock().link.clone()
    }

    /// Its speed, where there is a link and its speed is known.
    pub fn bits_per_sec(&self) -> Option<u64> {
        self.lock().link.as_ref()?.bits_per_sec
    }

    /// Puts back what was there, unless tasks still run: they would no longer be held. The next agent, or `cleanup`, does
    /// it then.
    pub fn close(&self) {
        let mut state = self.lock();
        state.over = true;
        match self.rules.all() {
            Ok(tasks) if tasks.is_empty() => put_back(),
            _ => {}
        }
    }

    fn refresh(&self) -> Result<(), UplinkError> {
        let mut state = self.lock();
        if state.over {
            return Ok(());
        }
        let interfaces = rtnetlink::interfaces()?;
        let outside = if self.settings.interface.is_empty() { rtnetlink::way_outside()? } else { None };
        let chosen = interfaces
            .iter()
            .find(|interface| Some(interface.index) == outside || interface.name == self.settings.interface);
        let paced = chosen.map(|interface| self.pace(interface.index));
        let qdiscs = rtnetlink::qdiscs()?;
        let link = chosen.zip(paced).map(|(interface, paced)| Link {
            name: interface.name.clone(),
            bits_per_sec: self
                .settings
                .bits_per_sec
                .or_else(|| rtnetlink::speed_bits_per_sec(&interface.name)),
            paced,
        });
        self.rules.set_interfaces(&known(&interfaces, &qdiscs, chosen.map(|interface| interface.index)))?;
        let speed = link.as_ref().and_then(|link| link.bits_per_sec);
        self.rules.set_link(speed.map(|bits| share(bits, self.settings.offer_percent)))?;
        if link != state.link {
            tell(link.as_ref());
            state.link = link;
        }
        Ok(())
    }

    /// Has the interface keep times of departure, or says why it does not.
    fn pace(&self, ifindex: u32) -> Result<(), String> {
        let look = || rtnetlink::qdiscs().map(|all| plan(ifindex, &all)).map_err(|e| e.to_string());
        let put = |parent, handle, kind: &str| {
            rtnetlink::put_qdisc(ifindex, parent, handle, kind).map_err(|e| format!("put {kind} there: {e}"))
        };
        let found = look()?;
        if found != Plan::Paced && !self.settings.install_fq {
            return Err("its queueing discipline is not fq, and is to be left (net_qdisc)".to_owned());
        }
        match found {
            Plan::PutFq => put(ROOT, OURS, "fq")?,
            Plan::PutMq => put(ROOT, OURS, "mq")?,
            _ => {}
        }
        if let Plan::Fill(queues) = look()? {
            queues.into_iter().try_for_each(|queue| put(queue, 0, "fq"))?;
        }
        match look()? {
            Plan::Paced => Ok(()),
            Plan::Foreign(kind) => Err(format!(
                "somebody put {kind} there, which is left alone: `tc qdisc replace dev ... root fq` has packets paced"
            )),
            other => Err(format!("fq does not stay there ({other:?})")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings the kernel's default back wherever an agent of this host put fq.
pub fn put_back() {
    let qdiscs = rtnetlink::qdiscs().unwrap_or_default();
    for qdisc in qdiscs.iter().filter(|qdisc| qdisc.parent == ROOT && qdisc.handle == OURS) {
        match rtnetlink::remove_root_qdisc(qdisc.ifindex) {
            Ok(()) => {
                tracing::info!(ifindex = qdisc.ifindex, "the queueing discipline is the kernel's again")
            }
            Err(error) => tracing::warn!(ifindex = qdisc.ifindex, %error, "put the queueing discipline back"),
        }
    }
}

/// The part of a link that is never granted: what is around each frame, and what the system itself has to say.
pub fn kept_back(bits_per_sec: u64, offer_percent: u32) -> u64 {
    bits_per_sec - share(bits_per_sec, offer_percent)
}

fn share(bits_per_sec: u64, percent: u32) -> u64 {
    let offered = u128::from(bits_per_sec) * u128::from(percent.min(100)) / 100;
    u64::try_from(offered).unwrap_or(bits_per_sec)
}

fn tell(link: Option<&Link>) {
    let Some(link) = link else {
        return tracing::warn!("no interface leads outside any more: no bandwidth is offered");
    };
    let speed = link
        .bits_per_sec
        .map_or_else(|| "unknown, so no bandwidth is offered (see --net-bandwidth)".to_owned(), bits_per_sec);
    match &link.paced {
        Ok(()) => tracing::info!(interface = link.name, speed, "what tasks send is paced"),
        Err(why) => {
            tracing::warn!(
                interface = link.name,
                speed,
                why,
                "what tasks send is held by drops, not by pacing"
            );
        }
    }
}

/// What to do so that an interface keeps times of departure.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing.
    Paced,
    /// Put fq at its root.
    PutFq,
    /// Put mq at its root, and then fill its queues.
    PutMq,
    /// Put fq below these parents.
    Fill(Vec<u32>),
    /// Nothing: it is somebody else's.
    Foreign(String),
}

fn plan(ifindex: u32, all: &[Qdisc]) -> Plan {
    let here = || all.iter().filter(|qdisc| qdisc.ifindex == ifindex);
    let Some(root) = here().find(|qdisc| qdisc.parent == ROOT) else { return Plan::PutFq };
    let queues = || here().filter(|qdisc| qdisc.parent != ROOT && qdisc.parent & 0xffff_0000 == root.handle);
    let unpaced: Vec<_> = queues().filter(|queue| queue.kind != "fq").map(|queue| queue.parent).collect();
    match (root.kind.as_str(), root.handle) {
        ("fq", _) => Plan::Paced,
        ("mq", _) if unpaced.is_empty() && queues().next().is_some() => Plan::Paced,
        ("mq", 0) => Plan::PutMq,
        ("mq", OURS) => Plan::Fill(unpaced),
        (_, 0) => Plan::PutFq,
        (kind, _) => Plan::Foreign(kind.to_owned()),
    }
}

/// What the programs have to know of interfaces.
fn known(interfaces: &[Interface], qdiscs: &[Qdisc], link: Option<u32>) -> Vec<NetInterface> {
    let known = |interface: &Interface| {
        let paced = plan(interface.index, qdiscs) == Plan::Paced;
        let is_link = Some(interface.index) == link;
        NetInterface {
            ifindex: interface.index,
            flags: if paced { net_interface::PACED } else { 0 }
                | if is_link { net_interface::LINK } else { 0 },
            mtu_bytes: interface.mtu_bytes,
            reserved: 0,
        }
    };
    interfaces.iter().filter(|interface| interface.up).map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qdisc(handle: u32, parent: u32, kind: &str) -> Qdisc {
        Qdisc { ifindex: 2, handle, parent, kind: kind.into() }
    }

    #[test]
    fn only_the_kernels_own_default_is_replaced() {
        let of = |qdiscs: &[Qdisc]| plan(2, qdiscs);
        assert_eq!(of(&[qdisc(0, ROOT, "fq_codel")]), Plan::PutFq);
        assert_eq!(of(&[qdisc(0, ROOT, "noqueue")]), Plan::PutFq);
        assert_eq!(of(&[]), Plan::PutFq);
        assert_eq!(of(&[qdisc(0x8001_0000, ROOT, "htb")]), Plan::Foreign("htb".into()));
        for handle in [0, OURS, 0x8001_0000] {
            assert_eq!(of(&[qdisc(handle, ROOT, "fq")]), Plan::Paced);
        }
        assert_eq!(plan(3, &[qdisc(0x8001_0000, ROOT, "htb")]), Plan::PutFq, "of another interface");
    }

    #[test]
    fn every_queue_of_a_card_has_to_pace() {
        let mq = |root, kinds: [&str; 2]| {
            let queue = |n: u32, kind| qdisc(0, root | n, kind);
            plan(2, &[qdisc(root, ROOT, "mq"), queue(1, kinds[0]), queue(2, kinds[1])])
        };
        assert_eq!(mq(0, ["fq", "fq"]), Plan::Paced, "net.core.default_qdisc=fq");
        assert_eq!(mq(0, ["fq_codel", "fq_codel"]), Plan::PutMq);
        assert_eq!(mq(OURS, ["fq", "fq_codel"]), Plan::Fill(vec![OURS | 2]));
        assert_eq!(mq(OURS, ["fq", "fq"]), Plan::Paced);
        assert_eq!(mq(0x0001_0000, ["fq", "pfifo_fast"]), Plan::Foreign("mq".into()));
        assert_eq!(mq(0x0001_0000, ["fq", "fq"]), Plan::Paced);
    }

    #[test]
    fn programs_know_the_link_and_who_paces() {
        let interface = |index, up| Interface { index, name: format!("eth{index}"), mtu_bytes: 1500, up };
        let interfaces = [interface(1, true), interface(2, true), interface(3, false)];
        let known = known(&interfaces, &[qdisc(OURS, ROOT, "fq")], Some(2));
        let flags: Vec<_> = known.iter().map(|known| (known.ifindex, known.flags)).collect();
        assert_eq!(flags, [(1, 0), (2, net_interface::PACED | net_interface::LINK)]);
    }

    #[test]
    fn what_is_offered_and_kept_back_is_all() {
        assert_eq!((share(1_000_000_000, 90), kept_back(1_000_000_000, 90)), (900_000_000, 100_000_000));
        assert_eq!((share(u64::MAX, 100), kept_back(u64::MAX, 100)), (u64::MAX, 0));
    }
}
