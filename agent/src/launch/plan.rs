//! What a launch will do, from the task's specification alone. Pure.

use std::{
    collections::BTreeMap,
    ffi::{CString, NulError},
    time::Duration,
};

use bulkhead_proto::{
    ids::{BadId, check_id},
    v1::TaskSpec,
};

use crate::grant::{Class, Grant, GrantDefaults, GrantError};

/// Where programs without a slash in their name are looked for, unless the task sets its own `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A task that cannot be launched anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// An id that is no safe file name.
    #[error("the {what} id {problem}")]
    Id {
        /// Whose id.
        what: &'static str,
        /// What is wrong with it.
        problem: BadId,
    },
    /// Nothing to run.
    #[error("the task has no command: give a program and its arguments")]
    NoCommand,
    /// A NUL byte inside an argument or variable.
    #[error("the command or environment has a NUL byte in it")]
    Nul,
    /// A variable that no environment can hold.
    #[error("environment variable {0:?}: a name is not empty and has no '='")]
    Variable(String),
    /// An impossible grant.
    #[error(transparent)]
    Grant(#[from] GrantError),
}

impl From<NulError> for PlanError {
    fn from(_: NulError) -> Self {
        Self::Nul
    }
}

/// What is fixed for every task of this agent.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Whom tasks run as that name nobody.
    pub user: String,
    /// What grants leave out.
    pub grant: GrantDefaults,
    /// Grace of tasks that name none.
    pub kill_grace: Duration,
}

/// Everything that a launch needs and that does not depend on this host's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Of the framework.
    pub framework_id: String,
    /// Of the task.
    pub task_id: String,
    /// The limits.
    pub grant: Grant,
    /// User name or number to run as.
    pub user: String,
    /// Files to try, in order.
    pub programs: Vec<CString>,
    /// The program's arguments, its name first.
    pub argv: Vec<CString>,
    /// The task's variables; the sandbox adds its own.
    pub env: BTreeMap<String, String>,
    /// Between SIGTERM and the end of every process.
    pub kill_grace: Duration,
}

impl Plan {
    /// Checks and completes a specification.
    ///
    /// # Errors
    /// [`PlanError`] says what is wrong with it and what would be right.
    pub fn make(framework_id: &str, spec: &TaskSpec, defaults: &Defaults) -> Result<Self, PlanError> {
        for (what, id) in [("framework", framework_id), ("task", &spec.task_id)] {
            check_id(id).map_err(|problem| PlanError::Id { what, problem })?;
        }
        let program = spec.argv.first().filter(|p| !p.is_empty()).ok_or(PlanError::NoCommand)?;
        if let Some(name) = spec.env.keys().find(|k| k.is_empty() || k.contains('=')) {
            return Err(PlanError::Variable(name.clone()));
        }
        let grant = Grant::check(spec.grant.as_ref(), &defaults.grant)?;
        let env = environment(spec, &grant);
        let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        // Every variable must be able to become a C string; the executor relies on it.
        for (name, value) in &env {
            CString::new(format!("{name}={value}"))?;
        }
        Ok(Self {
            framework_id: framework_id.into(),
            task_id: spec.task_id.clone(),
            user: if spec.user.is_empty() { defaults.user.clone() } else { spec.user.clone() },
            programs: candidates(program, path)?,
            argv: spec.argv.iter().map(|a| CString::new(a.as_str())).collect::<Result<_, _>>()?,
            env,
            kill_grace: match spec.kill_grace_ms {
                0 => defaults.kill_grace,
                ms => Duration::from_millis(ms),
            },
            grant,
        })
    }
}

fn environment(spec: &TaskSpec, grant: &Grant) -> BTreeMap<String, String> {
    let class = match grant.class {
        Class::Guaranteed => "guaranteed",
        Class::Revocable => "revocable",
    };
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("BULKHEAD_TASK_ID".to_owned(), spec.task_id.clone()),
        ("BULKHEAD_CPU_MILLI".to_owned(), grant.cpu_milli.to_string()),
        ("BULKHEAD_MEM_BYTES".to_owned(), grant.mem_bytes.to_string()),
        ("BULKHEAD_PORTS".to_owned(), grant.ports.to_string()),
        ("BULKHEAD_CLASS".to_owned(), class.to_owned()),
    ]);
    env.extend(spec.env.iter().map(|(k, v)| (k.clone(), v.clone())));
    env
}

