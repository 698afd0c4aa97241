//! Free resources become offers, at the end of every step in which something became free.

use std::{collections::BTreeMap, sync::Arc};

use bulkhead_proto::v1::{self, Offers, ResourceClass, scheduler_event};
use prost::Message as _;

use super::Core;
use crate::{
    allocator::{Allocation, Pot},
    framework::DEFAULT_ROLE,
    ids::{AgentId, FrameworkId, OfferId},
    inventory::Agent,
    ledger::{Held, Slice},
    offers::Offer,
    timers::Timer,
};

/// Measures how long the allocator takes; the core itself has no clock.
pub trait Stopwatch: Send {
    /// Does the work, once, and notes how long it took.
    fn time(&mut self, work: &mut dyn FnMut());
}

/// Does the work and notes nothing.
pub(super) struct NoStopwatch;

impl Stopwatch for NoStopwatch {
    fn time(&mut self, work: &mut dyn FnMut()) {
        work();
    }
}

impl Core {
    pub(super) fn make_offers(&mut self) {
        self.tell_allocator();
        if self.allocator.is_settled() {
            return;
        }
        let (allocator, now) = (&mut self.allocator, self.now);
        let mut allocations = Vec::new();
        self.stopwatch.time(&mut || allocations = allocator.allocate(now));
        let mut sent = BTreeMap::<FrameworkId, Vec<v1::Offer>>::new();
        let mut not_made = Vec::new();
        for allocation in allocations {
            match self.make_offer(&allocation) {
                Some((framework, offer)) => sent.entry(framework).or_default().push(offer),
                None => not_made.push(allocation),
            }
        }
        // The allocator has counted these offers itself.
        drop(self.ledger.take_changed());
        for allocation in not_made {
            self.came_or_went.extend(self.numbers.agents.name(allocation.agent).cloned());
            let framework = self.numbers.frameworks.name(allocation.framework);
            framework.into_iter().for_each(|id| self.frameworks.note_change(id));
        }
        for (framework, offers) in sent {
            for offers in in_messages(offers) {
                self.tell_framework(&framework, scheduler_event::Event::Offers(Offers { offers }));
            }
        }
    }

    /// Passes on to the allocator what has changed since it was last told.
    fn tell_allocator(&mut self) {
        let mut changed = self.ledger.take_changed();
        changed.agents.append(&mut self.came_or_went);
        changed.frameworks.append(&mut self.frameworks.take_changed());
        for agent in &changed.agents {
            self.tell_of_agent(agent);
        }
        for framework in &changed.frameworks {
            self.tell_of_framework(framework);
        }
    }

    fn tell_of_agent(&mut self, agent: &AgentId) {
        let Some(book) = self.ledger.book(agent) else {
            if let Some(number) = self.numbers.agents.remove(agent) {
                self.allocator.remove_agent(number);
            }
            return;
        };
        let parts = book.parts();
        let connected = self.inventory.session_of(agent).is_some();
        let free = if connected { pot(&parts.free) } else { Pot::default() };
        let allocator = &mut self.allocator;
        let number = self.numbers.agents.get_or_add(agent, || allocator.add_agent());
        self.allocator.set_agent(number, &parts.capacity.amounts(), free);
    }

    /// A framework that the core has forgotten counts as long as a task of it holds something.
    fn tell_of_framework(&mut self, id: &FrameworkId) {
        let held = self.ledger.held_by(id);
        let known = self.frameworks.get(id);
        if known.is_none() && held.is_empty() {
            if let Some(number) = self.numbers.frameworks.remove(id) {
                self.allocator.remove_framework(number);
            }
            return;
        }
        let role = known.map_or(DEFAULT_ROLE, |framework| &framework.info.role);
        let wants = known.map(|framework| framework.wants()).unwrap_or_default();
        let moved = self.numbers.frameworks.get(id).filter(|&n| self.allocator.role_of(n) != Some(role));
        if let Some(number) = moved {
            self.numbers.frameworks.remove(id);
            self.allocator.remove_framework(number);
        }
        let allocator = &mut self.allocator;
        let number = self.numbers.frameworks.get_or_add(id, || allocator.add_framework(role, wants.clone()));
        allocator.set_wants(number, wants);
        allocator.set_held(number, &held);
        allocator.set_connected(number, known.is_some_and(|framework| framework.session().is_some()));
    }

