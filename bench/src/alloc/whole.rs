//! The master's core, fed with the events of a cluster: what a step costs, messages made and not sent.

use anyhow::Result;
use bulkhead_master::{
    allocator::{Allocator, Drf},
    core::{Core, Effect, Event},
    ids::{SessionId, UnixMs},
};
use bulkhead_proto::v1::{
    Accept, AgentInfo, Decline, FrameworkInfo, Grant, Offer, Register, ResourceClass, ResourceReport,
    Resources, TaskSpec, TaskState, TaskStatus, agent_message, scheduler_call::Call, scheduler_event,
};

use super::{Row, Shape, Timing, machine};

const OF: &str = "core";
const TASKS: usize = 2_000;
const ADDED: u32 = 1_000;

struct Cluster {
    core: Core,
    now: UnixMs,
    /// Offers that are out, by framework.
    offers: Vec<Vec<Offer>>,
    launched: usize,
}

impl Cluster {
    fn new(shape: Shape) -> Self {
        let config = bulkhead_master::Config::default();
        let core = Core::new(config.settings(), "bench", Allocator::new(Box::new(Drf), &[]));
        let offers = vec![Vec::new(); shape.frameworks as usize];
        Self { core, now: UnixMs(1_000_000), offers, launched: 0 }
    }

    /// Times the step alone; answers how many offers it made.
    fn step(&mut self, event: Event, timing: &mut Timing) {
        let begun = std::time::Instant::now();
        let effects = self.core.step(event, self.now);
        let took = begun.elapsed();
        let mut made = 0;
        for effect in effects {
            if let Effect::ToScheduler { session, event: scheduler_event::Event::Offers(offers) } = effect {
                made += offers.offers.len();
                self.offers[framework_of(session)].extend(offers.offers);
            }
        }
        timing.add(took, made);
    }
}

/// Frameworks have the first sessions.
fn framework_of(session: SessionId) -> usize {
    usize::try_from(session.0).unwrap_or_default()
}

fn session(number: u32) -> SessionId {
    SessionId(number.into())
}

fn subscribe(shape: Shape, framework: u32) -> Event {
    let info = FrameworkInfo {
        framework_id: format!("framework-{framework}"),
        role: shape.role(framework),
        ..FrameworkInfo::default()
    };
    Event::Subscribe { session: session(framework), framework: info }
}

fn register(shape: Shape, agent: u32) -> Event {
    let capacity = Some(machine());
    let report =
        ResourceReport { free: capacity.clone(), capacity, sequence: 1, ..ResourceReport::default() };
    let info = AgentInfo {
        agent_id: format!("agent-{agent}"),
        hostname: format!("host-{agent}"),
        ..AgentInfo::default()
    };
    let register = Register { agent: Some(info), report: Some(report), tasks: Vec::new() };
    Event::AgentRegister { session: session(shape.frameworks + agent), register }
}

/// Agents come one by one to frameworks that wait; everybody declines everything once; tasks are launched and end.
pub(super) fn cluster(shape: Shape) -> Result<Vec<Row>> {
    let mut cluster = Cluster::new(shape);
    let [mut subscribed, mut came, mut declined, mut accepted, mut ended, mut added] =
        [Timing::new()?, Timing::new()?, Timing::new()?, Timing::new()?, Timing::new()?, Timing::new()?];
    for framework in 0..shape.frameworks {
        cluster.step(subscribe(shape, framework), &mut subscribed);
    }
    for agent in 0..shape.agents {
        cluster.step(register(shape, agent), &mut came);
    }
    decline_all(&mut cluster, shape, &mut declined);
    let tasks = launch_some(&mut cluster, shape, &mut accepted);
    for (agent, status) in tasks {
        let message = agent_message::Message::Status(status);
        cluster.step(Event::AgentSaid { session: session(shape.frameworks + agent), message }, &mut ended);
    }
    for agent in shape.agents..shape.agents + ADDED.min(shape.agents) {
        cluster.step(register(shape, agent), &mut added);
    }
    Ok(vec![
        subscribed.row(OF, "a framework subscribes", shape),
        came.row(OF, "an agent registers", shape),
        declined.row(OF, "a framework declines all its offers", shape),
        accepted.row(OF, "a task is launched, and the rest offered", shape),
        ended.row(OF, "a task ends", shape),
        added.row(OF, "one agent more registers", shape),
    ])
}

fn decline_all(cluster: &mut Cluster, shape: Shape, timing: &mut Timing) {
    for framework in 0..shape.frameworks {
        let offers = std::mem::take(&mut cluster.offers[framework as usize]);
        let offer_ids = offers.into_iter().map(|o| o.offer_id).collect();
        let decline = Decline { offer_ids, refuse_ms: 3_600_000 };
        cluster.step(Event::Call { session: session(framework), call: Call::Decline(decline) }, timing);
    }
}

/// One task on one offer of each framework in turn; the number of its agent, and the status that it ends with.
fn launch_some(cluster: &mut Cluster, shape: Shape, timing: &mut Timing) -> Vec<(u32, TaskStatus)> {
    let mut tasks = Vec::new();
    for framework in (0..shape.frameworks).cycle().take(TASKS.min(shape.agents as usize)) {
        let Some(offer) = cluster.offers[framework as usize].pop() else { continue };
        let Some(info) = offer.agent else { continue };
        cluster.launched += 1;
        let task_id = format!("task-{}", cluster.launched);
        let resources = Resources { cpu_milli: 1_000, mem_bytes: 1 << 30, ..Resources::default() };
        let class = ResourceClass::Guaranteed.into();
        let grant = Some(Grant { resources: Some(resources), class, ..Grant::default() });
        let spec = TaskSpec {
            task_id: task_id.clone(),
            argv: vec!["/bin/true".to_owned()],
            grant,
            ..TaskSpec::default()
        };
        let accept = Accept { offer_ids: vec![offer.offer_id], tasks: vec![spec], refuse_ms: 0 };
        cluster.step(Event::Call { session: session(framework), call: Call::Accept(accept) }, timing);
        let agent = info.agent_id.trim_start_matches("agent-").parse().unwrap_or_default();
        let status = TaskStatus {
            task_id,
            framework_id: format!("framework-{framework}"),
            agent_id: info.agent_id,
            state: TaskState::Finished.into(),
            sequence: 1,
            ..TaskStatus::default()
        };
        tasks.push((agent, status));
    }
    tasks
}
