//! One agent is dealt out: who is next, and how much of it.

use bulkhead_proto::v1::ResourceClass;

use super::{
    Allocation, Allocator, Who,
    bundle::{Bundle, CPU, MEM, MIN_OFFER_CPU_MILLI, MIN_OFFER_MEM_BYTES, REVOCABLE_CPU, cpu_kind},
    pot::Pot,
    refusals::Seen,
    tree::at,
};
use crate::ids::UnixMs;

/// An agent is not divided into parts with less CPU than this: most tasks want about one.
pub const MIN_PART_CPU_MILLI: u64 = 1_000;

/// An agent that is at most this part of what its taker is entitled to goes whole: the taker ends up to half above
/// its share, until the next agent goes to somebody else, and nobody gets fragments.
const SMALL_PART: f64 = 0.5;

/// A share that is none: what rounding leaves.
const NO_SHARE: f64 = 1e-6;

/// One agent's turn.
#[derive(Clone, Copy)]
struct Deal<'a> {
    agent: u32,
    class: ResourceClass,
    who: &'a Who,
    now: UnixMs,
}

impl Allocator {
    /// Divides what is free on an agent by class, and each part among those who take it.
    pub(super) fn deal_agent(&mut self, agent: u32, who: &Who, now: UnixMs, made: &mut Vec<Allocation>) {
        use ResourceClass::{Guaranteed, Revocable};
        let Some(free) = self.agents[at(agent)].as_ref().map(|a| a.free.clone()) else { return };
        let deal = |class| Deal { agent, class, who, now };
        let lent = free.of_class(Revocable);
        if !lent.amounts.is_worth_offering(Revocable) {
            return self.deal(deal(Guaranteed), free.of_class(Guaranteed), made);
        }
        if free.amounts.0[CPU] > 0 {
            let (firm_part, lent_part) = free.by_class();
            let firm = self.next_taker(deal(Guaranteed), &firm_part, &[]);
            if firm.is_some() && self.next_taker(deal(Revocable), &lent_part, &[]).is_some() {
                self.deal(deal(Guaranteed), firm_part, made);
                return self.deal(deal(Revocable), lent_part, made);
            }
        }
        let whole = free.of_class(Guaranteed);
        if self.next_taker(deal(Guaranteed), &whole, &[]).is_some() {
            // The promise comes before the loan: only bare CPU is left to lend.
            self.deal(deal(Guaranteed), whole, made);
            let mut bare = Pot::default();
            bare.amounts.0[REVOCABLE_CPU] = free.amounts.0[REVOCABLE_CPU];
            return self.deal(deal(Revocable), bare, made);
        }
        self.deal(deal(Revocable), lent, made);
    }

    /// Part by part, until nothing is left or nobody takes it. Who took a part before and comes first again is given more.
    fn deal(&mut self, deal: Deal<'_>, mut pot: Pot, made: &mut Vec<Allocation>) {
        let begun = made.len();
        while pot.amounts.is_worth_offering(deal.class) {
            let Some(framework) = self.next_taker(deal, &pot, &made[begun..]) else { return };
            let part = self.part_for(framework, deal.class, &pot);
            pot = pot.without(&part);
            self.give(framework, deal.agent, &part);
            match made[begun..].iter_mut().find(|m| m.framework == framework) {
                Some(earlier) => earlier.pot = earlier.pot.plus(&part),
                None => made.push(Allocation { framework, agent: deal.agent, class: deal.class, pot: part }),
            }
        }
    }

    /// Whoever is to be offered some of this agent next: of those who have not yet passed on it, or else of those who
    /// may be asked again, the first in order.
    fn next_taker(&mut self, deal: Deal<'_>, pot: &Pot, made: &[Allocation]) -> Option<u32> {
        if !pot.amounts.is_worth_offering(deal.class) {
            return None;
        }
        let fresh = self.first_taker(deal, pot, made, Seen::Fresh);
        let nobody_passed = self.agents[at(deal.agent)].as_ref().is_none_or(|a| a.refusals.is_empty());
        if fresh.is_some() || nobody_passed {
            return fresh;
        }
        let again = self.first_taker(deal, pot, made, Seen::Again)?;
        if let Some(agent) = self.agents[at(deal.agent)].as_mut() {
            agent.refusals.end_round(deal.class, deal.now);
        }
        Some(again)
    }

