//! What the learned predictor looks at: shapes of the last day, as multiples of the node's own scale.
//!
//! Nothing is in a unit, so what was learned of one kind of node holds for smaller and larger ones. The order is that of
//! `bench/train/peaks.py`.

use super::{
    HORIZON_SAMPLES, MEMORY_SAMPLES,
    chances::{RISES, Rising, TaskShape},
    history::History,
    moments::{max, mean_and_deviation, quantile_of_sorted},
};

/// How many there are of one kind; each comes twice, the second time weighed by the node's size.
const SHAPES: usize = TOTALS + TASKS + RISKS.len() + RISES.len();
const TOTALS: usize = 25;
const TASKS: usize = 21;
/// All of them, and the size itself.
pub(super) const FEATURES: usize = 2 * SHAPES + 1;
/// Expected numbers of tasks for which it is asked how far they rise.
const RISKS: [f64; 4] = [0.001, 0.003, 0.01, 0.03];
/// The weight of an expected task that rises, in limits.
const EXPECTED_TASK: f64 = 0.4;
/// Hours of which the rises to their peaks are looked at start at each third sample of so many.
const RISES_SAMPLES: usize = 96;
const RISES_STEP: usize = 3;
/// From here on there are enough hours to look at.
const RISES_FROM: usize = 36;
/// A node of this many tasks' limits is neither small nor large.
const USUAL_LIMITS: f64 = 4.0;
const LARGEST_SIZE: f64 = 1.2;

/// Features of a history.
pub(super) struct Features {
    pub(super) values: [f64; FEATURES],
    /// What a prediction is multiplied with.
    pub(super) scale: f64,
}

impl Features {
    /// `None` before the first sample, and where no task has a limit.
    pub(super) fn of(history: &History) -> Option<Self> {
        let totals: Vec<f64> = history.totals().iter().copied().collect();
        let tasks: Vec<TaskShape> = history.tasks().map(TaskShape::of).collect();
        let limit = history.mean_limit();
        if totals.is_empty() || !(limit > 0.0 && limit.is_finite()) {
            return None;
        }
        let of_totals = of_totals(&totals);
        let of_tasks = of_tasks(&tasks);
        let scale = of_totals[MEAN_24] + of_tasks[ROOT_OF_VARIANCES] + limit / 100.0;
        let rising = Rising::of(&tasks, limit);
        let risks = RISKS.map(|risk| rising.at_risk(risk) * limit);
        let expected = rising.expected.map(|count| EXPECTED_TASK * limit * count);
        let in_units = of_totals.into_iter().chain(of_tasks).chain(risks).chain(expected.into_iter().skip(1));
        let mut values = [0.0; FEATURES];
        let (shapes, sized) = values.split_at_mut(SHAPES);
        shapes.iter_mut().zip(in_units).for_each(|(shape, value)| *shape = value / scale);
        shapes[SHAPES - 1] = 1.0 / (totals.len() as f64).sqrt();
        let size = (scale / (USUAL_LIMITS * limit)).ln().clamp(-LARGEST_SIZE, LARGEST_SIZE);
        sized[0] = size;
        sized[1..].iter_mut().zip(&*shapes).for_each(|(sized, shape)| *sized = shape * size);
        Some(Self { values, scale })
    }
}

/// Where these are among the shapes of totals and of tasks.
const MEAN_24: usize = 10;
const ROOT_OF_VARIANCES: usize = 0;

fn of_totals(totals: &[f64]) -> [f64; TOTALS] {
    let recent = |count: usize| totals[totals.len().saturating_sub(count)..].iter().copied();
    let (mean, deviation) = mean_and_deviation(recent(MEMORY_SAMPLES));
    let (mean_6, deviation_6) = mean_and_deviation(recent(6));
    let (mean_12, deviation_12) = mean_and_deviation(recent(12));
    let (mean_24, deviation_24) = mean_and_deviation(recent(24));
    let now = totals.last().copied().unwrap_or(0.0);
    let steps = Steps::of(recent(MEMORY_SAMPLES));
    let rises = Rises::of(totals);
    [
        now,
        mean,
        deviation,
        max(recent(6)),
        mean_6,
        deviation_6,
        max(recent(12)),
        mean_12,
        deviation_12,
        max(recent(24)),
        mean_24,
        deviation_24,
        max(recent(3)),
        mean_and_deviation(recent(3)).0,
        max(recent(48)),
        max(recent(MEMORY_SAMPLES)),
        Steps::of(recent(RISES_FROM)).mean,
        steps.mean,
        steps.largest_rise,
        rises.of_last.half,
        rises.of_last.tenth,
        rises.of_last.most,
        rises.of_peak.half,
        rises.of_peak.tenth,
        rises.of_peak.most,
    ]
}

