//! Agents come, fall silent, are lost, and come back.

use super::*;

#[test]
fn a_registered_agent_is_told_how_often_to_speak() {
    let mut world = World::new();
    let agent = world.agent("a", resources(1_000, GB));
    let intervals = world.told(agent, |m| match m {
        master_message::Message::Registered(r) => Some(r.heartbeat_interval_ms),
        _ => None,
    });
    assert_eq!(intervals, [5_000]);
    let [entry] = world.core.list_agents().try_into().unwrap();
    assert!(entry.connected);
    assert_eq!(entry.registered_unix_ms, START_MS);
}

#[test]
fn a_registration_that_makes_no_sense_is_refused_with_what_is_wrong() {
    let good = || registration("a", resources(1, 1), Vec::new());
    let huge = || listed("f", task("t", u64::MAX, 1), TaskState::Running, 1);
    let bad_ports = || listed("f", with_ports(task("t", 1, 1), ports(9, 8)), TaskState::Running, 1);
    let cases = [
        (Register { agent: None, ..good() }, "no agent"),
        (registration("", resources(1, 1), Vec::new()), "empty"),
        (registration("a b", resources(1, 1), Vec::new()), "a b"),
        (Register { report: None, ..good() }, "no report"),
        (registration("a", Resources { ports: ports(5, 4), ..resources(1, 1) }, Vec::new()), "5-4"),
        (registration("a", resources(1, 1), vec![huge(), huge()]), "add up"),
        (registration("a", resources(1, 1), vec![bad_ports()]), "9-8"),
    ];
    for (register, says) in cases {
        let mut world = World::new();
        let session = world.register(register);
        let closings = world.closings(session);
        assert!(
            matches!(closings.as_slice(), [Closing::Invalid(why)] if why.contains(says)),
            "{says}: {closings:?}"
        );
        assert!(world.core.list_agents().is_empty());
    }
}

#[test]
fn a_silent_agent_is_away_after_three_intervals_and_lost_after_its_timeout() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.call(framework, Call::Revive(bulkhead_proto::v1::Revive {}));
    let offer = world.one_offer(framework);
    world.pass(14_999, &[]);
    assert!(world.closings(agent).is_empty());
    world.pass(1, &[]);
    assert!(matches!(world.closings(agent).as_slice(), [Closing::Silent(_)]));
    assert_eq!(world.rescinded(framework), [offer.offer_id]);
    assert!(!world.core.list_agents()[0].connected);

    world.pass(59_999, &[]);
    assert!(world.updates(framework).is_empty(), "its tasks may still run");
    world.pass(1, &[]);
    let update = world.one_update(framework);
    assert_eq!((update.state(), update.reason()), (TaskState::Lost, TaskReason::AgentLost));
    assert_eq!(update.sequence, 0);
    assert!(world.core.list_agents().is_empty());
}

#[test]
fn anything_an_agent_says_counts_as_a_heartbeat() {
    let mut world = World::new();
    let agent = world.agent("a", resources(1_000, GB));
    world.pass(14_000, &[]);
    world.report(agent, measured(resources(1_000, GB), 2));
    world.pass(14_000, &[]);
    world.status(agent, "f", "t", TaskState::Running, 1);
    world.pass(14_000, &[]);
    assert!(world.closings(agent).is_empty());
}

#[test]
fn a_returning_agent_brings_its_tasks_and_loses_those_it_does_not_list() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    let refuse_ms = 3_600_000;
    world.accept_and_refuse(
        framework,
        &[&offer],
        vec![task("t1", 1_000, GB), task("t2", 1_000, GB)],
        refuse_ms,
    );
    world.status(agent, "f", "t1", TaskState::Running, 1);
    world.updates(framework);
    world.step(Event::SessionEnded { session: agent });

    let list = vec![listed("f", task("t1", 1_000, GB), TaskState::Finished, 2)];
    let agent = world.register(registration("a", resources(4_000, 4 * GB), list));
    let updates = world.updates(framework);
    let said: Vec<_> = updates.iter().map(|u| (u.task_id.as_str(), u.state(), u.sequence)).collect();
    assert_eq!(said, [("t1", TaskState::Finished, 2), ("t2", TaskState::Lost, 0)]);
    assert_eq!(world.core.parts(&"a".into()).unwrap().granted.pool, Resources::default());
    world.acknowledge(framework, "t1", 2);
    assert_eq!(world.acks(agent), [("t1".to_owned(), 2)]);
}

#[test]
fn a_launch_of_this_session_is_not_lost_by_a_report() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.report(agent, measured(resources(4_000, 4 * GB), 2));
    assert!(world.updates(framework).is_empty());
    assert_eq!(world.free("a"), resources(3_000, 3 * GB), "a launch on its way is not offered again");
}

