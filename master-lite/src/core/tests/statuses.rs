//! Statuses, acknowledgements, kills, reconciliation.

use bulkhead_proto::v1::StopTaskRequest;

use super::*;
use crate::ids::RequestId;

#[test]
fn a_status_goes_to_the_framework_and_its_acknowledgement_to_the_agent() {
    let (mut world, agent, framework) = World::with_a_task(0);
    for (sequence, state) in [(1, TaskState::Staging), (2, TaskState::Running), (3, TaskState::Finished)] {
        world.status(agent, "f", "t", state, sequence);
        let update = world.one_update(framework);
        assert_eq!((update.state(), update.sequence, update.agent_id.as_str()), (state, sequence, "a"));
        assert!(world.acks(agent).is_empty(), "only the framework acknowledges");
        world.acknowledge(framework, "t", sequence);
        assert_eq!(world.acks(agent), [("t".to_owned(), sequence)]);
    }
    assert_eq!(all_ids(&world.core).len(), 1);
    assert_eq!(world.core.tasks.iter().count(), 0, "acknowledged to the end: history");
}

#[test]
fn a_repeated_status_is_told_again_until_it_is_acknowledged() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "t", TaskState::Running, 1);
    world.status(agent, "f", "t", TaskState::Running, 1);
    assert_eq!(world.updates(framework).len(), 2);
    world.acknowledge(framework, "t", 1);
    assert_eq!(world.acks(agent).len(), 1);
    world.status(agent, "f", "t", TaskState::Running, 1);
    assert!(world.updates(framework).is_empty());
    assert_eq!(world.acks(agent), [("t".to_owned(), 1)], "the acknowledgement was lost: it is sent again");
}

#[test]
fn an_acknowledgement_covers_only_what_was_said() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.acknowledge(framework, "t", u64::MAX);
    assert!(world.acks(agent).is_empty(), "nothing was said yet");
    world.status(agent, "f", "t", TaskState::Running, 1);
    world.acknowledge(framework, "t", u64::MAX);
    assert_eq!(world.acks(agent), [("t".to_owned(), 1)]);
    world.status(agent, "f", "t", TaskState::Finished, 2);
    world.acknowledge(framework, "t", 2);
    world.acknowledge(framework, "t", u64::MAX);
    assert_eq!(world.acks(agent), [("t".to_owned(), 2), ("t".to_owned(), 2)], "after the end, too");
}

#[test]
fn nothing_follows_the_last_state() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "t", TaskState::Failed, 2);
    world.status(agent, "f", "t", TaskState::Running, 3);
    world.status(agent, "f", "t", TaskState::Finished, 4);
    world.status(agent, "f", "t", TaskState::Finished, 1);
    assert_eq!(world.one_update(framework).state(), TaskState::Failed);
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Failed));
    assert_eq!(world.acks(agent), [3, 4, 1].map(|sequence| ("t".to_owned(), sequence)));
}

#[test]
fn a_status_with_a_number_that_was_used_before_ends_nothing() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "t", TaskState::Running, 1);
    world.updates(framework);
    world.status(agent, "f", "t", TaskState::Finished, 1);
    assert!(world.updates(framework).is_empty());
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Running));
}

#[test]
fn a_late_repeat_does_not_end_the_next_task_of_the_same_id() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "t", TaskState::Failed, 2);
    world.acknowledge(framework, "t", 2);
    let offer = world.one_offer(framework);
    world.accept_and_refuse(framework, &[&offer], vec![task("t", 1_000, GB)], 1_000_000);
    world.updates(framework);
    world.status(agent, "f", "t", TaskState::Failed, 2);
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Staging));
    assert!(world.updates(framework).is_empty());
    world.status(agent, "f", "t", TaskState::Running, 1);
    assert_eq!(world.one_update(framework).state(), TaskState::Running);
}

#[test]
fn a_status_without_state_or_sequence_changes_nothing() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "t", TaskState::Unspecified, 1);
    world.status(agent, "f", "t", TaskState::Finished, 0);
    assert!(world.updates(framework).is_empty());
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Staging));
}

#[test]
fn a_status_of_an_unknown_task_is_acknowledged_so_that_it_ends() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "who", TaskState::Finished, 4);
    assert_eq!(world.acks(agent), [("who".to_owned(), 4)]);
    assert!(world.updates(framework).is_empty());
}

#[test]
fn an_agent_cannot_speak_for_the_tasks_of_another() {
    let (mut world, _agent, framework) = World::with_a_task(0);
    let other = world.agent("b", resources(0, 0));
    world.status(other, "f", "t", TaskState::Finished, 9);
    assert!(world.updates(framework).is_empty());
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Staging));
}

#[test]
fn a_kill_goes_to_the_agent() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.call(framework, Call::Kill(KillTask { task_id: "t".into(), grace_ms: 7 }));
    let graces = world.told(agent, |m| match m {
        master_message::Message::Kill(kill) => Some((kill.reason(), kill.grace_ms)),
        _ => None,
    });
    assert_eq!(graces, [(TaskReason::KilledByFramework, 7)]);
}

#[test]
fn a_kill_of_an_unknown_task_is_answered() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.call(framework, Call::Kill(KillTask { task_id: "who".into(), grace_ms: 0 }));
    let update = world.one_update(framework);
    assert_eq!((update.state(), update.reason()), (TaskState::Lost, TaskReason::UnknownTask));
    assert_eq!(update.sequence, 0);
    assert!(world.kills(agent).is_empty());
}

