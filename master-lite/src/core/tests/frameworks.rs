//! Frameworks subscribe, fail over, detach, and are torn down.

use bulkhead_proto::v1::{CallError, Detach, Subscribe, Teardown};

use super::*;
use crate::ids::MAX_WAIT_MS;

fn subscribed(world: &mut World, session: SessionId) -> Option<String> {
    world.events(session).into_iter().find_map(|e| match e {
        scheduler_event::Event::Subscribed(s) => Some(s.framework_id),
        _ => None,
    })
}

#[test]
fn a_framework_without_an_id_is_given_one_that_nobody_has() {
    let mut world = World::new();
    world.framework("run-framework-1");
    let first = world.subscribe(FrameworkInfo::default());
    let second = world.subscribe(FrameworkInfo::default());
    let ids = [subscribed(&mut world, first).unwrap(), subscribed(&mut world, second).unwrap()];
    assert_eq!(ids, ["run-framework-2", "run-framework-3"]);
}

#[test]
fn a_subscription_that_makes_no_sense_is_refused() {
    let minimum = Some(Resources { ports: ports(0, 0), ..Resources::default() });
    for (info, says) in [
        (FrameworkInfo { framework_id: "a/b".into(), ..FrameworkInfo::default() }, "a/b"),
        (FrameworkInfo { classes: vec![7], ..FrameworkInfo::default() }, "7"),
        (FrameworkInfo { minimum, ..FrameworkInfo::default() }, "minimum"),
    ] {
        let mut world = World::new();
        let session = world.subscribe(info);
        let closings = world.closings(session);
        assert!(matches!(closings.as_slice(), [Closing::Invalid(why)] if why.contains(says)), "{closings:?}");
        assert!(world.core.list_frameworks().is_empty());
    }
}

#[test]
fn role_and_classes_have_defaults() {
    let mut world = World::new();
    world.framework("f");
    assert_eq!(world.core.list_frameworks()[0].role, "default");
}

#[test]
fn a_framework_that_comes_back_in_time_finds_its_tasks_and_what_it_missed() {
    let (mut world, agent, framework) = World::with_a_task(30_000);
    world.step(Event::SessionEnded { session: framework });
    world.status(agent, "f", "t", TaskState::Running, 1);
    assert!(world.acks(agent).is_empty(), "nobody has it yet");
    world.pass(29_999, &[agent]);
    let back = world.framework("f");
    let update = world.one_update(back);
    assert_eq!((update.state(), update.sequence), (TaskState::Running, 1));
    world.pass(10_000, &[agent]);
    assert!(world.kills(agent).is_empty());
    world.one_offer(back);
}

#[test]
fn a_framework_that_does_not_come_back_loses_its_tasks() {
    let (mut world, agent, framework) = World::with_a_task(30_000);
    world.step(Event::SessionEnded { session: framework });
    world.pass(29_999, &[agent]);
    assert!(world.kills(agent).is_empty());
    world.pass(1, &[agent]);
    assert_eq!(world.kills(agent), [("t".to_owned(), TaskReason::FrameworkGone)]);
    let late = world.framework("f");
    assert!(matches!(world.closings(late).as_slice(), [Closing::Refused(_)]));
    world.status(agent, "f", "t", TaskState::Killed, 1);
    assert_eq!(world.acks(agent), [("t".to_owned(), 1)], "the master acknowledges for the framework");
    assert!(world.core.list_frameworks().is_empty());
    assert_eq!(world.free("a"), resources(4_000, 4 * GB));
}

#[test]
fn tasks_of_a_framework_without_failover_end_with_its_stream() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.step(Event::SessionEnded { session: framework });
    world.step(Event::Tick);
    assert_eq!(world.kills(agent).len(), 1);
}

#[test]
fn a_newer_scheduler_takes_over_from_the_older() {
    let (mut world, agent, old) = World::with_a_task(0);
    world.call(old, Call::Revive(bulkhead_proto::v1::Revive {}));
    let offer = world.one_offer(old);
    let new = world.framework("f");
    assert!(matches!(world.closings(old).as_slice(), [Closing::Replaced(_)]));
    assert_eq!(world.rescinded(old), [offer.offer_id]);
    world.one_offer(new);
    world.step(Event::SessionEnded { session: old });
    world.call(old, Call::Teardown(Teardown {}));
    assert!(world.kills(agent).is_empty());
    assert!(world.core.list_frameworks()[0].connected);
}

#[test]
fn offers_of_a_lost_framework_go_to_others() {
    let mut world = World::new();
    world.agent("a", resources(4_000, 4 * GB));
    let first = world.framework("first");
    let second = world.framework("second");
    world.one_offer(first);
    world.step(Event::SessionEnded { session: first });
    world.one_offer(second);
}