/// The program itself where it has a slash, else one file for each directory of `path`.
fn candidates(program: &str, path: &str) -> Result<Vec<CString>, PlanError> {
    if program.contains('/') {
        return Ok(vec![CString::new(program)?]);
    }
    let dirs = path.split(':').filter(|d| !d.is_empty());
    Ok(dirs.map(|dir| CString::new(format!("{dir}/{program}"))).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1;

    use super::*;
    use crate::grant::TEST_DEFAULTS;

    fn defaults() -> Defaults {
        Defaults { user: "nobody".into(), grant: TEST_DEFAULTS, kill_grace: Duration::from_secs(5) }
    }

    fn spec(argv: &[&str]) -> TaskSpec {
        let resources =
            v1::Resources { cpu_milli: 500, mem_bytes: 1 << 26, ports: vec![], ..v1::Resources::default() };
        let grant = v1::Grant { resources: Some(resources), class: 1, ..Default::default() };
        let argv = argv.iter().map(|&a| a.into()).collect();
        TaskSpec { task_id: "t-1".into(), argv, grant: Some(grant), ..Default::default() }
    }

    #[test]
    fn ids_that_are_no_file_names_are_refused() {
        let task = TaskSpec { task_id: "../x".into(), ..spec(&["x"]) };
        let refused = |framework, task| Plan::make(framework, task, &defaults()).unwrap_err();
        assert!(matches!(refused("f", &task), PlanError::Id { what: "task", .. }));
        assert!(matches!(refused("a/b", &spec(&["x"])), PlanError::Id { what: "framework", .. }));
    }

    #[test]
    fn programs_are_looked_for_where_the_task_says() {
        let mut task = spec(&["tool", "-x"]);
        task.env.insert("PATH".into(), "/a::/b".into());
        let plan = Plan::make("f", &task, &defaults()).unwrap();
        assert_eq!(plan.programs, [c"/a/tool".to_owned(), c"/b/tool".to_owned()]);
        assert_eq!(plan.argv, [c"tool".to_owned(), c"-x".to_owned()]);
        let with_slash = Plan::make("f", &spec(&["./tool"]), &defaults()).unwrap();
        assert_eq!(with_slash.programs, [c"./tool".to_owned()]);
    }

    #[test]
    fn what_the_task_leaves_out_is_the_agents() {
        let plan = Plan::make("f", &spec(&["x"]), &defaults()).unwrap();
        assert_eq!((plan.user.as_str(), plan.grant.pids_max), ("nobody", TEST_DEFAULTS.pids_max));
        assert_eq!(plan.kill_grace, Duration::from_secs(5));
        assert_eq!(plan.env["BULKHEAD_CPU_MILLI"], "500");
    }

    #[test]
    fn malformed_tasks_are_named() {
        let refused = |task: &TaskSpec| Plan::make("f", task, &defaults()).unwrap_err();
        assert_eq!(refused(&spec(&[])), PlanError::NoCommand);
        assert_eq!(refused(&spec(&["", "x"])), PlanError::NoCommand);
        assert_eq!(refused(&spec(&["x", "a\0b"])), PlanError::Nul);
        let mut task = spec(&["x"]);
        task.env.insert("A=B".into(), "c".into());
        assert_eq!(refused(&task), PlanError::Variable("A=B".into()));
        let mut task = spec(&["x"]);
        task.env.insert("A".into(), "c\0".into());
        assert_eq!(refused(&task), PlanError::Nul);
        assert_eq!(refused(&TaskSpec { grant: None, ..spec(&["x"]) }), PlanError::Grant(GrantError::Missing));
    }
}
