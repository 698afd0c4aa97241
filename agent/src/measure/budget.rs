//! How often to measure, so that measuring stays cheap. Pure.

use std::time::Duration;

/// The longest pause, in periods: over budget, something is measured at least this often.
const MOST_PERIODS: u32 = 30;
/// What one round cost counts for a quarter, what rounds cost before for the rest: one slow round is no news.
const NEWEST_PART: u32 = 4;

/// Keeps the CPU time of rounds within a part of all time, by making the pauses between them longer.
#[derive(Clone, Debug)]
pub struct Budget {
    period: Duration,
    /// Of one CPU, in thousandths.
    milli: u32,
    /// Of one round, smoothed.
    cost: Option<Duration>,
    periods: u32,
}

impl Budget {
    /// Rounds every `period`, unless they take more than `milli` thousandths of one CPU.
    pub fn new(period: Duration, milli: u32) -> Self {
        Self { period, milli: milli.max(1), cost: None, periods: 1 }
    }

    /// Takes in what a round cost. True where the pause is another one from now on.
    ///
    /// Pauses become longer as soon as it is needed, and shorter when that would leave a quarter of the budget unused.
    pub fn spent(&mut self, cpu: Duration) -> bool {
        let smooth = |before: Duration| before - before / NEWEST_PART + cpu / NEWEST_PART;
        let cost = self.cost.map_or(cpu, smooth);
        self.cost = Some(cost);
        let (needed, with_room) = (self.periods_for(cost), self.periods_for(cost + cost / 4));
        let before = self.periods;
        self.periods = self.periods.max(needed).min(with_room.max(needed));
        before != self.periods
    }

    /// From the beginning of a round to that of the next.
    pub fn pause(&self) -> Duration {
        self.period * self.periods
    }

    /// Is it measured less often than it was to be?
    pub fn is_over(&self) -> bool {
        self.periods > 1
    }

    fn periods_for(&self, cost: Duration) -> u32 {
        let allowed_nanos = self.period.as_nanos() * u128::from(self.milli) / 1000;
        let periods = cost.as_nanos().div_ceil(allowed_nanos.max(1));
        u32::try_from(periods).unwrap_or(MOST_PERIODS).clamp(1, MOST_PERIODS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn within_the_budget_nothing_changes() {
        let mut budget = Budget::new(PERIOD, 20);
        assert!((0..100).all(|_| !budget.spent(19 * MS)));
        assert_eq!((budget.pause(), budget.is_over()), (PERIOD, false));
    }

    #[test]
    fn over_it_pauses_become_longer_and_then_shorter_again() {
        let mut budget = Budget::new(PERIOD, 20);
        assert!(budget.spent(50 * MS));
        assert_eq!((budget.pause(), budget.is_over()), (3 * PERIOD, true));
        assert!(!budget.spent(50 * MS));
        let rounds = (0..100)
            .take_while(|_| {
                budget.spent(5 * MS);
                budget.is_over()
            })
            .count();
        assert!(rounds < 20, "{rounds}");
        assert_eq!(budget.pause(), PERIOD);
    }

    #[test]
    fn a_cost_at_the_edge_does_not_flap() {
        let mut budget = Budget::new(PERIOD, 20);
        let costs = [19, 21, 19, 21, 22, 19, 18, 21].into_iter().cycle().take(400);
        assert!(costs.filter(|cost| budget.spent(*cost * MS)).count() <= 1);
    }

    #[test]
    fn no_budget_is_no_division_by_zero() {
        let mut budget = Budget::new(Duration::ZERO, 0);
        budget.spent(Duration::from_secs(1 << 40));
        assert_eq!(budget.pause(), Duration::ZERO);
        let mut budget = Budget::new(PERIOD, 0);
        budget.spent(Duration::MAX / 2);
        assert_eq!(budget.pause(), MOST_PERIODS * PERIOD);
    }

    proptest! {
        #[test]
        fn a_steady_cost_stays_within_the_budget(cost_usec in 0..500_000u64, milli in 1..100u32) {
            let (mut budget, cost) = (Budget::new(PERIOD, milli), Duration::from_micros(cost_usec));
            (0..50).for_each(|_| { budget.spent(cost); });
            let allowed = budget.pause() * milli / 1000;
            prop_assert!(cost <= allowed || budget.pause() == MOST_PERIODS * PERIOD, "{budget:?}");
        }
    }
}
