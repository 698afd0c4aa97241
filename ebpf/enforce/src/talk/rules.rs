//! What a task's rules say to an attempt.
//!
//! From the narrowest kind of rule to the widest, the first that says anything decides: tasks of the framework, tasks
//! of the role, the longest prefix, this node or the outside. What a prefix's entry says already counts in the
//! shorter prefixes around it, and what those last two say the task's default.

use core::arch::asm;

use aya_ebpf::maps::lpm_trie::Key;
use bulkhead_abi::{
    CELLS, Cells, HELD_CLASS_BITS, INGRESS_CELL, MAX_STRETCHES, SET_BITS, TalkGroups, talk_flag, verdict,
};

use super::address::Address;
use crate::{
    maps::{PORT_HOLDERS, TALK_GROUPS, TALK_PORTS, TALK_TASKS, TALK_V4, TALK_V6},
    opaque::opaque,
};

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
    /// The peer, if it may be a task of this node.
    pub peer: PeerTask,
}

/// How a peer is found that is a task of this node.
#[derive(Clone, Copy)]
pub enum PeerTask {
    /// It is none.
    None,
    /// By its port, which was granted to it.
    HoldsPort,
    /// By the packet that it sent: the id of its cgroup.
    Known(u64),
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

/// `None` for a task without rules.
#[inline(always)]
pub fn decide(attempt: &Attempt) -> Option<Decision> {
    let (high, low) = attempt.address.halves();
    let (about, peer) = (About::of(attempt).0, if let PeerTask::Known(id) = attempt.peer { id } else { 0 });
    let mut found = talk_look(attempt.cgroup_id, high, low, about, peer);
    if found == CHANGED {
        // A change takes far longer than a look: that it changes twice means it is being torn down.
        found = talk_look(attempt.cgroup_id, high, low, about, peer);
    }
    match found {
        NO_RULES => None,
        CHANGED => Some(Decision { allowed: false, both_ways: false }),
        found => Some(Found(found).decision()),
    }
}

/// In place of a [`Found`]: the task has no rules.
const NO_RULES: u32 = u32::MAX;
/// In place of a [`Found`]: the task's rules changed while they were read.
const CHANGED: u32 = u32::MAX - 1;

/// What an attempt is about, as one number: the port, the cell, and the two questions.
#[derive(Clone, Copy)]
struct About(u32);

impl About {
    const ANSWERS: u32 = 1 << 20;
    const HOLDS_PORT: u32 = 1 << 21;

    #[inline(always)]
    fn of(attempt: &Attempt) -> Self {
        let answers = if attempt.answers { Self::ANSWERS } else { 0 };
        let holds_port = if let PeerTask::HoldsPort = attempt.peer { Self::HOLDS_PORT } else { 0 };
        Self(u32::from(attempt.port) | attempt.cell << 16 | answers | holds_port)
    }

    #[inline(always)]
    fn port(self) -> u32 {
        self.0 & 0xffff
    }

    #[inline(always)]
    fn cell(self) -> u32 {
        self.0 >> 16 & (CELLS as u32 - 1)
    }
}

/// The [`Found`] of one version of a task's rules. `peer` is the id of the peer's cgroup, if it is known.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn talk_look(cgroup_id: u64, high: u64, low: u64, about: u32, peer: u64) -> u32 {
    let Some(task) = TALK_TASKS.get_ptr(cgroup_id) else { return NO_RULES };
    let (address, about) = (Address::of_halves(high, low), About(about));
    // SAFETY: fields of a map value, aligned. Volatile: the order of these reads is what makes them one version.
    let (set, flags) =
        unsafe { ((&raw const (*task).set).read_volatile(), (&raw const (*task).flags).read_volatile()) };
    let mut found = Found::nothing(about);
    if flags & talk_flag::NAMES != 0
        && let Some(peer) = groups(peer, &address, about)
    {
        // SAFETY: fields of map values, aligned.
        unsafe {
            if (&raw const (*peer).framework).read_volatile()
                == (&raw const (*task).framework).read_volatile()
            {
                found.ask(&raw const (*task).of_framework, about);
            }
            if (&raw const (*peer).role).read_volatile() == (&raw const (*task).role).read_volatile() {
                found.ask(&raw const (*task).of_role, about);
            }
        }
    }
    if !found.is_complete()
        && let Some(cells) = longest_prefix(flags, set, &address)
    {
        found.ask(cells, about);
    }
    if !found.is_complete() {
        let here = flags & talk_flag::NODE != 0 && address.is_here();
        // SAFETY: fields of a map value.
        let cells = unsafe { if here { &raw const (*task).node } else { &raw const (*task).outside } };
        found.ask(cells, about);
    }
    // SAFETY: as above.
    if unsafe { (&raw const (*task).set).read_volatile() } == set { found.0 } else { CHANGED }
}

/// What a peer belongs with that is a task of this node.
#[inline(always)]
fn groups(known: u64, address: &Address, about: About) -> Option<*const TalkGroups> {
    let peer = if about.0 & About::HOLDS_PORT == 0 {
        known
    } else if address.is_here() {
        let held = (about.cell() & !INGRESS_CELL) << 16 | about.port();
        let key = Key::new(HELD_CLASS_BITS + 16, held.to_be_bytes());
        *PORT_HOLDERS.get(key)?
    } else {
        0
    };
    TALK_GROUPS.get_ptr(peer)
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
    fn nothing(about: About) -> Self {
        let other_way = if about.0 & About::ANSWERS != 0 { verdict::PASS } else { verdict::ALLOW };
        Self(opaque(other_way << 16 | verdict::PASS))
    }

    #[inline(always)]
    fn is_complete(self) -> bool {
        self.0 & 0xffff != verdict::PASS && self.0 >> 16 != verdict::PASS
    }

    /// Takes what is still missing from these cells.
    #[inline(always)]
    fn ask(&mut self, cells: *const Cells, about: About) {
        let this_way = cell(cells, about.cell());
        let other_way = cell(cells, about.cell() ^ INGRESS_CELL);
        self.0 = talk_ask(self.0, this_way, other_way, about.port());
    }

    #[inline(always)]
    fn decision(self) -> Decision {
        Decision { allowed: self.0 & 0xffff == verdict::ALLOW, both_ways: self.0 >> 16 == verdict::ALLOW }
    }
}

/// `found`, with what is still missing from two words of cells.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn talk_ask(found: u32, this_word: u32, other_word: u32, port: u32) -> u32 {
    let (mut this_way, mut other_way) = (found & 0xffff, found >> 16);
    if this_way == verdict::PASS {
        this_way = if this_word < verdict::FIRST_PORTS { this_word } else { of_port(this_word, port) };
    }
    if other_way == verdict::PASS {
        // Which port an answer comes to is not known here.
        other_way = if other_word < verdict::FIRST_PORTS { other_word } else { verdict::DENY };
    }
    other_way << 16 | this_way
}

#[inline(always)]
fn cell(cells: *const Cells, index: u32) -> u32 {
    let index = masked::<{ CELLS as u64 - 1 }>(index.into());
    // SAFETY: the index is below the length of the array, which is in a map value.
    unsafe { cells.cast::<u32>().add(index).read_volatile() }
}

/// The verdict of the stretch that the port is in, by halving. Numbers that are not there, which is none while their
/// set is in force, deny.
#[inline(always)]
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
    at(index) & 0xffff
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
