//! Sessions of frameworks: who is subscribed, who is away, who refuses what.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::{
    data_sets::check_names,
    ids::check_id,
    v1::{FrameworkInfo, ResourceClass},
};

use crate::{
    allocator::{Wants, check_role},
    ids::{FrameworkId, MAX_WAIT_MS, SessionId, UnixMs},
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

/// One framework.
#[derive(Clone, Debug)]
pub struct Framework {
    /// As it subscribed, with role and classes filled in.
    pub info: FrameworkInfo,
    /// Connected, or not, and since when.
    pub phase: Phase,
    /// When this master first heard of it.
    pub registered: UnixMs,
    /// Data sets that agents were told of.
    pub watched: Vec<String>,
}

impl Framework {
    /// Its stream, while it is connected.
    pub fn session(&self) -> Option<SessionId> {
        match self.phase {
            Phase::Connected(session) => Some(session),
            _ => None,
        }
    }

    /// The offers that it asks for.
    pub fn wants(&self) -> Wants {
        let classes: Vec<_> =
            self.info.classes.iter().filter_map(|&class| ResourceClass::try_from(class).ok()).collect();
        Wants::new(&classes, &self.info.minimum.clone().unwrap_or_default())
    }
}

/// All frameworks that are subscribed, may come back, or still have tasks.
#[derive(Debug, Default)]
pub struct Frameworks {
    by_id: BTreeMap<FrameworkId, Framework>,
    sessions: BTreeMap<SessionId, FrameworkId>,
    changed: BTreeSet<FrameworkId>,
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

    /// Counts a framework among those that changed.
    pub fn note_change(&mut self, id: &FrameworkId) {
        self.changed.insert(id.clone());
    }

    /// Those that came, went, or moved to another phase since this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<FrameworkId> {
        std::mem::take(&mut self.changed)
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
            watched: Vec::new(),
        });
        self.set_phase(id, phase);
    }

    /// Moves a framework to another phase; answers the session that it had.
    pub fn set_phase(&mut self, id: &FrameworkId, phase: Phase) -> Option<SessionId> {
        let framework = self.by_id.get_mut(id)?;
        self.changed.insert(id.clone());
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
        self.changed.insert(id.clone());
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
    check_role(&info.role).map_err(|problem| format!("role {:?} {problem}", info.role))?;
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