#[test]
fn a_newer_session_replaces_the_older_one() {
    let mut world = World::new();
    let old = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    let new = world.agent("a", resources(2_000, 2 * GB));
    assert!(matches!(world.closings(old).as_slice(), [Closing::Replaced(_)]));
    assert_eq!(world.rescinded(framework), [offer.offer_id]);
    assert_eq!(got(&world.one_offer(framework)), resources(2_000, 2 * GB));
    world.step(Event::SessionEnded { session: old });
    world.report(old, measured(resources(9_000, 9 * GB), 9));
    assert!(world.core.list_agents()[0].connected, "the old stream's end is no news");
    assert!(world.rescinded(framework).is_empty());
    world.step(Event::SessionEnded { session: new });
    assert!(!world.core.list_agents()[0].connected);
}

#[test]
fn registering_twice_on_one_stream_ends_it() {
    let mut world = World::new();
    let agent = world.agent("a", resources(1, 1));
    let register = registration("a", resources(1, 1), Vec::new());
    world.step(Event::AgentSaid { session: agent, message: agent_message::Message::Register(register) });
    assert!(matches!(world.closings(agent).as_slice(), [Closing::Invalid(_)]));
}

#[test]
fn reports_out_of_sequence_are_ignored() {
    let mut world = World::new();
    let agent = world.agent("a", resources(1_000, GB));
    world.report(agent, measured(resources(3_000, GB), 5));
    world.report(agent, measured(resources(9_000, GB), 4));
    world.report(agent, measured(resources(8_000, GB), 5));
    assert_eq!(world.free("a"), resources(3_000, GB));
    world.report(agent, measured(Resources { ports: ports(0, 1), ..resources(7_000, GB) }, 6));
    assert_eq!(world.free("a"), resources(3_000, GB), "a report that makes no sense is ignored too");
}

#[test]
fn a_new_master_learns_tasks_and_frameworks_from_agents() {
    let mut world = World::new();
    let list = vec![listed("f", task("t", 1_000, GB), TaskState::Running, 2)];
    let agent = world.register(registration("a", resources(4_000, 4 * GB), list));
    assert_eq!(world.free("a"), resources(3_000, 3 * GB));
    let [entry] = world.core.list_frameworks().try_into().unwrap();
    assert_eq!((entry.framework_id.as_str(), entry.connected, entry.task_count), ("f", false, 1));

    let framework = world.framework("f");
    let update = world.one_update(framework);
    assert_eq!((update.state(), update.sequence), (TaskState::Running, 2));
    world.acknowledge(framework, "t", 2);
    assert_eq!(world.acks(agent), [("t".to_owned(), 2)]);
}

#[test]
fn a_framework_that_does_not_come_back_to_a_new_master_loses_its_tasks() {
    let mut world = World::new();
    let list = vec![listed("f", task("t", 1_000, GB), TaskState::Running, 2)];
    let agent = world.register(registration("a", resources(4_000, 4 * GB), list));
    world.pass(settings().failover_timeout_ms - 1, &[agent]);
    assert!(world.kills(agent).is_empty());
    world.pass(1, &[agent]);
    assert_eq!(world.kills(agent), [("t".to_owned(), TaskReason::FrameworkGone)]);
    world.status(agent, "f", "t", TaskState::Killed, 3);
    assert!(world.acks(agent).contains(&("t".to_owned(), 3)));
    assert!(world.core.list_frameworks().is_empty());
}

#[test]
fn an_agent_that_returns_after_its_tasks_were_lost_has_to_kill_them() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.step(Event::SessionEnded { session: agent });
    world.pass(settings().agent_timeout_ms, &[]);
    assert_eq!(world.one_update(framework).state(), TaskState::Lost);

    let list = vec![listed("f", task("t", 1_000, GB), TaskState::Running, 1)];
    let agent = world.register(registration("a", resources(4_000, 4 * GB), list));
    assert_eq!(world.kills(agent), [("t".to_owned(), TaskReason::AgentLost)]);
    let rest = got(&world.one_offer(framework));
    assert_eq!(rest, resources(3_000, 3 * GB), "until it has ended it holds what it holds");
    world.status(agent, "f", "t", TaskState::Killed, 2);
    assert!(world.updates(framework).is_empty(), "the framework was told of one end already");
    assert_eq!(world.acks(agent), [("t".to_owned(), 1), ("t".to_owned(), 2)]);
    assert_eq!(got(&world.one_offer(framework)), resources(1_000, GB));
}

#[test]
fn a_refused_launch_does_not_end_the_task_that_has_the_id_already() {
    let mut world = World::new();
    let framework = world.framework("f");
    world.accept(framework, &[], vec![task("t", 1_000, GB)]);
    assert_eq!(world.one_update(framework).state(), TaskState::Rejected);
    let list = vec![listed("f", task("t", 1_000, GB), TaskState::Running, 1)];
    let agent = world.register(registration("a", resources(4_000, 4 * GB), list));
    assert!(world.kills(agent).is_empty());
    assert_eq!(world.one_update(framework).state(), TaskState::Running);
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Running));
}

