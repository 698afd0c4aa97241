use clap::ValueEnum as _;
use proptest::prelude::*;

use super::*;

fn task(id: u64, used: f64, limit: f64) -> TaskSample {
    TaskSample { id, used, limit }
}

fn of_kind(predictor: Kind, capacity: f64) -> Peak {
    Peak::new(&Method { predictor, ..Method::default() }, capacity)
}

fn learned(error_budget: f64) -> Peak {
    Peak::new(&Method { error_budget, ..Method::default() }, f64::INFINITY)
}

fn every_kind() -> impl Iterator<Item = (Kind, Peak)> {
    Kind::value_variants().iter().map(|kind| (*kind, of_kind(*kind, f64::INFINITY)))
}

/// Noise that is the same every time, from 0 to 1.
fn noise(seed: u64) -> f64 {
    let mixed = (seed ^ 0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed.wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) as f64 / f64::from(1u32 << 31)
}

#[test]
fn before_the_first_sample_nothing_is_known() {
    for (kind, peak) in every_kind() {
        assert_eq!(peak.value(), None, "{kind:?}");
    }
}

#[test]
fn one_sample_is_no_reason_to_lend_much() {
    for (kind, mut peak) in every_kind() {
        peak.add(&[task(1, 10.0, 100.0), task(2, 20.0, 100.0)]);
        let peak = peak.value().unwrap();
        assert!((30.0..=200.0).contains(&peak), "{kind:?}: {peak}");
    }
    let mut peak = learned(0.01);
    peak.add(&[task(1, 10.0, 100.0), task(2, 20.0, 100.0)]);
    assert!(peak.value().unwrap() > 170.0, "close to the limits");
}

#[test]
fn a_node_that_never_changes_is_known_after_hours() {
    let constant = |kind: &Kind| !matches!(kind, Kind::None | Kind::Fraction);
    for (kind, mut peak) in every_kind().filter(|(kind, _)| constant(kind)) {
        for _ in 0..MEMORY_SAMPLES {
            peak.add(&(0..10).map(|id| task(id, 20.0, 100.0)).collect::<Vec<_>>());
        }
        let peak = peak.value().unwrap();
        assert!((200.0..=300.0).contains(&peak), "{kind:?}: {peak}");
    }
}

#[test]
fn the_first_half_hour_already_says_something() {
    let mut peak = learned(0.01);
    for t in 0..6 {
        peak.add(&(0..10).map(|id| task(id, 5.0 + 2.0 * noise(t * 10 + id), 100.0)).collect::<Vec<_>>());
    }
    assert!(peak.value().unwrap() < 800.0, "{:?}", peak.value());
}

#[test]
fn a_task_that_is_gone_and_an_idle_node_need_nothing() {
    for (kind, mut peak) in every_kind() {
        peak.add(&[task(1, 90.0, 100.0)]);
        for _ in 0..MEMORY_SAMPLES {
            peak.add(&[]);
        }
        assert_eq!(peak.value(), Some(0.0), "{kind:?}");
    }
}

#[test]
fn what_a_task_used_goes_with_it() {
    let mut history = History::new(1000.0);
    for _ in 0..100 {
        history.add(&[task(1, 60.0, 100.0), task(2, 5.0, 100.0)]);
    }
    history.add(&[task(2, 5.0, 100.0)]);
    assert!(history.totals().iter().all(|total| (total - 5.0).abs() < 1e-6), "{:?}", history.totals());
}

#[test]
fn a_task_without_a_limit_may_use_all_of_the_node() {
    for (kind, mut peak) in Kind::value_variants().iter().map(|kind| (*kind, of_kind(*kind, 400.0))) {
        for t in 0..50 {
            peak.add(&[task(1, 10.0, f64::INFINITY), task(2, 350.0 * noise(t), f64::NAN)]);
            let peak = peak.value().unwrap();
            assert!((10.0..=400.0).contains(&peak), "{kind:?}: {peak}");
        }
    }
}

#[test]
fn numbers_that_are_none_do_no_harm() {
    for (kind, mut peak) in every_kind() {
        for used in [f64::NAN, f64::INFINITY, -5.0, 10.0] {
            peak.add(&[task(1, used, 100.0), task(2, used, f64::NAN), task(3, used, -1.0)]);
            let peak = peak.value().unwrap();
            assert!(peak >= 0.0 && peak.is_finite(), "{kind:?} {used}: {peak}");
        }
    }
}

