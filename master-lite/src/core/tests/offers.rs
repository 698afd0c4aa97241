//! Offers: who gets them, what an accept may do with them, how they end.

use bulkhead_proto::v1::{NodePressure, NumaNode, Origin};

use super::*;
use crate::ids::MAX_WAIT_MS;

/// The worked example of the Mesos papers: one framework takes a part, another is offered the rest.
#[test]
fn what_one_framework_leaves_is_offered_to_the_next() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let first = world.framework("first");
    let second = world.framework("second");
    let offer = world.one_offer(first);
    assert_eq!(got(&offer), resources(4_000, 4 * GB));
    assert!(world.offers(second).is_empty(), "nothing is offered twice");

    world.accept(first, &[&offer], vec![task("t1", 2_000, GB), task("t2", 1_000, 2 * GB)]);
    assert_eq!(world.launches(agent).len(), 2);
    assert_eq!(got(&world.one_offer(second)), resources(1_000, GB));
    assert!(world.offers(first).is_empty());
}

#[test]
fn an_offer_is_accepted_once() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    world.accept(framework, &[&offer], vec![task("t1", 1_000, GB)]);
    world.accept(framework, &[&offer], vec![task("t2", 1_000, GB)]);
    let launched = world.launches(agent);
    assert_eq!(launched.len(), 1);
    let update = world.one_update(framework);
    assert_eq!((update.task_id.as_str(), update.state()), ("t2", TaskState::Rejected));
    assert_eq!((update.reason(), update.sequence), (TaskReason::OfferGone, 0));
    assert!(update.message.contains(&offer.offer_id), "{}", update.message);
}

#[test]
fn a_rescinded_offer_cannot_be_accepted() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    world.step(Event::SessionEnded { session: agent });
    assert_eq!(world.rescinded(framework), std::slice::from_ref(&offer.offer_id));
    world.accept(framework, &[&offer], vec![task("t", 1_000, GB)]);
    assert_eq!(world.one_update(framework).reason(), TaskReason::OfferGone);
}

#[test]
fn an_offer_of_somebody_else_cannot_be_accepted_and_stays_theirs() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let owner = world.framework("owner");
    let thief = world.framework("thief");
    let offer = world.one_offer(owner);
    world.accept(thief, &[&offer], vec![task("t", 1_000, GB)]);
    assert_eq!(world.one_update(thief).reason(), TaskReason::OfferGone);
    world.accept(owner, &[&offer], vec![task("t", 1_000, GB)]);
    assert_eq!(world.launches(agent).len(), 1);
}

#[test]
fn one_gone_offer_spoils_the_accept_and_the_others_go_back() {
    let mut world = World::new();
    world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    let gone = Offer { offer_id: "never-was".into(), ..Offer::default() };
    world.accept(framework, &[&offer, &gone], vec![task("t", 1_000, GB)]);
    let update = world.one_update(framework);
    assert_eq!(update.reason(), TaskReason::OfferGone);
    assert!(
        update.message.contains("never-was") && !update.message.contains(&offer.offer_id),
        "{}",
        update.message
    );
    assert_eq!(got(&world.one_offer(framework)), resources(4_000, 4 * GB));
}

#[test]
fn an_accept_without_an_offer_launches_nothing() {
    let mut world = World::new();
    let framework = world.framework("f");
    world.accept(framework, &[], vec![task("t", 1_000, GB)]);
    assert_eq!(world.one_update(framework).reason(), TaskReason::OfferGone);
}

