//! Whatever happens, in whatever order, with whatever content: the books balance and tasks end once.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::{
    resources::PortSet,
    v1::{
        Amounts, Detach, ExplainFrameworkRequest, ResizeTask, ResizeTaskRequest, Resized, Revive,
        SetRoleRequest, StopTaskRequest, Subscribe, Teardown, Unchanged,
    },
};
use proptest::prelude::*;

use super::*;
use crate::{
    allocator::{Bundle, Totals},
    ids::RequestId,
    tasks::is_terminal,
};

const SESSIONS: u64 = 12;

/// Amounts small enough to share an agent, and a few that no machine has.
fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![30 => 0u64..2_000, 1 => Just(u64::MAX), 1 => Just(64u64 << 20)]
}

fn any_ports() -> impl Strategy<Value = Vec<PortRange>> {
    let numbers = prop_oneof![40 => (1u32..40, 0u32..4), 1 => (0u32..70_000, 0u32..70_000)];
    let protocol = prop_oneof![20 => 0i32..3, 1 => Just(7)];
    let range = |((first, n), protocol)| PortRange { first, last: first + n, protocol };
    prop::collection::vec((numbers, protocol).prop_map(range), 0..3)
}

fn any_resources() -> impl Strategy<Value = Resources> {
    (amount(), amount(), any_ports()).prop_map(|(cpu_milli, mem_bytes, ports)| Resources {
        cpu_milli,
        mem_bytes,
        ports,
        ..Resources::default()
    })
}

/// Mostly large, so that there is something to offer.
fn any_capacity() -> impl Strategy<Value = Resources> {
    let large =
        any_resources().prop_map(|r| r.plus(&Resources { ports: ports(1, 30), ..resources(4_000, 4_000) }));
    prop_oneof![4 => large, 1 => any_resources()]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![10 => Just("x"), 10 => Just("y"), 10 => Just("z"), 1 => Just("..")].prop_map(str::to_owned)
}

fn any_class() -> impl Strategy<Value = i32> {
    prop_oneof![20 => Just(1), 10 => Just(2), 1 => Just(0), 1 => Just(3)]
}

/// Mostly little enough to fit into an offer.
fn any_task() -> impl Strategy<Value = TaskSpec> {
    let little = (0u64..800, 0u64..800).prop_map(|(cpu_milli, mem_bytes)| resources(cpu_milli, mem_bytes));
    (name(), prop_oneof![3 => little, 1 => any_resources()], any_class(), prop::bool::weighted(0.95))
        .prop_map(|(task_id, resources, class, runs)| {
            let grant = Grant { resources: Some(resources), class, ..Grant::default() };
            let argv = if runs { vec!["/bin/true".to_owned()] } else { Vec::new() };
            TaskSpec { task_id, argv, grant: Some(grant), ..TaskSpec::default() }
        })
}

fn any_status() -> impl Strategy<Value = TaskStatus> {
    (name(), name(), 0i32..9, 0u64..6).prop_map(|(f, t, state, sequence)| TaskStatus {
        state,
        ..status(&f, &t, TaskState::Staging, sequence)
    })
}

fn any_report() -> impl Strategy<Value = ResourceReport> {
    (any_capacity(), any_resources(), amount(), 0u64..20).prop_map(|(capacity, reserve, lent, sequence)| {
        let revocable_cpu_milli = lent;
        ResourceReport { reserve: Some(reserve), revocable_cpu_milli, ..measured(capacity, sequence) }
    })
}

fn any_register() -> impl Strategy<Value = Register> {
    let listed = (any_task(), any_status()).prop_map(|(spec, status)| Task {
        framework_id: status.framework_id.clone(),
        spec: Some(spec),
        status: Some(status),
        ..Task::default()
    });
    (name(), any_report(), prop::collection::vec(listed, 0..4)).prop_map(|(id, report, tasks)| Register {
        report: Some(report),
        ..registration(&id, resources(0, 0), tasks)
    })
}

