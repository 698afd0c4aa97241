//! Why a framework is offered what it is: the allocator's numbers, and a reason for each agent that it is not offered.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::v1::{
    AgentForFramework, AgentName, AgentsNotOffered, ExplainFrameworkRequest, ExplainFrameworkResponse,
    PlaceKind, SharePlace, WhyNotOffered,
};

use super::{Core, roles::message};
use crate::{
    allocator::{Bundle, Obstacle, Place},
    ids::{AgentId, FrameworkId},
    inventory::Agent,
};

/// How many agents are named for each reason; the others are counted.
pub const EXAMPLES: usize = 3;

/// What cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Nobody has the id.
    #[error("no framework has the id {0:?}: ListFrameworks has those there are")]
    NoFramework(String),
    /// Nobody has the id.
    #[error("no agent has the id {0:?}: ListAgents has those there are")]
    NoAgent(String),
}

/// The framework that is asked about.
struct Asked {
    number: u32,
    /// Agents of which it has an offer.
    has_offers_of: BTreeSet<AgentId>,
}

impl Core {
    /// Explains a framework's place, and looks at every agent for it: for a person's question, not for every step.
    ///
    /// # Errors
    /// For ids that nobody has.
    pub fn explain_framework(
        &self,
        request: &ExplainFrameworkRequest,
    ) -> Result<ExplainFrameworkResponse, ExplainError> {
        let id: FrameworkId = request.framework_id.as_str().into();
        let unknown = || ExplainError::NoFramework(request.framework_id.clone());
        let framework = self.frameworks.get(&id).ok_or_else(unknown)?;
        let number = self.numbers.frameworks.get(&id).ok_or_else(unknown)?;
        let why = self.allocator.explain(number).ok_or_else(unknown)?;
        let offers = self.offers.of_framework(&id).filter_map(|offer| self.offers.get(offer.as_str()));
        let has_offers_of = offers.map(|offer| offer.agent.clone()).collect();
        let asked = Asked { number, has_offers_of };
        let agent = match request.agent_id.as_str() {
            "" => None,
            agent => Some(self.explain_agent(&asked, agent)?),
        };
        let (takes_agents, not_offered) = self.look_at_agents(&asked);
        Ok(ExplainFrameworkResponse {
            framework_id: request.framework_id.clone(),
            connected: framework.session().is_some(),
            classes: framework.info.classes.clone(),
            minimum: framework.info.minimum.clone(),
            offer_count: self.offers.of_framework(&id).count() as u64,
            policy: why.policy,
            path: why.path.into_iter().map(place).collect(),
            entitled_share: why.entitled,
            room: why.room.as_ref().map(Bundle::bounds_by_kind).unwrap_or_default(),
            capacity: why.capacity.by_kind(),
            free: why.free.by_kind(),
            kept_free: why.kept_free.by_kind(),
            not_offered,
            takes_agents,
            agent,
        })
    }

    /// How many agents it takes as they are, and why not the others: most of them first.
    fn look_at_agents(&self, asked: &Asked) -> (u64, Vec<AgentsNotOffered>) {
        let mut takes = 0;
        let mut reasons = BTreeMap::<WhyNotOffered, AgentsNotOffered>::new();
        for (id, agent) in self.inventory.iter() {
            let Some(why) = self.why_not(asked, id, agent) else {
                takes += 1;
                continue;
            };
            let reason = reasons.entry(why).or_default();
            reason.why = why.into();
            reason.agent_count += 1;
            if reason.examples.len() < EXAMPLES {
                reason.examples.push(agent_name(id, agent));
            }
        }
        let mut reasons: Vec<_> = reasons.into_values().collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.agent_count));
        (takes, reasons)
    }

    /// `None` where it takes the agent as it is.
    fn why_not(&self, asked: &Asked, id: &AgentId, agent: &Agent) -> Option<WhyNotOffered> {
        if agent.session.is_none() {
            return Some(WhyNotOffered::AgentAway);
        }
        if asked.has_offers_of.contains(id) {
            return Some(WhyNotOffered::HasOffer);
        }
        // An agent without a number has reported nothing that can be offered.
        let obstacle = match self.numbers.agents.get(id) {
            Some(number) => self.allocator.obstacle(asked.number, number, self.now)?,
            None => Obstacle::NothingFree,
        };
        Some(match obstacle {
            Obstacle::NothingFree if self.offers.of_agent(id).next().is_some() => {
                WhyNotOffered::OfferedToOthers
            }
            Obstacle::NothingFree => WhyNotOffered::NothingFree,
            Obstacle::NotConnected => WhyNotOffered::NotConnected,
            Obstacle::NotWanted => WhyNotOffered::ClassNotWanted,
            Obstacle::BelowMinimum => WhyNotOffered::BelowMinimum,
            Obstacle::Refused => WhyNotOffered::Refused,
            Obstacle::Limit => WhyNotOffered::Limit,
            Obstacle::KeptFree => WhyNotOffered::KeptFree,
        })
    }

    fn explain_agent(&self, asked: &Asked, id: &str) -> Result<AgentForFramework, ExplainError> {
        let agent_id: AgentId = id.into();
        let agent = self.inventory.get(&agent_id).ok_or_else(|| ExplainError::NoAgent(id.to_owned()))?;
        let parts = self.parts(&agent_id).unwrap_or_default();
        let number = self.numbers.agents.get(&agent_id);
        let until = number.and_then(|agent| self.allocator.refused_until(asked.number, agent, self.now));
        let reserve = Bundle::of(bulkhead_proto::v1::ResourceClass::Guaranteed, &parts.reserve);
        Ok(AgentForFramework {
            agent: Some(agent_name(&agent_id, agent)),
            why: self.why_not(asked, &agent_id, agent).unwrap_or_default().into(),
            capacity: parts.capacity.amounts().by_kind(),
            reserve: reserve.by_kind(),
            granted: parts.granted.amounts().by_kind(),
            offered: parts.offered.amounts().by_kind(),
            free: parts.free.amounts().by_kind(),
            refused_ms: until.map_or(0, |until| until.0.saturating_sub(self.now.0)),
        })
    }
}

fn agent_name(id: &AgentId, agent: &Agent) -> AgentName {
    AgentName { agent_id: id.into(), hostname: agent.info.hostname.clone() }
}

fn place(place: Place) -> SharePlace {
    let kind = match (place.is_framework, place.is_leaf) {
        (true, _) => PlaceKind::Framework,
        (_, true) => PlaceKind::FrameworksOfRole,
        _ => PlaceKind::Role,
    };
    SharePlace {
        kind: kind.into(),
        settings: (kind == PlaceKind::Role).then(|| message(&place.settings)),
        held: place.held.by_kind(),
        dominant_share: place.dominant_share,
        dominant_kind: place.dominant_kind.to_owned(),
        served_before: place.served_before as u64,
        siblings: place.siblings as u64,
        part_of_parent: place.part_of_parent,
        role: place.role,
    }
}