    /// Writes one offer down. An allocation that is not free, or not to anybody who listens, is passed over:
    /// the ledger's word counts, whatever an allocator says.
    fn make_offer(&mut self, allocation: &Allocation) -> Option<(FrameworkId, v1::Offer)> {
        let framework = self.numbers.frameworks.name(allocation.framework)?.clone();
        let agent = self.numbers.agents.name(allocation.agent)?.clone();
        let class = allocation.class;
        let resources = allocation.pot.amounts.to_resources(class, &allocation.pot.ports);
        let available = self.ledger.book(&agent)?.parts().free.of_class(class);
        let known = self.inventory.get(&agent)?;
        self.frameworks.get(&framework).filter(|f| f.session().is_some())?;
        if !available.contains(&resources) {
            return None;
        }
        self.offers_made += 1;
        let offer = Offer {
            id: OfferId::from(format!("{}-offer-{}", self.run_id, self.offers_made).as_str()),
            number: self.offers_made,
            framework: framework.clone(),
            agent: agent.clone(),
            class,
            resources: resources.clone(),
            expires: self.now.after_ms(self.settings.offer_timeout_ms),
        };
        self.counters.offers_sent += 1;
        self.timers.set(offer.expires, Timer::OfferOpen(offer.id.clone()));
        self.ledger.offer(&agent, offer.id.clone(), Held { framework: framework.clone(), class, resources });
        let message = offer_message(&offer, Some(known), self.data_access(&framework, &agent));
        self.offers.insert(offer);
        Some((framework, message))
    }

    /// An offer that nobody answers would keep its resources from everybody: it counts as declined.
    pub(super) fn offer_may_expire(&mut self, id: &OfferId) {
        let Some(offer) = self.offers.get(id.as_str()).filter(|o| o.expires <= self.now).cloned() else {
            return;
        };
        let why = format!("not answered within {} ms", self.settings.offer_timeout_ms);
        self.rescind(vec![id.clone()], &why);
        self.refuse(&offer.framework, &offer.agent, offer.class, self.settings.refuse_ms);
    }

    /// Keeps the agent from the framework for a while, as long as no more of it is idle than now. Where `refuse_ms`
    /// is 0, only those who have not seen the agent come first.
    pub(super) fn refuse(
        &mut self,
        framework: &FrameworkId,
        agent: &AgentId,
        class: ResourceClass,
        refuse_ms: u64,
    ) {
        let numbers = (self.numbers.frameworks.get(framework), self.numbers.agents.get(agent));
        let (Some(framework), Some(number)) = numbers else { return };
        let Some(book) = self.ledger.book(agent) else { return };
        let parts = book.parts();
        let until = self.now.after_ms(refuse_ms);
        self.allocator.refuse(framework, number, class, pot(&parts.free.plus(&parts.offered)), until);
        if refuse_ms > 0 {
            self.timers.set(until, Timer::RefusalOver(agent.clone()));
        }
    }

    /// The framework wants everything again that it refused.
    pub(super) fn forget_refusals(&mut self, framework: &FrameworkId) {
        if let Some(number) = self.numbers.frameworks.get(framework) {
            self.allocator.revive(number);
        }
    }
}

fn pot(slice: &Slice) -> Pot {
    // Ranges that no machine has were refused when the report came in.
    Pot::new(slice.amounts(), Arc::new(slice.pool.port_set().unwrap_or_default()))
}

/// Larger messages are refused by gRPC's usual clients at 4 MiB.
const MESSAGE_BYTES: usize = 2 << 20;

/// In as few messages as they fit in.
fn in_messages(offers: Vec<v1::Offer>) -> Vec<Vec<v1::Offer>> {
    let mut messages = Vec::new();
    let (mut message, mut bytes) = (Vec::new(), 0);
    for offer in offers {
        let more = offer.encoded_len();
        if bytes + more > MESSAGE_BYTES && !message.is_empty() {
            messages.push(std::mem::take(&mut message));
            bytes = 0;
        }
        bytes += more;
        message.push(offer);
    }
    messages.push(message);
    messages
}

/// An offer as frameworks and operators see it.
pub(super) fn offer_message(
    offer: &Offer,
    agent: Option<&Agent>,
    data_access: Vec<v1::DataAccess>,
) -> v1::Offer {
    let report = agent.map(|agent| &agent.report);
    v1::Offer {
        offer_id: (&offer.id).into(),
        framework_id: (&offer.framework).into(),
        agent: agent.map(|agent| agent.info.clone()),
        class: offer.class.into(),
        resources: Some(offer.resources.clone()),
        enforced: report.and_then(|report| report.enforced),
        pressure: report.and_then(|report| report.pressure),
        runqueue_p99_usec: report.and_then(|report| report.runqueue_p99_usec),
        data_access,
        numa: report.map(|report| report.numa.clone()).unwrap_or_default(),
        origin: report.and_then(|report| report.origin.clone()),
    }
}