fn any_framework() -> impl Strategy<Value = FrameworkInfo> {
    let minimum = prop_oneof![9 => Just(None), 1 => any_resources().prop_map(Some)];
    (name(), any_role(), prop::collection::vec(any_class(), 0..3), 0u64..40_000, minimum).prop_map(
        |(framework_id, role, classes, failover_timeout_ms, minimum)| FrameworkInfo {
            framework_id,
            role,
            classes,
            failover_timeout_ms,
            minimum,
            ..FrameworkInfo::default()
        },
    )
}

/// The one that frameworks have by default, some in each other, and a few that are none.
fn any_role() -> impl Strategy<Value = String> {
    const GOOD: [&str; 7] = ["", "default", "a", "a/b", "a/b/c", "a/d", "e"];
    const BAD: [&str; 4] = ["/", "a//b", "..", "a/"];
    prop_oneof![20 => prop::sample::select(&GOOD[..]), 1 => prop::sample::select(&BAD[..])]
        .prop_map(str::to_owned)
}

/// Roles change while frameworks come and go, mostly to what they can.
fn any_role_change() -> impl Strategy<Value = SetRoleRequest> {
    let weight = prop_oneof![9 => 0.5f64..4.0, 1 => prop::num::f64::ANY];
    let kind =
        prop_oneof![10 => Just("cpu_milli"), 10 => Just("mem_bytes"), 5 => Just("ports"), 1 => Just("cores")];
    let amounts = |most| {
        let amount = prop_oneof![20 => 0u64..most, 1 => Just(u64::MAX)];
        let kinds = prop::collection::btree_map(kind.clone().prop_map(str::to_owned), amount, 0..3);
        prop::option::of(kinds.prop_map(|kinds| Amounts { kinds }))
    };
    (any_role(), prop::bool::weighted(0.2), prop::option::of(weight), amounts(4_000), amounts(1_000))
        .prop_map(|(role, clear, weight, limit, guarantee)| SetRoleRequest {
            role,
            clear,
            weight,
            priority: None,
            limit,
            guarantee,
        })
}

fn any_call() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => name().prop_map(|task_id| Call::Kill(KillTask { task_id, grace_ms: 1 })),
        4 => (name(), 0u64..6)
            .prop_map(|(task_id, sequence)| Call::Acknowledge(AcknowledgeStatus { task_id, sequence })),
        2 => prop::collection::vec(name(), 0..3).prop_map(|task_ids| Call::Reconcile(Reconcile { task_ids })),
        2 => Just(Call::Revive(Revive {})),
        1 => Just(Call::Teardown(Teardown {})),
        1 => Just(Call::Detach(Detach {})),
        1 => Just(Call::Subscribe(Subscribe::default())),
    ]
}

/// One thing to do to the core. Picks are indexes into what there is at that moment, so that most of them meet
/// something; what they do not meet is named wrongly.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a few dozen live at a time")]
enum Act {
    Happens(Event),
    /// Accepts or declines offers, as the owner of the first of them.
    Answers {
        picks: Vec<usize>,
        accept: bool,
        tasks: Vec<TaskSpec>,
        refuse_ms: u64,
    },
    /// An agent's word about one of its tasks, this many sequences after the last.
    Tells {
        pick: usize,
        state: i32,
        after: u64,
    },
    /// A framework acknowledges the newest status of one of its tasks.
    Acknowledges {
        pick: usize,
    },
    /// An operator, or the framework with an offer, resizes a task.
    Resizes {
        pick: usize,
        grant: Resources,
        offer: Option<usize>,
    },
    /// An agent answers the resize of one of its tasks.
    Resized {
        pick: usize,
        done: bool,
    },
    Waits(u64),
}

