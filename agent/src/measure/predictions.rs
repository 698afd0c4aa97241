//! What guaranteed tasks will use at their peak: fed with what was measured, and kept across restarts of the agent.

use std::{path::PathBuf, time::Instant};

use sha2::{Digest as _, Sha256};

use super::tasks::TaskSample;
use crate::{
    estimate::{NodePeaks, NodePeaksState, TaskUse, peak::Method},
    grant::Class,
    offer::ledger::TaskKey,
    unix_time_ms,
};

/// In the work directory.
pub const FILE: &str = "predictions.json";

/// The node's predicted peaks, and the file that they are kept in.
pub struct Predictions {
    peaks: NodePeaks,
    file: PathBuf,
    /// Writing failed, and was logged.
    told: bool,
}

impl Predictions {
    /// Goes on with what is in the file. One that is damaged or old is logged, and replaced in time.
    pub fn start(method: &Method, cpu_milli: u64, mem_bytes: u64, file: PathBuf) -> Self {
        let mut peaks = NodePeaks::new(method, cpu_milli, mem_bytes);
        match NodePeaksState::read(&file, unix_time_ms()) {
            Ok(Some(state)) => peaks.resume(state),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = crate::error_chain(&error), "predictions begin anew");
            }
        }
        Self { peaks, file, told: false }
    }

    /// Takes in what tasks used since the last call; whether the prediction is a new one.
    pub fn add(&mut self, tasks: &[TaskSample], now: Instant) -> bool {
        let used: Vec<TaskUse> =
            tasks.iter().filter(|task| task.class == Class::Guaranteed).map(task_use).collect();
        let is_new = self.peaks.add(&used, now);
        if is_new {
            self.keep();
        }
        is_new
    }

    /// CPU at the peak of the next hour; `None` in the first minutes.
    pub fn cpu_milli(&self) -> Option<u64> {
        self.peaks.cpu_milli()
    }

    /// Memory at the peak of the next hour; `None` in the first minutes.
    pub fn mem_bytes(&self) -> Option<u64> {
        self.peaks.mem_bytes()
    }

    /// The first of several failures is logged: predictions go on without a file.
    fn keep(&mut self) {
        let written = self.peaks.state(unix_time_ms()).write(&self.file);
        if let Err(error) = &written
            && !self.told
        {
            tracing::warn!(error = crate::error_chain(error), "keep predictions for a restart");
        }
        self.told = written.is_err();
    }
}

fn task_use(sample: &TaskSample) -> TaskUse {
    let bounds = &sample.bounds;
    TaskUse {
        id: stable_id(&sample.task),
        cpu_milli: (!bounds.exclusive).then_some(sample.used.cpu_milli),
        mem_bytes: sample.used.mem.as_ref().map(|mem| mem.all_bytes),
        cpu_limit_milli: bounds.cpu_milli,
        mem_limit_bytes: bounds.mem_bytes,
    }
}

/// The same after a restart of the host, where numbers of cgroups begin anew.
fn stable_id((framework, task): &TaskKey) -> u64 {
    let digest = Sha256::new().chain_update(framework).chain_update([0]).chain_update(task).finalize();
    digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::measure::tasks::{Bounds, Used};

    fn sample(task: &str, class: Class, cpu_milli: u64, bounds: Bounds) -> TaskSample {
        let used = Used { cpu_milli, ..Used::default() };
        TaskSample { task: ("f".into(), task.into()), class, bounds, used }
    }

    fn fed(file: PathBuf, samples: &[TaskSample]) -> Predictions {
        let mut predictions = Predictions::start(&Method::default(), 8000, 1 << 34, file);
        let start = Instant::now();
        for second in (0..=300).step_by(100) {
            predictions.add(samples, start + Duration::from_secs(second));
        }
        predictions
    }

    #[test]
    fn only_guaranteed_tasks_without_cores_of_their_own_count() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { cpu_milli: Some(1000), ..Bounds::default() };
        let samples = [
            sample("a", Class::Guaranteed, 400, bounds),
            sample("b", Class::Revocable, 4000, bounds),
            sample("c", Class::Guaranteed, 3000, Bounds { exclusive: true, ..bounds }),
        ];
        let predictions = fed(dir.path().join(FILE), &samples);
        assert!(predictions.cpu_milli().is_some_and(|milli| (400..=1000).contains(&milli)));
        assert_eq!(predictions.mem_bytes(), Some(0), "memory was not measured");
    }

    #[test]
    fn what_is_known_outlives_the_agent_and_what_is_damaged_does_not_stop_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let samples =
            [sample("a", Class::Guaranteed, 400, Bounds { cpu_milli: Some(1000), ..Bounds::default() })];
        fed(file.clone(), &samples);
        assert!(NodePeaksState::read(&file, unix_time_ms()).unwrap().is_some());
        assert!(fed(file.clone(), &samples).cpu_milli().is_some());
        std::fs::write(&file, "{").unwrap();
        assert!(fed(file.clone(), &samples).cpu_milli().is_some());
        assert!(NodePeaksState::read(&file, unix_time_ms()).unwrap().is_some(), "replaced");
    }

    #[test]
    fn a_place_that_cannot_be_written_does_not_stop_it() {
        let dir = tempfile::tempdir().unwrap();
        let predictions = fed(dir.path().join("none").join(FILE), &[]);
        assert_eq!(predictions.cpu_milli(), Some(0));
    }

    #[test]
    fn ids_differ_where_names_only_look_the_same() {
        let id = |framework: &str, task: &str| stable_id(&(framework.into(), task.into()));
        assert_eq!(id("a", "bc"), id("a", "bc"));
        assert_ne!(id("a", "bc"), id("ab", "c"));
    }
}
