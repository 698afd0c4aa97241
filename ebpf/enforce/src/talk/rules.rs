//! What a task's rules say to an attempt.
//!
//! From the narrowest kind of rule to the widest, the first that says anything decides: tasks of the framework, tasks
//! of the role, the longest prefix, this node or the outside. What a prefix's entry says already counts in the
//! shorter prefixes around it, and what those last two say the task's default.

use core::arch::asm;

use aya_ebpf::maps::lpm_trie::Key;
use bulkhead_abi::{
    CELLS, Cells, INGRESS_CELL, MAX_STRETCHES, SET_BITS, TalkGroups, TalkTask, talk_flag, verdict,
};

use super::address::Address;
use crate::{
    maps::{PORT_HOLDERS, TALK_GROUPS, TALK_PORTS, TALK_TASKS, TALK_V4, TALK_V6},
    opaque::opaque,
};

/// A task's rules are looked up again when they change while they are read; a change takes far longer than a look.
const TRIES: u32 = 2;

/// Somebody wants to open something.
pub struct Attempt {
    pub cgroup_id: u64,
    /// The peer.
    pub address: Address,
    /// The one that is to be reached.
    pub port: u16,
    /// A class, with [`INGRESS_CELL`] where the peer opens.
    pub cell: u32,
    /// Is it of interest whether the other direction needs no rule of its own?
    pub answers: bool,
}

/// What is done about it.
pub struct Decision {
    pub allowed: bool,
    /// The other direction is allowed too, whatever the ports are.
    pub both_ways: bool,
}

impl Decision {
    /// Nothing to do and nothing to remember.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.allowed && self.both_ways
    }
}

/// How a peer that is a task of this node is found.
pub trait FindPeer {
    /// What it belongs with. Asked only where a rule names tasks.
    fn groups(self, attempt: &Attempt) -> Option<*const TalkGroups>;
}

/// By the port that was granted to it. For calls, when there is no packet yet.
#[derive(Clone, Copy)]
pub struct PortHolder;

impl FindPeer for PortHolder {
    #[inline(always)]
    fn groups(self, attempt: &Attempt) -> Option<*const TalkGroups> {
        if !attempt.address.is_here() {
            return None;
        }
        // SAFETY: one word, which is not torn.
        let holder = unsafe { PORT_HOLDERS.get(u32::from(attempt.port)).copied()? };
        TALK_GROUPS.get_ptr(holder)
    }
}

/// For packets, whose other end is not looked for.
#[derive(Clone, Copy)]
pub struct Nobody;

impl FindPeer for Nobody {
    #[inline(always)]
    fn groups(self, _: &Attempt) -> Option<*const TalkGroups> {
        None
    }
}

/// `None` for a task without rules.
#[inline(always)]
pub fn decide(attempt: &Attempt, peer: impl FindPeer + Copy) -> Option<Decision> {
    for _ in 0..TRIES {
        let task = TALK_TASKS.get_ptr(attempt.cgroup_id)?;
        // SAFETY: a field of a map value, aligned. Volatile: the order of these reads is what makes them one version.
        let set = unsafe { (&raw const (*task).set).read_volatile() };
        let found = Found(look(task, set, attempt, peer));
        // SAFETY: as above.
        if unsafe { (&raw const (*task).set).read_volatile() } == set {
            return Some(found.decision());
        }
    }
    Some(Decision { allowed: false, both_ways: false })
}

/// The [`Found`] of one version.
///
/// A function of its own, as are those that it calls: the verifier forgets what they left on their stacks, and finds
/// alike what is alike after them.
#[inline(never)]
fn look(task: *const TalkTask, set: u32, attempt: &Attempt, peer: impl FindPeer) -> u32 {
    // SAFETY: a field of a map value, aligned.
    let flags = unsafe { (&raw const (*task).flags).read_volatile() };
    let mut found = Found::nothing(attempt);
    if flags & talk_flag::NAMES != 0
        && let Some(peer) = peer.groups(attempt)
    {
        // SAFETY: fields of map values, aligned.
        unsafe {
            if (&raw const (*peer).framework).read_volatile()
                == (&raw const (*task).framework).read_volatile()
            {
                found.ask(&raw const (*task).of_framework, attempt);
            }
            if (&raw const (*peer).role).read_volatile() == (&raw const (*task).role).read_volatile() {
                found.ask(&raw const (*task).of_role, attempt);
            }
        }
    }
    if !found.is_complete()
        && let Some(cells) = longest_prefix(flags, set, &attempt.address)
    {
        found.ask(cells, attempt);
    }
    if !found.is_complete() {
        let here = flags & talk_flag::NODE != 0 && attempt.address.is_here();
        // SAFETY: fields of a map value.
        let cells = unsafe { if here { &raw const (*task).node } else { &raw const (*task).outside } };
        found.ask(cells, attempt);
    }
    opaque(found.0)
}

