//! When waits for a CPU are looked at, and how long the slowest took.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::tasks::Watched;
use crate::{
    kernel::bpf::{LATENCY_BUCKETS, RunqueueCounters, RunqueueCounts, latency_bound_ns},
    launch::blocking,
};

/// One look, and what is between it and the next.
const EVERY: Duration = Duration::from_secs(1);
/// What is told to others is about the waits of this time.
const WINDOW: Duration = Duration::from_secs(10);
/// A percentile of fewer waits than this says nothing.
const FEWEST_WAITS: u64 = 100;

/// Looks for this part of the time, for as long as there are tasks. To look costs whatever switches threads on this
/// machine some percent, so it is not done all the time.
///
/// Ends when the program cannot be attached, which is logged.
pub async fn look(counts: Arc<RunqueueCounts>, watched: Arc<Watched>, percent: u32) {
    let length = EVERY * percent.min(100) / 100;
    if length.is_zero() {
        return;
    }
    for turn in 0u32.. {
        if watched.is_empty() {
            sleep(EVERY).await;
            continue;
        }
        let looked = Arc::clone(&counts);
        match blocking(move || looked.look()).await {
            Ok(look) => {
                sleep(length).await;
                blocking(move || drop(look)).await;
            }
            Err(error) => {
                let error = crate::error_chain(&error);
                tracing::error!(error, "count waits for a CPU: none are counted from now on");
                return;
            }
        }
        sleep(pause(EVERY - length, turn)).await;
    }
}

/// From a half of it to one and a half, so that work in the same rhythm is not always or never seen.
fn pause(mean: Duration, turn: u32) -> Duration {
    // Multiples of the golden ratio spread evenly, however many there are.
    let spread = turn.wrapping_mul(0x9E37_79B9) >> 22;
    mean / 2 + mean * spread / 1024
}

const BUCKETS: usize = LATENCY_BUCKETS as usize;

/// What was last known of how long guaranteed tasks wait for a CPU. Shared by who counts and who acts on it.
#[derive(Clone, Debug, Default)]
pub struct LatestWaits(Arc<AtomicU64>);

impl LatestWaits {
    /// What 99 of 100 waits took at most; `None` while that is not known.
    pub fn p99_usec(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|usec| *usec > 0)
    }

    /// From now on.
    pub fn set(&self, p99_usec: Option<u64>) {
        self.0.store(p99_usec.unwrap_or(0), Ordering::Relaxed);
    }
}

/// The waits of guaranteed tasks, over the last while.
#[derive(Debug, Default)]
pub struct RecentWaits {
    last: BTreeMap<u64, RunqueueCounters>,
    recent: VecDeque<(Instant, [u64; BUCKETS])>,
}

impl RecentWaits {
    /// Takes in what was counted of each task so far. Whoever is not in it is over.
    pub fn add(&mut self, now: Instant, counted: BTreeMap<u64, RunqueueCounters>) {
        let mut sum = [0u64; BUCKETS];
        // Revocable tasks are there to wait.
        for (id, task) in counted.iter().filter(|(_, task)| task.revocable == 0) {
            let before = self.last.get(id).map_or([0; BUCKETS], |before| before.waits);
            for ((sum, now), before) in sum.iter_mut().zip(task.waits).zip(before) {
                *sum = sum.saturating_add(now.saturating_sub(before));
            }
        }
        self.last = counted;
        self.recent.push_back((now, sum));
        while self.recent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.recent.pop_front();
        }
    }

    /// What 99 of 100 waits took at most, in microseconds, to a factor of two; `None` where there were too few to say.
    pub fn p99_usec(&self) -> Option<u64> {
        let in_bucket =
            |bucket: usize| self.recent.iter().filter_map(|(_, sum)| sum.get(bucket)).sum::<u64>();
        let counts: [u64; BUCKETS] = std::array::from_fn(in_bucket);
        let all: u64 = counts.iter().sum();
        if all < FEWEST_WAITS {
            return None;
        }
        let mut up_to = 0;
        let slowest = counts.iter().position(|count| {
            up_to += count;
            up_to >= all - all / 100
        })?;
        let bucket = u32::try_from(slowest).ok()?;
        // Of the last bucket only the lower bound is known.
        let bound = latency_bound_ns(bucket).or_else(|| latency_bound_ns(bucket.checked_sub(1)?))?;
        Some(bound / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(task: u64, waits: &[(usize, u64)]) -> BTreeMap<u64, RunqueueCounters> {
        let mut counters = RunqueueCounters::default();
        waits.iter().for_each(|(bucket, count)| counters.waits[*bucket] = *count);
        BTreeMap::from([(task, counters)])
    }

    #[test]
    fn the_slowest_of_a_hundred_waits() {
        let (start, mut recent) = (Instant::now(), RecentWaits::default());
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(recent.p99_usec(), None);
        recent.add(at(0), counted(1, &[(0, 50)]));
        assert_eq!(recent.p99_usec(), None, "too few");
        recent.add(at(1), counted(1, &[(0, 980), (10, 20)]));
        assert_eq!(recent.p99_usec(), Some(1048));
        recent.add(at(2), counted(1, &[(0, 2500), (10, 20)]));
        assert_eq!(recent.p99_usec(), Some(1), "less than one of a hundred");
        recent.add(at(12), counted(1, &[(0, 2500), (10, 20), (21, 200)]));
        assert_eq!(recent.p99_usec(), Some(1_073_741), "only what was lately");
    }

    #[test]
    fn tasks_that_come_and_go_and_counters_that_begin_anew() {
        let (now, mut recent) = (Instant::now(), RecentWaits::default());
        recent.add(now, counted(1, &[(5, 500)]));
        recent.add(now, BTreeMap::new());
        recent.add(now, counted(1, &[(5, 1)]));
        recent.add(now, counted(1, &[(5, 0)]));
        assert_eq!(recent.recent.iter().map(|(_, sum)| sum.iter().sum::<u64>()).sum::<u64>(), 501);
    }

    #[test]
    fn revocable_tasks_are_there_to_wait() {
        let mut recent = RecentWaits::default();
        let mut counted = counted(1, &[(20, 5000)]);
        counted.get_mut(&1).unwrap().revocable = 1;
        recent.add(Instant::now(), counted);
        assert_eq!(recent.p99_usec(), None);
    }

    #[test]
    fn pauses_differ_and_are_right_on_average() {
        let mean = Duration::from_millis(900);
        let pauses: Vec<_> = (0..1000).map(|turn| pause(mean, turn)).collect();
        assert!(pauses.iter().all(|p| (mean / 2..=mean * 3 / 2).contains(p)));
        let average = pauses.iter().sum::<Duration>() / 1000;
        assert!(average.abs_diff(mean) < mean / 50, "{average:?}");
        assert!(pauses.windows(2).all(|p| p[0] != p[1]));
    }
}
