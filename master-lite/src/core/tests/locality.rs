//! Data sets that frameworks name, and what agents answer about them.

use bulkhead_proto::v1::{DataAccess, DataAccessChanged, DataAccessReport, NameDataSets, WatchDataSets};

use super::*;

impl World {
    fn naming(&mut self, id: &str, data_sets: &[&str]) -> SessionId {
        self.subscribe(FrameworkInfo {
            framework_id: id.into(),
            data_sets: data_sets.iter().map(|name| (*name).to_owned()).collect(),
            ..FrameworkInfo::default()
        })
    }

    fn name(&mut self, framework: SessionId, data_sets: &[&str]) {
        let data_sets = data_sets.iter().map(|name| (*name).to_owned()).collect();
        self.call(framework, Call::NameDataSets(NameDataSets { data_sets }));
    }

    fn measured(&mut self, agent: SessionId, answers: &[(&str, u64)]) {
        let access = |(name, usec): &(&str, u64)| DataAccess {
            data_set: (*name).to_owned(),
            access_usec: *usec,
            ..DataAccess::default()
        };
        let report = DataAccessReport { data_access: answers.iter().map(access).collect() };
        self.step(Event::AgentSaid { session: agent, message: agent_message::Message::DataAccess(report) });
    }

    fn watched(&mut self, agent: SessionId) -> Vec<(String, Vec<String>)> {
        self.told(agent, |m| match m {
            master_message::Message::WatchDataSets(WatchDataSets { framework_id, data_sets }) => {
                Some((framework_id.clone(), data_sets.clone()))
            }
            _ => None,
        })
    }

    fn changes(&mut self, to: SessionId) -> Vec<DataAccessChanged> {
        self.take(|effect| match effect {
            Effect::ToScheduler { session, event: scheduler_event::Event::DataAccess(changed) }
                if *session == to =>
            {
                Some(changed.clone())
            }
            _ => None,
        })
    }
}

/// Name, cost, and whether it is known.
fn costs(access: &[DataAccess]) -> Vec<(&str, u64, bool)> {
    access.iter().map(|a| (a.data_set.as_str(), a.access_usec, a.error.is_empty())).collect()
}

fn names(id: &str, data_sets: &[&str]) -> (String, Vec<String>) {
    (id.to_owned(), data_sets.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn agents_hear_what_is_named_and_offers_say_what_they_answered() {
    let mut world = World::new();
    let first = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.naming("f", &["/x", "/y"]);
    assert_eq!(world.watched(first), [names("f", &["/x", "/y"])]);
    let offer = world.one_offer(framework);
    assert_eq!(costs(&offer.data_access), [("/x", 0, false), ("/y", 0, false)], "no answer yet");

    world.measured(first, &[("/y", 7), ("/nobody-asked", 9)]);
    let changes = world.changes(framework);
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].agent_id.as_str(), costs(&changes[0].data_access)), ("a", vec![("/y", 7, true)]));
    assert!(!world.core.inventory.get(&"a".into()).unwrap().data_access.contains_key("/nobody-asked"));
    let listed = world.core.list_offers();
    assert_eq!(costs(&listed[0].data_access), [("/x", 0, false), ("/y", 7, true)]);

    // A later agent is told at once, and a later offer has the answer.
    let second = world.agent("b", resources(1_000, GB));
    assert_eq!(world.watched(second), [names("f", &["/x", "/y"])]);
    world.decline(framework, &offer, 1);
    world.offers(framework);
    world.measured(first, &[("/x", 5)]);
    assert_eq!(world.changes(framework), [], "it holds no offer of that agent");
    world.pass(10, &[]);
    let offers = world.offers(framework);
    let again = offers.iter().find(|o| o.agent.as_ref().unwrap().agent_id == "a").unwrap();
    assert_eq!(costs(&again.data_access), [("/x", 5, true), ("/y", 7, true)]);
}