fn any_act() -> impl Strategy<Value = Act> {
    let session = || (0..SESSIONS).prop_map(SessionId);
    let picks =
        prop_oneof![4 => (0usize..2).prop_map(|i| vec![i]), 1 => prop::collection::vec(0usize..4, 0..4)];
    prop_oneof![
        4 => registers(),
        4 => subscribes(),
        4 => (session(), any_report()).prop_map(|(session, report)| {
            Act::Happens(Event::AgentSaid { session, message: agent_message::Message::Report(report) })
        }),
        1 => (session(), 0u64..5).prop_map(|(session, sequence)| {
            let message = agent_message::Message::Unchanged(Unchanged { sequence });
            Act::Happens(Event::AgentSaid { session, message })
        }),
        2 => (session(), any_status()).prop_map(|(session, status)| {
            Act::Happens(Event::AgentSaid { session, message: agent_message::Message::Status(status) })
        }),
        4 => (session(), any_call()).prop_map(|(session, call)| Act::Happens(Event::Call { session, call })),
        14 => (picks, prop::bool::weighted(0.8), prop::collection::vec(any_task(), 0..4), 0u64..9_000)
            .prop_map(|(picks, accept, tasks, refuse_ms)| Act::Answers { picks, accept, tasks, refuse_ms }),
        8 => (0usize..6, 0i32..9, 0u64..3).prop_map(|(pick, state, after)| Act::Tells { pick, state, after }),
        6 => (0usize..6).prop_map(|pick| Act::Acknowledges { pick }),
        2 => session().prop_map(|session| Act::Happens(Event::SessionEnded { session })),
        1 => (name(), name()).prop_map(|(task_id, framework_id)| {
            let stop = StopTaskRequest { task_id, framework_id, grace_ms: 0 };
            Act::Happens(Event::StopTask { request: RequestId(0), stop })
        }),
        4 => any_role_change()
            .prop_map(|set| Act::Happens(Event::SetRole { request: RequestId(2), set })),
        12 => (0usize..2, (0u64..900, 0u64..900).prop_map(|(c, m)| resources(c, m)), prop::option::of(0usize..3))
            .prop_map(|(pick, grant, offer)| Act::Resizes { pick, grant, offer }),
        12 => (0usize..2, prop::bool::weighted(0.8)).prop_map(|(pick, done)| Act::Resized { pick, done }),
        3 => (0u64..40_000).prop_map(Act::Waits),
    ]
}

fn registers() -> impl Strategy<Value = Act> {
    ((0..SESSIONS / 2).prop_map(SessionId), any_register())
        .prop_map(|(session, register)| Act::Happens(Event::AgentRegister { session, register }))
}

fn subscribes() -> impl Strategy<Value = Act> {
    ((SESSIONS / 2..SESSIONS).prop_map(SessionId), any_framework())
        .prop_map(|(session, framework)| Act::Happens(Event::Subscribe { session, framework }))
}

/// A few agents and frameworks, then anything.
fn any_story(acts: usize) -> impl Strategy<Value = Vec<Act>> {
    let opening = prop::collection::vec(prop_oneof![registers(), subscribes()], 2..8);
    (opening, prop::collection::vec(any_act(), 1..acts)).prop_map(|(opening, rest)| [opening, rest].concat())
}

/// A core that lives through a story, and the time it has come to.
struct Life {
    core: Core,
    now: UnixMs,
}

impl Life {
    fn new() -> Self {
        Self { core: Core::new(settings(), "run", Allocator::new(Box::new(Drf), &[])), now: UnixMs(START_MS) }
    }

    fn act(&mut self, act: Act) -> Vec<Effect> {
        let event = match act {
            Act::Happens(event) => event,
            Act::Answers { picks, accept, tasks, refuse_ms } => self.answer(&picks, accept, tasks, refuse_ms),
            Act::Tells { pick, state, after } => self.tell(pick, state, after),
            Act::Acknowledges { pick } => self.acknowledge(pick),
            Act::Resizes { pick, grant, offer } => self.resize(pick, grant, offer),
            Act::Resized { pick, done } => self.resized(pick, done),
            Act::Waits(ms) => {
                self.now = self.now.after_ms(ms);
                Event::Tick
            }
        };
        self.core.step(event, self.now)
    }

