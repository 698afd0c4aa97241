//! The settings, in the form that the parts of the agent take.

use std::{ops::RangeInclusive, time::Duration};

use bulkhead_proto::v1::AgentInfo;

use super::NodeError;
use crate::{
    config::{Config, ConfigError},
    grant::GrantDefaults,
    identity,
    kernel::probe::Features,
    launch::{
        confine::{ConfineError, FENCES, Rules},
        plan::Defaults,
        sandbox::Keep,
    },
    measure::sampler::Pace,
    offer::report,
    user::{UserError, Users},
};

/// Who this agent is; `listening` is what its own API is reached by.
pub(super) fn info(config: &Config, listening: String) -> Result<AgentInfo, NodeError> {
    Ok(AgentInfo {
        agent_id: identity::agent_id(&config.work_dir)?,
        hostname: config.shown_hostname(),
        api_address: if config.advertise.is_empty() { listening } else { config.advertise.clone() },
        attributes: config.attributes.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// What tasks leave out. Without quotas nothing would hold a sandbox to its size.
pub(super) fn defaults(
    config: &Config,
    disk_is_held: bool,
    features: &Features,
) -> Result<Defaults, ConfigError> {
    let profile = config.default_profile.parse().map_err(|e: ConfineError| ConfigError::Value {
        key: "default_profile",
        value: config.default_profile.clone(),
        why: e.to_string(),
    })?;
    let lacks = features.features.iter().filter(|f| FENCES.contains(&f.name) && !f.available);
    Ok(Defaults {
        user: config.task_user.clone(),
        grant: GrantDefaults {
            pids_max: config.default_pids_max,
            disk_bytes: if disk_is_held { config.default_disk.as_u64() } else { 0 },
            output_bytes: config.default_output.as_u64(),
            stall_percent: config.mem_stall_percent,
            stall_for: Duration::from_millis(config.mem_stall_ms),
        },
        kill_grace: config.kill_grace(),
        rules: Rules {
            profile,
            allow_trusted: config.allow_trusted_tasks,
            readable_paths: config.readable_paths.clone(),
            volume_dirs: config.volume_dirs.clone(),
            lacks: lacks.map(|f| (f.name, f.detail.clone())).collect(),
            waived: config.allow_unenforced.iter().cloned().collect(),
        },
    })
}

/// Notices at the start that tasks which name no user could never be launched. A database that does not answer yet is
/// no reason not to start: each launch asks again.
///
/// # Errors
/// The user does not exist, or is root where no task may be.
pub(super) fn check_task_user(config: &Config) -> Result<(), ConfigError> {
    let why = match Users::default().host(&config.task_user) {
        Ok(user) if user.uid == 0 && !config.allow_root_tasks => {
            "tasks may not run as root: name another user, or set allow_root_tasks".to_owned()
        }
        Err(UserError::Unknown(_)) => {
            "there is no such user on this host: create it, or name another".to_owned()
        }
        Err(error) => {
            tracing::warn!(error = crate::error_chain(&error), "look up the user of tasks that name none");
            return Ok(());
        }
        Ok(_) => return Ok(()),
    };
    Err(ConfigError::Value { key: "task_user", value: config.task_user.clone(), why })
}

/// How often the node is measured.
pub(super) fn pace(config: &Config) -> Pace {
    Pace {
        every: Duration::from_millis(config.sample_every_ms),
        pressure_every: Duration::from_millis(config.pressure_every_ms),
        budget_milli: config.sample_budget_milli,
    }
}

/// How old the master's picture may be.
pub(super) fn report_pace(config: &Config) -> report::Pace {
    report::Pace {
        at_least_every: Duration::from_millis(config.report_every_ms),
        whole_every: Duration::from_millis(config.report.whole_every_ms),
    }
}

/// The project ids that sandboxes and bounded volumes get.
pub(super) fn projects(config: &Config) -> Result<RangeInclusive<u32>, ConfigError> {
    let value = || config.disk_projects.clone();
    let bad = |why| ConfigError::Value { key: "disk_projects", value: value(), why };
    config.project_range().map_err(bad)
}

/// How long sandboxes of ended tasks are kept.
pub(super) fn keep(config: &Config) -> Keep {
    let age = Duration::from_secs(config.sandbox_keep_hours.saturating_mul(3600));
    Keep { age, count: config.sandbox_keep_count }
}
