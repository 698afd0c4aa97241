//! The core's behaviour, one file a part, driven through [`Core::step`] with chosen times.

mod agents;
mod explaining;
mod frameworks;
mod listing;
mod locality;
mod offers;
mod properties;
mod resizing;
mod roles;
mod statuses;

use bulkhead_proto::v1::{
    Accept, AcknowledgeStatus, Decline, FrameworkInfo, Grant, Heartbeat, KillTask, Launch, Offer, PortRange,
    Reconcile, Register, ResourceClass, ResourceReport, Resources, Task, TaskReason, TaskSpec, TaskState,
    TaskStatus, Unchanged, agent_message, scheduler_call::Call, scheduler_event,
};

use self::listing::all_ids;
use super::*;
use crate::{allocator::Drf, ids::TaskKey};

const GB: u64 = 1 << 30;
const START_MS: u64 = 1_000_000;

fn settings() -> Settings {
    Settings {
        heartbeat_interval_ms: 5_000,
        agent_timeout_ms: 75_000,
        offer_timeout_ms: 60_000,
        refuse_ms: 5_000,
        failover_timeout_ms: 600_000,
        history: 100,
        unacknowledged: 10,
    }
}

/// A core with a clock and a memory of what it wanted done.
struct World {
    core: Core,
    now: UnixMs,
    sessions: u64,
    effects: Vec<Effect>,
}

impl World {
    fn new() -> Self {
        let core = Core::new(settings(), "run", Allocator::new(Box::new(Drf), &[]));
        Self { core, now: UnixMs(START_MS), sessions: 0, effects: Vec::new() }
    }

    fn step(&mut self, event: Event) {
        let effects = self.core.step(event, self.now);
        self.effects.extend(effects);
        self.check_conservation();
    }

    /// The ledger's promise, for every agent.
    fn check_conservation(&self) {
        for (agent, book) in self.core.ledger.books() {
            let parts = book.parts();
            let sum =
                parts.granted.pool.plus(&parts.offered.pool).plus(&parts.reserve).plus(&parts.free.pool);
            assert_eq!(sum, parts.capacity.pool, "{agent}");
            assert_eq!(book.recount(), (parts.granted, parts.offered), "{agent}");
        }
    }