#[test]
fn a_task_that_does_not_fit_says_by_how_much_and_does_not_stop_the_next() {
    let mut world = World::new();
    let capacity = Resources { ports: ports(31_000, 31_009), ..resources(4_000, 4 * GB) };
    let agent = world.agent("a", capacity);
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    let big = with_ports(task("big", 5_000, 5 * GB), ports(31_005, 31_012));
    world.accept(framework, &[&offer], vec![task("small", 3_000, GB), big, task("last", 1_000, GB)]);
    let update = world.one_update(framework);
    assert_eq!((update.task_id.as_str(), update.reason()), ("big", TaskReason::ExceedsOffer));
    for part in [
        "5000 thousandths of a CPU of 1000",
        &format!("{} bytes of memory of {} left", 5 * GB, 3 * GB),
        "31010-31012",
    ] {
        assert!(update.message.contains(part), "{part}: {}", update.message);
    }
    let launched: Vec<_> = world.launches(agent).into_iter().map(|l| l.task.unwrap().task_id).collect();
    assert_eq!(launched, ["small", "last"]);
}

#[test]
fn two_tasks_cannot_take_the_same_port() {
    let mut world = World::new();
    let agent = world.agent("a", Resources { ports: ports(80, 81), ..resources(4_000, 4 * GB) });
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    let tasks = vec![
        with_ports(task("one", 1_000, GB), ports(80, 80)),
        with_ports(task("two", 1_000, GB), ports(80, 80)),
    ];
    world.accept(framework, &[&offer], tasks);
    assert_eq!(world.launches(agent).len(), 1);
    assert_eq!(world.one_update(framework).reason(), TaskReason::ExceedsOffer);
}

#[test]
fn offers_of_two_agents_cannot_be_joined_but_two_of_one_agent_can() {
    let mut world = World::new();
    let agent = world.agent("a", resources(2_000, 2 * GB));
    world.agent("b", resources(2_000, 2 * GB));
    let framework = world.framework("f");
    let [a, b] = world.offers(framework).try_into().unwrap();
    world.accept(framework, &[&a, &b], vec![task("t", 3_000, GB)]);
    let update = world.one_update(framework);
    assert_eq!(update.reason(), TaskReason::InvalidGrant);
    assert!(update.message.contains("a and b"), "{}", update.message);

    let [a, _] = world.offers(framework).try_into().unwrap();
    world.report(agent, measured(resources(3_000, 3 * GB), 2));
    let more = world.one_offer(framework);
    assert_eq!(got(&more), resources(1_000, GB));
    world.accept(framework, &[&a, &more], vec![task("t", 3_000, 3 * GB)]);
    assert_eq!(world.launches(agent).len(), 1);
}

#[test]
fn malformed_tasks_are_rejected_with_what_to_do() {
    let good = || task("t", 1_000, GB);
    let no_grant = TaskSpec { grant: None, ..good() };
    let mut no_class = good();
    no_class.grant.as_mut().unwrap().class = 0;
    let cases = [
        (TaskSpec { argv: Vec::new(), ..good() }, TaskReason::InvalidTask, "argv"),
        (TaskSpec { argv: vec![String::new()], ..good() }, TaskReason::InvalidTask, "argv"),
        (TaskSpec { argv: vec!["a\0b".into()], ..good() }, TaskReason::InvalidTask, "zero byte"),
        (TaskSpec { argv: vec!["x".repeat(300_000)], ..good() }, TaskReason::InvalidTask, "files"),
        (TaskSpec { env: [("A=B".into(), "c".into())].into(), ..good() }, TaskReason::InvalidTask, "A=B"),
        (TaskSpec { task_id: String::new(), ..good() }, TaskReason::InvalidTask, "empty"),
        (TaskSpec { task_id: "..".into(), ..good() }, TaskReason::InvalidTask, "starts with"),
        (TaskSpec { task_id: ".x".into(), ..good() }, TaskReason::InvalidTask, "starts with"),
        (TaskSpec { task_id: "a/b".into(), ..good() }, TaskReason::InvalidTask, "A-Z"),
        (TaskSpec { task_id: "x".repeat(101), ..good() }, TaskReason::InvalidTask, "101"),
        (no_grant, TaskReason::InvalidGrant, "no resources"),
        (no_class, TaskReason::InvalidGrant, "GUARANTEED"),
        (task("t", 0, 0), TaskReason::InvalidGrant, "neither CPU nor memory"),
        (with_ports(good(), ports(0, 5)), TaskReason::InvalidGrant, "0-5"),
        (with_ports(good(), ports(70_000, 70_000)), TaskReason::InvalidGrant, "70000"),
        (revocable(good()), TaskReason::InvalidGrant, "revocable"),
    ];
    for (spec, reason, says) in cases {
        let mut world = World::new();
        let agent = world.agent("a", resources(4_000, 4 * GB));
        let framework = world.framework("f");
        let offer = world.one_offer(framework);
        world.accept(framework, &[&offer], vec![spec]);
        let update = world.one_update(framework);
        assert_eq!((update.state(), update.reason()), (TaskState::Rejected, reason), "{}", update.message);
        assert!(update.message.contains(says), "{says}: {}", update.message);
        assert!(world.launches(agent).is_empty());
    }
}

