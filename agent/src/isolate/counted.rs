//! The names of tasks whose counts are read all at once: the kernel knows tasks by their cgroups' ids.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::TaskPlace;
use crate::offer::ledger::TaskKey;

/// Tasks by the ids of their cgroups.
#[derive(Default)]
pub(super) struct Names(Mutex<BTreeMap<u64, TaskKey>>);

impl Names {
    pub(super) fn insert(&self, task: &TaskPlace) {
        self.lock().insert(task.id, task.task.clone());
    }

    pub(super) fn remove(&self, task: &TaskPlace) {
        self.lock().remove(&task.id);
    }

    /// What belongs to tasks that are known, by their names.
    pub(super) fn name<T>(&self, counts: BTreeMap<u64, T>) -> Vec<(TaskKey, T)> {
        let tasks = self.lock();
        let named = |(id, count)| Some((tasks.get(&id)?.clone(), count));
        counts.into_iter().filter_map(named).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, TaskKey>> {
        // Every change is one call, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
