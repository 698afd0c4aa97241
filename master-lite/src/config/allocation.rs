//! The section `[allocator]`: policy, weights, quotas.
//!
//! ```toml
//! [allocator]
//! policy = "drf"
//! uncounted = ["ports"]
//!
//! [allocator.roles."team/web"]
//! weight = 2.0
//! limit = { cpu_milli = 16000 }
//! guarantee = { cpu_milli = 4000, mem_bytes = 8589934592 }
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::allocator::{
    Allocator, Bundle, Drf, Policy, Priority, RoleSettings, Weight, check_roles, kind_called,
};

/// The section as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllocatorOptions {
    policy: Option<String>,
    uncounted: Vec<String>,
    roles: BTreeMap<String, RoleOptions>,
}

/// One role, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RoleOptions {
    weight: Option<f64>,
    priority: Option<i32>,
    limit: BTreeMap<String, u64>,
    guarantee: BTreeMap<String, u64>,
}

/// How what is free is divided.
#[derive(Clone, Debug, PartialEq)]
pub struct AllocatorConfig {
    /// The name of the policy: drf, priority, or one that the program was given.
    pub policy: String,
    /// Kinds that count for nobody's share; none by default.
    pub uncounted: Vec<usize>,
    /// What is said of roles. Others have weight 1, priority 0 and no quota.
    pub roles: BTreeMap<String, RoleSettings>,
}

impl Default for AllocatorConfig {
    fn default() -> Self {
        Self { policy: Drf.name().to_owned(), uncounted: Vec::new(), roles: BTreeMap::new() }
    }
}

/// A policy that this program does not have.
#[derive(Debug, thiserror::Error)]
#[error("allocator.policy: there is no policy {wanted:?}; choose one of {known}")]
pub struct NoSuchPolicy {
    wanted: String,
    known: String,
}

impl AllocatorConfig {
    pub(super) fn from_options(written: AllocatorOptions) -> Result<Self, String> {
        let uncounted = written.uncounted.iter().map(|name| kind_called(name)).collect::<Result<_, _>>();
        let uncounted = uncounted.map_err(|e| e.to_string())?;
        let role = |(name, role): (String, RoleOptions)| {
            let settings = role.settings().map_err(|problem| format!("role {name:?}: {problem}"))?;
            Ok((name, settings))
        };
        let roles = written.roles.into_iter().map(role).collect::<Result<_, String>>()?;
        check_roles(&roles).map_err(|e| e.to_string())?;
        Ok(Self { policy: written.policy.unwrap_or_else(|| Self::default().policy), uncounted, roles })
    }

    /// An allocator that does as is said here, with one of the built-in policies or of these.
    ///
    /// # Errors
    /// Where no policy has the name.
    pub fn build(&self, own: Vec<Box<dyn Policy>>) -> Result<Allocator, NoSuchPolicy> {
        let built_in: [Box<dyn Policy>; 2] = [Box::new(Drf), Box::new(Priority)];
        let mut policies: Vec<_> = own.into_iter().chain(built_in).collect();
        let Some(place) = policies.iter().position(|policy| policy.name() == self.policy) else {
            let known = policies.iter().map(|policy| policy.name()).collect::<Vec<_>>().join(", ");
            return Err(NoSuchPolicy { wanted: self.policy.clone(), known });
        };
        let mut allocator = Allocator::new(policies.swap_remove(place), &self.uncounted);
        for (role, settings) in &self.roles {
            allocator.set_role(role, *settings);
        }
        Ok(allocator)
    }
}

impl RoleOptions {
    fn settings(self) -> Result<RoleSettings, String> {
        let weight = self.weight.map(Weight::try_from).transpose().map_err(|e| e.to_string())?;
        Ok(RoleSettings {
            weight: weight.unwrap_or(Weight::ONE),
            priority: self.priority.unwrap_or(0),
            limit: Bundle::UNBOUNDED.with_kinds(&self.limit).map_err(|e| e.to_string())?,
            guarantee: Bundle::default().with_kinds(&self.guarantee).map_err(|e| e.to_string())?,
        })
    }
}