#[test]
fn a_kill_waits_for_an_agent_that_is_away() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.step(Event::SessionEnded { session: agent });
    world.call(framework, Call::Kill(KillTask { task_id: "t".into(), grace_ms: 0 }));
    let list = vec![listed("f", task("t", 1_000, GB), TaskState::Running, 1)];
    let agent = world.register(registration("a", resources(4_000, 4 * GB), list));
    assert_eq!(world.kills(agent), [("t".to_owned(), TaskReason::KilledByFramework)]);
}

#[test]
fn reconciliation_repeats_the_newest_and_names_the_unknown() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "t", TaskState::Running, 2);
    world.updates(framework);
    world.call(framework, Call::Reconcile(Reconcile { task_ids: Vec::new() }));
    let update = world.one_update(framework);
    assert_eq!((update.state(), update.sequence), (TaskState::Running, 0));
    world.call(framework, Call::Reconcile(Reconcile { task_ids: vec!["t".into(), "who".into()] }));
    let states: Vec<_> = world.updates(framework).iter().map(TaskStatus::state).collect();
    assert_eq!(states, [TaskState::Running, TaskState::Lost]);
    world.status(agent, "f", "t", TaskState::Finished, 3);
    world.acknowledge(framework, "t", 3);
    world.updates(framework);
    world.call(framework, Call::Reconcile(Reconcile { task_ids: vec!["t".into()] }));
    assert_eq!(world.one_update(framework).state(), TaskState::Finished, "from history");
}

fn stop(world: &mut World, task: &str, framework: &str) -> Result<(), StopError> {
    let request = RequestId(1);
    let stop = StopTaskRequest { task_id: task.into(), framework_id: framework.into(), grace_ms: 0 };
    world.step(Event::StopTask { request, stop });
    let answers = world.take(|e| match e {
        Effect::Answer { request: RequestId(1), result } => Some(result.clone()),
        _ => None,
    });
    answers.into_iter().next().unwrap()
}

#[test]
fn an_operator_stops_a_task_by_its_id() {
    let (mut world, agent, framework) = World::with_a_task(0);
    assert_eq!(stop(&mut world, "t", ""), Ok(()));
    assert_eq!(world.kills(agent), [("t".to_owned(), TaskReason::KilledByOperator)]);
    assert!(matches!(stop(&mut world, "who", ""), Err(StopError::NotFound { .. })));
    assert!(matches!(stop(&mut world, "t", "other"), Err(StopError::NotFound { .. })));
    world.status(agent, "f", "t", TaskState::Killed, 1);
    world.acknowledge(framework, "t", 1);
    let error = stop(&mut world, "t", "").unwrap_err().to_string();
    assert!(error.contains("ended already"), "{error}");
}

#[test]
fn a_task_id_of_two_frameworks_needs_the_framework() {
    let (mut world, agent, _) = World::with_a_task(0);
    let other = world.framework("g");
    let offer = world.one_offer(other);
    world.accept(other, &[&offer], vec![task("t", 1_000, GB)]);
    let error = stop(&mut world, "t", "").unwrap_err().to_string();
    assert!(error.contains("f, g"), "{error}");
    assert_eq!(stop(&mut world, "t", "g"), Ok(()));
    assert_eq!(world.kills(agent).len(), 1);
}

#[test]
fn who_acknowledges_nothing_gets_no_more() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let most = settings().unacknowledged;
    for n in 0..most {
        let id = format!("t{n}");
        let offer = world.one_offer(framework);
        world.accept(framework, &[&offer], vec![task(&id, 4_000, 4 * GB)]);
        world.status(agent, "f", &id, TaskState::Finished, 1);
    }
    let offer = world.one_offer(framework);
    drop(world.updates(framework));
    world.accept(framework, &[&offer], vec![task("more", 4_000, 4 * GB)]);
    let status = world.one_update(framework);
    assert_eq!(
        (status.state(), status.reason()),
        (TaskState::Rejected, TaskReason::Unacknowledged),
        "{status:?}"
    );
    assert!(world.core.tasks.iter().all(|(key, _)| key.task.as_str() != "more"), "nothing of it is kept");
    // None was dropped, and one acknowledgement makes room for one launch.
    assert_eq!(world.core.tasks.iter().count(), most);
    world.acknowledge(framework, "t0", 1);
    world.pass(settings().refuse_ms, &[agent]);
    let offer = world.one_offer(framework);
    world.accept(framework, &[&offer], vec![task("more", 4_000, 4 * GB)]);
    assert_eq!(world.state_of("f", "more"), Some(TaskState::Staging));
}

#[test]
fn history_is_bounded_and_forgets_the_oldest() {
    let mut core =
        Core::new(Settings { history: 2, ..settings() }, "run", Allocator::new(Box::new(Drf), &[]));
    let session = SessionId(1);
    let info = FrameworkInfo { framework_id: "f".into(), ..FrameworkInfo::default() };
    core.step(Event::Subscribe { session, framework: info }, UnixMs(1));
    for id in ["t1", "t2", "t3"] {
        let accept = Accept { offer_ids: Vec::new(), tasks: vec![task(id, 1, 1)], refuse_ms: 0 };
        core.step(Event::Call { session, call: Call::Accept(accept) }, UnixMs(1));
    }
    assert_eq!(all_ids(&core), ["t2", "t3"]);
}
