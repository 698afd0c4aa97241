//! What it costs to reach the data that frameworks name: passed on to agents, and what they answer into offers.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::{
    data_sets::{MAX_ERROR_BYTES, check_names, cut},
    v1::{
        CallError, DataAccess, DataAccessChanged, NameDataSets, WatchDataSets, master_message,
        scheduler_event,
    },
};

use super::Core;
use crate::{
    framework::Framework,
    ids::{AgentId, FrameworkId},
};

/// What an offer says before its agent does.
const UNANSWERED: &str = "the agent has not answered yet";

impl Core {
    /// The framework names other data sets.
    pub(super) fn name_data_sets(&mut self, id: &FrameworkId, call: NameDataSets) {
        if let Err(message) = check_names(&call.data_sets) {
            return self.tell_framework(id, scheduler_event::Event::Error(CallError { message }));
        }
        if let Some(framework) = self.frameworks.get_mut(id) {
            framework.info.data_sets = call.data_sets;
        }
        self.watch_data_sets(id);
    }

    /// Tells all agents what this framework names now, where that is not what they were told before.
    pub(super) fn watch_data_sets(&mut self, id: &FrameworkId) {
        let Some(framework) = self.frameworks.get_mut(id) else { return };
        let names = wanted(framework).to_vec();
        if names == framework.watched {
            return;
        }
        framework.watched.clone_from(&names);
        let agents: Vec<_> = self.inventory.iter().map(|(agent, _)| agent.clone()).collect();
        for agent in &agents {
            self.tell_agent(agent, watch(id, names.clone()));
        }
        let all: BTreeSet<String> =
            self.frameworks.iter().flat_map(|(_, framework)| framework.watched.iter().cloned()).collect();
        self.inventory.forget_data_access(&all);
    }

    /// Tells an agent that has just registered what everybody names.
    pub(super) fn watch_all_data_sets(&mut self, agent: &AgentId) {
        let named = self.frameworks.iter().filter(|(_, framework)| !framework.watched.is_empty());
        let all: Vec<_> = named.map(|(id, framework)| watch(id, framework.watched.clone())).collect();
        for message in all {
            self.tell_agent(agent, message);
        }
    }

    /// Takes in an agent's answers, and tells those who hold an offer of it and asked. What nobody asked is passed over.
    pub(super) fn agent_measured_access(&mut self, agent: &AgentId, answers: Vec<DataAccess>) {
        let answers: BTreeMap<_, _> =
            answers.into_iter().map(|access| (access.data_set.clone(), bounded(access))).collect();
        let mut news = Vec::new();
        for (id, framework) in self.frameworks.iter() {
            let asked: Vec<_> =
                framework.watched.iter().filter_map(|name| answers.get(name).cloned()).collect();
            if !asked.is_empty() {
                news.push((id.clone(), asked));
            }
        }
        for (id, data_access) in news {
            self.inventory.note_data_access(agent, &data_access);
            if self.holds_offer(&id, agent) {
                let changed = DataAccessChanged { agent_id: agent.into(), data_access };
                self.tell_framework(&id, scheduler_event::Event::DataAccess(changed));
            }
        }
    }

    fn holds_offer(&self, framework: &FrameworkId, agent: &AgentId) -> bool {
        let of_agent = self.offers.of_agent(agent).filter_map(|offer| self.offers.get(offer.as_str()));
        of_agent.map(|offer| &offer.framework).any(|of| of == framework)
    }

    /// For each data set of the framework, what the agent said last.
    pub(super) fn data_access(&self, framework: &FrameworkId, agent: &AgentId) -> Vec<DataAccess> {
        let names = self.frameworks.get(framework).map(|f| f.watched.as_slice()).unwrap_or_default();
        let known = self.inventory.get(agent).map(|agent| &agent.data_access);
        let one = |name: &String| {
            known.and_then(|known| known.get(name).cloned()).unwrap_or_else(|| DataAccess {
                data_set: name.clone(),
                error: UNANSWERED.to_owned(),
                ..DataAccess::default()
            })
        };
        names.iter().map(one).collect()
    }
}

/// Nobody listens to answers for a framework that is away.
fn wanted(framework: &Framework) -> &[String] {
    if framework.session().is_some() { &framework.info.data_sets } else { &[] }
}

fn watch(id: &FrameworkId, data_sets: Vec<String>) -> master_message::Message {
    master_message::Message::WatchDataSets(WatchDataSets { framework_id: id.into(), data_sets })
}

/// Offers repeat it.
fn bounded(access: DataAccess) -> DataAccess {
    DataAccess { error: cut(access.error, MAX_ERROR_BYTES), ..access }
}
