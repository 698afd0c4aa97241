use proptest::prelude::*;

use super::{super::Candidate, *};
use crate::measure::tasks::{Stalled, Stalls};

const THRESHOLDS: Thresholds = Thresholds {
    cpu_permille: 100,
    runqueue_p99_usec: 8000,
    mem_permille: 50,
    io_permille: 200,
    patience: Duration::from_millis(500),
    calm: Duration::from_secs(1),
    absolved: Duration::from_secs(30),
};

const ALL_MEANS: Means = Means { cpu: true, io: true };

fn evidence(waited: [u64; 3], tasks: usize) -> Evidence {
    let stalled = |permille| Some(Stalled { some_permille: permille, full_permille: permille });
    let [cpu, mem, io] = waited.map(stalled);
    let task = |n| Candidate { task: ("f".to_owned(), format!("t{n}")), mem_bytes: 100 << 20 };
    Evidence {
        over_usec: 100_000,
        waited: Stalls { cpu, mem, io },
        throttled_permille: 0,
        runqueue_p99_usec: None,
        available_permille: Some(10),
        cpu_milli: 1600,
        mem_bytes: 1000 << 20,
        disk_permille: None,
        tasks: (0..tasks).map(task).collect(),
    }
}

/// Looks every 100 ms while the guaranteed tasks wait like that; what was decided at each.
fn run(ladder: &mut Ladder, start: Instant, looks: std::ops::Range<u64>, seen: &Evidence) -> Vec<Decision> {
    looks.map(|n| ladder.decide(start + Duration::from_millis(100 * n), seen)).collect()
}

fn steps(decisions: &[Decision]) -> Vec<Step> {
    decisions.iter().flat_map(|decision| &decision.reasons).map(|reason| reason.step).collect()
}

#[test]
fn cpu_is_halved_then_frozen_then_given_back_where_that_does_not_help() {
    let (mut ladder, start) = (Ladder::new(THRESHOLDS, ALL_MEANS), Instant::now());
    let busy = evidence([300, 0, 0], 2);
    let decisions = run(&mut ladder, start, 0..17, &busy);
    let caps: Vec<_> = decisions.iter().map(|d| d.held.cpu_milli).collect();
    assert_eq!(caps[..5], [800, 400, 200, 100, 50].map(Some));
    assert_eq!(steps(&decisions), [&[Step::Squeeze; 5][..], &[Step::Freeze, Step::Absolve]].concat());
    // Half a second after the last squeeze, and half a second after that.
    assert!(!decisions[8].held.frozen && decisions[9].held.frozen && decisions[13].held.frozen);
    assert_eq!(decisions[14].held, Held::default());
    assert!(ladder.is_calm());
    assert!(steps(&run(&mut ladder, start, 17..310, &busy)).is_empty(), "left alone for half a minute");
    assert_eq!(steps(&run(&mut ladder, start, 314..315, &busy)), [Step::Squeeze]);
}

#[test]
fn what_was_taken_comes_back_slowly() {
    let (mut ladder, start) = (Ladder::new(THRESHOLDS, ALL_MEANS), Instant::now());
    run(&mut ladder, start, 0..3, &evidence([300, 0, 0], 1));
    let between = run(&mut ladder, start, 3..40, &evidence([60, 0, 0], 1));
    assert!(steps(&between).is_empty(), "neither bad nor good");
    let decisions = run(&mut ladder, start, 40..200, &evidence([10, 0, 0], 1));
    let mut caps: Vec<_> = decisions.iter().map(|d| d.held.cpu_milli).collect();
    caps.dedup();
    let expected = [200, 250, 312, 390, 487, 608, 760, 950, 1187, 1483].map(Some).into_iter().chain([None]);
    assert_eq!(caps, expected.collect::<Vec<_>>());
    let rises = decisions.iter().filter(|d| !d.reasons.is_empty()).count();
    assert_eq!(rises, 10, "one a second");
    assert!(ladder.is_calm());
}

#[test]
fn memory_is_taken_back_and_then_the_youngest_is_ended_one_at_a_time() {
    let (mut ladder, start) = (Ladder::new(THRESHOLDS, ALL_MEANS), Instant::now());
    let short = evidence([0, 100, 0], 3);
    let decisions = run(&mut ladder, start, 0..40, &short);
    assert_eq!(decisions[0].held.mem_high_bytes, Some(900 << 20));
    assert_eq!(decisions[1].held.mem_high_bytes, Some(810 << 20));
    let killed: Vec<_> =
        decisions.iter().enumerate().filter_map(|(n, d)| Some((n, d.kill.clone()?.1))).collect();
    let (first, youngest) = &killed[0];
    assert_eq!(youngest, "t2");
    assert_eq!(decisions[*first].held.mem_high_bytes, Some((1000 << 20) / 8), "the least comes first");
    assert!(
        killed.windows(2).all(|pair| pair[1].0 - pair[0].0 == 5),
        "each has its time to help: {killed:?}"
    );
    assert!(decisions.iter().all(|d| !d.held.frozen), "standing still gives no memory back");
}

#[test]
fn the_disk_has_one_squeeze() {
    let (mut ladder, start) = (Ladder::new(THRESHOLDS, ALL_MEANS), Instant::now());
    let decisions = run(&mut ladder, start, 0..8, &evidence([0, 0, 900], 1));
    assert_eq!(steps(&decisions), [Step::Squeeze, Step::Freeze]);
    assert!(decisions[0].held.io_least && !decisions[0].held.frozen);
    let decisions = run(&mut ladder, start, 8..40, &evidence([0; 3], 1));
    assert_eq!(steps(&decisions), [Step::Ease, Step::Ease]);
    assert!(ladder.is_calm());
}

