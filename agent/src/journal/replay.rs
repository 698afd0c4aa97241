//! From the entries of a journal to the tasks that still matter. Pure.

use std::collections::BTreeMap;

use bulkhead_proto::v1;

use super::{Accepted, Entry, Fact, Started};

/// One task as the journal knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// How it was accepted.
    pub accepted: Accepted,
    /// Its process, where it got that far.
    pub started: Option<Started>,
    /// Its last status, where it is over.
    pub ended: Option<v1::TaskStatus>,
    /// The framework has every status up to this sequence.
    pub acknowledged: u64,
}

/// The tasks that a restarted agent has to care for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replayed {
    /// By framework and task id; tasks that are over and acknowledged are not here.
    pub tasks: BTreeMap<(String, String), Remembered>,
    /// Bytes at the end of the file that were no whole record.
    pub damaged_bytes: usize,
}

/// Puts the entries together, in their order.
///
/// An entry about a task that was never accepted is left out; it can only be the rest of an
/// acknowledged task whose acceptance an earlier compaction dropped.
pub fn replay(entries: Vec<Entry>, damaged_bytes: usize) -> Replayed {
    let mut replayed = Replayed { tasks: BTreeMap::new(), damaged_bytes };
    for entry in entries {
        replayed.apply(entry);
    }
    replayed
}

impl Replayed {
    /// Takes in one more entry.
    pub(super) fn apply(&mut self, entry: Entry) {
        let key = (entry.framework_id, entry.task_id);
        let Some(fact) = entry.fact else { return };
        if let Fact::Accepted(accepted) = fact {
            let fresh = Remembered { accepted, started: None, ended: None, acknowledged: 0 };
            self.tasks.insert(key, fresh);
            return;
        }
        let Some(task) = self.tasks.get_mut(&key) else { return };
        match fact {
            Fact::Started(started) => task.started = Some(started),
            Fact::Resized(grant) => {
                if let Some(spec) = &mut task.accepted.spec {
                    spec.grant = Some(grant);
                }
            }
            Fact::Ended(status) => task.ended = Some(status),
            // One of an earlier run with this id may come after the acceptance of this run.
            Fact::Acknowledged(sequence) if sequence >= task.accepted.first_sequence => {
                task.acknowledged = task.acknowledged.max(sequence);
            }
            Fact::Accepted(_) | Fact::Acknowledged(_) => {}
        }
        if task.ended.as_ref().is_some_and(|last| last.sequence <= task.acknowledged) {
            self.tasks.remove(&key);
        }
    }

    /// The entries that say just this, for a compacted journal.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for ((framework_id, task_id), task) in &self.tasks {
            let mut add = |fact| {
                let (framework_id, task_id) = (framework_id.clone(), task_id.clone());
                entries.push(Entry { framework_id, task_id, fact: Some(fact) });
            };
            add(Fact::Accepted(task.accepted.clone()));
            if let Some(started) = &task.started {
                add(Fact::Started(started.clone()));
            }
            if let Some(ended) = &task.ended {
                add(Fact::Ended(ended.clone()));
            }
            if task.acknowledged > 0 {
                add(Fact::Acknowledged(task.acknowledged));
            }
        }
        entries
    }
}
