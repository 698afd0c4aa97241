//! What a launch will do, from the task's specification and the agent's settings alone. Pure.

use std::{
    collections::BTreeMap,
    ffi::{CString, NulError},
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_proto::{
    ids::{BadId, check_id},
    v1::{TaskReason, TaskSpec},
};

use super::{
    confine::{ConfineError, Fences, Rules},
    image::RootImage,
    volume::Volume,
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
    /// Fences that are malformed, not allowed, or more than the kernel can do.
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

impl PlanError {
    /// The reason for the task's status.
    pub fn reason(&self) -> TaskReason {
        match self {
            Self::Grant(_) => TaskReason::InvalidGrant,
            Self::Confine(_) => TaskReason::ConfinementRefused,
            _ => TaskReason::InvalidTask,
        }
    }
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
    /// Which fences stand around tasks, and which changes are allowed.
    pub rules: Rules,
}

/// Everything that a launch needs and that does not depend on this host's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Of the framework.
    pub framework_id: String,
    /// The framework's role; [`Self::make`] leaves it empty, as the specification does not say.
    pub role: String,
    /// Of the task.
    pub task_id: String,
    /// The limits.
    pub grant: Grant,
    /// The fences.
    pub fences: Fences,
    /// Reference of the image that becomes the root directory.
    pub image: Option<String>,
    /// Directories that outlive the task.
    pub volumes: Vec<Volume>,
    /// User name or number to run as; `None` is whom the image says, or else `default_user`.
    pub user: Option<String>,
    /// Whom tasks of this agent run as that name nobody.
    pub default_user: String,
    /// The program and its arguments; empty is the image's.
    pub argv: Vec<String>,
    /// The task's own variables.
    pub env: BTreeMap<String, String>,
    /// Where it starts; `None` is the image's, or else the sandbox. From the sandbox where it is relative.
    pub working_dir: Option<PathBuf>,
}

/// The program, with all that execve(2) takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Files to try, in order.
    pub files: Vec<CString>,
    /// Its arguments, its name first.
    pub argv: Vec<CString>,
    /// `NAME=value`.
    pub env: Vec<CString>,
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
        if spec.argv.first().map_or_else(|| spec.image.is_none(), String::is_empty) {
            return Err(PlanError::NoCommand);
        }
        if let Some(name) = spec.env.keys().find(|k| k.is_empty() || k.contains('=')) {
            return Err(PlanError::Variable(name.clone()));
        }
        let mut texts = spec.argv.iter().chain(spec.env.keys()).chain(spec.env.values());
        if texts.any(|text| text.contains('\0')) || spec.working_dir.contains('\0') {
            return Err(PlanError::Nul);
        }
        let grant = Grant::check(spec.grant.as_ref(), &defaults.grant)?;
        let fences = Fences::check(spec, grant.cpu.core_scheduling, &defaults.rules)?;
        let volumes = spec.volumes.iter().map(|volume| Volume::check(volume, &defaults.rules));
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        Ok(Self {
            framework_id: framework_id.into(),
            role: String::new(),
            task_id: spec.task_id.clone(),
            volumes: volumes.collect::<Result<_, _>>()?,
            user: said(&spec.user),
            default_user: defaults.user.clone(),
            argv: spec.argv.clone(),
            env: environment(spec, &grant),
            working_dir: said(&spec.working_dir).map(PathBuf::from),
            image: spec.image.as_ref().map(|image| image.reference.clone()),
            fences,
            grant,
        })
    }

    /// What is executed, in this image or on the host's root, with the sandbox where the task sees it.
    ///
    /// Of variables that several set, the task's own stand above the agent's, and those above the image's.
    ///
    /// # Errors
    /// [`PlanError::NoCommand`] where the image has no program either, [`PlanError::Nul`].
    pub fn program(&self, image: Option<&RootImage>, sandbox: &Path) -> Result<Program, PlanError> {
        let argv = match image {
            Some(image) if self.argv.is_empty() => image.argv(),
            _ => self.argv.clone(),
        };
        let name = argv.first().filter(|name| !name.is_empty()).ok_or(PlanError::NoCommand)?;
        let mut env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
        let of_image = image.map_or(&[][..], |image| &image.env);
        env.extend(of_image.iter().filter_map(|v| v.split_once('=')).map(|(k, v)| (k.into(), v.into())));
        env.extend(self.env.clone());
        let sandbox = sandbox.display().to_string();
        env.entry("HOME".into()).or_insert_with(|| sandbox.clone());
        env.insert("BULKHEAD_SANDBOX".into(), sandbox);
        let variables = env.iter().map(|(k, v)| CString::new(format!("{k}={v}")));
        Ok(Program {
            files: candidates(name, &env["PATH"])?,
            argv: argv.iter().map(|a| CString::new(a.as_str())).collect::<Result<_, _>>()?,
            env: variables.collect::<Result<_, _>>()?,
        })
    }
}

