//! What a task sends and receives: counted, and held to its rates.
//!
//! Both hooks go the same way: whose packet is it, over which interface, how long is it on the wire, may it pass, and
//! then it is counted by what became of it. No lock is taken: clocks are moved by atomic additions, counters are the
//! CPU's own. A task without any rate costs two lookups and two additions.

mod clock;
mod rate;
mod wire;

use core::mem::offset_of;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skb_ecn_set_ce},
};
use bulkhead_abi::{NetCount, NetInterface, NetRuleDrops, NetTask, net_interface, net_task};

use crate::{
    atomic,
    maps::{NET_CLOCKS, NET_COUNTERS, NET_DEVICES, NET_RULE_DROPS, NET_TASKS},
    talk, task,
};
use rate::Answer;
use wire::Wire;

/// What the hooks answer: the packet goes on.
const PASS: i32 = 1;
/// It goes on, and the sender's TCP is told to slow down.
const PASS_CONGESTED: i32 = 3;
/// It is dropped; going out, the call that sends it gets EPERM where it waits for that.
const DROP: i32 = 0;
/// Going out: it is dropped as by a queue that is full. TCP knows and keeps it, and does not count it as lost.
const DROP_CONGESTED: i32 = 2;

/// A packet, whose it is and where it goes.
struct Packet {
    wire: Wire,
    /// Of [`net_interface`]; 0 for an interface that nothing is known of.
    interface: u32,
}

#[inline(always)]
pub fn egress(skb: *mut __sk_buff) -> i32 {
    let Some((cgroup_id, task)) = task(skb) else { return PASS };
    if !talk::leaves(skb, talk::Owner { cgroup_id, flags: task.flags }) {
        count_against_rules(task, offset_of!(NetRuleDrops, sent));
        return DROP;
    }
    let packet = packet(skb, task);
    let answer =
        if rate::is_held_sending(task, packet.interface) { send(skb, task, &packet) } else { Answer::Pass };
    count_sent(task.slot, &packet, answer);
    match answer {
        Answer::Pass => PASS,
        // A connection that knows ECN hears of it from the other end.
        Answer::Mark if set_congestion_experienced(skb) => PASS,
        Answer::Mark => PASS_CONGESTED,
        Answer::Drop => DROP_CONGESTED,
    }
}

#[inline(always)]
pub fn ingress(skb: *mut __sk_buff) -> i32 {
    let Some((cgroup_id, task)) = task(skb) else { return PASS };
    if !talk::enters(skb, talk::Owner { cgroup_id, flags: task.flags }) {
        count_against_rules(task, offset_of!(NetRuleDrops, received));
        return DROP;
    }
    let packet = packet(skb, task);
    let answer = if task.ingress.ns_per_byte != 0 { receive(task, &packet) } else { Answer::Pass };
    count_received(task.slot, &packet, answer);
    match answer {
        Answer::Pass => PASS,
        Answer::Mark => {
            set_congestion_experienced(skb);
            PASS
        }
        Answer::Drop => DROP,
    }
}

#[inline(always)]
fn task(skb: *mut __sk_buff) -> Option<(u64, &'static NetTask)> {
    let cgroup_id = task::of_packet(skb)?;
    // SAFETY: the agent replaces values as a whole, and the kernel keeps their memory until this program ends. Should it
    // become another task's meanwhile, one packet is that one's.
    unsafe { NET_TASKS.get(cgroup_id) }.map(|task| (cgroup_id, task))
}

#[inline(always)]
fn packet(skb: *mut __sk_buff, task: &NetTask) -> Packet {
    // SAFETY: `skb` is the context of this hook; the verifier admits whole, aligned reads of its fields.
    let ifindex = unsafe { (&raw const (*skb).ifindex).read_volatile() };
    let known = NET_DEVICES.get(ifindex & (bulkhead_abi::NET_INTERFACES - 1));
    let own = task.flags & net_task::OWN_NAMESPACE == 0;
    let device = known.filter(|device: &&NetInterface| own && device.ifindex == ifindex);
    let (interface, mtu_bytes) = device.map_or((0, 0), |device| (device.flags, device.mtu_bytes));
    Packet { wire: Wire::of(skb, mtu_bytes), interface }
}