#[test]
fn without_means_to_squeeze_they_stand_still_at_once() {
    let (mut ladder, start) = (Ladder::new(THRESHOLDS, Means { cpu: false, io: false }), Instant::now());
    let decisions = run(&mut ladder, start, 0..1, &evidence([300, 0, 300], 1));
    assert_eq!(steps(&decisions), [Step::Freeze, Step::Freeze]);
    assert_eq!(decisions[0].held, Held { frozen: true, ..Held::default() });
    let decisions = run(&mut ladder, start, 1..13, &evidence([0; 3], 1));
    assert_eq!(steps(&decisions), [Step::Ease, Step::Ease]);
    assert!(ladder.is_calm());
}

#[test]
fn looks_in_between_take_no_step_down() {
    let (mut ladder, start) = (Ladder::new(THRESHOLDS, ALL_MEANS), Instant::now());
    let busy = evidence([300, 0, 0], 1);
    let decisions = (0..9).map(|n| ladder.decide(start + Duration::from_millis(25 * n), &busy));
    assert_eq!(steps(&decisions.collect::<Vec<_>>()), [Step::Squeeze; 3], "at 0, 100 and 200 ms");
}

#[test]
fn nothing_begins_for_what_they_cannot_have_done() {
    let seen = evidence([300, 300, 300], 1);
    let innocent = Evidence { cpu_milli: 90, mem_bytes: 0, disk_permille: Some(90), ..seen.clone() };
    let mut ladder = Ladder::new(THRESHOLDS, ALL_MEANS);
    assert_eq!(ladder.decide(Instant::now(), &innocent), Decision::default());
    assert!(!ladder.decide(Instant::now(), &seen).reasons.is_empty());
}

#[test]
fn few_long_waits_count_for_more() {
    let seen = evidence([30, 0, 0], 1);
    let long = Evidence { runqueue_p99_usec: Some(8192), ..seen.clone() };
    let short = Evidence { runqueue_p99_usec: Some(4096), ..seen };
    let first = |seen| steps(&[Ladder::new(THRESHOLDS, ALL_MEANS).decide(Instant::now(), &seen)]);
    assert_eq!((first(short), first(long)), (vec![], vec![Step::Squeeze]));
}

#[test]
fn a_task_at_its_own_cap_is_looked_at_for_a_whole_period() {
    let seen = Evidence { throttled_permille: 100, over_usec: 25_000, ..evidence([900, 0, 0], 1) };
    let whole = Evidence { over_usec: 100_000, ..seen.clone() };
    let first = |seen| steps(&[Ladder::new(THRESHOLDS, ALL_MEANS).decide(Instant::now(), &seen)]);
    assert_eq!((first(seen), first(whole)), (vec![], vec![Step::Squeeze]));
}

#[test]
fn without_revocable_tasks_nothing_is_held() {
    let (mut ladder, start) = (Ladder::new(THRESHOLDS, ALL_MEANS), Instant::now());
    run(&mut ladder, start, 0..12, &evidence([900; 3], 1));
    assert!(!ladder.is_calm());
    assert_eq!(ladder.decide(start + Duration::from_secs(2), &evidence([900; 3], 0)), Decision::default());
    assert!(ladder.is_calm());
}

#[test]
fn a_reason_says_what_was_measured() {
    let reason =
        Reason { resource: Resource::Io, waited_permille: 305, threshold_permille: 200, step: Step::Freeze };
    assert_eq!(
        reason.to_string(),
        "freeze: guaranteed tasks waited for io during 30.5 % of the time (20.0 % is allowed)"
    );
}

proptest! {
    /// Whatever happens: bounds are above nothing and never above what they had, ends come only for memory, and all is
    /// given back after a quiet time.
    #[test]
    fn it_never_takes_more_than_there_is_and_gives_all_back(
        looks in prop::collection::vec((0..2000u64, [0..1000u64, 0..1000u64, 0..1000u64], 0..4usize, 0..5000u64), 1..80),
    ) {
        let (mut ladder, start) = (Ladder::new(THRESHOLDS, ALL_MEANS), Instant::now());
        let (mut now, mut most) = (start, 0);
        for (pause_ms, waited, tasks, cpu_milli) in looks {
            now += Duration::from_millis(pause_ms);
            most = most.max(cpu_milli);
            let seen = Evidence { cpu_milli, ..evidence(waited, tasks) };
            let decision = ladder.decide(now, &seen);
            prop_assert!(decision.held.cpu_milli.is_none_or(|cap| (LEAST_CPU_MILLI..=most.max(2 * LEAST_CPU_MILLI)).contains(&cap)));
            prop_assert!(decision.held.mem_high_bytes.is_none_or(|high| ((1000 << 20) / LEAST_MEM_PART..1000 << 20).contains(&high)));
            prop_assert!(decision.kill.is_none() || waited[1] > THRESHOLDS.mem_permille);
            prop_assert!(tasks > 0 || decision == Decision::default());
        }
        for _ in 0..200 {
            now += Duration::from_secs(1);
            ladder.decide(now, &evidence([0; 3], 1));
        }
        prop_assert!(ladder.is_calm());
    }
}
