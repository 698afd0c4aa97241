//! Outstanding offers: sent, and neither answered nor taken back.

use std::collections::BTreeMap;

use bulkhead_proto::v1::{ResourceClass, Resources};

use crate::ids::{AgentId, FrameworkId, OfferId, UnixMs};

/// One outstanding offer.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Its name.
    pub id: OfferId,
    /// Counts offers over the master's life: larger is newer.
    pub number: u64,
    /// Who may accept it.
    pub framework: FrameworkId,
    /// Where.
    pub agent: AgentId,
    /// How firmly.
    pub class: ResourceClass,
    /// How much.
    pub resources: Resources,
    /// When it is taken back by itself.
    pub expires: UnixMs,
}

/// All of them, found by id, by agent and by framework.
#[derive(Debug, Default)]
pub struct Offers {
    by_id: BTreeMap<OfferId, Offer>,
    by_agent: BTreeMap<AgentId, BTreeMap<u64, OfferId>>,
    by_framework: BTreeMap<FrameworkId, BTreeMap<u64, OfferId>>,
}

impl Offers {
    /// Keeps an offer that was sent.
    pub fn insert(&mut self, offer: Offer) {
        self.by_agent.entry(offer.agent.clone()).or_default().insert(offer.number, offer.id.clone());
        self.by_framework.entry(offer.framework.clone()).or_default().insert(offer.number, offer.id.clone());
        self.by_id.insert(offer.id.clone(), offer);
    }

    /// Takes an offer out; `None` where it is not outstanding.
    pub fn remove(&mut self, id: &str) -> Option<Offer> {
        let offer = self.by_id.remove(id)?;
        drop_from(&mut self.by_agent, &offer.agent, offer.number);
        drop_from(&mut self.by_framework, &offer.framework, offer.number);
        Some(offer)
    }

    /// The offer of this id.
    pub fn get(&self, id: &str) -> Option<&Offer> {
        self.by_id.get(id)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Offer> {
        self.by_id.values()
    }

    /// An agent's offers, the newest first.
    pub fn of_agent(&self, agent: &AgentId) -> impl Iterator<Item = &OfferId> {
        self.by_agent.get(agent).into_iter().flat_map(|m| m.values().rev())
    }

    /// A framework's offers, the oldest first.
    pub fn of_framework(&self, framework: &FrameworkId) -> impl Iterator<Item = &OfferId> {
        self.by_framework.get(framework).into_iter().flat_map(|m| m.values())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

fn drop_from<K: Ord>(index: &mut BTreeMap<K, BTreeMap<u64, OfferId>>, key: &K, number: u64) {
    if let Some(offers) = index.get_mut(key) {
        offers.remove(&number);
        if offers.is_empty() {
            index.remove(key);
        }
    }
}
