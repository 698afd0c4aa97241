//! May a packet pass, and when?
//!
//! # Sending
//! - The **guarantee** is the task's own clock. While that is not ahead of the link's, a packet goes at the task's own
//!   time and waits for nobody.
//! - What goes beyond it is **borrowed**: it goes when it is its turn on the link's clock, which everything that tasks
//!   send over the link moves on. So the link is never idle while somebody has something to send, and guarantees are
//!   held while everybody borrows.
//! - The **ceiling** is a clock of its own, one for interfaces that pace and one for those that cannot.
//!
//! On an interface that paces, a packet's turn becomes its time of departure, up to a horizon. Elsewhere nothing can
//! wait: a packet whose turn has not come is dropped, and senders are told of congestion before that.

use bulkhead_abi::{
    BORROW_HORIZON_NS, MARK_AFTER_NS, NS_PER_BYTE_SHIFT, NetClocks, NetRate, NetTask, PACED_CREDIT_NS,
    POLICED_CREDIT_NS, net_interface, net_task,
};

use super::clock::Clock;
use crate::maps::{NET_CLOCKS, NET_LINK};

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Pass,
    /// It passes, and its sender is told of congestion.
    Mark,
    Drop,
}

/// When a packet may leave.
pub struct Turn {
    pub ns: u64,
    pub answer: Answer,
}

const DROPPED: Turn = Turn { ns: 0, answer: Answer::Drop };

/// How far clocks may be from now.
#[derive(Clone, Copy)]
struct Window {
    now_ns: u64,
    /// What was not used before is gone.
    floor_ns: u64,
    /// From here on senders are told of congestion.
    mark_ns: u64,
    /// May packets wait?
    paced: bool,
}

impl Window {
    #[inline(always)]
    fn paced(now_ns: u64) -> Self {
        let floor_ns = now_ns.saturating_sub(PACED_CREDIT_NS);
        Self { now_ns, floor_ns, mark_ns: now_ns + MARK_AFTER_NS, paced: true }
    }

    #[inline(always)]
    fn policed(now_ns: u64) -> Self {
        let floor_ns = now_ns.saturating_sub(POLICED_CREDIT_NS);
        let mark_ns = now_ns.saturating_sub(POLICED_CREDIT_NS / 2);
        Self { now_ns, floor_ns, mark_ns, paced: false }
    }

    /// Is a turn too far away to wait for?
    #[inline(always)]
    fn is_beyond(&self, turn_ns: u64, horizon_ns: u64) -> bool {
        turn_ns > self.now_ns + if self.paced { horizon_ns } else { 0 }
    }
}

#[inline(always)]
fn cost_ns(rate: &NetRate, bytes: u64) -> u64 {
    (bytes * rate.ns_per_byte) >> NS_PER_BYTE_SHIFT
}

#[inline(always)]
fn exists(rate: &NetRate) -> bool {
    rate.ns_per_byte != 0
}

/// Is there any rate for what a task sends over this interface?
#[inline(always)]
pub fn is_held_sending(task: &NetTask, interface: u32) -> bool {
    exists(&task.ceiling) || interface & net_interface::LINK != 0
}

/// Finds a packet's turn and pays for it, or drops it unpaid.
#[inline(always)]
pub fn send(task: &NetTask, clocks: *mut NetClocks, interface: u32, bytes: u64, now_ns: u64) -> Turn {
    let paced = interface & net_interface::PACED != 0;
    let window = if paced { Window::paced(now_ns) } else { Window::policed(now_ns) };
    // SAFETY: a field of a map value, aligned.
    let ceiling = unsafe {
        Clock::new(if paced { &raw mut (*clocks).paced_ns } else { &raw mut (*clocks).policed_ns })
    };
    // First what costs nothing to find out.
    if exists(&task.ceiling) && window.is_beyond(ceiling.turn(), task.ceiling.horizon_ns) {
        return DROPPED;
    }
    let mut turn_ns = window.floor_ns;
    if interface & net_interface::LINK != 0
        && let Some(link) = NET_LINK.get(0)
        && exists(&link.rate)
    {
        let Some(turn) = share_link(task, clocks, &link.rate, bytes, &window) else { return DROPPED };
        turn_ns = turn;
    }
    if exists(&task.ceiling) {
        let turn = ceiling.pay(cost_ns(&task.ceiling, bytes), window.floor_ns);
        turn_ns = if turn > turn_ns { turn } else { turn_ns };
    }
    Turn { ns: turn_ns, answer: if turn_ns > window.mark_ns { Answer::Mark } else { Answer::Pass } }
}

/// The turn of a packet that goes over the link, by the guarantee or borrowed.
#[inline(always)]
fn share_link(
    task: &NetTask,
    clocks: *mut NetClocks,
    rate: &NetRate,
    bytes: u64,
    window: &Window,
) -> Option<u64> {
    let shared = NET_CLOCKS.get_ptr_mut(0)?;
    // SAFETY: fields of map values, aligned.
    let (link, own) = unsafe {
        (Clock::new(&raw mut (*shared).guaranteed_ns), Clock::new(&raw mut (*clocks).guaranteed_ns))
    };
    let link_cost_ns = cost_ns(rate, bytes);
    if task.flags & net_task::CAPPED != 0 {
        link.pay(link_cost_ns, window.floor_ns);
        return Some(window.floor_ns);
    }
    let link_turn = link.turn();
    let own_turn = own.turn();
    if exists(&task.guaranteed) && (own_turn <= link_turn || own_turn <= window.now_ns) {
        if window.is_beyond(own_turn, task.guaranteed.horizon_ns) {
            return None;
        }
        link.pay(link_cost_ns, window.floor_ns);
        return Some(own.pay(cost_ns(&task.guaranteed, bytes), window.floor_ns));
    }
    if window.is_beyond(link_turn, BORROW_HORIZON_NS) {
        return None;
    }
    Some(link.pay(link_cost_ns, window.floor_ns))
}

/// What is received cannot wait either.
#[inline(always)]
pub fn receive(task: &NetTask, clocks: *mut NetClocks, bytes: u64, now_ns: u64) -> Answer {
    let window = Window::policed(now_ns);
    // SAFETY: a field of a map value, aligned.
    let clock = unsafe { Clock::new(&raw mut (*clocks).ingress_ns) };
    if window.is_beyond(clock.turn(), 0) {
        return Answer::Drop;
    }
    let turn = clock.pay(cost_ns(&task.ingress, bytes), window.floor_ns);
    if turn > window.mark_ns { Answer::Mark } else { Answer::Pass }
}
