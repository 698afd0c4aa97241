//! What predictors remember: a day of totals, and of each task that is still there two hours and the moments of a day.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    MEMORY_SAMPLES,
    moments::{DayPeak, Moments},
};

/// How many samples of each task are kept: two hours.
pub(super) const RECENT_SAMPLES: usize = 24;

/// After half an hour, a task is known well enough.
const KNOWN_SAMPLES: f64 = 6.0;

/// What one task used in one period, in any unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskSample {
    /// The task's, never used again for another.
    pub id: u64,
    /// Finite and not negative; anything else counts as nothing.
    pub used: f64,
    /// What it may use at most; infinite where it may use everything.
    pub limit: f64,
}

/// The samples of a node. Its size is bounded by the number of tasks.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct History {
    /// What the node has; nothing uses more.
    capacity: f64,
    totals: VecDeque<f64>,
    tasks: BTreeMap<u64, TaskHistory>,
    /// Samples since a task came; all of them were of the tasks that are there.
    since_arrival: usize,
}

/// What is known of a task.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct TaskHistory {
    /// The last samples, the newest last.
    pub(super) recent: VecDeque<f64>,
    pub(super) moments: Moments,
    pub(super) peak: DayPeak,
    pub(super) limit: f64,
}

impl History {
    /// Of a node that has so much. What is no number, or none, is taken for no bound.
    pub fn new(capacity: f64) -> Self {
        let capacity = if (0.0..f64::MAX).contains(&capacity) { capacity } else { f64::MAX };
        Self { capacity, totals: VecDeque::new(), tasks: BTreeMap::new(), since_arrival: 0 }
    }

    /// Goes on with what another remembers; what is damaged there is left out. Until the hour is over, nothing that was
    /// answered before is judged.
    pub(super) fn resume(&mut self, other: Self) {
        let sound = |sample: &f64| sample.is_finite() && (0.0..=self.capacity).contains(sample);
        self.totals = other.totals.into_iter().filter(sound).take(MEMORY_SAMPLES).collect();
        self.tasks = other.tasks.into_iter().filter(|(_, task)| task.is_sound(sound)).collect();
        self.since_arrival = 0;
    }

    /// Takes in one period. A task that is not among `tasks` is gone, and what it used goes with it.
    pub fn add(&mut self, tasks: &[TaskSample]) {
        self.forget_all_but(tasks);
        self.since_arrival += 1;
        let mut total = 0.0;
        for task in tasks {
            let used = if task.used.is_finite() { task.used.clamp(0.0, self.capacity) } else { 0.0 };
            let limit =
                if task.limit.is_nan() { self.capacity } else { task.limit.clamp(0.0, self.capacity) };
            if !self.tasks.contains_key(&task.id) {
                self.since_arrival = 1;
            }
            self.tasks.entry(task.id).or_insert_with(TaskHistory::new).add(used, limit);
            total += used;
        }
        push(&mut self.totals, total.min(self.capacity), MEMORY_SAMPLES);
    }

    fn forget_all_but(&mut self, tasks: &[TaskSample]) {
        // Most often nothing has changed, and both are in the same order.
        if self.tasks.len() == tasks.len() && self.tasks.keys().zip(tasks).all(|(id, task)| *id == task.id) {
            return;
        }
        let stay: std::collections::BTreeSet<u64> = tasks.iter().map(|task| task.id).collect();
        let totals = &mut self.totals;
        self.tasks.retain(|id, task| {
            let stays = stay.contains(id);
            if !stays {
                task.take_from(totals);
            }
            stays
        });
    }

    /// Totals, the newest last; at most [`MEMORY_SAMPLES`].
    pub fn totals(&self) -> &VecDeque<f64> {
        &self.totals
    }

    /// How many samples in a row were of the tasks that are there now, or of some of those.
    pub(super) fn since_arrival(&self) -> usize {
        self.since_arrival
    }

    pub(super) fn tasks(&self) -> impl ExactSizeIterator<Item = &TaskHistory> {
        self.tasks.values()
    }

    /// What all tasks may use together.
    pub fn limits(&self) -> f64 {
        self.tasks.values().map(|task| task.limit).sum::<f64>().min(self.capacity)
    }

    /// Of one task; 0 where there is none.
    pub(super) fn mean_limit(&self) -> f64 {
        self.tasks.values().map(|task| task.limit).sum::<f64>() / self.tasks.len().max(1) as f64
    }

    /// What tasks could use beyond what they do, where they are too new to be known: nothing after [`KNOWN_SAMPLES`].
    pub(super) fn unknown(&self) -> f64 {
        let of = |task: &TaskHistory| {
            let known = (task.recent.len() as f64 / KNOWN_SAMPLES).min(1.0);
            (task.limit - task.recent.back().copied().unwrap_or(0.0)).max(0.0) * (1.0 - known).powi(2)
        };
        self.tasks.values().map(of).sum()
    }

    /// `peak` within the bounds that every answer keeps; `None` before the first sample.
    pub(super) fn bounded(&self, peak: f64) -> Option<f64> {
        let last = *self.totals.back()?;
        let peak = if peak.is_nan() { self.limits() } else { peak };
        Some(peak.min(self.limits()).max(last))
    }
}

impl TaskHistory {
    fn new() -> Self {
        let recent = VecDeque::with_capacity(RECENT_SAMPLES);
        Self { recent, moments: Moments::default(), peak: DayPeak::default(), limit: 0.0 }
    }

    fn add(&mut self, used: f64, limit: f64) {
        self.limit = limit;
        push(&mut self.recent, used, RECENT_SAMPLES);
        self.moments.add(used);
        self.peak.add(used);
    }

    fn is_sound(&self, sound: impl Fn(&f64) -> bool) -> bool {
        let recent = self.recent.len() <= RECENT_SAMPLES && self.recent.iter().all(&sound);
        recent && !self.recent.is_empty() && self.moments.is_finite() && sound(&self.peak.value())
    }

    /// What it used is exact where its samples are still there, and its mean before.
    fn take_from(&self, totals: &mut VecDeque<f64>) {
        let lived = self.moments.count();
        for (back, total) in totals.iter_mut().rev().take(lived).enumerate() {
            let index = self.recent.len().checked_sub(back + 1);
            let used = index.and_then(|index| self.recent.get(index)).copied();
            *total = (*total - used.unwrap_or_else(|| self.moments.mean())).max(0.0);
        }
    }
}

fn push(samples: &mut VecDeque<f64>, sample: f64, keep: usize) {
    while samples.len() >= keep {
        samples.pop_front();
    }
    samples.push_back(sample);
}
