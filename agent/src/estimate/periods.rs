//! Means over the period that predictors are made for, from samples at the pace of the sampler.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::peak::{SAMPLE_PERIOD, TaskSample};

/// What one guaranteed task uses now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskUse {
    /// The task's, the same after a restart of the agent.
    pub id: u64,
    /// CPU since the sample before; `None` where what it leaves is no use to others, as on cores of its own.
    pub cpu_milli: Option<u64>,
    /// Memory now; `None` where it cannot be read.
    pub mem_bytes: Option<u64>,
    /// CPU that it may use at most; `None` is everything.
    pub cpu_limit_milli: Option<u64>,
    /// Memory that it may use at most; `None` is everything.
    pub mem_limit_bytes: Option<u64>,
}

/// One period of all tasks that were there at its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Period {
    /// Mean CPU, in thousandths, while the task was there.
    pub(super) cpu: Vec<TaskSample>,
    /// Most memory, in bytes: what was not there to be had for a moment cannot be had.
    pub(super) mem: Vec<TaskSample>,
}

/// Adds samples up.
///
/// # Odd clocks
/// A clock that went backwards counts as standing still. Where a whole period passed without a sample, as on a machine
/// that slept, what was added up before it is dropped: nobody knows what happened in between.
#[derive(Clone, Debug, Default)]
pub(super) struct Periods {
    began: Option<Instant>,
    last: Option<Instant>,
    tasks: BTreeMap<u64, Sum>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    cpu_milli_seconds: f64,
    seconds: f64,
    mem_bytes: Option<u64>,
}

impl Periods {
    /// Takes in a sample of all tasks; the period, where it ends with this one.
    pub(super) fn add(&mut self, tasks: &[TaskUse], now: Instant) -> Option<Period> {
        let began = *self.began.get_or_insert(now);
        let since_last = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        if since_last >= SAMPLE_PERIOD {
            self.tasks.clear();
            self.began = Some(now);
            return None;
        }
        let before = std::mem::take(&mut self.tasks);
        for task in tasks {
            let sum = self
                .tasks
                .entry(task.id)
                .or_insert_with(|| before.get(&task.id).copied().unwrap_or_default());
            if let Some(cpu_milli) = task.cpu_milli {
                // Samples of no time at all still count a little, so that a mean is never of nothing.
                let seconds = since_last.as_secs_f64().max(1e-6);
                sum.cpu_milli_seconds += cpu_milli as f64 * seconds;
                sum.seconds += seconds;
            }
            sum.mem_bytes = sum.mem_bytes.max(task.mem_bytes);
        }
        if now.saturating_duration_since(began) < SAMPLE_PERIOD {
            return None;
        }
        self.began = Some(now);
        let sums = std::mem::take(&mut self.tasks);
        let limit = |limit: Option<u64>| limit.map_or(f64::INFINITY, |limit| limit as f64);
        let mut period = Period::default();
        for task in tasks {
            let Some(sum) = sums.get(&task.id) else { continue };
            if task.cpu_milli.is_some() {
                let used = sum.cpu_milli_seconds / sum.seconds;
                period.cpu.push(TaskSample { id: task.id, used, limit: limit(task.cpu_limit_milli) });
            }
            if let Some(used) = sum.mem_bytes {
                let (used, limit) = (used as f64, limit(task.mem_limit_bytes));
                period.mem.push(TaskSample { id: task.id, used, limit });
            }
        }
        Some(period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: u64, cpu_milli: u64, mem_bytes: u64) -> TaskUse {
        TaskUse {
            id,
            cpu_milli: Some(cpu_milli),
            mem_bytes: Some(mem_bytes),
            cpu_limit_milli: Some(2000),
            mem_limit_bytes: None,
        }
    }

    /// The period that ends with the last of these samples, each so many seconds after the first.
    fn ends_with(samples: &[(u64, Vec<TaskUse>)]) -> Option<Period> {
        let (start, mut periods) = (Instant::now(), Periods::default());
        let add =
            |(second, tasks): &(u64, Vec<TaskUse>)| periods.add(tasks, start + Duration::from_secs(*second));
        samples.iter().map(add).last().flatten()
    }

    #[test]
    fn a_period_has_means_of_cpu_and_the_most_memory() {
        let mut samples = vec![(0, vec![task(1, 0, 7)])];
        samples.extend((1..=3).map(|i| (i * 100, vec![task(1, 300 * i, 10 - i)])));
        assert_eq!(ends_with(&samples[..3]), None);
        let period = ends_with(&samples).unwrap();
        assert!((period.cpu[0].used - 600.0).abs() < 0.01 && period.cpu[0].limit == 2000.0, "{period:?}");
        assert_eq!(period.mem, [TaskSample { id: 1, used: 9.0, limit: f64::INFINITY }]);
    }

    #[test]
    fn tasks_count_while_they_are_there() {
        let samples = [
            (0, vec![task(1, 500, 1)]),
            (200, vec![task(1, 500, 1), task(2, 0, 1)]),
            (300, vec![task(2, 800, 1)]),
        ];
        let period = ends_with(&samples).unwrap();
        let [of_two] = &period.cpu[..] else { panic!("{period:?}") };
        assert!(of_two.id == 2 && (of_two.used - 800.0 / 3.0).abs() < 0.01, "{period:?}");
    }

    #[test]
    fn after_a_sleep_a_period_begins_anew() {
        let samples = [(0, vec![task(1, 9, 9)]), (299, vec![task(1, 9, 9)]), (9000, vec![task(1, 1, 1)])];
        assert_eq!(ends_with(&samples), None);
        let on = [(9150, vec![task(1, 1, 1)]), (9300, vec![task(1, 1, 1)])];
        let period = ends_with(&[&samples[..], &on].concat()).unwrap();
        assert!((period.cpu[0].used - 1.0).abs() < 1e-9 && period.mem[0].used == 1.0, "{period:?}");
    }

    #[test]
    fn a_clock_that_goes_backwards_stands_still() {
        let samples = [
            (250, vec![task(1, 100, 1)]),
            (400, vec![task(1, 100, 1)]),
            (100, vec![task(1, 700, 1)]),
            (550, vec![task(1, 100, 1)]),
        ];
        let period = ends_with(&samples).unwrap();
        assert!((period.cpu[0].used - 100.0).abs() < 0.01, "{period:?}");
    }

    #[test]
    fn one_sample_is_no_period_and_no_tasks_are_one() {
        assert_eq!(ends_with(&[(0, vec![])]), None);
        assert_eq!(ends_with(&[(0, vec![]), (250, vec![]), (300, vec![])]), Some(Period::default()));
    }
}
