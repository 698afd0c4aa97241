//! Which task `TASK` means: an id, the start of one, or a name.

use std::collections::BTreeMap;

use bulkhead_proto::v1::{Task, TaskState};

/// Ids to offer when a name fits nothing.
const SUGGESTIONS: usize = 3;
/// How alike a name must be to be suggested, between 0 and 1; a letter or two off in a short name.
const ALIKE: f64 = 0.6;

/// A reference that names no single task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TaskRefError {
    #[error("no task is called {wanted:?}{}", hint(.similar))]
    Unknown { wanted: String, similar: Vec<String> },
    #[error("{wanted:?} fits {} tasks: {}; write more of the id", .candidates.len(), .candidates.join(", "))]
    Ambiguous { wanted: String, candidates: Vec<String> },
}

fn hint(similar: &[String]) -> String {
    if similar.is_empty() {
        "; `bulkhead ps -a` lists those there are".to_owned()
    } else {
        format!("; did you mean {}? (`bulkhead ps -a` lists all)", similar.join(", "))
    }
}

/// The task that `wanted` means: an exact id, else a name, else the start of an id.
/// Where a live task and ended ones fit equally, the live one is meant.
///
/// # Errors
/// [`TaskRefError`] lists the candidates, or names that are alike.
pub(crate) fn resolve<'t>(tasks: &'t [Task], wanted: &str) -> Result<&'t Task, TaskRefError> {
    let by_id = tasks.iter().filter(|t| id(t) == wanted);
    let by_name = tasks.iter().filter(|t| name(t) == wanted);
    let by_prefix = tasks.iter().filter(|t| !wanted.is_empty() && id(t).starts_with(wanted));
    let fits = [by_id.collect::<Vec<_>>(), by_name.collect(), by_prefix.collect()];
    let fits = fits.into_iter().find(|f| !f.is_empty()).unwrap_or_default();
    let live: Vec<&Task> = fits.iter().copied().filter(|t| is_live(t)).collect();
    match (live.as_slice(), fits.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one),
        ([], []) => Err(TaskRefError::Unknown { wanted: wanted.to_owned(), similar: similar(tasks, wanted) }),
        ([], several) | (several, _) => Err(TaskRefError::Ambiguous {
            wanted: wanted.to_owned(),
            candidates: several.iter().map(|t| id(t).to_owned()).collect(),
        }),
    }
}

/// Has the task not ended yet?
pub(crate) fn is_live(task: &Task) -> bool {
    task.status.as_ref().is_none_or(|s| !is_terminal(s.state()))
}

/// Is this the end of a task's life?
pub(crate) fn is_terminal(state: TaskState) -> bool {
    matches!(
        state,
        TaskState::Finished | TaskState::Failed | TaskState::Killed | TaskState::Rejected | TaskState::Lost
    )
}

/// The id of a task; empty for a task without a specification, which no master sends.
pub(crate) fn id(task: &Task) -> &str {
    task.spec.as_ref().map_or("", |s| s.task_id.as_str())
}

/// The name of a task.
pub(crate) fn name(task: &Task) -> &str {
    task.spec.as_ref().map_or("", |s| s.name.as_str())
}

fn similar(tasks: &[Task], wanted: &str) -> Vec<String> {
    let mut scored: BTreeMap<&str, f64> = BTreeMap::new();
    for text in tasks.iter().flat_map(|t| [id(t), name(t)]) {
        let score = strsim::normalized_damerau_levenshtein(wanted, text);
        if score >= ALIKE {
            scored.insert(text, score);
        }
    }
    let mut best: Vec<_> = scored.into_iter().collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1));
    best.into_iter().take(SUGGESTIONS).map(|(text, _)| text.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::{TaskSpec, TaskStatus};

    use super::*;

    fn task(id: &str, name: &str, state: TaskState) -> Task {
        Task {
            spec: Some(TaskSpec { task_id: id.into(), name: name.into(), ..TaskSpec::default() }),
            status: Some(TaskStatus { state: state.into(), ..TaskStatus::default() }),
            ..Task::default()
        }
    }

    fn cluster() -> Vec<Task> {
        vec![
            task("web-11aa", "web", TaskState::Finished),
            task("web-22bb", "web", TaskState::Running),
            task("batch-33cc", "batch", TaskState::Running),
            task("batch-44dd", "batch", TaskState::Staging),
            task("old-55ee", "old", TaskState::Failed),
            task("old-66ff", "old", TaskState::Lost),
        ]
    }

    #[test]
    fn an_id_a_prefix_and_a_name_find_it() {
        let tasks = cluster();
        for (wanted, found) in [("web-11aa", "web-11aa"), ("old-5", "old-55ee"), ("web", "web-22bb")] {
            assert_eq!(resolve(&tasks, wanted).map(id), Ok(found), "{wanted}");
        }
    }

    #[test]
    fn several_live_or_several_ended_are_listed() {
        let tasks = cluster();
        let candidates = |wanted: &str| match resolve(&tasks, wanted) {
            Err(TaskRefError::Ambiguous { candidates, .. }) => candidates.join(" "),
            other => panic!("{other:?}"),
        };
        assert_eq!(candidates("batch"), "batch-33cc batch-44dd");
        assert_eq!(candidates("old"), "old-55ee old-66ff");
    }

    #[test]
    fn an_unknown_name_brings_similar_ones() {
        let tasks = cluster();
        let text = |wanted: &str| resolve(&tasks, wanted).unwrap_err().to_string();
        assert!(text("wbe").contains("did you mean web?"), "{}", text("wbe"));
        assert!(text("zzzzzz").contains("bulkhead ps -a"));
        assert!(resolve(&tasks, "").is_err());
        assert!(resolve(&[], "web").is_err());
    }
}