    fn next_session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId(self.sessions)
    }

    /// Lets time pass, with every timer at its moment and agents that keep saying that they live.
    fn pass(&mut self, ms: u64, alive: &[SessionId]) {
        let end = self.now.after_ms(ms);
        while self.now < end {
            let beat = self.now.after_ms(1_000);
            let due = self.core.next_deadline().unwrap_or(end);
            self.now = end.min(beat).min(due.max(self.now.after_ms(1)));
            for session in alive {
                let message = agent_message::Message::Heartbeat(Heartbeat {});
                self.step(Event::AgentSaid { session: *session, message });
            }
            self.step(Event::Tick);
        }
    }

    fn register(&mut self, register: Register) -> SessionId {
        let session = self.next_session();
        self.step(Event::AgentRegister { session, register });
        session
    }

    fn agent(&mut self, id: &str, capacity: Resources) -> SessionId {
        self.register(registration(id, capacity, Vec::new()))
    }

    fn report(&mut self, session: SessionId, report: ResourceReport) {
        self.step(Event::AgentSaid { session, message: agent_message::Message::Report(report) });
    }

    fn unchanged(&mut self, session: SessionId, sequence: u64) {
        let message = agent_message::Message::Unchanged(Unchanged { sequence });
        self.step(Event::AgentSaid { session, message });
    }

    fn subscribe(&mut self, info: FrameworkInfo) -> SessionId {
        let session = self.next_session();
        self.step(Event::Subscribe { session, framework: info });
        session
    }

    fn framework(&mut self, name: &str) -> SessionId {
        self.subscribe(FrameworkInfo {
            framework_id: name.into(),
            name: name.into(),
            ..FrameworkInfo::default()
        })
    }

    fn call(&mut self, session: SessionId, call: Call) {
        self.step(Event::Call { session, call });
    }

    fn accept(&mut self, session: SessionId, offers: &[&Offer], tasks: Vec<TaskSpec>) {
        self.accept_and_refuse(session, offers, tasks, 0);
    }

    fn accept_and_refuse(
        &mut self,
        session: SessionId,
        offers: &[&Offer],
        tasks: Vec<TaskSpec>,
        refuse_ms: u64,
    ) {
        let offer_ids = offers.iter().map(|o| o.offer_id.clone()).collect();
        self.call(session, Call::Accept(Accept { offer_ids, tasks, refuse_ms }));
    }

    fn decline(&mut self, session: SessionId, offer: &Offer, refuse_ms: u64) {
        self.call(session, Call::Decline(Decline { offer_ids: vec![offer.offer_id.clone()], refuse_ms }));
    }

    fn acknowledge(&mut self, session: SessionId, task: &str, sequence: u64) {
        self.call(session, Call::Acknowledge(AcknowledgeStatus { task_id: task.into(), sequence }));
    }

    fn status(&mut self, session: SessionId, framework: &str, task: &str, state: TaskState, sequence: u64) {
        let status = status(framework, task, state, sequence);
        self.step(Event::AgentSaid { session, message: agent_message::Message::Status(status) });
    }

    /// An agent, a framework that holds one task of 1 CPU and 1 GB there, and all messages so far read.
    fn with_a_task(failover_timeout_ms: u64) -> (Self, SessionId, SessionId) {
        let mut world = Self::new();
        let agent = world.agent("a", resources(4_000, 4 * GB));
        let info =
            FrameworkInfo { framework_id: "f".into(), failover_timeout_ms, ..FrameworkInfo::default() };
        let framework = world.subscribe(info);
        let offer = world.one_offer(framework);
        world.accept_and_refuse(framework, &[&offer], vec![task("t", 1_000, GB)], 3_600_000);
        assert_eq!(world.launches(agent).len(), 1);
        (world, agent, framework)
    }

    // What the core wanted done, taken out.

    fn take<T>(&mut self, mut pick: impl FnMut(&Effect) -> Option<T>) -> Vec<T> {
        let mut taken = Vec::new();
        self.effects.retain(|effect| match pick(effect) {
            Some(one) => {
                taken.push(one);
                false
            }
            None => true,
        });
        taken
    }

    fn events(&mut self, to: SessionId) -> Vec<scheduler_event::Event> {
        self.take(|effect| match effect {
            Effect::ToScheduler { session, event } if *session == to => Some(event.clone()),
            _ => None,
        })
    }

    fn offers(&mut self, to: SessionId) -> Vec<Offer> {
        self.take(|effect| match effect {
            Effect::ToScheduler { session, event: scheduler_event::Event::Offers(offers) }
                if *session == to =>
            {
                Some(offers.offers.clone())
            }
            _ => None,
        })
        .concat()
    }

    fn one_offer(&mut self, to: SessionId) -> Offer {
        let offers = self.offers(to);
        assert_eq!(offers.len(), 1, "{offers:?}");
        offers.into_iter().next().unwrap()
    }

    fn rescinded(&mut self, to: SessionId) -> Vec<String> {
        self.take(|effect| match effect {
            Effect::ToScheduler { session, event: scheduler_event::Event::Rescind(r) } if *session == to => {
                Some(r.offer_ids.clone())
            }
            _ => None,
        })
        .concat()
    }

    fn updates(&mut self, to: SessionId) -> Vec<TaskStatus> {
        self.take(|effect| match effect {
            Effect::ToScheduler { session, event: scheduler_event::Event::Update(status) }
                if *session == to =>
            {
                Some(status.clone())
            }
            _ => None,
        })
    }

    fn errors(&mut self, to: SessionId) -> Vec<String> {
        self.take(|effect| match effect {
            Effect::ToScheduler { session, event: scheduler_event::Event::Error(error) }
                if *session == to =>
            {
                Some(error.message.clone())
            }
            _ => None,
        })
    }

    fn one_update(&mut self, to: SessionId) -> TaskStatus {
        let updates = self.updates(to);
        assert_eq!(updates.len(), 1, "{updates:?}");
        updates.into_iter().next().unwrap()
    }

    fn told<T>(&mut self, to: SessionId, pick: impl Fn(&master_message::Message) -> Option<T>) -> Vec<T> {
        self.take(|effect| match effect {
            Effect::ToAgent { session, message } if *session == to => pick(message),
            _ => None,
        })
    }

    fn launches(&mut self, to: SessionId) -> Vec<Launch> {
        self.told(to, |m| match m {
            master_message::Message::Launch(launch) => Some(launch.clone()),
            _ => None,
        })
    }

    /// Task and reason of each kill.
    fn kills(&mut self, to: SessionId) -> Vec<(String, TaskReason)> {
        self.told(to, |m| match m {
            master_message::Message::Kill(kill) => Some((kill.task_id.clone(), kill.reason())),
            _ => None,
        })
    }

    /// How often a whole report was asked for.
    fn reports_asked(&mut self, to: SessionId) -> usize {
        let asked =
            |m: &master_message::Message| matches!(m, master_message::Message::SendReport(_)).then_some(());
        self.told(to, asked).len()
    }

    /// Task and sequence of each acknowledgement.
    fn acks(&mut self, to: SessionId) -> Vec<(String, u64)> {
        self.told(to, |m| match m {
            master_message::Message::Acknowledge(ack) => Some((ack.task_id.clone(), ack.sequence)),
            _ => None,
        })
    }

    fn closings(&mut self, of: SessionId) -> Vec<Closing> {
        self.take(|effect| match effect {
            Effect::Close { session, closing } if *session == of => Some(closing.clone()),
            _ => None,
        })
    }

    fn state_of(&self, framework: &str, task: &str) -> Option<TaskState> {
        let key = TaskKey::new(&framework.into(), task);
        let current = self.core.tasks.get(&key).map(|r| r.status.state());
        current.or_else(|| self.core.tasks.ended(&key).and_then(|t| t.status.as_ref()).map(|s| s.state()))
    }

    fn free(&self, agent: &str) -> Resources {
        self.core.parts(&agent.into()).unwrap().free.pool
    }
}

