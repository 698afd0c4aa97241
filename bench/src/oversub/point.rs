//! What a set-up did at a ratio, and what follows from that. Pure.

use serde::Serialize;

use super::{lab::Setup, service::Measured};

/// The service may be this much slower than alone.
const SLOWER_PERCENT: f64 = 10.0;
/// The machine has to be at least this busy for that to mean something.
const BUSY_PERCENT: f64 = 70.0;

/// One window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) service: Measured,
    pub(crate) batch_units_per_second: f64,
    /// Of all CPUs, over the window, by whomever.
    pub(crate) busy_percent: f64,
    /// Steps of the agent in the window that held revocable tasks to less.
    pub(crate) corrections: u64,
}

/// All rounds of a set-up at a ratio; figures are medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Point {
    pub(crate) ratio: f64,
    pub(crate) setup: Setup,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// From the best to the worst round.
    pub(crate) p99_range_us: [u64; 2],
    pub(crate) requests_per_second: f64,
    pub(crate) unanswered: u64,
    pub(crate) batch_units_per_second: f64,
    pub(crate) busy_percent: f64,
    /// Over all rounds.
    pub(crate) corrections: u64,
    pub(crate) rounds: Vec<Sample>,
}

impl Point {
    /// Sums the rounds up.
    pub(crate) fn of(ratio: f64, setup: Setup, rounds: Vec<Sample>) -> Self {
        let of = |pick: fn(&Sample) -> f64| median(rounds.iter().map(pick).collect());
        let p99 = || rounds.iter().map(|round| round.service.p99_us);
        Self {
            ratio,
            setup,
            p50_us: of(|round| number(round.service.p50_us)),
            p99_us: of(|round| number(round.service.p99_us)),
            p999_us: of(|round| number(round.service.p999_us)),
            p99_range_us: [p99().min().unwrap_or(0), p99().max().unwrap_or(0)],
            requests_per_second: of(|round| round.service.per_second),
            unanswered: rounds.iter().map(|round| round.service.unanswered).sum(),
            batch_units_per_second: of(|round| round.batch_units_per_second),
            busy_percent: of(|round| round.busy_percent),
            corrections: rounds.iter().map(|round| round.corrections).sum(),
            rounds,
        }
    }
}

/// Of one ratio: is the service kept, and was there something to keep it from?
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) ratio: f64,
    /// By how much the p99 is above that of the service alone.
    pub(crate) slower: Vec<Slower>,
    /// The agent keeps the p99 within 10 % of alone, on a machine that is above 70 % busy, and plain weights do not.
    pub(crate) reached: bool,
    /// In words.
    pub(crate) says: String,
}

/// A set-up next to the service alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Slower {
    pub(crate) setup: Setup,
    pub(crate) p99_percent: f64,
    pub(crate) busy_percent: f64,
}

impl Slower {
    fn keeps(&self) -> bool {
        self.p99_percent <= SLOWER_PERCENT
    }

    fn is_busy(&self) -> bool {
        self.busy_percent > BUSY_PERCENT
    }
}

/// One for each ratio at which the service was measured alone, too.
pub(crate) fn verdicts(points: &[Point]) -> Vec<Verdict> {
    let alone = points.iter().filter(|point| point.setup == Setup::Alone);
    alone.map(|alone| verdict(alone, points.iter().filter(|point| is_beside(alone, point)))).collect()
}

fn is_beside(alone: &Point, point: &Point) -> bool {
    (point.ratio - alone.ratio).abs() < f64::EPSILON && point.setup != Setup::Alone
}

fn verdict<'a>(alone: &Point, beside: impl Iterator<Item = &'a Point>) -> Verdict {
    let slower: Vec<_> = beside
        .map(|point| Slower {
            setup: point.setup,
            p99_percent: tenths((point.p99_us / alone.p99_us.max(1.0) - 1.0) * 100.0),
            busy_percent: point.busy_percent,
        })
        .collect();
    let of = |setup| slower.iter().find(|one| one.setup == setup);
    let says = match (of(Setup::Bulkhead), of(Setup::Weights)) {
        (None, _) => "not asked: without bulkhead".to_owned(),
        (Some(kept), _) if !kept.keeps() => {
            format!("no: bulkhead's p99 is {:+.1} % of alone", kept.p99_percent)
        }
        (Some(kept), _) if !kept.is_busy() => {
            format!("kept, but the machine is only {:.0} % busy", kept.busy_percent)
        }
        (Some(_), Some(plain)) if plain.keeps() => {
            format!("kept, but weights do as well ({:+.1} %)", plain.p99_percent)
        }
        (Some(kept), Some(plain)) => format!(
            "yes: {:+.1} % at {:.0} % busy, weights {:+.1} %",
            kept.p99_percent, kept.busy_percent, plain.p99_percent
        ),
        (Some(_), None) => "kept; weights were not measured".to_owned(),
    };
    Verdict { ratio: alone.ratio, reached: says.starts_with("yes"), slower, says }
}

/// The middle one; of an even number, the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (None, _) => 0.0,
        (Some(value), 1) => *value,
        (Some(value), _) => f64::midpoint(values[middle - 1], *value),
    }
}

pub(crate) fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn number(us: u64) -> f64 {
    f64::from(u32::try_from(us).unwrap_or(u32::MAX))
}

/// Points for tests of what is made of them.
#[cfg(test)]
pub(super) mod examples {
    use super::*;

    pub(crate) fn point(ratio: f64, setup: Setup, p99_us: u64, busy_percent: f64) -> Point {
        let service = Measured {
            requests: 1000,
            unanswered: 0,
            p50_us: p99_us / 4,
            p99_us,
            p999_us: p99_us * 2,
            max_us: p99_us * 3,
            per_second: 100.0,
        };
        let sample = Sample { service, batch_units_per_second: 7.5, busy_percent, corrections: 2 };
        Point::of(ratio, setup, vec![sample])
    }
}

#[cfg(test)]
mod tests {
    use super::{examples::point, *};

    fn says(points: &[Point]) -> String {
        let verdicts = verdicts(points);
        assert_eq!(verdicts.len(), 1);
        assert_eq!(verdicts[0].reached, verdicts[0].says.starts_with("yes"));
        verdicts[0].says.clone()
    }

    #[test]
    fn the_target_has_three_parts() {
        let at = |kept, busy, weights| {
            says(&[
                point(1.5, Setup::Alone, 1000, 30.0),
                point(1.5, Setup::Weights, weights, 99.0),
                point(1.5, Setup::Bulkhead, kept, busy),
                point(2.0, Setup::Bulkhead, 90_000, 99.0),
            ])
        };
        assert_eq!(at(1100, 90.0, 3000), "yes: +10.0 % at 90 % busy, weights +200.0 %");
        assert_eq!(at(1150, 90.0, 3000), "no: bulkhead's p99 is +15.0 % of alone");
        assert_eq!(at(950, 60.0, 3000), "kept, but the machine is only 60 % busy");
        assert_eq!(at(1100, 90.0, 1050), "kept, but weights do as well (+5.0 %)");
        assert!(says(&[point(1.0, Setup::Alone, 5, 5.0)]).starts_with("not asked"));
    }

    #[test]
    fn figures_of_a_point_are_medians_of_its_rounds() {
        let rounds = [900, 1000, 5000].map(|p99| point(1.0, Setup::Lent, p99, 50.0).rounds.remove(0));
        let point = Point::of(1.0, Setup::Lent, rounds.to_vec());
        assert!((point.p99_us - 1000.0).abs() < 1e-9);
        assert_eq!((point.p99_range_us, point.corrections), ([900, 5000], 6));
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}