    fn answer(&self, picks: &[usize], accept: bool, tasks: Vec<TaskSpec>, refuse_ms: u64) -> Event {
        let offers: Vec<_> = self.core.offers.iter().collect();
        let picked = || picks.iter().map(|i| offers.get(*i));
        let owner = picked().flatten().find_map(|o| self.core.frameworks.get(&o.framework)?.session());
        let offer_ids: Vec<String> =
            picked().map(|o| o.map_or_else(|| "never-was".to_owned(), |o| String::from(&o.id))).collect();
        let call = if accept {
            Call::Accept(Accept { offer_ids, tasks, refuse_ms })
        } else {
            Call::Decline(Decline { offer_ids, refuse_ms })
        };
        Event::Call { session: owner.unwrap_or(SessionId(SESSIONS)), call }
    }

    fn tell(&self, pick: usize, state: i32, after: u64) -> Event {
        let Some((key, record)) = self.core.tasks.iter().nth(pick) else { return Event::Tick };
        let Some(session) = self.core.inventory.session_of(&record.agent) else { return Event::Tick };
        let sequence = record.status.sequence.saturating_add(after);
        let status = status(key.framework.as_str(), key.task.as_str(), TaskState::Staging, sequence);
        let message = agent_message::Message::Status(TaskStatus { state, ..status });
        Event::AgentSaid { session, message }
    }

    fn resize(&self, pick: usize, resources: Resources, offer: Option<usize>) -> Event {
        let mut live = self.core.tasks.iter().filter(|(_, r)| !r.ended());
        let Some((key, record)) = live.nth(pick) else { return Event::Tick };
        let class = record.spec.grant.as_ref().map_or(1, |g| g.class);
        let grant = Some(Grant { resources: Some(resources), class, ..Grant::default() });
        let task_id = key.task.as_str().to_owned();
        let Some(offer) = offer else {
            let resize = ResizeTaskRequest { task_id, framework_id: String::new(), grant };
            return Event::ResizeTask { request: RequestId(1), resize };
        };
        let offer_ids = self.core.offers.iter().nth(offer).map(|o| (&o.id).into()).into_iter().collect();
        let owner = self.core.frameworks.get(&key.framework).and_then(|f| f.session());
        let call = Call::Resize(ResizeTask { task_id, grant, offer_ids });
        Event::Call { session: owner.unwrap_or(SessionId(SESSIONS)), call }
    }

    fn resized(&self, pick: usize, done: bool) -> Event {
        let mut waiting = self.core.tasks.iter().filter_map(|(k, r)| Some((k, r, r.resizing.as_ref()?)));
        let Some((key, record, resizing)) = waiting.nth(pick) else { return Event::Tick };
        let Some(session) = self.core.inventory.session_of(&record.agent) else { return Event::Tick };
        let message = agent_message::Message::Resized(Resized {
            framework_id: key.framework.as_str().to_owned(),
            task_id: key.task.as_str().to_owned(),
            request: resizing.number(),
            grant: if done { Some(resizing.wanted().clone()) } else { record.spec.grant.clone() },
            refusal: if done { String::new() } else { "no".to_owned() },
        });
        Event::AgentSaid { session, message }
    }

    fn acknowledge(&self, pick: usize) -> Event {
        let Some((key, record)) = self.core.tasks.iter().nth(pick) else { return Event::Tick };
        let owner = self.core.frameworks.get(&key.framework).and_then(|f| f.session());
        let sequence = record.status.sequence;
        let call = Call::Acknowledge(AcknowledgeStatus { task_id: key.task.as_str().to_owned(), sequence });
        Event::Call { session: owner.unwrap_or(SessionId(SESSIONS)), call }
    }
}

/// What an onlooker of the effects knows.
#[derive(Default)]
struct Onlooker {
    offers: BTreeSet<String>,
    /// How each task ended, since it was last launched.
    ends: BTreeMap<(String, String), (TaskState, u64)>,
}