fn resources(cpu_milli: u64, mem_bytes: u64) -> Resources {
    Resources { cpu_milli, mem_bytes, ports: Vec::new(), ..Resources::default() }
}

fn ports(first: u32, last: u32) -> Vec<PortRange> {
    vec![PortRange { first, last, ..PortRange::default() }]
}

fn measured(capacity: Resources, sequence: u64) -> ResourceReport {
    ResourceReport {
        free: Some(capacity.clone()),
        capacity: Some(capacity),
        sequence,
        ..ResourceReport::default()
    }
}

fn registration(id: &str, capacity: Resources, tasks: Vec<Task>) -> Register {
    let agent = bulkhead_proto::v1::AgentInfo {
        agent_id: id.into(),
        hostname: format!("host-{id}"),
        ..Default::default()
    };
    Register { agent: Some(agent), report: Some(measured(capacity, 1)), tasks }
}

fn task(id: &str, cpu_milli: u64, mem_bytes: u64) -> TaskSpec {
    let grant = Grant {
        resources: Some(resources(cpu_milli, mem_bytes)),
        class: ResourceClass::Guaranteed.into(),
        ..Grant::default()
    };
    TaskSpec { task_id: id.into(), argv: vec!["/bin/true".into()], grant: Some(grant), ..TaskSpec::default() }
}

fn with_ports(mut spec: TaskSpec, ports: Vec<PortRange>) -> TaskSpec {
    spec.grant.as_mut().unwrap().resources.as_mut().unwrap().ports = ports;
    spec
}

fn revocable(mut spec: TaskSpec) -> TaskSpec {
    spec.grant.as_mut().unwrap().class = ResourceClass::Revocable.into();
    spec
}

fn status(framework: &str, task: &str, state: TaskState, sequence: u64) -> TaskStatus {
    TaskStatus {
        task_id: task.into(),
        framework_id: framework.into(),
        state: state.into(),
        sequence,
        unix_time_ms: 1,
        ..TaskStatus::default()
    }
}

/// A task as an agent lists it.
fn listed(framework: &str, spec: TaskSpec, state: TaskState, sequence: u64) -> Task {
    let status = status(framework, &spec.task_id, state, sequence);
    Task { spec: Some(spec), framework_id: framework.into(), status: Some(status), ..Task::default() }
}

fn got(offer: &Offer) -> Resources {
    offer.resources.clone().unwrap()
}
