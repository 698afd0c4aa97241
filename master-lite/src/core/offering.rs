//! Free resources become offers, at the end of every step in which something became free.

use std::collections::BTreeMap;

use bulkhead_proto::v1::{self, Offers, ResourceClass, Resources, scheduler_event};
use prost::Message as _;

use super::Core;
use crate::{
    allocator::{Allocation, Demand, Supply, worth_offering},
    ids::{AgentId, FrameworkId, OfferId},
    inventory::Agent,
    ledger::Held,
    offers::Offer,
    timers::Timer,
};

impl Core {
    pub(super) fn make_offers(&mut self) {
        if self.to_offer.is_empty() {
            return;
        }
        let agents = std::mem::take(&mut self.to_offer);
        let supply: Vec<_> = agents.iter().filter_map(|agent| self.supply(agent)).collect();
        if supply.is_empty() {
            return;
        }
        let allocations = self.allocate(&supply);
        let mut sent = BTreeMap::<FrameworkId, Vec<v1::Offer>>::new();
        for allocation in allocations {
            if let Some((framework, offer)) = self.make_offer(allocation) {
                sent.entry(framework).or_default().push(offer);
            }
        }
        for (framework, offers) in sent {
            for offers in in_messages(offers) {
                self.tell_framework(&framework, scheduler_event::Event::Offers(Offers { offers }));
            }
        }
    }

    fn supply(&self, agent: &AgentId) -> Option<Supply> {
        self.inventory.session_of(agent)?;
        let free = self.ledger.book(agent)?.parts().free;
        let supply =
            Supply { agent: agent.clone(), pool: free.pool, revocable_cpu_milli: free.revocable_cpu_milli };
        let lent = Resources { cpu_milli: supply.revocable_cpu_milli, ..Resources::default() };
        let any = worth_offering(ResourceClass::Guaranteed, &supply.pool)
            || worth_offering(ResourceClass::Revocable, &lent);
        any.then_some(supply)
    }

    fn allocate(&mut self, supply: &[Supply]) -> Vec<Allocation> {
        let now = self.now;
        let connected = self.frameworks.iter().filter(|(_, f)| f.session().is_some());
        let demand: Vec<_> = connected
            .map(|(id, framework)| {
                let minimum = framework.minimum();
                Demand {
                    framework: id.clone(),
                    held: self.ledger.held_by(id),
                    last_offered: framework.last_offered,
                    takes: Box::new(move |agent, class, resources| {
                        framework.wants(class)
                            && worth_offering(class, resources)
                            && resources.contains(&minimum)
                            && !framework.refuses(agent, class, resources, now)
                    }),
                }
            })
            .collect();
        self.allocator.allocate(self.ledger.capacity(), supply, &demand)
    }

    /// Writes one offer down. An allocation that is not free, or not to anybody who listens, is passed over:
    /// the ledger's word counts, whatever an allocator says.
    fn make_offer(&mut self, allocation: Allocation) -> Option<(FrameworkId, v1::Offer)> {
        let Allocation { framework, agent, class, resources } = allocation;
        let free = self.ledger.book(&agent)?.parts().free;
        let available = free.of_class(class);
        let known = self.inventory.get(&agent)?;
        let to = self.frameworks.get_mut(&framework).filter(|f| f.session().is_some())?;
        if !available.contains(&resources) {
            return None;
        }
        self.offers_made += 1;
        to.last_offered = self.offers_made;
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
        self.refuse(&offer.framework, &offer.agent, offer.class, offer.resources, self.settings.refuse_ms);
    }

    /// Keeps this much of the agent from the framework for a while; not at all where `refuse_ms` is 0.
    pub(super) fn refuse(
        &mut self,
        framework: &FrameworkId,
        agent: &AgentId,
        class: ResourceClass,
        resources: Resources,
        refuse_ms: u64,
    ) {
        let until = self.now.after_ms(refuse_ms);
        if refuse_ms == 0 {
            return;
        }
        if let Some(framework) = self.frameworks.get_mut(framework) {
            framework.refuse(agent, class, resources, until);
            self.timers.set(until, Timer::RefusalOver(agent.clone()));
        }
    }
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
    }
}
