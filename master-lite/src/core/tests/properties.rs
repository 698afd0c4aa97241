//! Whatever happens, in whatever order, with whatever content: the books balance and tasks end once.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::v1::{Detach, Revive, StopTaskRequest, Subscribe, Teardown};
use proptest::prelude::*;

use super::*;
use crate::{ids::RequestId, tasks::is_terminal};

const NAMES: [&str; 4] = ["x", "y", "z", ".."];
const SESSIONS: u64 = 12;

/// Amounts small enough to compete, and a few that are larger than any machine.
fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..4_000, 1 => Just(u64::MAX), 1 => Just(64u64 << 20)]
}

fn any_ports() -> impl Strategy<Value = Vec<PortRange>> {
    let range = prop_oneof![9 => (1u32..40, 0u32..8), 1 => (0u32..70_000, 0u32..70_000)];
    prop::collection::vec(range.prop_map(|(first, n)| PortRange { first, last: first + n }), 0..3)
}

fn any_resources() -> impl Strategy<Value = Resources> {
    (amount(), amount(), any_ports()).prop_map(|(cpu_milli, mem_bytes, ports)| Resources {
        cpu_milli,
        mem_bytes,
        ports,
    })
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(NAMES.to_vec()).prop_map(str::to_owned)
}

fn any_task() -> impl Strategy<Value = TaskSpec> {
    (name(), any_resources(), 0i32..4, prop::bool::weighted(0.95)).prop_map(
        |(task_id, resources, class, runs)| {
            let grant = Grant { resources: Some(resources), class, ..Grant::default() };
            let argv = if runs { vec!["/bin/true".to_owned()] } else { Vec::new() };
            TaskSpec { task_id, argv, grant: Some(grant), ..TaskSpec::default() }
        },
    )
}

fn any_status() -> impl Strategy<Value = TaskStatus> {
    (name(), name(), 0i32..9, 0u64..6).prop_map(|(f, t, state, sequence)| TaskStatus {
        state,
        ..status(&f, &t, TaskState::Staging, sequence)
    })
}