fn environment(spec: &TaskSpec, grant: &Grant) -> BTreeMap<String, String> {
    let class = match grant.class {
        Class::Guaranteed => "guaranteed",
        Class::Revocable => "revocable",
    };
    let mut env = BTreeMap::from([
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
        Defaults {
            user: "nobody".into(),
            grant: TEST_DEFAULTS,
            kill_grace: Duration::from_secs(5),
            rules: Rules::default(),
        }
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

    fn program(task: &TaskSpec, image: Option<&RootImage>) -> Program {
        Plan::make("f", task, &defaults()).unwrap().program(image, Path::new("/sandbox")).unwrap()
    }

    #[test]
    fn programs_are_looked_for_where_the_task_says() {
        let mut task = spec(&["tool", "-x"]);
        task.env.insert("PATH".into(), "/a::/b".into());
        let found = program(&task, None);
        assert_eq!(found.files, [c"/a/tool".to_owned(), c"/b/tool".to_owned()]);
        assert_eq!(found.argv, [c"tool".to_owned(), c"-x".to_owned()]);
        assert_eq!(program(&spec(&["./tool"]), None).files, [c"./tool".to_owned()]);
    }

    #[test]
    fn what_the_task_leaves_out_is_the_agents() {
        let plan = Plan::make("f", &spec(&["x"]), &defaults()).unwrap();
        assert_eq!((plan.user, plan.default_user.as_str()), (None, "nobody"));
        assert_eq!(plan.grant.pids_max, TEST_DEFAULTS.pids_max);
        assert_eq!(plan.env["BULKHEAD_CPU_MILLI"], "500");
        let env = program(&spec(&["x"]), None).env;
        for variable in [c"HOME=/sandbox", c"BULKHEAD_SANDBOX=/sandbox"] {
            assert!(env.iter().any(|v| v.as_c_str() == variable), "{env:?}");
        }
    }

    #[test]
    fn what_the_task_leaves_out_is_the_images() {
        let image = RootImage {
            layers: vec!["/l".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["arg".into()],
            env: ["PATH=/image", "A=image", "B=image", "BULKHEAD_TASK_ID=forged", "nonsense"]
                .map(Into::into)
                .into(),
            ..RootImage::default()
        };
        let mut task = spec(&[]);
        task.image = Some(v1::Image { reference: "oci:/x".into() });
        task.env.insert("A".into(), "task".into());
        let found = program(&task, Some(&image));
        assert_eq!(found.argv, [c"/entry".to_owned(), c"arg".to_owned()]);
        for variable in [c"PATH=/image", c"A=task", c"B=image", c"BULKHEAD_TASK_ID=t-1"] {
            assert!(found.env.iter().any(|v| v.as_c_str() == variable), "{variable:?} in {:?}", found.env);
        }
        // A command of the task's own replaces both.
        task.argv = vec!["own".into()];
        let own = program(&task, Some(&image));
        assert_eq!((own.argv, own.files), (vec![c"own".to_owned()], vec![c"/image/own".to_owned()]));
        let nothing = RootImage { layers: vec!["/l".into()], ..RootImage::default() };
        task.argv.clear();
        let plan = Plan::make("f", &task, &defaults()).unwrap();
        assert_eq!(plan.program(Some(&nothing), Path::new("/s")), Err(PlanError::NoCommand));
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