#[inline(always)]
fn longest_prefix(flags: u32, set: u32, address: &Address) -> Option<*const Cells> {
    let found = match address.to_v4() {
        Some(v4) if flags & talk_flag::V4 != 0 => TALK_V4.get(Key::new(SET_BITS + 32, [set.to_be(), v4])),
        None if flags & talk_flag::V6 != 0 => {
            let [a, b, c, d] = address.0;
            TALK_V6.get(Key::new(SET_BITS + 128, [set.to_be(), a, b, c, d]))
        }
        _ => None,
    };
    found.map(|cells| &raw const *cells)
}

/// The verdicts so far: of this way in the low half, of the other way in the high half.
#[derive(Clone, Copy)]
struct Found(u32);

impl Found {
    #[inline(always)]
    fn nothing(attempt: &Attempt) -> Self {
        let other_way = if attempt.answers { verdict::PASS } else { verdict::ALLOW };
        Self(opaque(other_way << 16 | verdict::PASS))
    }

    #[inline(always)]
    fn is_complete(self) -> bool {
        self.0 & 0xffff != verdict::PASS && self.0 >> 16 != verdict::PASS
    }

    /// Takes what is still missing from these cells.
    #[inline(always)]
    fn ask(&mut self, cells: *const Cells, attempt: &Attempt) {
        self.0 = ask(self.0, cells, attempt.cell, attempt.port.into());
    }

    #[inline(always)]
    fn decision(self) -> Decision {
        Decision { allowed: self.0 & 0xffff == verdict::ALLOW, both_ways: self.0 >> 16 == verdict::ALLOW }
    }
}

#[inline(never)]
fn ask(found: u32, cells: *const Cells, index: u32, port: u32) -> u32 {
    let (mut this_way, mut other_way) = (found & 0xffff, found >> 16);
    if this_way == verdict::PASS {
        let word = cell(cells, index);
        this_way = if word < verdict::FIRST_PORTS { word } else { of_port(word, port) };
    }
    if other_way == verdict::PASS {
        let word = cell(cells, index ^ INGRESS_CELL);
        // Which port an answer comes to is not known here.
        other_way = if word < verdict::FIRST_PORTS { word } else { verdict::DENY };
    }
    opaque(other_way << 16 | this_way)
}

#[inline(always)]
fn cell(cells: *const Cells, index: u32) -> u32 {
    let index = masked::<{ CELLS as u64 - 1 }>(index.into());
    // SAFETY: the index is below the length of the array, which is in a map value.
    unsafe { cells.cast::<u32>().add(index).read_volatile() }
}

/// The verdict of the stretch that the port is in, by halving. Numbers that are not there, which is none while their
/// set is in force, deny.
///
/// A function of its own: its steps would else be multiplied by all the ways that lead here.
#[inline(never)]
fn of_port(number: u32, port: u32) -> u32 {
    let Some(verdicts) = TALK_PORTS.get_ptr(number) else { return verdict::DENY };
    let at = |index: u64| {
        let index = masked::<{ MAX_STRETCHES as u64 - 1 }>(index);
        // SAFETY: the index is below the length of the array, which is in a map value.
        unsafe { verdicts.cast::<u32>().add(index).read_volatile() }
    };
    let mut index = 0;
    let mut step = MAX_STRETCHES as u64 / 2;
    while step > 0 {
        let first = u64::from(at(index + step) >> 16);
        // 1 where that stretch begins at the port or before it. Arithmetic: a branch would be two ways to follow.
        index += step * (first.wrapping_sub(u64::from(port) + 1) >> 63);
        step /= 2;
    }
    opaque(at(index) & 0xffff)
}

/// An index within bounds that the verifier sees. Where the compiler knows them from elsewhere it drops a mask, so the
/// mask is an instruction.
#[inline(always)]
fn masked<const MASK: u64>(index: u64) -> usize {
    let mut index = index;
    // SAFETY: one instruction on one register.
    unsafe {
        asm!("{v} &= {mask}", v = inout(reg) index, mask = const MASK, options(pure, nomem, nostack));
    }
    index as usize
}
