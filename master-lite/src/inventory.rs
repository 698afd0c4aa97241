//! What every agent said about itself last.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::{
    ids::check_id,
    v1::{AgentInfo, DataAccess, Register, ResourceReport, Resources},
};

use crate::ids::{AgentId, SessionId, UnixMs};

/// One agent that is registered, or was until a moment ago.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Who and where it is.
    pub info: AgentInfo,
    /// What it measured last.
    pub report: ResourceReport,
    /// When it sent that, or last said that it still holds.
    pub confirmed: UnixMs,
    /// Its stream; `None` while it is away.
    pub session: Option<SessionId>,
    /// When it last said anything.
    pub heard: UnixMs,
    /// When it first registered with this master.
    pub registered: UnixMs,
    /// What it costs to reach the data sets that frameworks named, by their names.
    pub data_access: BTreeMap<String, DataAccess>,
}

/// All agents whose tasks are not lost.
#[derive(Debug, Default)]
pub struct Inventory {
    agents: BTreeMap<AgentId, Agent>,
    sessions: BTreeMap<SessionId, AgentId>,
}

impl Inventory {
    /// The agent of this id.
    pub fn get(&self, id: &AgentId) -> Option<&Agent> {
        self.agents.get(id)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&AgentId, &Agent)> {
        self.agents.iter()
    }

    /// The stream of an agent that is connected.
    pub fn session_of(&self, id: &AgentId) -> Option<SessionId> {
        self.agents.get(id)?.session
    }

    /// Whose stream this is.
    pub fn agent_of(&self, session: SessionId) -> Option<&AgentId> {
        self.sessions.get(&session)
    }

    /// Opens a session, for an agent that is new or was away.
    pub fn connect(&mut self, id: &AgentId, session: SessionId, register: &Register, now: UnixMs) {
        let agent = Agent {
            info: register.agent.clone().unwrap_or_default(),
            report: register.report.clone().unwrap_or_default(),
            confirmed: now,
            session: Some(session),
            heard: now,
            registered: self.agents.get(id).map_or(now, |known| known.registered),
            data_access: BTreeMap::new(),
        };
        self.agents.insert(id.clone(), agent);
        self.sessions.insert(session, id.clone());
    }

    /// Ends the agent's session, if it has one.
    pub fn disconnect(&mut self, id: &AgentId) -> Option<SessionId> {
        let session = self.agents.get_mut(id)?.session.take()?;
        self.sessions.remove(&session);
        Some(session)
    }

    /// Notes that the agent lives.
    pub fn heard(&mut self, id: &AgentId, now: UnixMs) {
        if let Some(agent) = self.agents.get_mut(id) {
            agent.heard = now;
        }
    }

    /// Takes over a report; false where it is older than the one already here.
    pub fn report(&mut self, id: &AgentId, report: &ResourceReport, now: UnixMs) -> bool {
        let Some(agent) = self.agents.get_mut(id) else { return false };
        let newer = report.sequence > agent.report.sequence;
        if newer {
            agent.report = report.clone();
            agent.confirmed = now;
        }
        newer
    }

    /// The report of this number still holds; false where another one is here.
    pub fn confirm(&mut self, id: &AgentId, sequence: u64, now: UnixMs) -> bool {
        let Some(agent) = self.agents.get_mut(id).filter(|a| a.report.sequence == sequence) else {
            return false;
        };
        agent.confirmed = now;
        true
    }

    /// Takes over what it costs to reach these data sets.
    pub fn note_data_access(&mut self, id: &AgentId, answers: &[DataAccess]) {
        if let Some(agent) = self.agents.get_mut(id) {
            agent.data_access.extend(answers.iter().map(|a| (a.data_set.clone(), a.clone())));
        }
    }

    /// Forgets what it costs to reach all other data sets.
    pub fn forget_data_access(&mut self, all_but: &BTreeSet<String>) {
        for agent in self.agents.values_mut() {
            agent.data_access.retain(|name, _| all_but.contains(name));
        }
    }

    /// Forgets an agent.
    pub fn remove(&mut self, id: &AgentId) {
        self.disconnect(id);
        self.agents.remove(id);
    }
}

/// The id of an agent that may register, or what is wrong with its message.
///
/// # Errors
/// A sentence for the agent's operator.
pub fn check_register(register: &Register) -> Result<AgentId, String> {
    let Some(info) = &register.agent else {
        return Err(
            "Register carries no agent: send AgentInfo with the id from the work directory".to_owned()
        );
    };
    check_id(&info.agent_id).map_err(|problem| format!("agent id {:?} {problem}", info.agent_id))?;
    let Some(report) = &register.report else {
        return Err(format!("agent {}: Register carries no report: send what the node has", info.agent_id));
    };
    check_report(report).map_err(|problem| format!("agent {}: {problem}", info.agent_id))?;
    check_grants(register).map_err(|problem| format!("agent {}: {problem}", info.agent_id))?;
    Ok(info.agent_id.as_str().into())
}

/// Are the amounts of this report ones that a machine can have?
///
/// # Errors
/// What is wrong, for the agent's operator.
pub fn check_report(report: &ResourceReport) -> Result<(), String> {
    let parts = [("capacity", &report.capacity), ("reserve", &report.reserve)];
    for (name, part) in parts {
        part.iter().try_for_each(|r| r.port_set().map(drop)).map_err(|e| format!("report, {name}: {e}"))?;
    }
    Ok(())
}

/// Sums of grants must be numbers: the ledger adds them up.
fn check_grants(register: &Register) -> Result<(), String> {
    let mut sum = Resources::default();
    for task in &register.tasks {
        let Some(spec) = &task.spec else { continue };
        let Some(granted) = spec.grant.as_ref().and_then(|g| g.resources.as_ref()) else { continue };
        granted.port_set().map_err(|e| format!("task {}: {e}", spec.task_id))?;
        let cpu = sum.cpu_milli.checked_add(granted.cpu_milli);
        let mem = sum.mem_bytes.checked_add(granted.mem_bytes);
        let (Some(cpu_milli), Some(mem_bytes)) = (cpu, mem) else {
            return Err("the grants of the listed tasks add up to more than any machine has".to_owned());
        };
        sum = Resources { cpu_milli, mem_bytes, ports: Vec::new(), ..Resources::default() };
    }
    Ok(())
}