#[test]
fn a_live_task_id_is_not_given_twice() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.call(framework, Call::Revive(bulkhead_proto::v1::Revive {}));
    let offer = world.one_offer(framework);
    world.accept(framework, &[&offer], vec![task("t", 1_000, GB), TaskSpec::default()]);
    let malformed = TaskSpec { argv: Vec::new(), ..task("t", 1_000, GB) };
    world.accept(framework, &[], vec![malformed]);
    assert_eq!(world.one_update(framework).task_id, "", "no status about the live task");
    let errors = world.errors(framework);
    assert!(errors.len() == 2 && errors.iter().all(|e| e.contains("\"t\" was not launched")), "{errors:?}");
    assert!(world.launches(agent).is_empty());
    assert_eq!(world.state_of("f", "t"), Some(TaskState::Staging));
}

#[test]
fn a_declined_agent_comes_again_when_the_refusal_is_over() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    world.decline(framework, &offer, 20_000);
    world.pass(19_999, &[agent]);
    assert!(world.offers(framework).is_empty());
    world.pass(1, &[agent]);
    world.one_offer(framework);
}

#[test]
fn a_decline_without_a_time_takes_the_default() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    world.decline(framework, &offer, 0);
    world.pass(settings().refuse_ms - 1, &[agent]);
    assert!(world.offers(framework).is_empty());
    world.pass(1, &[agent]);
    world.one_offer(framework);
}

#[test]
fn a_refusal_ends_within_a_year() {
    let mut world = World::new();
    world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    world.decline(framework, &offer, u64::MAX);
    world.now.0 += MAX_WAIT_MS;
    world.agent("a", resources(4_000, 4 * GB));
    world.one_offer(framework);
}

#[test]
fn a_declined_agent_goes_to_the_next_framework_at_once() {
    let mut world = World::new();
    world.agent("a", resources(4_000, 4 * GB));
    let first = world.framework("first");
    let second = world.framework("second");
    let offer = world.one_offer(first);
    world.decline(first, &offer, 20_000);
    world.one_offer(second);
}

#[test]
fn a_refusal_holds_against_flutter_but_not_against_news() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    world.decline(framework, &offer, 600_000);
    world.report(agent, measured(resources(4_000, 4 * GB + 4096), 2));
    assert!(world.offers(framework).is_empty());
    world.report(agent, measured(resources(5_000, 4 * GB), 3));
    assert_eq!(got(&world.one_offer(framework)), resources(5_000, 4 * GB));
}

#[test]
fn revive_drops_refusals() {
    let mut world = World::new();
    world.agent("a", resources(4_000, 4 * GB));
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    world.decline(framework, &offer, 600_000);
    assert!(world.offers(framework).is_empty());
    world.call(framework, Call::Revive(bulkhead_proto::v1::Revive {}));
    world.one_offer(framework);
}

#[test]
fn an_unanswered_offer_is_taken_back_and_goes_to_somebody_else() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let sleeper = world.framework("sleeper");
    let other = world.framework("other");
    let offer = world.one_offer(sleeper);
    world.pass(settings().offer_timeout_ms - 1, &[agent]);
    assert!(world.rescinded(sleeper).is_empty());
    world.pass(1, &[agent]);
    assert_eq!(world.rescinded(sleeper), [offer.offer_id]);
    world.one_offer(other);
    assert!(world.offers(sleeper).is_empty());
}