fn of_tasks(tasks: &[TaskShape]) -> [f64; TASKS] {
    let sum = |of: fn(&TaskShape) -> f64| tasks.iter().map(of).sum::<f64>();
    let root = |of: fn(&TaskShape) -> f64| tasks.iter().map(|task| of(task).powi(2)).sum::<f64>().sqrt();
    let gap = |task: &TaskShape| task.largest - task.now;
    let mut gaps: Vec<f64> = tasks.iter().map(gap).collect();
    gaps.sort_unstable_by(|a, b| b.total_cmp(a));
    [
        root(|task| task.deviation),
        sum(|task| task.deviation),
        root(|task| task.deviation_24),
        sum(|task| task.deviation_24),
        root(|task| task.deviation_12),
        sum(|task| task.largest_3),
        sum(|task| task.largest_6),
        sum(|task| task.largest_12),
        sum(|task| task.largest_24),
        sum(|task| task.largest),
        gaps.first().copied().unwrap_or(0.0),
        gaps.iter().take(3).sum(),
        gaps.iter().take(2).map(|gap| gap * gap).sum::<f64>().sqrt(),
        max(tasks.iter().map(|task| task.deviation)),
        root(|task| task.largest_24 - task.now),
        root(|task| task.largest - task.now),
        root(|task| task.largest_24 - task.mean_24),
        root(|task| task.largest - task.mean),
        sum(|task| task.step_squared).sqrt(),
        sum(|task| task.third).max(0.0).cbrt(),
        sum(|task| task.third_24).max(0.0).cbrt(),
    ]
}

/// From each sample to the next.
struct Steps {
    /// Whatever their direction.
    mean: f64,
    largest_rise: f64,
}

impl Steps {
    fn of(samples: impl Iterator<Item = f64> + Clone) -> Self {
        let steps = samples.clone().zip(samples.skip(1)).map(|(before, after)| after - before);
        let (mut count, mut sum, mut largest_rise) = (0.0, 0.0, f64::NEG_INFINITY);
        for step in steps {
            count += 1.0;
            sum += step.abs();
            largest_rise = largest_rise.max(step);
        }
        if count == 0.0 {
            Self { mean: 0.0, largest_rise: 0.0 }
        } else {
            Self { mean: sum / count, largest_rise }
        }
    }
}

/// How far the peaks of past hours were above what was before them.
struct Rises {
    /// Above the last sample.
    of_last: Spread,
    /// Above the peak of the hour before.
    of_peak: Spread,
}

/// Half, nine tenths and all are not above these.
struct Spread {
    half: f64,
    tenth: f64,
    most: f64,
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_unstable_by(f64::total_cmp);
        let at = |share| quantile_of_sorted(&samples, share);
        Self { half: at(0.5), tenth: at(0.9), most: at(1.0) }
    }
}

impl Rises {
    fn of(totals: &[f64]) -> Self {
        let count = totals.len();
        let largest = |from: usize, to: usize| max(totals[from..to].iter().copied());
        if count < RISES_FROM {
            let now = totals.last().copied().unwrap_or(0.0);
            let rise = if count > 1 { largest(1, count) - now } else { 0.0 };
            return Self {
                of_last: Spread { half: rise / 2.0, tenth: rise, most: rise },
                of_peak: Spread { half: 0.0, tenth: rise / 2.0, most: rise },
            };
        }
        let first = count.saturating_sub(RISES_SAMPLES + HORIZON_SAMPLES).max(1);
        let starts = (first..=count - HORIZON_SAMPLES).step_by(RISES_STEP);
        let peak = |start: usize| largest(start, start + HORIZON_SAMPLES);
        let of_last = starts.clone().map(|start| peak(start) - totals[start - 1]).collect();
        let before = |start: usize| largest(start.saturating_sub(HORIZON_SAMPLES), start);
        let of_peak = starts.map(|start| peak(start) - before(start)).collect();
        Self { of_last: Spread::of(of_last), of_peak: Spread::of(of_peak) }
    }
}
