//! A framework accepts offers and launches tasks on them.
//!
//! Tasks are judged one by one, in the order of the call: each is launched, or gets one status `REJECTED` that
//! says why. Where its id is that of a live task, it gets an error instead: a status would be about the live one.
//! A task that does not fit does not hold back a later, smaller one. What the launches leave goes back at once.
//! Offers that this framework does not hold (any more) spoil the whole call: the framework counted on resources
//! that are somebody else's now.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::{
    resources::{PortSet, SCALARS},
    v1::{
        Accept, CallError, Grant, Launch, ResourceClass, Resources, TaskReason, TaskSpec, TaskState,
        TaskStatus, master_message, scheduler_event,
    },
};

use super::Core;
use crate::{
    ids::{AgentId, FrameworkId, OfferId, TaskKey},
    ledger::Held,
    offers::Offer,
    tasks::{Record, Refusal, check_spec},
};

/// What an accept has to launch on: one agent, a pot for each class.
struct Pots {
    agent: AgentId,
    left: BTreeMap<ResourceClass, Resources>,
}

impl Core {
    pub(super) fn accept(&mut self, framework: &FrameworkId, accept: Accept) {
        let (offers, gone) = self.take_offers(framework, &accept.offer_ids);
        let acknowledges = self.acknowledges(framework);
        if acknowledges.is_err() {
            // Offered again at once, they would be accepted again at once.
            for offer in &offers {
                self.refuse(framework, &offer.agent, offer.class, self.settings.refuse_ms);
            }
        }
        let mut pots = acknowledges.and_then(|()| pots(&offers, &gone));
        for spec in accept.tasks {
            let id = spec.task_id.clone();
            let key = TaskKey::new(framework, &id);
            if self.tasks.get(&key).is_some() {
                self.refuse_duplicate(&key);
                continue;
            }
            match check_spec(&spec) {
                Err(refusal) => drop(self.reject(framework, &id, refusal)),
                Ok((class, wanted)) => match self.fit(&key, &mut pots, class, &wanted) {
                    Ok(agent) => self.launch(&agent, key, spec, class, wanted),
                    Err(refusal) => {
                        let status = self.reject(framework, &id, refusal);
                        self.remember_rejected(&key, &spec, status);
                    }
                },
            }
        }
        if let Ok(pots) = pots {
            for class in pots.left.into_keys() {
                self.refuse(framework, &pots.agent, class, accept.refuse_ms);
            }
        }
    }

    /// The statuses of ended tasks are kept until they are acknowledged, here and by agents, and none is ever dropped.
    /// So a framework that acknowledges nothing gets nothing more to forget.
    fn acknowledges(&self, framework: &FrameworkId) -> Result<(), Refusal> {
        let most = self.settings.unacknowledged;
        if !self.tasks.leaves_unacknowledged(framework, most) {
            return Ok(());
        }
        let message = format!(
            "{most} tasks of this framework have ended, and their last status is not acknowledged: acknowledge it (or \
             reconcile, to have it repeated) before launching more"
        );
        Err(Refusal::new(TaskReason::Unacknowledged, message))
    }

    /// Takes the named offers off the books; the second part lists the ids that name none of this framework's.
    pub(super) fn take_offers(
        &mut self,
        framework: &FrameworkId,
        ids: &[String],
    ) -> (Vec<Offer>, Vec<String>) {
        let (mut offers, mut gone) = (Vec::new(), Vec::new());
        for id in ids.iter().collect::<BTreeSet<_>>() {
            let is_ours = self.offers.get(id).is_some_and(|o| o.framework == *framework);
            match is_ours.then(|| self.release_offer(&OfferId::from(id.as_str()))).flatten() {
                Some(offer) => offers.push(offer),
                None => gone.push(id.clone()),
            }
        }
        self.counters.offers_accepted += offers.len() as u64;
        (offers, gone)
    }

    /// Takes the wanted resources out of the right pot.
    fn fit(
        &self,
        key: &TaskKey,
        pots: &mut Result<Pots, Refusal>,
        class: ResourceClass,
        wanted: &Resources,
    ) -> Result<AgentId, Refusal> {
        let pots = pots.as_mut().map_err(|refusal| refusal.clone())?;
        if self.tasks.is_disowned(&pots.agent, key) {
            let message = "an older task with this id is still being killed on this agent; choose another id"
                .to_owned();
            return Err(Refusal::new(TaskReason::InvalidTask, message));
        }
        let Some(left) = pots.left.get_mut(&class) else {
            let message = format!(
                "the task asks for {} resources and none of the accepted offers is of that class",
                class.as_str_name().trim_start_matches("RESOURCE_CLASS_").to_lowercase()
            );
            return Err(Refusal::new(TaskReason::InvalidGrant, message));
        };
        *left = left
            .checked_sub(wanted)
            .ok_or_else(|| Refusal::new(TaskReason::ExceedsOffer, shortage(wanted, left)))?;
        Ok(pots.agent.clone())
    }

