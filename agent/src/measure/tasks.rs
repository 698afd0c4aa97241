//! What each task uses and waits for, period by period.
//!
//! ```text
//! files of the task's cgroup, kept open -> Reading (counters at one moment) -> Used (between two of them) -> TaskSample
//! ```

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{
    grant::Class,
    kernel::{cgroupfs::Cgroup, reread::Room},
    offer::ledger::TaskKey,
};

pub mod files;
pub mod reading;
pub mod sample;

use files::{ReadError, TaskFiles};
pub use reading::{DiskCount, MemUse, Reading, StallCount, Stalls};
pub use sample::{Bounds, DiskRate, Stalled, TaskSample, Used};

/// The tasks that are measured, and what was read of each last. Shared by who adds and removes them, by the sampler,
/// and by who tells others.
#[derive(Debug, Default)]
pub struct Watched(Mutex<BTreeMap<u64, Watch>>);

#[derive(Debug)]
struct Watch {
    task: TaskKey,
    class: Class,
    bounds: Bounds,
    /// `None` once the cgroup was found to be gone.
    files: Option<Arc<TaskFiles>>,
    last: Option<Reading>,
    used: Option<Used>,
}

impl Watched {
    /// Measures a task from now on; one that is measured already stays as it is.
    ///
    /// # Errors
    /// When its files cannot be opened. Measuring is a service: the caller logs it and goes on.
    pub fn insert(&self, id: u64, task: TaskKey, class: Class, cgroup: &Cgroup) -> Result<(), ReadError> {
        if let Entry::Vacant(place) = self.lock().entry(id) {
            let files = Some(Arc::new(TaskFiles::open(cgroup.path())?));
            place.insert(Watch { task, class, bounds: Bounds::default(), files, last: None, used: None });
        }
        Ok(())
    }

    /// Says what a task may use, from its next sample on. Harmless where it is not measured.
    pub fn bound(&self, id: u64, bounds: Bounds) {
        if let Some(watch) = self.lock().get_mut(&id) {
            watch.bounds = bounds;
        }
    }

    /// Measures a task no longer. Harmless where it is not measured.
    pub fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    /// How many tasks are measured.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Is nothing measured?
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Is any task measured that is guaranteed what it has?
    pub fn any_guaranteed(&self) -> bool {
        self.lock().values().any(|watch| watch.class == Class::Guaranteed)
    }

    /// Are there guaranteed tasks and revocable ones?
    pub fn any_of_each_class(&self) -> bool {
        let watches = self.lock();
        [Class::Guaranteed, Class::Revocable]
            .iter()
            .all(|class| watches.values().any(|watch| watch.class == *class))
    }

    /// What is counted for one task now; `None` for one that is not measured, or is gone.
    pub fn read(&self, id: u64, now: Instant) -> Option<Reading> {
        let files = self.lock().get(&id)?.files.clone()?;
        files.read(now, &mut Room::default()).ok()
    }

    /// What each task was counted to have at the last sample, and what it used over the period before.
    pub fn latest(&self) -> Vec<(TaskKey, Class, Reading, Option<Used>)> {
        let told = |watch: &Watch| Some((watch.task.clone(), watch.class, watch.last?, watch.used));
        self.lock().values().filter_map(told).collect()
    }