#[test]
fn the_end_of_a_task_is_offered_in_the_same_step() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.status(agent, "f", "t", TaskState::Finished, 1);
    assert_eq!(got(&world.one_offer(framework)), resources(4_000, 4 * GB));
}

#[test]
fn less_than_the_minimum_is_not_offered() {
    let mut world = World::new();
    let minimum = Some(resources(3_000, GB));
    let picky = world.subscribe(FrameworkInfo { minimum, ..FrameworkInfo::default() });
    world.agent("small", resources(2_000, 8 * GB));
    assert!(world.offers(picky).is_empty());
    world.agent("large", resources(3_000, GB));
    assert_eq!(got(&world.one_offer(picky)), resources(3_000, GB));
}

#[test]
fn the_newest_offers_go_first_when_an_agent_shrinks() {
    let mut world = World::new();
    let agent = world.agent("a", resources(2_000, 2 * GB));
    let framework = world.framework("f");
    let first = world.one_offer(framework);
    world.report(agent, measured(resources(4_000, 4 * GB), 2));
    let second = world.one_offer(framework);
    let reserve = Some(resources(1_000, 0));
    world.report(agent, ResourceReport { reserve, ..measured(resources(4_000, 4 * GB), 3) });
    assert_eq!(world.rescinded(framework), [second.offer_id]);
    assert_eq!(got(&world.one_offer(framework)), resources(1_000, 2 * GB));
    let reserve = Some(resources(3_000, 0));
    world.report(agent, ResourceReport { reserve, ..measured(resources(4_000, 4 * GB), 4) });
    assert!(world.rescinded(framework).contains(&first.offer_id));
    world.report(agent, measured(resources(0, 0), 5));
    assert_eq!(world.core.offers.len(), 0);
}

fn revocable_framework(world: &mut World, id: &str, classes: &[ResourceClass]) -> SessionId {
    let classes = classes.iter().map(|c| i32::from(*c)).collect();
    world.subscribe(FrameworkInfo { framework_id: id.into(), classes, ..FrameworkInfo::default() })
}

fn lending(id: &str, revocable_cpu_milli: u64) -> Register {
    let capacity = Resources { ports: ports(1, 8), ..resources(3_000, 4 * GB) };
    let report = Some(ResourceReport { revocable_cpu_milli, ..measured(capacity, 1) });
    Register { report, ..registration(id, Resources::default(), Vec::new()) }
}

#[test]
fn guaranteed_and_revocable_never_share_an_offer() {
    let mut world = World::new();
    let classes = [ResourceClass::Guaranteed, ResourceClass::Revocable];
    let both = revocable_framework(&mut world, "both", &classes);
    let agent = world.register(lending("a", 1_000));
    let [firm, lent] = world.offers(both).try_into().unwrap();
    assert_eq!((firm.class(), lent.class()), (ResourceClass::Guaranteed, ResourceClass::Revocable));
    assert_eq!(got(&firm), Resources { ports: ports(1, 6), ..resources(3_000, 3 * GB) });
    assert_eq!(got(&lent), Resources { ports: ports(7, 8), ..resources(1_000, GB) });

    world.accept(both, &[&lent], vec![revocable(task("r", 600, GB)), task("g", 100, 0)]);
    assert_eq!(world.launches(agent).len(), 1);
    assert_eq!(world.one_update(both).reason(), TaskReason::InvalidGrant);
    let parts = world.core.parts(&"a".into()).unwrap();
    assert_eq!(parts.granted.revocable_cpu_milli, 600);
    assert_eq!(parts.granted.pool, resources(0, GB));
}

#[test]
fn less_to_lend_rescinds_revocable_offers_only() {
    let mut world = World::new();
    let classes = [ResourceClass::Guaranteed, ResourceClass::Revocable];
    let both = revocable_framework(&mut world, "both", &classes);
    let agent = world.register(lending("a", 1_000));
    let [_firm, lent] = world.offers(both).try_into().unwrap();
    let mut less = lending("a", 500).report.unwrap();
    less.sequence = 2;
    world.report(agent, less);
    assert_eq!(world.rescinded(both), [lent.offer_id]);
}