impl Onlooker {
    fn sees(&mut self, effect: &Effect) {
        match effect {
            Effect::ToScheduler { event: scheduler_event::Event::Offers(offers), .. } => {
                for offer in &offers.offers {
                    assert!(self.offers.insert(offer.offer_id.clone()), "an offer id was used twice");
                }
            }
            // Sequence 0 is a copy, or the master's word about a task that no agent has.
            Effect::ToScheduler { event: scheduler_event::Event::Update(status), .. }
                if is_terminal(status.state()) && status.sequence > 0 =>
            {
                let end = (status.state(), status.sequence);
                let key = (status.framework_id.clone(), status.task_id.clone());
                assert_eq!(*self.ends.entry(key).or_insert(end), end, "{status:?}: ended twice");
            }
            Effect::ToAgent { message: master_message::Message::Launch(launch), .. } => {
                let task_id = launch.task.as_ref().map(|t| t.task_id.clone()).unwrap_or_default();
                self.ends.remove(&(launch.framework_id.clone(), task_id));
            }
            _ => {}
        }
    }
}

/// All that must hold between two steps.
fn check(core: &Core) {
    for (agent, book) in core.ledger.books() {
        let parts = book.parts();
        let sum = parts.granted.pool.plus(&parts.offered.pool).plus(&parts.reserve).plus(&parts.free.pool);
        assert_eq!(sum.cpu_milli, parts.capacity.pool.cpu_milli, "{agent}");
        assert_eq!(sum.mem_bytes, parts.capacity.pool.mem_bytes, "{agent}");
        assert_eq!(sum.port_set(), parts.capacity.pool.port_set(), "{agent}");
        let lent = [&parts.granted, &parts.offered, &parts.free].map(|s| u128::from(s.revocable_cpu_milli));
        assert_eq!(lent.iter().sum::<u128>(), u128::from(parts.capacity.revocable_cpu_milli), "{agent}");
        let counted: usize = [&parts.granted.pool, &parts.offered.pool, &parts.reserve, &parts.free.pool]
            .map(|r| r.port_set().unwrap().len_by_protocol())
            .iter()
            .sum();
        let capacity = parts.capacity.pool.port_set().unwrap();
        assert_eq!(counted, capacity.len_by_protocol(), "{agent}: a port is in two parts");
        assert_eq!(book.recount(), (parts.granted, parts.offered), "{agent}: sums drifted");
        let mut seen = PortSet::default();
        for held in book.holdings() {
            let ports = held.resources.port_set().unwrap();
            let twice = seen.intersection(&ports);
            assert!(twice.is_empty(), "{agent}: ports {twice} are held twice");
            seen = seen.union(&ports);
        }
        let connected = core.inventory.session_of(agent).is_some();
        assert!(connected || core.offers.of_agent(agent).next().is_none(), "{agent} is away and offered");
    }
    check_fairness_sums(core);
    check_explanations(core);
    for offer in core.offers.iter() {
        let owner = core.frameworks.get(&offer.framework).unwrap();
        assert!(owner.session().is_some(), "offered to nobody: {offer:?}");
        assert!(owner.info.classes.contains(&offer.class.into()) && !offer.resources.is_empty(), "{offer:?}");
    }
    for (key, record) in core.tasks.iter() {
        assert!(core.frameworks.get(&key.framework).is_some(), "{key} has no framework");
        let holds = core.ledger.book(&record.agent).is_some_and(|b| b.tasks().any(|t| t == key));
        assert!(record.ended() || holds, "{key} is live and holds nothing");
    }
}

/// Whatever there is can be explained, and what is said of roles can be kept.
fn check_explanations(core: &Core) {
    for (id, framework) in core.frameworks.iter() {
        let framework_id = id.as_str().to_owned();
        let agent_id = core.inventory.iter().next().map(|(id, _)| String::from(id)).unwrap_or_default();
        let why = core.explain_framework(&ExplainFrameworkRequest { framework_id, agent_id }).unwrap();
        let agents = why.takes_agents + why.not_offered.iter().map(|r| r.agent_count).sum::<u64>();
        assert_eq!(agents, core.inventory.iter().count() as u64, "{why:?}");
        assert!(
            why.not_offered.iter().all(|r| !r.examples.is_empty() && r.examples.len() <= EXAMPLES),
            "{why:?}"
        );
        assert!((0.0..=1.0).contains(&why.entitled_share), "{why:?}");
        assert_eq!(why.path.last().map(|place| place.role.as_str()), Some(framework.info.role.as_str()));
    }
    assert_eq!(crate::allocator::check_roles(&core.allocator.settings()), Ok(()));
}

