use bulkhead_proto::v1::{Revive, TaskUsage};

use super::{
    super::need::tests::{need, offer},
    *,
};

fn plan(args: &[&str]) -> Plan {
    let mut plan = Plan::new(need(args), args.contains(&"--detach"));
    plan.on(Input::Subscribed { framework_id: "f-1".to_owned() });
    plan
}

/// A plan whose launch is on its way, or further.
fn launched(args: &[&str]) -> Plan {
    let mut plan = plan(args);
    plan.on(Input::Offers(vec![offer(4000, 4096, &[(31_000, 31_100)])]));
    plan
}

fn running(args: &[&str]) -> Plan {
    let mut plan = launched(args);
    plan.on(Input::Status(status(TaskState::Running, TaskReason::Unspecified, 2)));
    plan
}

fn status(state: TaskState, reason: TaskReason, sequence: u64) -> TaskStatus {
    TaskStatus {
        task_id: "true-0a1b2c3d".to_owned(),
        state: state.into(),
        reason: reason.into(),
        sequence,
        ..TaskStatus::default()
    }
}

fn finished() -> Input {
    Input::Status(status(TaskState::Finished, TaskReason::Unspecified, 3))
}

/// The effects in one word each, calls with what identifies them.
fn words(effects: &[Effect]) -> Vec<String> {
    let call = |call: &Call| match call {
        Call::Accept(a) => format!("accept {}", a.offer_ids.join("+")),
        Call::Decline(d) => format!("decline {} for {}", d.offer_ids.join("+"), d.refuse_ms),
        Call::Kill(k) => format!("kill for {}", k.grace_ms),
        Call::Acknowledge(a) => format!("ack {}", a.sequence),
        Call::Reconcile(_) => "reconcile".to_owned(),
        Call::Teardown(_) => "teardown".to_owned(),
        Call::Detach(_) => "detach".to_owned(),
        Call::Revive(Revive {}) => "revive".to_owned(),
        Call::Resize(r) => format!("resize {}", r.task_id),
        Call::NameDataSets(named) => format!("name {:?}", named.data_sets),
        Call::Subscribe(_) => "subscribe".to_owned(),
    };
    let word = |effect: &Effect| match effect {
        Effect::Call(c) => Some(call(c)),
        Effect::FollowOutput(_) => Some("follow".to_owned()),
        Effect::EndOutput => Some("end output".to_owned()),
        Effect::AskAgain(_) => Some("ask again".to_owned()),
        Effect::Leave(code) => Some(format!("leave {code}")),
        Effect::Note(_) | Effect::Detail(_) | Effect::Report(_) => None,
    };
    effects.iter().filter_map(word).collect()
}

fn notes(effects: &[Effect]) -> String {
    let note = |e: &Effect| match e {
        Effect::Note(text) => Some(text.clone()),
        _ => None,
    };
    effects.iter().filter_map(note).collect::<Vec<_>>().join(" | ")
}

#[test]
fn the_first_offer_that_fits_is_taken_and_the_others_go_back() {
    let mut plan = plan(&["--cpus", "1"]);
    let named = |id: &str, cpu| Offer { offer_id: id.to_owned(), ..offer(cpu, 1024, &[]) };
    let effects = plan.on(Input::Offers(vec![named("small", 500)]));
    assert_eq!(words(&effects), ["decline small for 5000"]);
    let effects = plan.on(Input::Offers(vec![named("a", 500), named("b", 1000), named("c", 2000)]));
    assert_eq!(words(&effects), ["accept b", "decline a+c for 3600000"]);
    assert!(!plan.is_waiting());
    assert_eq!(words(&plan.on(Input::Offers(vec![named("d", 2000)]))), ["decline d for 3600000"]);
}

#[test]
fn a_run_follows_the_output_and_acknowledges_the_end_after_it() {
    let mut plan = launched(&[]);
    let staging = status(TaskState::Staging, TaskReason::Unspecified, 1);
    assert_eq!(words(&plan.on(Input::Status(staging))), ["ack 1"]);
    let running = status(TaskState::Running, TaskReason::Unspecified, 2);
    assert_eq!(words(&plan.on(Input::Status(running.clone()))), ["ack 2", "follow"]);
    assert_eq!(words(&plan.on(Input::Status(running))), ["ack 2"], "a repetition is acknowledged, no more");
    assert_eq!(words(&plan.on(finished())), ["end output"]);
    assert!(
        words(&plan.on(finished())).is_empty(),
        "the end is not acknowledged before its output is written"
    );
    assert_eq!(words(&plan.on(Input::OutputDone(Ok(())))), ["ack 3", "teardown", "leave 0"]);
}