    fn first_taker(&self, deal: Deal<'_>, pot: &Pot, made: &[Allocation], seen: Seen) -> Option<u32> {
        let agent = self.agents[at(deal.agent)].as_ref()?;
        let passes = |framework: u32| {
            if made.iter().any(|m| m.framework == framework) {
                return self.has_room_for(framework, deal.class, pot);
            }
            let said = match agent.refusals.is_empty() {
                true => Seen::Fresh,
                false => agent.refusals.seen(framework, deal.class, pot, deal.now),
            };
            said == seen && self.takes(framework, deal.class, pot)
        };
        match deal.who {
            Who::All => self.tree.first(deal.class, self.is_all_kept_free(deal.class), &passes),
            Who::These(frameworks) => {
                let able = frameworks.iter().filter_map(|&f| Some((self.tree.places(f)?, f)));
                let mut able: Vec<_> = able.collect();
                able.sort_unstable();
                able.into_iter().map(|(_, f)| f).find(|&f| passes(f))
            }
        }
    }

    /// Is there nothing beyond what is kept free for guarantees? Then only those who are owed something are asked.
    fn is_all_kept_free(&self, class: ResourceClass) -> bool {
        let Some(kept) = self.tree.kept_free() else { return false };
        let beyond = self.free.beyond(kept);
        let all = beyond.cpu(class) < MIN_OFFER_CPU_MILLI && beyond.0[MEM] < MIN_OFFER_MEM_BYTES;
        if all {
            self.kept_back.set(true);
        }
        all
    }

    /// Does the framework want this class, and is there enough for it within its quota?
    pub(super) fn takes(&self, framework: u32, class: ResourceClass, pot: &Pot) -> bool {
        let Some(wants) = self.wants(framework) else { return false };
        let Some(minimum) = wants.minimum(class) else { return false };
        if !pot.contains(minimum) {
            return false;
        }
        let Some(room) = self.tree.room(framework, &self.free) else { return true };
        room.contains(&pot.amounts) || {
            self.pinch(framework);
            let allowed = pot.at_most(&room);
            allowed.amounts.is_worth_offering(class) && allowed.contains(minimum)
        }
    }

    fn has_room_for(&self, framework: u32, class: ResourceClass, pot: &Pot) -> bool {
        self.room_for(framework, pot).amounts.is_worth_offering(class)
    }

    fn room_for(&self, framework: u32, pot: &Pot) -> Pot {
        let Some(room) = self.tree.room(framework, &self.free) else { return pot.clone() };
        if !room.contains(&pot.amounts) {
            self.pinch(framework);
        }
        pot.at_most(&room)
    }

    /// A quota keeps something from it: it is to be asked again when that has more room.
    fn pinch(&self, framework: u32) {
        self.tree.pinch(framework);
        self.kept_back.set(true);
    }

    /// How much of the pot goes to a framework that takes it: as much as brings it to the share that it is entitled to,
    /// or to what it is owed of a guarantee; not less than its minimum, and nothing that leaves only a sliver. Where it
    /// has that share and still comes first, all of it: then everybody who takes the agent has as much.
    fn part_for(&self, framework: u32, class: ResourceClass, pot: &Pot) -> Pot {
        let whole = self.room_for(framework, pot);
        let (entitled, size) = (self.tree.entitled(framework), self.tree.scale().share_of(&pot.amounts));
        if size <= entitled * SMALL_PART || entitled >= 1.0 {
            return whole;
        }
        let Some(minimum) = self.wants(framework).and_then(|w| w.minimum(class)) else { return whole };
        let owed = self.tree.owed(framework);
        let short = entitled - self.tree.scale().share(self.tree.held(framework));
        if short < NO_SHARE && owed == Bundle::default() {
            return whole;
        }
        let mut part = short.max(0.0) / size;
        for (kind, &have) in pot.amounts.0.iter().enumerate().filter(|&(_, &have)| have > 0) {
            let least = minimum.amounts.0[kind].max(owed.0[kind].min(have));
            part = part.max(least as f64 / have as f64);
        }
        let cpu = pot.amounts.0[cpu_kind(class)];
        part = part.max(MIN_PART_CPU_MILLI as f64 / cpu.max(1) as f64);
        // Above this, what is left is not worth dividing, too.
        if part >= 1.0 - MIN_PART_CPU_MILLI as f64 / cpu.max(1) as f64 {
            return whole;
        }
        pot.part(class, millionths(part), minimum).intersect(&whole)
    }

    fn give(&mut self, framework: u32, agent: u32, part: &Pot) {
        self.tree.charge(framework, &part.amounts);
        self.free.remove(&part.amounts);
        if let Some(agent) = self.agents[at(agent)].as_mut() {
            agent.free = agent.free.without(part);
        }
    }
}

fn millionths(part: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the numbers that fit"
    )]
    let millionths = (part.clamp(0.0, 1.0) * 1e6).ceil() as u64;
    millionths
}