#[test]
fn a_framework_that_wants_no_revocable_offers_gets_none() {
    let mut world = World::new();
    let firm = world.framework("firm");
    world.register(lending("a", 1_000));
    assert_eq!(world.one_offer(firm).class(), ResourceClass::Guaranteed);
    let lent = revocable_framework(&mut world, "lent", &[ResourceClass::Revocable]);
    let offer = world.one_offer(lent);
    assert_eq!((offer.class(), got(&offer)), (ResourceClass::Revocable, resources(1_000, 0)));
}

#[test]
fn an_offer_says_what_its_agent_measured_last() {
    let mut world = World::new();
    let agent = world.agent("a", resources(1_000, GB));
    let node = NumaNode { node: 1, free_cores: 3, mem_free_bytes: GB, ..NumaNode::default() };
    let pressure = Some(NodePressure { io_some_permille: 70, ..NodePressure::default() });
    let origin =
        Origin { floor: Some(resources(100, 1)), predicted_peak_cpu_milli: Some(7), ..Origin::default() };
    let report = ResourceReport {
        numa: vec![node],
        origin: Some(origin.clone()),
        pressure,
        runqueue_p99_usec: Some(2048),
        ..measured(resources(1_000, GB), 2)
    };
    world.report(agent, report);
    let framework = world.framework("f");
    let offer = world.one_offer(framework);
    assert_eq!((offer.numa, offer.origin), (vec![node], Some(origin)));
    assert_eq!((offer.pressure, offer.runqueue_p99_usec), (pressure, Some(2048)));
}

/// The other worked example of the papers.
#[test]
fn one_framework_takes_two_tasks_and_the_rest_of_the_agent_goes_to_others() {
    let mut world = World::new();
    let agent = world.agent("a", resources(8_000, 32 * GB));
    let first = world.framework("first");
    let [second, third] = ["second", "third"].map(|name| world.framework(name));
    let offer = world.one_offer(first);
    world.accept(first, &[&offer], vec![task("t1", 2_000, 8 * GB), task("t2", 2_000, 8 * GB)]);
    assert_eq!(world.launches(agent).len(), 2);
    let rest = [second, third].map(|other| got(&world.one_offer(other)));
    assert_eq!(rest[0].plus(&rest[1]), resources(4_000, 16 * GB));
    assert!(rest.iter().all(|r| r.cpu_milli >= 1_000) && world.offers(first).is_empty(), "{rest:?}");
}

#[test]
fn an_agent_that_several_wait_for_is_divided() {
    let mut world = World::new();
    let frameworks = ["f", "g"].map(|name| world.framework(name));
    world.agent("a", Resources { ports: ports(1, 10), ..resources(4_000, 4 * GB) });
    let [f, g] = frameworks.map(|framework| got(&world.one_offer(framework)));
    assert_eq!(f, Resources { ports: ports(1, 5), ..resources(2_000, 2 * GB) });
    assert_eq!(g, Resources { ports: ports(6, 10), ..resources(2_000, 2 * GB) });
}

#[test]
fn a_guarantee_of_a_role_waits_for_its_framework() {
    let mut world = World::new();
    let mut guarantee = crate::allocator::Bundle::default();
    guarantee.0[crate::allocator::CPU] = 3_000;
    let settings = crate::allocator::RoleSettings { guarantee, ..Default::default() };
    world.core.allocator.set_role("promised", settings);
    world.agent("a", resources(4_000, 4 * GB));
    let greedy = world.framework("greedy");
    assert_eq!(got(&world.one_offer(greedy)), resources(1_000, 4 * GB));
    let promised = FrameworkInfo { role: "promised/below".into(), ..FrameworkInfo::default() };
    let promised = world.subscribe(promised);
    assert_eq!(got(&world.one_offer(promised)), resources(3_000, 0));
}