#[test]
fn a_task_that_ended_before_it_was_seen_running_still_shows_its_output() {
    let mut plan = launched(&[]);
    assert_eq!(words(&plan.on(finished())), ["follow", "end output"]);
    assert_eq!(words(&plan.on(Input::OutputDone(Ok(())))), ["ack 3", "teardown", "leave 0"]);
}

#[test]
fn output_that_could_not_be_read_is_said_and_the_code_stays_the_tasks() {
    let mut plan = running(&[]);
    let failed = TaskStatus { exit_code: Some(3), ..status(TaskState::Failed, TaskReason::Exited, 3) };
    plan.on(Input::Status(failed));
    let effects = plan.on(Input::OutputDone(Err("agent away".to_owned())));
    assert_eq!(notes(&effects), "agent away");
    assert_eq!(words(&effects), ["ack 3", "teardown", "leave 3"]);
}

#[test]
fn what_the_kernel_refused_is_said_even_of_a_task_that_finished() {
    let mut plan = running(&[]);
    let usage = Some(TaskUsage { ports_refused: 2, ..TaskUsage::default() });
    plan.on(Input::Status(TaskStatus { usage, ..status(TaskState::Finished, TaskReason::Unspecified, 3) }));
    assert!(notes(&plan.on(Input::OutputDone(Ok(())))).starts_with("the kernel refused 2 binds"));
}

#[test]
fn an_offer_that_was_gone_means_waiting_again() {
    let mut plan = launched(&[]);
    let gone = status(TaskState::Rejected, TaskReason::OfferGone, 0);
    assert_eq!(words(&plan.on(Input::Status(gone.clone()))), ["revive"]);
    assert!(plan.is_waiting());
    assert_eq!(words(&plan.on(Input::Offers(vec![offer(4000, 4096, &[])])))[0], "accept o-1");
    plan.on(Input::Interrupted);
    assert_eq!(
        words(&plan.on(Input::Status(gone))),
        ["teardown", "leave 130"],
        "nothing to wait for after Ctrl-C"
    );
}

#[test]
fn any_other_rejection_is_the_end() {
    let mut plan = launched(&[]);
    let effects = plan.on(Input::Status(TaskStatus {
        message: "asked 2, offered 1".to_owned(),
        ..status(TaskState::Rejected, TaskReason::ExceedsOffer, 0)
    }));
    assert_eq!(words(&effects), ["teardown", "leave 125"]);
    assert_eq!(notes(&effects), "the master refused the launch: asked 2, offered 1");
}

#[test]
fn the_first_interrupt_stops_the_task_and_the_second_leaves() {
    let mut plan = running(&["--grace", "3s"]);
    let effects = plan.on(Input::Interrupted);
    assert_eq!(words(&effects), ["kill for 3000"]);
    assert!(notes(&effects).contains("3 s grace"));
    assert_eq!(words(&plan.on(Input::Interrupted)), ["teardown", "leave 130"]);
}

#[test]
fn an_interrupted_task_ends_with_its_own_code() {
    let mut plan = running(&[]);
    plan.on(Input::Interrupted);
    let killed =
        TaskStatus { signal: Some(15), ..status(TaskState::Killed, TaskReason::KilledByFramework, 3) };
    assert_eq!(words(&plan.on(Input::Status(killed))), ["end output"]);
    assert_eq!(words(&plan.on(Input::OutputDone(Ok(())))), ["ack 3", "teardown", "leave 143"]);
}

#[test]
fn an_interrupt_before_the_launch_leaves_at_once() {
    assert_eq!(words(&plan(&[]).on(Input::Interrupted)), ["teardown", "leave 130"]);
}

#[test]
fn a_new_stream_asks_for_the_task_and_repeats_the_kill() {
    let mut plan = running(&[]);
    let again = || Input::Subscribed { framework_id: "f-1".to_owned() };
    assert_eq!(words(&plan.on(again())), ["reconcile"]);
    plan.on(Input::Interrupted);
    assert_eq!(words(&plan.on(again())), ["reconcile", "kill for 0"]);
}

