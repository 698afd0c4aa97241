//! Is this something that can be launched at all?

use bulkhead_proto::{
    ids::check_id,
    v1::{Grant, ResourceClass, Resources, TaskReason, TaskSpec},
};

/// Most bytes that names, arguments and environment of a task may have together. Linux gives a program
/// 2 MiB for arguments and environment; a tenth of it keeps a list of many tasks in one message.
pub(super) const MAX_SPEC_BYTES: usize = 200 << 10;

/// Why a task is not launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: TaskReason,
    /// For people: what was wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal for this reason.
    pub fn new(reason: TaskReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The grant of a task that can be launched: its class, and its resources with ports in normal form.
///
/// # Errors
/// The first thing that is wrong with the specification.
pub fn check_spec(spec: &TaskSpec) -> Result<(ResourceClass, Resources), Refusal> {
    check_command(spec).map_err(|message| Refusal::new(TaskReason::InvalidTask, message))?;
    check_grant(spec.grant.as_ref()).map_err(|message| Refusal::new(TaskReason::InvalidGrant, message))
}

fn check_command(spec: &TaskSpec) -> Result<(), String> {
    check_id(&spec.task_id).map_err(|problem| format!("the task id {problem}"))?;
    // An image may bring its own command.
    if spec.argv.first().map_or_else(|| spec.image.is_none(), String::is_empty) {
        return Err("the command is empty; put the program to run first into argv".to_owned());
    }
    let environment = spec.env.iter().flat_map(|(k, v)| [k, v]);
    let texts = || spec.argv.iter().chain(environment.clone()).chain([&spec.name, &spec.user]);
    let bytes: usize = texts().map(String::len).sum();
    if bytes > MAX_SPEC_BYTES {
        return Err(format!(
            "arguments and environment are {bytes} bytes; at most {MAX_SPEC_BYTES} are carried: put large inputs into files"
        ));
    }
    if texts().any(|t| t.contains('\0')) {
        return Err("an argument, a variable or a name contains a zero byte, which no program can be given"
            .to_owned());
    }
    if let Some(name) = spec.env.keys().find(|k| k.is_empty() || k.contains('=')) {
        return Err(format!("the environment variable name {name:?} is empty or contains '='"));
    }
    Ok(())
}

/// The class of a grant, and its resources with ports in normal form.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn check_grant(grant: Option<&Grant>) -> Result<(ResourceClass, Resources), String> {
    let Some(Grant { resources: Some(resources), class, .. }) = grant else {
        return Err("the task names no resources; put into its grant what it takes from the offer".to_owned());
    };
    let class = match ResourceClass::try_from(*class) {
        Ok(class @ (ResourceClass::Guaranteed | ResourceClass::Revocable)) => class,
        _ => {
            return Err(format!(
                "class {class} is not one; set GUARANTEED (1) or REVOCABLE (2), as in the offer"
            ));
        }
    };
    let ports = resources.port_set().map_err(|e| e.to_string())?;
    if resources.cpu_milli == 0 && resources.mem_bytes == 0 {
        return Err("the task takes neither CPU nor memory; take some of at least one".to_owned());
    }
    Ok((class, Resources { ports: ports.to_ranges(), ..*resources }))
}