#[test]
fn teardown_kills_everything_and_forgets_the_framework() {
    let (mut world, agent, framework) = World::with_a_task(1_000_000);
    world.call(framework, Call::Teardown(Teardown {}));
    assert_eq!(world.closings(framework), [Closing::Done]);
    assert_eq!(world.kills(agent), [("t".to_owned(), TaskReason::FrameworkGone)]);
    world.status(agent, "f", "t", TaskState::Killed, 1);
    assert!(world.core.list_frameworks().is_empty());
}

#[test]
fn the_tasks_of_a_framework_that_left_are_killed_when_their_agent_returns() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.step(Event::SessionEnded { session: agent });
    world.call(framework, Call::Teardown(Teardown {}));
    let list = vec![listed("f", task("t", 1_000, GB), TaskState::Running, 1)];
    let agent = world.register(registration("a", resources(4_000, 4 * GB), list));
    assert_eq!(world.kills(agent), [("t".to_owned(), TaskReason::FrameworkGone)]);
}

#[test]
fn a_detached_framework_lives_until_its_last_task_ends() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "t", TaskState::Running, 1);
    world.call(framework, Call::Detach(Detach {}));
    assert_eq!(world.closings(framework), [Closing::Done]);
    assert_eq!(world.acks(agent), [("t".to_owned(), 1)], "what waited is acknowledged");
    world.step(Event::SessionEnded { session: framework });
    world.pass(1_000_000, &[agent]);
    assert!(world.kills(agent).is_empty());
    assert!(world.core.list_frameworks()[0].detached);
    world.status(agent, "f", "t", TaskState::Finished, 2);
    assert_eq!(world.acks(agent), [("t".to_owned(), 2)]);
    assert!(world.core.list_frameworks().is_empty());
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Finished), "from history");
}

#[test]
fn a_framework_that_detaches_without_tasks_is_gone() {
    let mut world = World::new();
    let framework = world.framework("f");
    world.call(framework, Call::Detach(Detach {}));
    assert!(world.core.list_frameworks().is_empty());
}

#[test]
fn a_second_subscribe_on_a_stream_is_an_error_and_no_more() {
    let mut world = World::new();
    let framework = world.framework("f");
    world.events(framework);
    world.call(framework, Call::Subscribe(Subscribe::default()));
    let events = world.events(framework);
    assert!(
        matches!(events.as_slice(), [scheduler_event::Event::Error(CallError { message })] if message.contains("subscribed already"))
    );
}

#[test]
fn frameworks_hear_heartbeats_while_they_listen() {
    let mut world = World::new();
    let framework = world.framework("f");
    world.pass(15_000, &[]);
    let is_beat = |e: &scheduler_event::Event| matches!(e, scheduler_event::Event::Heartbeat(_));
    assert_eq!(world.events(framework).iter().filter(|e| is_beat(e)).count(), 3);
    world.step(Event::SessionEnded { session: framework });
    world.pass(5_000, &[]);
    assert_eq!(world.core.next_deadline(), None, "an idle master sleeps");
}

#[test]
fn nobody_is_waited_for_longer_than_a_year() {
    let mut world = World::new();
    let info = FrameworkInfo { failover_timeout_ms: u64::MAX, ..FrameworkInfo::default() };
    let session = world.subscribe(info);
    world.step(Event::SessionEnded { session });
    world.now.0 += MAX_WAIT_MS - 1;
    world.step(Event::Tick);
    assert_eq!(world.core.list_frameworks().len(), 1);
    world.now.0 += 1;
    world.step(Event::Tick);
    assert!(world.core.list_frameworks().is_empty());
}

#[test]
fn a_role_of_the_wrong_form_is_refused_with_the_form() {
    for role in ["a//b", "/", "..", "a b", "a/b/c/d/e/f/g/h/i"] {
        let mut world = World::new();
        let session = world.subscribe(FrameworkInfo { role: role.into(), ..FrameworkInfo::default() });
        let closings = world.closings(session);
        assert!(
            matches!(&closings[..], [Closing::Invalid(why)] if why.contains(&format!("{role:?}")) && why.contains("part")),
            "{closings:?}"
        );
    }
}

#[test]
fn a_framework_may_come_back_in_another_role() {
    let (mut world, _agent, _) = World::with_a_task(0);
    let info =
        FrameworkInfo { framework_id: "f".into(), role: "team/web".into(), ..FrameworkInfo::default() };
    let framework = world.subscribe(info);
    let number = world.core.numbers.frameworks.get(&"f".into()).unwrap();
    assert_eq!(world.core.allocator.role_of(number), Some("team/web"));
    assert_eq!(world.core.allocator.held_by(number), Some(&world.core.ledger.held_by(&"f".into())));
    assert_eq!(got(&world.one_offer(framework)), resources(3_000, 3 * GB));
}