/// Bytes, thousandths of a CPU and percent are all the same.
#[test]
fn the_unit_makes_no_difference() {
    let at = |unit: f64| {
        let mut peak = learned(0.01);
        for t in 0..150 {
            let used = |id: u64| unit * 60.0 * noise(t * 7 + id).powi(4);
            peak.add(&(0..8).map(|id| task(id, used(id), 100.0 * unit)).collect::<Vec<_>>());
        }
        peak.value().unwrap() / unit
    };
    let percent = at(1.0);
    assert!((at(10.0) / percent - 1.0).abs() < 1e-6 && (at(f64::from(1 << 30)) / percent - 1.0).abs() < 1e-6);
}

/// A load that is nothing like the days that it learned on: half an hour of every two everything is used.
#[test]
fn misses_correct_what_was_learned() {
    let mut peak = learned(0.01);
    let mut missed = Vec::new();
    let total = |t: usize| if t % 24 < 6 { 95.0 } else { 2.0 };
    for t in 0..3000 {
        if let Some(peak) = peak.value() {
            let truth = (t..t + HORIZON_SAMPLES).map(total).fold(0.0, f64::max) * 10.0;
            missed.push(peak < truth);
        }
        peak.add(&(0..10).map(|id| task(id, total(t), 100.0)).collect::<Vec<_>>());
    }
    let late = &missed[missed.len() - 1500..];
    let share = late.iter().filter(|missed| **missed).count() as f64 / late.len() as f64;
    assert!(share < 0.03, "{share}");
}

/// An hour in which a task came says nothing about what was answered before.
#[test]
fn a_task_that_comes_is_no_miss() {
    let mut learned = Learned::new(0.01);
    let mut history = History::new(f64::INFINITY);
    for t in 0..60 {
        // Every half hour another task.
        history.add(&(0..1 + t / 6).map(|id| task(id, 90.0, 100.0)).collect::<Vec<_>>());
        learned.predict(&history);
    }
    assert_eq!(learned.misses(), 0.0);
}

#[test]
fn a_smaller_budget_asks_for_more() {
    let of = |budget| {
        let mut peak = learned(budget);
        for t in 0..100 {
            let used = |id: u64| 10.0 + ((t + id) % 7) as f64;
            peak.add(&(0..10).map(|id| task(id, used(id), 100.0)).collect::<Vec<_>>());
        }
        peak.value().unwrap()
    };
    assert!(of(0.001) > of(0.01) && of(0.01) > of(0.1));
}

#[test]
fn state_goes_on_where_it_was() {
    for kind in Kind::value_variants() {
        let day = |peak: &mut Peak, from: u64, to: u64| {
            for t in from..to {
                peak.add(&(0..5).map(|id| task(id, 50.0 * noise(t * 5 + id), 100.0)).collect::<Vec<_>>());
            }
        };
        let mut peak = of_kind(*kind, 500.0);
        day(&mut peak, 0, 100);
        let text = serde_json::to_string(&peak.state()).unwrap();
        let mut other = of_kind(*kind, 500.0);
        other.resume(serde_json::from_str(&text).unwrap());
        day(&mut peak, 100, 101);
        day(&mut other, 100, 101);
        let (peak, other) = (peak.value().unwrap(), other.value().unwrap());
        assert!((peak / other - 1.0).abs() < 0.02, "{kind:?}: {peak} {other}");
    }
}

proptest! {
    #[test]
    fn answers_keep_their_bounds(
        samples in prop::collection::vec(prop::collection::vec((0..9u64, -1.0..150.0f64), 0..6), 1..80),
        capacity in 1.0..600.0f64,
        budget in 0.0..1.0f64,
    ) {
        for kind in Kind::value_variants() {
            let method = Method { predictor: *kind, error_budget: budget, ..Method::default() };
            let mut peak = Peak::new(&method, capacity);
            for sample in &samples {
                // Ids come and go.
                let tasks: std::collections::BTreeMap<_, _> = sample.iter().copied().collect();
                let tasks: Vec<_> = tasks.iter().map(|(id, used)| task(*id, *used, 100.0)).collect();
                peak.add(&tasks);
                let total: f64 = tasks.iter().map(|task| task.used.max(0.0)).sum::<f64>().min(capacity);
                let peak = peak.value().unwrap();
                prop_assert!(peak.is_finite() && peak >= total * 0.999, "{:?}: {} of {}", kind, peak, total);
                let most = (100.0 * tasks.len() as f64).max(total).min(capacity);
                prop_assert!(peak <= most * 1.001, "{:?}: {} above {}", kind, peak, most);
            }
        }
    }
}
