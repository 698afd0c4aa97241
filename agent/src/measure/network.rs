//! What goes over the link and is no task's.

use std::{sync::Arc, time::Instant};

use crate::{
    isolate::network::uplink::Uplink,
    kernel::{bpf::NetRules, rtnetlink},
};

/// Rates of one period, in bits a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetUse {
    /// Sent by everything that is not a task.
    pub sent_bits_per_sec: u64,
    /// Received by everything that is not a task.
    pub received_bits_per_sec: u64,
}

/// Compares the link's own counters with those of tasks.
pub struct NetSampler {
    uplink: Arc<Uplink>,
    rules: Arc<NetRules>,
    last: Option<Counted>,
}

/// Bytes over one link up to a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    link: String,
    at: Instant,
    sent: u64,
    received: u64,
    tasks_sent: u64,
    tasks_received: u64,
}

impl NetSampler {
    /// Of this link, and the tasks in `rules`.
    pub fn new(uplink: Arc<Uplink>, rules: Arc<NetRules>) -> Self {
        Self { uplink, rules, last: None }
    }

    /// What strangers used since the call before; `None` for the first, and where the link has changed or is gone.
    pub fn sample(&mut self, now: Instant) -> Option<NetUse> {
        let before = self.last.take();
        self.last = self.count(now);
        strangers(before.as_ref()?, self.last.as_ref()?)
    }

    /// The speed of the link now, 0 where there is none.
    pub fn link_bits_per_sec(&self) -> u64 {
        self.uplink.bits_per_sec().unwrap_or(0)
    }

    fn count(&self, at: Instant) -> Option<Counted> {
        let link = self.uplink.link()?.name;
        let (received, sent) = rtnetlink::traffic_bytes(&link).ok()?;
        let tasks = self.rules.total().ok()?;
        let (tasks_sent, tasks_received) = (tasks.sent.link_bytes, tasks.received.link_bytes);
        Some(Counted { link, at, sent, received, tasks_sent, tasks_received })
    }
}

/// Never below zero: what tasks sent may still wait in the interface's queue.
fn strangers(before: &Counted, after: &Counted) -> Option<NetUse> {
    if before.link != after.link {
        return None;
    }
    // A clock that stood still has no rates.
    let nanos = after.at.checked_duration_since(before.at)?.as_nanos();
    if nanos == 0 {
        return None;
    }
    let rate = |all: [u64; 2], tasks: [u64; 2]| {
        let of = |[before, after]: [u64; 2]| after.saturating_sub(before);
        let bits = u128::from(of(all).saturating_sub(of(tasks))) * 8;
        u64::try_from(bits * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
    };
    Some(NetUse {
        sent_bits_per_sec: rate([before.sent, after.sent], [before.tasks_sent, after.tasks_sent]),
        received_bits_per_sec: rate(
            [before.received, after.received],
            [before.tasks_received, after.tasks_received],
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_tasks_did_is_left_out() {
        let at = Instant::now();
        let before =
            Counted { link: "eth0".into(), at, sent: 1000, received: 0, tasks_sent: 10, tasks_received: 0 };
        let after = Counted {
            at: at + Duration::from_millis(500),
            sent: 3000,
            tasks_sent: 1510,
            received: 100,
            tasks_received: 200,
            ..before.clone()
        };
        let used = NetUse { sent_bits_per_sec: 500 * 8 * 2, received_bits_per_sec: 0 };
        assert_eq!(strangers(&before, &after), Some(used));
        assert_eq!(strangers(&before, &Counted { link: "eth1".into(), ..after }), None);
    }

    #[test]
    fn counters_that_begin_anew_and_odd_clocks_give_no_nonsense() {
        let at = Instant::now();
        let before = Counted {
            link: "eth0".into(),
            at,
            sent: 9000,
            received: 9000,
            tasks_sent: 500,
            tasks_received: 0,
        };
        let later = at + Duration::from_secs(1);
        let made_again = Counted { at: later, sent: 10, received: 20, tasks_sent: 600, ..before.clone() };
        assert_eq!(strangers(&before, &made_again), Some(NetUse::default()), "an interface of the same name");
        let tasks_anew = Counted { at: later, sent: 9100, tasks_sent: 0, ..before.clone() };
        assert_eq!(strangers(&before, &tasks_anew).unwrap().sent_bits_per_sec, 800);
        assert_eq!(strangers(&before, &Counted { sent: 9100, ..before.clone() }), None, "no time went by");
        assert_eq!(strangers(&made_again, &before), None, "time went back");
        let endless = Counted { at: at + Duration::from_nanos(1), sent: u64::MAX, ..before.clone() };
        assert_eq!(strangers(&before, &endless).unwrap().sent_bits_per_sec, u64::MAX);
    }
}