    fn launch(
        &mut self,
        agent: &AgentId,
        key: TaskKey,
        mut spec: TaskSpec,
        class: ResourceClass,
        wanted: Resources,
    ) {
        if let Some(grant) = &mut spec.grant {
            *grant = Grant { resources: Some(wanted.clone()), ..grant.clone() };
        }
        let held = Held { framework: key.framework.clone(), class, resources: wanted };
        self.ledger.grant(agent, key.clone(), held);
        self.counters.tasks_launched += 1;
        let role = self.frameworks.get(&key.framework).map_or_else(String::new, |f| f.info.role.clone());
        let launch = Launch { framework_id: (&key.framework).into(), task: Some(spec.clone()), role };
        self.tell_agent(agent, master_message::Message::Launch(launch));
        let earlier = self.tasks.ended_run(&key).filter(|t| t.agent_id == agent.as_str());
        let record = Record {
            spec,
            agent: agent.clone(),
            status: TaskStatus {
                task_id: key.task.as_str().to_owned(),
                framework_id: (&key.framework).into(),
                agent_id: agent.into(),
                state: TaskState::Staging.into(),
                message: "sent to the agent".to_owned(),
                unix_time_ms: self.now.0,
                ..TaskStatus::default()
            },
            acked: 0,
            kill: None,
            resizing: None,
            started: self.now,
            previous: earlier.and_then(|t| t.status.clone()),
        };
        self.tasks.insert(key, record);
    }

    /// No status says this: it would be the end of the task that has the id.
    fn refuse_duplicate(&mut self, key: &TaskKey) {
        let message = format!(
            "task {:?} was not launched: a task with this id is live, or its last status is not acknowledged; choose another id",
            key.task.as_str()
        );
        self.tell_framework(&key.framework, scheduler_event::Event::Error(CallError { message }));
    }

    fn reject(&mut self, framework: &FrameworkId, task: &str, refusal: Refusal) -> TaskStatus {
        self.counters.ended(TaskState::Rejected);
        self.own_word(framework, task, TaskState::Rejected, refusal.reason, refusal.message)
    }
}

fn pots(offers: &[Offer], gone: &[String]) -> Result<Pots, Refusal> {
    if !gone.is_empty() {
        let message = format!(
            "offer {} was accepted or declined before, was rescinded, or never was this framework's; \
             nothing was launched from this accept: wait for the next offer",
            gone.join(", ")
        );
        return Err(Refusal::new(TaskReason::OfferGone, message));
    }
    let Some(first) = offers.first() else {
        return Err(Refusal::new(
            TaskReason::OfferGone,
            "the accept names no offer; name the one to launch on",
        ));
    };
    if let Some(other) = offers.iter().find(|o| o.agent != first.agent) {
        let message = format!(
            "the offers are of different agents ({} and {}); accept those of one agent at a time",
            first.agent, other.agent
        );
        return Err(Refusal::new(TaskReason::InvalidGrant, message));
    }
    let mut left = BTreeMap::<_, Resources>::new();
    for offer in offers {
        let pot = left.entry(offer.class).or_default();
        *pot = pot.plus(&offer.resources);
    }
    Ok(Pots { agent: first.agent.clone(), left })
}

/// Says, kind by kind, what is wanted and what is left.
pub(super) fn shortage(wanted: &Resources, left: &Resources) -> String {
    let mut short = Vec::new();
    for kind in &SCALARS {
        let (wanted, left) = ((kind.get)(wanted), (kind.get)(left));
        if wanted > left {
            short.push(format!("{wanted} {} of {left} left", kind.unit));
        }
    }
    let missing = wanted.saturating_sub(left).port_set().unwrap_or_default();
    if !missing.is_empty() {
        let has: PortSet = left.port_set().unwrap_or_default();
        let has = if has.is_empty() { "none".to_owned() } else { has.to_string() };
        short.push(format!("ports {missing} where the offer has {has}"));
    }
    format!(
        "the task takes {}, in what the accepted offers and the launches before it leave; ask for less or accept more offers",
        short.join(" and ")
    )
}