#[test]
fn an_unknown_task_is_doubted_before_it_is_believed() {
    let mut plan = running(&[]);
    let unknown = || Input::Status(status(TaskState::Lost, TaskReason::UnknownTask, 0));
    for _ in 0..DOUBTS {
        assert_eq!(words(&plan.on(unknown())), ["ask again"]);
        assert_eq!(words(&plan.on(Input::AskAgain)), ["reconcile"]);
    }
    assert_eq!(words(&plan.on(unknown())), ["end output"]);
    assert_eq!(words(&plan.on(Input::OutputDone(Ok(())))), ["teardown", "leave 125"]);
}

#[test]
fn a_sign_of_life_ends_all_doubt() {
    let mut plan = running(&[]);
    let unknown = || Input::Status(status(TaskState::Lost, TaskReason::UnknownTask, 0));
    for round in 0..2 {
        for _ in 0..DOUBTS {
            assert_eq!(words(&plan.on(unknown())), ["ask again"], "round {round}");
        }
        plan.on(Input::Status(status(TaskState::Running, TaskReason::Unspecified, 2)));
    }
}

#[test]
fn detach_leaves_once_the_task_runs() {
    let mut plan = launched(&["--detach"]);
    let staging = status(TaskState::Staging, TaskReason::Unspecified, 1);
    assert_eq!(words(&plan.on(Input::Status(staging))), ["ack 1"]);
    let effects = plan.on(Input::Status(status(TaskState::Running, TaskReason::Unspecified, 2)));
    assert_eq!(words(&effects), ["ack 2", "detach", "leave 0"]);
}

#[test]
fn detach_from_a_task_that_cannot_start_is_a_failure() {
    let mut plan = launched(&["--detach"]);
    let effects = plan.on(Input::Status(status(TaskState::Failed, TaskReason::CommandNotFound, 1)));
    assert_eq!(words(&effects), ["ack 1", "teardown", "leave 127"]);
}

#[test]
fn a_reader_that_left_stops_the_task_like_a_broken_pipe() {
    let mut plan = running(&[]);
    assert_eq!(words(&plan.on(Input::OutputFailed(None))), ["kill for 0"]);
    let killed = status(TaskState::Killed, TaskReason::KilledByFramework, 3);
    assert_eq!(words(&plan.on(Input::Status(killed))), ["ack 3", "teardown", "leave 141"]);

    let mut plan = running(&[]);
    plan.on(finished());
    let effects = plan.on(Input::OutputFailed(Some("disk full".to_owned())));
    assert_eq!(
        (notes(&effects).as_str(), words(&effects).last().map(String::as_str)),
        ("disk full", Some("leave 125"))
    );
}

#[test]
fn a_wait_in_vain_counts_only_while_waiting() {
    let effects = plan(&[]).on(Input::NoOfferInTime("no offer".to_owned()));
    assert_eq!(
        (notes(&effects).as_str(), words(&effects)),
        ("no offer", vec!["teardown".into(), "leave 125".into()])
    );
    assert!(launched(&[]).on(Input::NoOfferInTime("no offer".to_owned())).is_empty());
}

#[test]
fn a_call_that_failed_is_said_and_the_task_asked_for() {
    let effects = launched(&[]).on(Input::CallError("bad accept".to_owned()));
    assert_eq!(words(&effects), ["ask again"]);
    assert!(notes(&effects).contains("bad accept"));
}

#[test]
fn statuses_of_other_tasks_are_acknowledged_and_ignored() {
    let other =
        TaskStatus { task_id: "other".to_owned(), ..status(TaskState::Finished, TaskReason::Unspecified, 9) };
    assert_eq!(words(&running(&[]).on(Input::Status(other.clone()))), ["ack 9"]);
    assert_eq!(words(&plan(&[]).on(Input::Status(other))), ["ack 9"]);
}

#[test]
fn without_a_master_for_too_long_it_leaves() {
    let effects = running(&[]).on(Input::GaveUp("no master for 30 s".to_owned()));
    assert_eq!(words(&effects), ["leave 125"]);
    assert!(notes(&effects).starts_with("no master for 30 s; the task is stopped"));
}