    fn files(&self) -> Vec<(u64, Arc<TaskFiles>)> {
        self.lock().iter().filter_map(|(id, watch)| Some((*id, watch.files.clone()?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Watch>> {
        // Every change is one call, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads all tasks that are [`Watched`].
#[derive(Debug)]
pub struct TaskSampler {
    watched: Arc<Watched>,
    cpus: u64,
    room: Room,
}

impl TaskSampler {
    /// On a machine of so many CPUs.
    pub fn new(watched: Arc<Watched>, cpus: u64) -> Self {
        Self { watched, cpus, room: Room::default() }
    }

    /// The tasks that are measured.
    pub fn watched(&self) -> &Arc<Watched> {
        &self.watched
    }

    /// What each task used since the call before, by cgroup. A task has no sample in the first call that finds it, nor
    /// once its cgroup is gone.
    ///
    /// Nobody waits for a lock while files are read.
    pub fn sample(&mut self, now: impl Fn() -> Instant) -> Vec<TaskSample> {
        let mut samples = Vec::new();
        for (id, files) in self.watched.files() {
            let reading = files.read(now(), &mut self.room);
            if let Some(watch) = self.watched.lock().get_mut(&id) {
                samples.extend(watch.take(reading, self.cpus));
            }
        }
        samples
    }
}

impl Watch {
    fn take(&mut self, reading: Result<Reading, ReadError>, cpus: u64) -> Option<TaskSample> {
        let reading = match reading {
            Ok(reading) => reading,
            Err(ReadError::Gone) => {
                self.files = None;
                self.used = None;
                return None;
            }
            Err(error) => {
                tracing::debug!(task = self.task.1, error = crate::error_chain(&error), "measure a task");
                return None;
            }
        };
        self.used = self.last.replace(reading).and_then(|before| sample::used(&before, &reading, cpus));
        Some(TaskSample { task: self.task.clone(), class: self.class, bounds: self.bounds, used: self.used? })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    fn task(name: &str) -> TaskKey {
        ("f".into(), name.into())
    }

    fn cgroup(used_usec: u64) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        set(&dir, used_usec);
        dir
    }

    fn set(dir: &tempfile::TempDir, used_usec: u64) {
        fs::write(dir.path().join("cpu.stat"), format!("usage_usec {used_usec}\n")).unwrap();
    }

    #[test]
    fn a_task_has_a_sample_from_its_second_reading_on() {
        let (start, dir) = (Instant::now(), cgroup(0));
        let at = |s| move || start + Duration::from_secs(s);
        let watched = Arc::new(Watched::default());
        let mut sampler = TaskSampler::new(Arc::clone(&watched), 2);
        watched.insert(7, task("a"), Class::Guaranteed, &Cgroup::at(dir.path())).unwrap();
        assert_eq!(sampler.sample(at(0)), []);
        set(&dir, 1_500_000);
        let bounds = Bounds { cpu_milli: Some(2000), ..Bounds::default() };
        watched.bound(7, bounds);
        watched.bound(8, bounds);
        let samples = sampler.sample(at(1));
        assert_eq!((samples.len(), samples[0].used.cpu_milli, &samples[0].task), (1, 1500, &task("a")));
        assert_eq!(samples[0].bounds, bounds);
        assert!(watched.any_guaranteed());
        assert_eq!(watched.latest()[0].2.cpu.used_usec, 1_500_000);
        watched.remove(7);
        watched.remove(7);
        assert!(watched.is_empty() && sampler.sample(at(2)).is_empty());
    }

    #[test]
    fn tasks_that_are_there_already_and_tasks_that_are_not() {
        let (watched, dir) = (Watched::default(), cgroup(5));
        let insert =
            |path: &std::path::Path| watched.insert(1, task("a"), Class::Revocable, &Cgroup::at(path));
        assert!(matches!(insert(std::path::Path::new("/no/such")), Err(ReadError::Gone)));
        assert!(watched.is_empty());
        insert(dir.path()).unwrap();
        insert(std::path::Path::new("/no/such")).unwrap();
        assert_eq!(watched.read(1, Instant::now()).unwrap().cpu.used_usec, 5);
        assert_eq!(watched.read(2, Instant::now()), None);
        assert!(!watched.any_guaranteed());
    }

    #[test]
    fn a_cgroup_that_vanished_is_read_no_more_and_has_no_sample() {
        let dir = cgroup(0);
        let files = Some(Arc::new(TaskFiles::open(dir.path()).unwrap()));
        let bounds = Bounds::default();
        let mut watch =
            Watch { task: task("a"), class: Class::Guaranteed, bounds, files, last: None, used: None };
        let reading = |used_usec| {
            let cpu = reading::CpuCount { used_usec, ..Default::default() };
            Ok(Reading { at: Instant::now(), cpu, mem: None, stalls: Stalls::default(), disk: None })
        };
        watch.take(reading(1), 1);
        assert_eq!(watch.take(Err(ReadError::Gone), 1), None);
        assert!(watch.files.is_none());
        assert_eq!(watch.last.unwrap().cpu.used_usec, 1, "what was counted last stays");
    }
}