#[inline(always)]
fn send(skb: *mut __sk_buff, task: &NetTask, packet: &Packet) -> Answer {
    let Some(clocks) = NET_CLOCKS.get_ptr_mut(task.slot) else { return Answer::Pass };
    let paced = packet.interface & net_interface::PACED != 0;
    // SAFETY: the helper has no preconditions.
    let now_ns = if paced { unsafe { bpf_ktime_get_ns() } } else { roughly_now_ns() };
    let turn = rate::send(task, clocks, packet.interface, packet.wire.bytes, now_ns);
    if paced && turn.ns > now_ns {
        // SAFETY: as above; the verifier admits a whole, aligned write of this field.
        unsafe {
            let departure = &raw mut (*skb).tstamp;
            // The connection may have a later time in mind.
            if departure.read_volatile() < turn.ns {
                departure.write_volatile(turn.ns);
            }
        }
    }
    turn.answer
}

#[inline(always)]
fn receive(task: &NetTask, packet: &Packet) -> Answer {
    let Some(clocks) = NET_CLOCKS.get_ptr_mut(task.slot) else { return Answer::Pass };
    rate::receive(task, clocks, packet.wire.bytes, roughly_now_ns())
}

/// As of the last tick of the kernel's clock, which costs less than the time itself. Where nothing can wait a bucket holds
/// as much as comes in many ticks, so rates are as exact.
#[inline(always)]
fn roughly_now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// True where the packet says so now; false where it cannot.
#[inline(always)]
fn set_congestion_experienced(skb: *mut __sk_buff) -> bool {
    // SAFETY: the helper takes the context of a cgroup_skb hook.
    unsafe { bpf_skb_ecn_set_ce(skb) == 1 }
}

/// Atomic, because an acknowledgement may be sent in the middle of this, on the same CPU.
#[inline(always)]
fn count_sent(slot: u32, packet: &Packet, answer: Answer) {
    let Some(counters) = NET_COUNTERS.get_ptr_mut(slot) else { return };
    // SAFETY: a field of a map value, aligned.
    unsafe { count(&raw mut (*counters).sent, packet, answer, |word, by| atomic::add(word, by)) }
}

/// Plain: packets come in one after the other on each CPU.
#[inline(always)]
fn count_received(slot: u32, packet: &Packet, answer: Answer) {
    let Some(counters) = NET_COUNTERS.get_ptr_mut(slot) else { return };
    let add = |word: *mut u64, by: u64| {
        // SAFETY: a word of a map value, aligned, of this CPU.
        unsafe { word.write(word.read().wrapping_add(by)) }
    };
    // SAFETY: a field of a map value, aligned.
    unsafe { count(&raw mut (*counters).received, packet, answer, add) }
}

/// Counts a packet that the task's rules drop, in the field at this offset.
#[inline(always)]
fn count_against_rules(task: &NetTask, offset: usize) {
    let Some(drops) = NET_RULE_DROPS.get_ptr_mut(task.slot) else { return };
    // SAFETY: a field of a map value, aligned. Atomic as in `count_sent`.
    unsafe { atomic::add(drops.byte_add(offset).cast(), 1) };
}

/// # Safety
/// `to` points into a map value, aligned to 8 bytes.
#[inline(always)]
unsafe fn count(to: *mut NetCount, packet: &Packet, answer: Answer, add: impl Fn(*mut u64, u64)) {
    // SAFETY: fields of what the caller vouches for.
    let (bytes, packets, dropped, marked) = unsafe {
        if packet.interface & net_interface::LINK != 0 {
            (
                &raw mut (*to).link_bytes,
                &raw mut (*to).link_packets,
                &raw mut (*to).dropped,
                &raw mut (*to).marked,
            )
        } else {
            (
                &raw mut (*to).other_bytes,
                &raw mut (*to).other_packets,
                &raw mut (*to).dropped,
                &raw mut (*to).marked,
            )
        }
    };
    let Wire { bytes: wire_bytes, packets: wire_packets } = packet.wire;
    match answer {
        Answer::Drop => return add(dropped, wire_packets),
        Answer::Mark => add(marked, wire_packets),
        Answer::Pass => {}
    }
    add(bytes, wire_bytes);
    add(packets, wire_packets);
}