fn any_report() -> impl Strategy<Value = ResourceReport> {
    (any_resources(), any_resources(), amount(), 0u64..20).prop_map(|(capacity, reserve, lent, sequence)| {
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
    (name(), prop::collection::vec(0i32..4, 0..3), 0u64..40_000, any_resources()).prop_map(
        |(framework_id, classes, failover_timeout_ms, minimum)| FrameworkInfo {
            framework_id,
            classes,
            failover_timeout_ms,
            minimum: (minimum.cpu_milli % 5 == 0).then_some(minimum),
            ..FrameworkInfo::default()
        },
    )
}

/// A call; the offers it names are the `picks`th of those outstanding, and one that never was.
fn any_call() -> impl Strategy<Value = (Call, Vec<usize>)> {
    let picks = || prop::collection::vec(0usize..6, 0..3);
    prop_oneof![
        8 => (picks(), prop::collection::vec(any_task(), 0..4), 0u64..9_000).prop_map(|(picks, tasks, refuse_ms)| {
            (Call::Accept(Accept { offer_ids: Vec::new(), tasks, refuse_ms }), picks)
        }),
        3 => (picks(), 0u64..9_000).prop_map(|(picks, refuse_ms)| {
            (Call::Decline(Decline { offer_ids: Vec::new(), refuse_ms }), picks)
        }),
        3 => name().prop_map(|task_id| (Call::Kill(KillTask { task_id, grace_ms: 1 }), Vec::new())),
        6 => (name(), 0u64..6).prop_map(|(task_id, sequence)| {
            (Call::Acknowledge(AcknowledgeStatus { task_id, sequence }), Vec::new())
        }),
        1 => prop::collection::vec(name(), 0..3).prop_map(|task_ids| {
            (Call::Reconcile(Reconcile { task_ids }), Vec::new())
        }),
        1 => Just((Call::Revive(Revive {}), Vec::new())),
        1 => Just((Call::Teardown(Teardown {}), Vec::new())),
        1 => Just((Call::Detach(Detach {}), Vec::new())),
        1 => Just((Call::Subscribe(Subscribe::default()), Vec::new())),
    ]
}

#[derive(Clone, Debug)]
enum Act {
    Happens(Event),
    Calls(SessionId, Call, Vec<usize>),
    Waits(u64),
}

fn any_act() -> impl Strategy<Value = Act> {
    let session = || (0..SESSIONS).prop_map(SessionId);
    prop_oneof![
        4 => (session(), any_register())
            .prop_map(|(session, register)| Act::Happens(Event::AgentRegister { session, register })),
        4 => (session(), any_framework())
            .prop_map(|(session, framework)| Act::Happens(Event::Subscribe { session, framework })),
        4 => (session(), any_report()).prop_map(|(session, report)| {
            Act::Happens(Event::AgentSaid { session, message: agent_message::Message::Report(report) })
        }),
        8 => (session(), any_status()).prop_map(|(session, status)| {
            Act::Happens(Event::AgentSaid { session, message: agent_message::Message::Status(status) })
        }),
        12 => (session(), any_call()).prop_map(|(session, (call, picks))| Act::Calls(session, call, picks)),
        2 => session().prop_map(|session| Act::Happens(Event::SessionEnded { session })),
        1 => (name(), name()).prop_map(|(task_id, framework_id)| {
            let stop = StopTaskRequest { task_id, framework_id, grace_ms: 0 };
            Act::Happens(Event::StopTask { request: RequestId(0), stop })
        }),
        3 => (0u64..40_000).prop_map(Act::Waits),
    ]
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
            .map(|r| r.port_set().unwrap().len())
            .iter()
            .sum();
        assert_eq!(counted, parts.capacity.pool.port_set().unwrap().len(), "{agent}: a port is in two parts");
        assert_eq!(book.recount(), (parts.granted, parts.offered), "{agent}: sums drifted");
        let mut seen = BTreeSet::new();
        for held in book.holdings() {
            for port in held.resources.port_set().unwrap().iter() {
                assert!(seen.insert(port), "{agent}: port {port} is held twice");
            }
        }
        let connected = core.inventory.session_of(agent).is_some();
        assert!(connected || core.offers.of_agent(agent).next().is_none(), "{agent} is away and offered");
    }
    check_fairness_sums(core);
    for offer in core.offers.iter() {
        let owner = core.frameworks.get(&offer.framework).unwrap();
        assert!(owner.session().is_some(), "offered to nobody: {offer:?}");
        assert!(owner.wants(offer.class) && !offer.resources.is_empty(), "{offer:?}");
    }
    for (key, record) in core.tasks.iter() {
        assert!(core.frameworks.get(&key.framework).is_some(), "{key} has no framework");
        let holds = core.ledger.book(&record.agent).is_some_and(|b| b.tasks().any(|t| t == key));
        assert!(record.ended() || holds, "{key} is live and holds nothing");
    }
}

/// What each framework holds, counted once more.
fn check_fairness_sums(core: &Core) {
    let mut held = BTreeMap::<FrameworkId, (u128, u128)>::new();
    for holding in core.ledger.books().flat_map(|(_, b)| b.holdings()) {
        let sum = held.entry(holding.framework.clone()).or_default();
        sum.0 += u128::from(holding.resources.cpu_milli);
        sum.1 += u128::from(holding.resources.mem_bytes);
    }
    for (framework, (cpu, mem)) in held {
        let totals = core.ledger.held_by(&framework);
        assert_eq!((totals.cpu_milli, totals.mem_bytes), (cpu, mem), "{framework}");
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn books_balance_and_tasks_end_once(acts in prop::collection::vec(any_act(), 1..80)) {
        let mut core = Core::new(settings(), "run", Box::new(Fair));
        let mut now = UnixMs(START_MS);
        let mut onlooker = Onlooker::default();
        let mut states = BTreeMap::new();
        for act in acts {
            let event = match act {
                Act::Happens(event) => event,
                Act::Waits(ms) => {
                    now = now.after_ms(ms);
                    Event::Tick
                }
                Act::Calls(session, mut call, picks) => {
                    let known: Vec<_> = core.offers.iter().map(|o| String::from(&o.id)).collect();
                    let named = picks.into_iter().map(|i| known.get(i).cloned().unwrap_or_else(|| "never-was".into()));
                    match &mut call {
                        Call::Accept(Accept { offer_ids, .. }) | Call::Decline(Decline { offer_ids, .. }) => {
                            offer_ids.extend(named);
                        }
                        _ => {}
                    }
                    Event::Call { session, call }
                }
            };
            core.step(event, now).iter().for_each(|effect| onlooker.sees(effect));
            check(&core);
            check_states(&core, &mut states);
        }
    }

    /// The same events give the same effects.
    #[test]
    fn the_core_is_deterministic(acts in prop::collection::vec(any_act(), 1..40)) {
        let run = || {
            let mut core = Core::new(settings(), "run", Box::new(Fair));
            let mut now = UnixMs(START_MS);
            let mut effects = Vec::new();
            for act in acts.clone() {
                let event = match act {
                    Act::Happens(event) => event,
                    Act::Calls(session, call, _) => Event::Call { session, call },
                    Act::Waits(ms) => {
                        now = now.after_ms(ms);
                        Event::Tick
                    }
                };
                effects.extend(core.step(event, now));
            }
            effects
        };
        prop_assert_eq!(run(), run());
    }
}