#[test]
fn a_refused_launch_does_not_bring_a_lost_task_back() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.step(Event::SessionEnded { session: agent });
    world.pass(settings().agent_timeout_ms, &[]);
    world.accept(framework, &[], vec![task("t", 1_000, GB)]);
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Rejected));
    let list = vec![listed("f", task("t", 1_000, GB), TaskState::Running, 1)];
    let agent = world.register(registration("a", resources(4_000, 4 * GB), list));
    assert_eq!(world.kills(agent), [("t".to_owned(), TaskReason::AgentLost)]);
}

#[test]
fn the_first_agent_with_a_task_keeps_it() {
    let mut world = World::new();
    let framework = world.framework("f");
    let list = || vec![listed("f", task("t", 1_000, GB), TaskState::Running, 1)];
    world.register(registration("a", resources(4_000, 4 * GB), list()));
    let second = world.register(registration("b", resources(4_000, 4 * GB), list()));
    assert_eq!(world.kills(second), [("t".to_owned(), TaskReason::AgentRestarted)]);
    world.status(second, "f", "t", TaskState::Killed, 2);
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Running));
    assert_eq!(world.updates(framework).len(), 1);
}

#[test]
fn a_listed_task_without_an_id_is_passed_over() {
    let mut world = World::new();
    let list = vec![listed("", task("t", 1, 1), TaskState::Running, 1), Task::default()];
    world.register(registration("a", resources(4_000, 4 * GB), list));
    assert!(all_ids(&world.core).is_empty());
    let warned = world.take(|e| matches!(e, Effect::Log { severity: Severity::Warn, .. }).then_some(()));
    assert_eq!(warned.len(), 2);
}

#[test]
fn grants_count_even_where_they_exceed_what_the_agent_reports() {
    let mut world = World::new();
    let list = vec![listed("f", task("t", 3_000, GB), TaskState::Running, 1)];
    let mut register = registration("a", resources(2_000, 4 * GB), list);
    register.report.as_mut().unwrap().reserve = Some(resources(1_000, 4 * GB));
    world.register(register);
    let parts = world.core.parts(&"a".into()).unwrap();
    assert_eq!(parts.capacity.pool, resources(3_000, 4 * GB));
    assert_eq!(parts.reserve, resources(0, 3 * GB));
    assert_eq!(parts.free.pool, Resources::default());
}

#[test]
fn an_unchanged_node_confirms_the_picture_and_offers_nothing_anew() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    world.report(agent, measured(resources(5_000, 4 * GB), 2));
    world.offers(framework);
    world.pass(3_000, &[agent]);
    let before = world.core.list_agents();
    assert_eq!(before[0].confirmed_unix_ms, START_MS);
    world.unchanged(agent, 2);
    let [entry] = world.core.list_agents().try_into().unwrap();
    assert_eq!(entry.confirmed_unix_ms, START_MS + 3_000);
    assert_eq!(entry.report, before[0].report);
    assert!(world.offers(framework).is_empty(), "nothing is new");
    assert!(!world.rescinded(framework).contains(&offer.offer_id));
    assert_eq!(world.reports_asked(agent), 0);
}

#[test]
fn an_agent_that_confirms_another_report_than_the_masters_is_asked_for_a_whole_one() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    world.pass(1_000, &[agent]);
    for sequence in [0, 2, u64::MAX] {
        world.unchanged(agent, sequence);
        assert_eq!(world.reports_asked(agent), 1, "{sequence}");
    }
    assert_eq!(world.core.list_agents()[0].confirmed_unix_ms, START_MS, "not confirmed");
    let mut refused = measured(resources(1, 1), 2);
    refused.reserve = Some(Resources { ports: ports(9, 8), ..Resources::default() });
    world.report(agent, refused);
    world.unchanged(agent, 2);
    assert_eq!(world.reports_asked(agent), 1, "a report that was refused is no picture");
    world.report(agent, measured(resources(1_000, GB), 3));
    world.unchanged(agent, 3);
    assert_eq!(world.reports_asked(agent), 0);
    assert_eq!(world.core.list_agents()[0].confirmed_unix_ms, START_MS + 1_000);
}

#[test]
fn an_agent_that_only_confirms_is_not_silent() {
    let mut world = World::new();
    let agent = world.agent("a", resources(1_000, GB));
    for _ in 0..10 {
        world.pass(4_000, &[]);
        world.unchanged(agent, 1);
    }
    assert!(world.core.list_agents()[0].connected);
}
