//! Roles: what operators say of them while the master runs, and how they stand.

use bulkhead_proto::v1::{self, RoleEntry, SetRoleRequest};

use super::{Core, Effect, Severity};
use crate::{
    allocator::{
        BadQuota, BadRole, BadWeight, Bundle, NoSuchKind, RoleSettings, RoleStanding, Weight, check_role,
        check_roles,
    },
    ids::RequestId,
};

/// Why a role stays as it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SetRoleError {
    /// The name is none.
    #[error("role {role:?} {why}")]
    Name {
        /// What was asked for.
        role: String,
        /// What is wrong with it.
        why: BadRole,
    },
    /// The weight is none.
    #[error(transparent)]
    Weight(#[from] BadWeight),
    /// An amount is of nothing that is known.
    #[error(transparent)]
    Kind(#[from] NoSuchKind),
    /// It cannot hold together with what is said of other roles.
    #[error("nothing was changed: {0}")]
    Quota(#[from] BadQuota),
}

impl Core {
    /// An operator changes what is said of a role.
    pub(super) fn set_role(&mut self, request: RequestId, call: &SetRoleRequest) {
        let result = self.change_role(call);
        if let Ok(settings) = &result {
            let what = if self.allocator.settings_of(&call.role).is_some() { "set" } else { "cleared" };
            let v1::RoleSettings { weight, priority, limit, guarantee } = message(settings);
            let now =
                format!("weight {weight}, priority {priority}, limit {limit:?}, guarantee {guarantee:?}");
            self.log(Severity::Info, format!("role {} is {what} by an operator: {now}", call.role));
        }
        self.effects.push(Effect::RoleAnswer { request, result: result.map(|s| message(&s)) });
    }

    fn change_role(&mut self, call: &SetRoleRequest) -> Result<RoleSettings, SetRoleError> {
        let role = &call.role;
        check_role(role).map_err(|why| SetRoleError::Name { role: role.chars().take(100).collect(), why })?;
        let said = self.allocator.settings_of(role);
        let changed = changed(said.filter(|_| !call.clear).unwrap_or_default(), call)?;
        let is_said = changed != RoleSettings::default() || (said.is_some() && !call.clear);
        let mut all = self.allocator.settings();
        if is_said {
            all.insert(role.clone(), changed);
        } else {
            all.remove(role);
        }
        check_roles(&all)?;
        if is_said {
            self.allocator.set_role(role, changed);
        } else {
            self.allocator.clear_role(role);
        }
        Ok(changed)
    }

    /// Roles that somebody said something of, that have frameworks, or that are above such a role; by name.
    pub fn list_roles(&self) -> Vec<RoleEntry> {
        self.allocator.roles().into_iter().map(entry).collect()
    }
}

fn changed(mut settings: RoleSettings, call: &SetRoleRequest) -> Result<RoleSettings, SetRoleError> {
    if let Some(weight) = call.weight {
        settings.weight = Weight::try_from(weight)?;
    }
    if let Some(limit) = &call.limit {
        settings.limit = Bundle::UNBOUNDED.with_kinds(&limit.kinds)?;
    }
    if let Some(guarantee) = &call.guarantee {
        settings.guarantee = Bundle::default().with_kinds(&guarantee.kinds)?;
    }
    settings.priority = call.priority.unwrap_or(settings.priority);
    Ok(settings)
}

fn entry(role: RoleStanding) -> RoleEntry {
    RoleEntry {
        settings: Some(message(&role.settings.unwrap_or_default())),
        is_set: role.settings.is_some(),
        held: role.held.by_kind(),
        dominant_share: role.dominant_share,
        dominant_kind: role.dominant_kind.to_owned(),
        framework_count: role.frameworks.into(),
        role: role.role,
    }
}

/// What is said of a role, as operators see it.
pub(super) fn message(settings: &RoleSettings) -> v1::RoleSettings {
    v1::RoleSettings {
        weight: settings.weight.get(),
        priority: settings.priority,
        limit: settings.limit.bounds_by_kind(),
        guarantee: settings.guarantee.by_kind(),
    }
}
