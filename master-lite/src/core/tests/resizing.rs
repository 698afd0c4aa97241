//! Another grant for a running task.

use bulkhead_proto::v1::{Resize, ResizeTask, ResizeTaskRequest, Resized, TaskResized};

use super::*;
use crate::ids::RequestId;

fn grant(cpu_milli: u64, mem_bytes: u64) -> Grant {
    task("t", cpu_milli, mem_bytes).grant.unwrap()
}

impl World {
    fn resizes(&mut self, to: SessionId) -> Vec<Resize> {
        self.told(to, |m| match m {
            master_message::Message::Resize(resize) => Some(resize.clone()),
            _ => None,
        })
    }

    fn resized(&mut self, to: SessionId) -> Vec<TaskResized> {
        self.take(|effect| match effect {
            Effect::ToScheduler { session, event: scheduler_event::Event::Resized(resized) }
                if *session == to =>
            {
                Some(resized.clone())
            }
            _ => None,
        })
    }

    /// What no task holds: free, or on offer.
    fn unheld(&self) -> Resources {
        let parts = self.core.parts(&"a".into()).unwrap();
        parts.free.pool.plus(&parts.offered.pool)
    }

    fn answers(&mut self) -> Vec<Result<Grant, ResizeError>> {
        self.take(|effect| match effect {
            Effect::ResizeAnswer { result, .. } => Some(result.clone()),
            _ => None,
        })
    }

    fn ask(&mut self, framework: SessionId, grant: Grant, offers: &[&Offer]) {
        let offer_ids = offers.iter().map(|o| o.offer_id.clone()).collect();
        self.call(framework, Call::Resize(ResizeTask { task_id: "t".into(), grant: Some(grant), offer_ids }));
    }

    fn operator_asks(&mut self, grant: Grant) {
        let resize =
            ResizeTaskRequest { task_id: "t".into(), framework_id: String::new(), grant: Some(grant) };
        self.step(Event::ResizeTask { request: RequestId(7), resize });
    }

    fn agent_answers(&mut self, agent: SessionId, asked: &Resize, holds: Grant, refusal: &str) {
        let answer = Resized {
            framework_id: asked.framework_id.clone(),
            task_id: asked.task_id.clone(),
            request: asked.request,
            grant: Some(holds),
            refusal: refusal.into(),
        };
        self.step(Event::AgentSaid { session: agent, message: agent_message::Message::Resized(answer) });
    }
}

#[test]
fn what_a_task_shrinks_by_is_free_once_the_agent_says_so() {
    let (mut world, agent, framework) = World::with_a_task(0);
    let free = world.unheld();
    world.ask(framework, grant(400, GB / 2), &[]);
    assert_eq!(world.unheld(), free, "not before the kernel holds the task to it");
    let asked = world.resizes(agent).remove(0);
    world.agent_answers(agent, &asked, grant(400, GB / 2), "");
    assert_eq!(world.unheld(), resources(3_600, 3 * GB + GB / 2));
    let told = world.resized(framework).remove(0);
    assert_eq!((told.grant, told.refusal.as_str()), (Some(grant(400, GB / 2)), ""));
}

#[test]
fn growth_is_paid_for_with_offers() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.ask(framework, grant(2_000, GB), &[]);
    assert!(world.resized(framework)[0].refusal.contains("1000 thousandths of a CPU of 0 left"));
    assert!(world.resizes(agent).is_empty());

    world.call(framework, Call::Revive(bulkhead_proto::v1::Revive {}));
    let offer = world.one_offer(framework);
    world.ask(framework, grant(2_000, GB), &[&offer]);
    let asked = world.resizes(agent).remove(0);
    world.agent_answers(agent, &asked, grant(2_000, GB), "");
    assert_eq!(world.resized(framework)[0].refusal, "");
    let again = world.one_offer(framework);
    assert_eq!(got(&again), resources(2_000, 3 * GB), "what the offer had beyond the growth came back");
}

#[test]
fn a_refused_resize_leaves_everything_as_it_was() {
    let (mut world, agent, framework) = World::with_a_task(0);
    let free = world.unheld();
    world.ask(framework, grant(400, GB / 2), &[]);
    let asked = world.resizes(agent).remove(0);
    world.agent_answers(agent, &asked, grant(1_000, GB), "it uses 900 MiB");
    let told = world.resized(framework).remove(0);
    assert_eq!((told.grant, told.refusal.as_str()), (Some(grant(1_000, GB)), "it uses 900 MiB"));
    assert_eq!(world.unheld(), free);
}

#[test]
fn an_operator_takes_growth_from_offers_that_are_out() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.call(framework, Call::Revive(bulkhead_proto::v1::Revive {}));
    let offer = world.one_offer(framework);
    world.operator_asks(grant(4_000, GB));
    assert_eq!(world.rescinded(framework), [offer.offer_id]);
    let asked = world.resizes(agent).remove(0);
    world.agent_answers(agent, &asked, grant(4_000, GB), "");
    assert_eq!(world.answers(), [Ok(grant(4_000, GB))]);

    world.operator_asks(grant(4_001, GB));
    let refused = world.answers().remove(0).unwrap_err().to_string();
    assert!(refused.contains("1 thousandths of a CPU of 0 left"), "{refused}");
}

#[test]
fn a_resize_ends_with_its_task() {
    let (mut world, agent, framework) = World::with_a_task(0);
    world.ask(framework, grant(400, GB), &[]);
    world.status(agent, "f", "t", TaskState::Finished, 1);
    assert_eq!(world.resized(framework)[0].refusal, "the task has ended");
    let asked = world.resizes(agent).remove(0);
    world.agent_answers(agent, &asked, grant(400, GB), "");
    assert!(world.resized(framework).is_empty(), "answered once");
    assert_eq!(world.unheld(), resources(4_000, 4 * GB));
}

#[test]
fn an_agent_that_comes_back_says_how_a_resize_ended() {
    for (holds, refused) in [(grant(400, GB), false), (grant(1_000, GB), true)] {
        let (mut world, agent, framework) = World::with_a_task(0);
        world.ask(framework, grant(400, GB), &[]);
        world.step(Event::SessionEnded { session: agent });
        let spec = TaskSpec { grant: Some(holds.clone()), ..task("t", 1, 1) };
        let tasks = vec![listed("f", spec, TaskState::Running, 1)];
        world.register(registration("a", resources(4_000, 4 * GB), tasks));
        let told = world.resized(framework).remove(0);
        assert_eq!((told.grant, !told.refusal.is_empty()), (Some(holds.clone()), refused));
        let left = resources(4_000, 4 * GB).saturating_sub(&holds.resources.unwrap());
        assert_eq!(world.unheld(), left);
    }
}

#[test]
fn impossible_resizes_are_refused_before_the_agent_is_asked() {
    let (mut world, agent, framework) = World::with_a_task(0);
    let refusal = |world: &mut World, wanted: Grant| {
        world.ask(framework, wanted, &[]);
        world.resized(framework).remove(0).refusal
    };
    let revocable = Grant { class: ResourceClass::Revocable.into(), ..grant(400, GB) };
    assert!(refusal(&mut world, revocable).contains("keeps its class"));
    assert!(refusal(&mut world, Grant::default()).contains("no resources"));
    world.ask(framework, grant(400, GB), &[]);
    assert!(refusal(&mut world, grant(500, GB)).contains("under way"));
    assert_eq!(world.resizes(agent).len(), 1);
    world.call(framework, Call::Resize(ResizeTask { task_id: "no".into(), ..ResizeTask::default() }));
    assert!(world.resized(framework)[0].refusal.contains("no live task"));
}
