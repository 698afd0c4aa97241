//! A linear predictor, learned on traces, that is corrected by its own misses.
//!
//! Learning did not fit a quantile of the error but the very thing that is judged: the sum of all predictions, and a price
//! for each that is too low. What is right on average is still wrong for some nodes; so each keeps a factor of its own
//! that goes up with every miss and down with every hit, by so much that it stands still where misses are as frequent
//! as the budget says (Gibbs and Candès, "Adaptive Conformal Inference Under Distribution Shift", 2021).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{
    HORIZON_SAMPLES, MEMORY_SAMPLES, Predictor,
    features::Features,
    history::History,
    moments::{last, max},
    weights::{FACTORS, WEIGHTS},
};

/// What a miss adds to the factor, less what the budget expects.
const CORRECTION: f64 = 0.002;
/// One peak is missed by up to an hour of answers. Where more are missed than so many times the budget within a day, what
/// was learned does not hold, and steps are longer.
const FREQUENT: f64 = 5.0;
const LEAST_FACTOR: f64 = 0.8;
const LARGEST_FACTOR: f64 = 10.0;

/// The predictor.
#[derive(Clone, Debug)]
pub struct Learned {
    budget: f64,
    correction: Correction,
}

/// What it learned of its node.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Correction {
    /// Added to the factor that the budget starts with.
    factor: f64,
    /// Answers whose hour is not over, the oldest first. A restart is in none of the hours that are judged.
    #[serde(skip)]
    open: VecDeque<f64>,
    /// Share of misses within about a day.
    missed: f64,
}

impl Learned {
    /// `budget` is the share of answers that may be too low, from 0.0001 to 0.5.
    pub fn new(budget: f64) -> Self {
        let budget = if budget.is_nan() { super::DEFAULT_ERROR_BUDGET } else { budget.clamp(0.0001, 0.5) };
        Self { budget, correction: Correction::default() }
    }

    /// Share of answers of about the last day that were too low.
    pub fn misses(&self) -> f64 {
        self.correction.missed
    }

    fn factor(&self) -> f64 {
        (factor_for(self.budget) + self.correction.factor).clamp(LEAST_FACTOR, LARGEST_FACTOR)
    }

    /// An hour after an answer it is known whether it was right.
    fn learn(&mut self, history: &History) {
        let state = &mut self.correction;
        // What came since was not there to be counted with.
        state.open.drain(..state.open.len().saturating_sub(history.since_arrival().saturating_sub(1)));
        if state.open.len() < HORIZON_SAMPLES {
            return;
        }
        let Some(answer) = state.open.pop_front() else { return };
        let missed = max(last(history.totals(), HORIZON_SAMPLES)) > answer;
        let miss = f64::from(u8::from(missed));
        state.missed += (miss - state.missed) / MEMORY_SAMPLES as f64;
        let frequency = state.missed / self.budget;
        let weight = if frequency > FREQUENT { frequency } else { 1.0 };
        let start = factor_for(self.budget);
        state.factor = (state.factor + CORRECTION * weight * (miss - self.budget))
            .clamp(LEAST_FACTOR - start, LARGEST_FACTOR - start);
    }
}

impl Predictor for Learned {
    fn name(&self) -> &'static str {
        "learned"
    }

    fn predict(&mut self, history: &History) -> f64 {
        self.learn(history);
        let peak = Features::of(history).map_or_else(
            || history.limits(),
            |features| {
                let weighed = features.values.iter().zip(&WEIGHTS[1..]).map(|(value, weight)| value * weight);
                (WEIGHTS[0] + weighed.sum::<f64>()) * features.scale * self.factor()
            },
        );
        let peak = peak + history.unknown();
        if let Some(answer) = history.bounded(peak) {
            self.correction.open.push_back(answer);
        }
        peak
    }

    fn correction(&self) -> Option<&Correction> {
        Some(&self.correction)
    }

    fn resume(&mut self, correction: Correction) {
        let finite = |value: f64| if value.is_finite() { value } else { 0.0 };
        self.correction.factor = finite(correction.factor);
        self.correction.missed = finite(correction.missed).clamp(0.0, 1.0);
    }
}

/// Between what traces say of neighbouring budgets.
fn factor_for(budget: f64) -> f64 {
    let (first, last) = (FACTORS[0], FACTORS[FACTORS.len() - 1]);
    if budget <= first.0 {
        return first.1;
    }
    let pairs = FACTORS.iter().zip(&FACTORS[1..]);
    let mut around = pairs.filter(|((low, _), (high, _))| (*low..=*high).contains(&budget));
    around.next().map_or(last.1, |((low, a), (high, b))| {
        let part = (budget.ln() - low.ln()) / (high.ln() - low.ln());
        a + (b - a) * part
    })
}
