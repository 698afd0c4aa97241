//! Sessions of frameworks: who is subscribed, who is away, who refuses what.

use std::collections::BTreeMap;

use bulkhead_proto::{
    data_sets::check_names,
    ids::check_id,
    v1::{FrameworkInfo, ResourceClass, Resources},
};

use crate::{
    allocator::{MIN_OFFER_CPU_MILLI, MIN_OFFER_MEM_BYTES},
    ids::{AgentId, FrameworkId, MAX_WAIT_MS, SessionId, UnixMs},
};

/// The role of a framework that names none.
pub const DEFAULT_ROLE: &str = "default";

/// Where a framework is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its scheduler listens on this stream.
    Connected(SessionId),
    /// Its stream broke; at this moment its tasks are killed.
    Away {
        /// When the failover timeout is over.
        until: UnixMs,
    },
    /// It left its tasks to themselves and is forgotten with the last one.
    Detached,
    /// Its tasks are being killed and it is forgotten with the last one.
    Leaving,
}

impl Phase {
    /// Does the master acknowledge statuses in the framework's place?
    pub fn is_on_its_own(self) -> bool {
        matches!(self, Self::Detached | Self::Leaving)
    }
}

/// What a framework does not want for a while.
#[derive(Clone, Debug)]
struct Refusal {
    until: UnixMs,
    resources: Resources,
}

/// One framework.
#[derive(Clone, Debug)]
pub struct Framework {
    /// As it subscribed, with role and classes filled in.
    pub info: FrameworkInfo,
    /// Connected, or not, and since when.
    pub phase: Phase,
    /// When this master first heard of it.
    pub registered: UnixMs,
    /// Number of its newest offer; 0 where it never had one.
    pub last_offered: u64,
    /// Data sets that agents were told of.
    pub watched: Vec<String>,
    refusals: BTreeMap<(AgentId, i32), Refusal>,
}

impl Framework {
    /// Its stream, while it is connected.
    pub fn session(&self) -> Option<SessionId> {
        match self.phase {
            Phase::Connected(session) => Some(session),
            _ => None,
        }
    }

    /// Does it want offers of this class?
    pub fn wants(&self, class: ResourceClass) -> bool {
        self.info.classes.contains(&class.into())
    }

    /// The least it can use.
    pub fn minimum(&self) -> Resources {
        self.info.minimum.clone().unwrap_or_default()
    }

    /// Notes that it does not want this much of the agent until then.
    pub fn refuse(&mut self, agent: &AgentId, class: ResourceClass, resources: Resources, until: UnixMs) {
        self.refusals.insert((agent.clone(), class.into()), Refusal { until, resources });
    }

    /// Does it refuse this much of the agent? Only until the refusal is over, and only until there is
    /// noticeably more than what it refused: a task's end is news, the flutter of a measured reserve is not.
    pub fn refuses(&self, agent: &AgentId, class: ResourceClass, resources: &Resources, now: UnixMs) -> bool {
        let Some(refusal) = self.refusals.get(&(agent.clone(), class.into())) else { return false };
        let more = resources.saturating_sub(&refusal.resources);
        let noticeable = more.cpu_milli >= MIN_OFFER_CPU_MILLI
            || more.mem_bytes >= MIN_OFFER_MEM_BYTES
            || !more.ports.is_empty();
        now < refusal.until && !noticeable
    }

    /// Drops refusals: those of one agent that are over, or all.
    pub fn forget_refusals(&mut self, over: Option<(&AgentId, UnixMs)>) {
        match over {
            None => self.refusals.clear(),
            Some((agent, now)) => self.refusals.retain(|(of, _), r| of != agent || now < r.until),
        }
    }
}

/// All frameworks that are subscribed, may come back, or still have tasks.
#[derive(Debug, Default)]
pub struct Frameworks {
    by_id: BTreeMap<FrameworkId, Framework>,
    sessions: BTreeMap<SessionId, FrameworkId>,
}

impl Frameworks {
    /// The framework of this id.
    pub fn get(&self, id: &FrameworkId) -> Option<&Framework> {
        self.by_id.get(id)
    }

    /// The framework of this id, to change what does not involve its session.
    pub fn get_mut(&mut self, id: &FrameworkId) -> Option<&mut Framework> {
        self.by_id.get_mut(id)
    }

    /// All, to change what does not involve their sessions.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Framework> {
        self.by_id.values_mut()
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&FrameworkId, &Framework)> {
        self.by_id.iter()
    }

    /// The framework whose stream this is.
    pub fn of_session(&self, session: SessionId) -> Option<&FrameworkId> {
        self.sessions.get(&session)
    }

    /// Adds a framework, or keeps the one that is there.
    pub fn add(&mut self, id: &FrameworkId, info: FrameworkInfo, phase: Phase, now: UnixMs) {
        self.by_id.entry(id.clone()).or_insert_with(|| Framework {
            info,
            phase,
            registered: now,
            last_offered: 0,
            watched: Vec::new(),
            refusals: BTreeMap::new(),
        });
        self.set_phase(id, phase);
    }

    /// Moves a framework to another phase; answers the session that it had.
    pub fn set_phase(&mut self, id: &FrameworkId, phase: Phase) -> Option<SessionId> {
        let framework = self.by_id.get_mut(id)?;
        let session = framework.session();
        framework.phase = phase;
        session.map(|s| self.sessions.remove(&s));
        if let Phase::Connected(new) = phase {
            self.sessions.insert(new, id.clone());
        }
        session
    }

    /// Forgets a framework.
    pub fn remove(&mut self, id: &FrameworkId) {
        if let Some(session) = self.by_id.remove(id).and_then(|f| f.session()) {
            self.sessions.remove(&session);
        }
    }
}

/// What a framework may subscribe as: role and classes filled in, amounts checked, times that can pass.
///
/// # Errors
/// A sentence for the framework's author.
pub fn check_subscription(mut info: FrameworkInfo) -> Result<FrameworkInfo, String> {
    if !info.framework_id.is_empty()
        && let Err(problem) = check_id(&info.framework_id)
    {
        return Err(format!(
            "framework id {:?} {problem}, or leave it empty to be given one",
            info.framework_id
        ));
    }
    info.failover_timeout_ms = info.failover_timeout_ms.min(MAX_WAIT_MS);
    if info.role.is_empty() {
        info.role = DEFAULT_ROLE.to_owned();
    }
    if info.classes.is_empty() {
        info.classes.push(ResourceClass::Guaranteed.into());
    }
    let known = [i32::from(ResourceClass::Guaranteed), i32::from(ResourceClass::Revocable)];
    if let Some(odd) = info.classes.iter().find(|c| !known.contains(c)) {
        return Err(format!(
            "resource class {odd} is not one: ask for GUARANTEED (1), REVOCABLE (2) or both"
        ));
    }
    check_names(&info.data_sets)?;
    if let Some(minimum) = &info.minimum {
        minimum.port_set().map_err(|e| format!("minimum offer: {e}"))?;
    }
    Ok(info)
}