/// What each framework holds, counted once more, and that the allocator counts the same.
fn check_fairness_sums(core: &Core) {
    let mut held = BTreeMap::<FrameworkId, Totals>::new();
    for holding in core.ledger.books().flat_map(|(_, b)| b.holdings()) {
        let sum = held.entry(holding.framework.clone()).or_default();
        sum.add(&Bundle::of(holding.class, &holding.resources));
    }
    for (framework, held) in &held {
        assert_eq!(core.ledger.held_by(framework), *held, "{framework}");
    }
    for framework in core.frameworks.iter().map(|(id, _)| id).chain(held.keys()) {
        let number = core.numbers.frameworks.get(framework).unwrap();
        assert_eq!(core.allocator.held_by(number), Some(&core.ledger.held_by(framework)), "{framework}");
    }
    for (agent, book) in core.ledger.books() {
        let number = core.numbers.agents.get(agent).unwrap();
        let free = book.parts().free;
        let free =
            if core.inventory.session_of(agent).is_some() { free.amounts() } else { Bundle::default() };
        assert_eq!(core.allocator.free_of(number).unwrap().amounts, free, "{agent}");
    }
}

/// The last states that a current record had: no record may leave one.
fn check_states(core: &Core, before: &mut BTreeMap<TaskKey, TaskStatus>) {
    for (key, record) in core.tasks.iter() {
        if let Some(old) = before.get(key).filter(|s| is_terminal(s.state())) {
            assert_eq!(old, &record.status, "{key} went on after its end");
        }
    }
    *before = core.tasks.iter().map(|(k, r)| (k.clone(), r.status.clone())).collect();
}

#[test]
fn books_balance_and_tasks_end_once() {
    let seen = std::cell::RefCell::new(Counters::default());
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let story = |acts: Vec<Act>| {
        let mut life = Life::new();
        let mut onlooker = Onlooker::default();
        let mut states = BTreeMap::new();
        for act in acts {
            life.act(act).iter().for_each(|effect| onlooker.sees(effect));
            check(&life.core);
            check_states(&life.core, &mut states);
        }
        let (mut seen, counters) = (seen.borrow_mut(), life.core.counters());
        seen.offers_sent += counters.offers_sent;
        seen.offers_accepted += counters.offers_accepted;
        seen.offers_declined += counters.offers_declined;
        seen.offers_rescinded += counters.offers_rescinded;
        seen.tasks_launched += counters.tasks_launched;
        seen.tasks_resized += counters.tasks_resized;
        counters.tasks_ended.iter().for_each(|(state, n)| *seen.tasks_ended.entry(*state).or_default() += n);
        Ok(())
    };
    proptest::test_runner::TestRunner::new(config)
        .run(&any_story(80), story)
        .unwrap_or_else(|e| panic!("{e}"));
    // Stories in which nothing happens prove nothing.
    let seen = seen.into_inner();
    let Counters {
        offers_sent,
        offers_accepted,
        offers_declined,
        offers_rescinded,
        tasks_launched,
        tasks_resized,
        ..
    } = seen;
    let counts = [offers_sent, offers_accepted, offers_declined, offers_rescinded, tasks_launched];
    assert!(counts.iter().all(|n| *n > 100) && tasks_resized > 20, "{seen:?}");
    assert!(seen.tasks_ended.len() >= 5 && seen.tasks_ended.values().all(|n| *n > 20), "{seen:?}");
}

proptest! {
    /// The same events give the same effects.
    #[test]
    fn the_core_is_deterministic(acts in any_story(40)) {
        let run = || {
            let mut life = Life::new();
            acts.clone().into_iter().flat_map(|act| life.act(act)).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }
}