#[test]
fn what_is_named_anew_takes_the_place_of_what_was() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.naming("f", &["/x"]);
    let other = world.naming("g", &["/x"]);
    world.watched(agent);
    world.measured(agent, &[("/x", 5)]);
    world.name(framework, &["/z"]);
    assert_eq!(world.watched(agent), [names("f", &["/z"])]);
    world.name(framework, &["/z"]);
    assert_eq!(world.watched(agent), [], "nothing new");
    let known = |world: &World| world.core.inventory.get(&"a".into()).unwrap().data_access.len();
    assert_eq!(known(&world), 1, "the other still asks");
    world.step(Event::SessionEnded { session: other });
    assert_eq!(world.watched(agent), [names("g", &[])], "nobody listens");
    assert_eq!(known(&world), 0);
    world.naming("g", &["/x"]);
    assert_eq!(world.watched(agent), [names("g", &["/x"])]);
    world.call(framework, Call::Teardown(bulkhead_proto::v1::Teardown {}));
    assert_eq!(world.watched(agent), [names("f", &[])]);
}

#[test]
fn an_agent_that_comes_back_is_asked_again() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.naming("f", &["/x"]);
    world.measured(agent, &[("/x", 5)]);
    let again = world.agent("a", resources(4_000, 4 * GB));
    assert_eq!(world.watched(again), [names("f", &["/x"])]);
    world.offers(framework);
    assert_eq!(costs(&world.core.list_offers()[0].data_access), [("/x", 0, false)], "it may be another disk");
    // What the older stream still says does not count.
    world.measured(agent, &[("/x", 6)]);
    assert_eq!(costs(&world.core.list_offers()[0].data_access), [("/x", 0, false)]);
}

#[test]
fn impossible_names_are_refused() {
    let mut world = World::new();
    let agent = world.agent("a", resources(4_000, 4 * GB));
    let framework = world.naming("f", &[]);
    assert_eq!(world.watched(agent), []);
    world.name(framework, &["/x\0"]);
    assert!(world.errors(framework)[0].contains("zero byte"));
    world.name(framework, &[&"/x".repeat(4000)]);
    assert!(world.errors(framework)[0].contains("4096"));
    world.name(framework, &["/x"; 65]);
    assert!(world.errors(framework)[0].contains("at most 64"));
    assert_eq!(world.watched(agent), []);
    let refused = world.naming("g", &[""]);
    let why = world.closings(refused);
    assert!(matches!(&why[..], [Closing::Invalid(why)] if why.contains("empty")), "{why:?}");
}

#[test]
fn a_long_error_is_cut_and_many_offers_come_in_several_messages() {
    let mut world = World::new();
    for number in 0..100 {
        world.agent(&format!("a{number:02}"), resources(1_000, GB));
    }
    let long: Vec<_> = (0..8).map(|n| format!("/{n}{}", "x".repeat(4090))).collect();
    let long: Vec<_> = long.iter().map(String::as_str).collect();
    let framework = world.naming("f", &long);
    let messages = world.events(framework);
    let sizes: Vec<_> = messages
        .iter()
        .filter_map(|event| match event {
            scheduler_event::Event::Offers(offers) => {
                Some((offers.offers.len(), prost::Message::encoded_len(offers)))
            }
            _ => None,
        })
        .collect();
    assert_eq!(sizes.iter().map(|(offers, _)| offers).sum::<usize>(), 100);
    assert!(sizes.len() > 1 && sizes.iter().all(|(_, bytes)| *bytes <= 2 << 20), "{sizes:?}");

    world.name(framework, &["/x"]);
    let agent = world.core.inventory.session_of(&"a00".into()).unwrap();
    let access = DataAccess { data_set: "/x".into(), error: "é".repeat(1000), ..DataAccess::default() };
    let report = DataAccessReport { data_access: vec![access] };
    world.step(Event::AgentSaid { session: agent, message: agent_message::Message::DataAccess(report) });
    let changes = world.changes(framework);
    assert_eq!(changes[0].data_access[0].error, "é".repeat(128));
}
