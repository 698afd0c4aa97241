//! Frameworks subscribe, fail over, leave, and are left.

use bulkhead_proto::v1::{
    CallError, Decline, FrameworkInfo, SchedulerHeartbeat, Subscribed, TaskReason, scheduler_call::Call,
    scheduler_event,
};

use super::{Closing, Core, Severity};
use crate::{
    framework::{Phase, check_subscription},
    ids::{FrameworkId, OfferId, SessionId, TaskKey},
    tasks::KillOrder,
    timers::Timer,
};

impl Core {
    pub(super) fn subscribe(&mut self, session: SessionId, framework: FrameworkInfo) {
        if self.in_use(session) {
            return;
        }
        let mut info = match check_subscription(framework) {
            Ok(info) => info,
            Err(problem) => return self.close(session, Closing::Invalid(problem)),
        };
        let id = if info.framework_id.is_empty() {
            self.new_framework_id()
        } else {
            info.framework_id.as_str().into()
        };
        match self.phase(&id) {
            Some(Phase::Leaving) => {
                let why = format!(
                    "framework {id} was ended and its tasks are being killed; subscribe without an id to start anew"
                );
                return self.close(session, Closing::Refused(why));
            }
            Some(Phase::Connected(old)) => {
                let offers = self.offers.of_framework(&id).cloned().collect();
                self.rescind(offers, "another scheduler of this framework subscribed");
                self.close(old, Closing::Replaced(format!("framework {id} subscribed on a newer stream")));
            }
            _ => {}
        }
        info.framework_id = (&id).into();
        let text = format!("framework {id} ({}) subscribed", info.name);
        self.log(Severity::Info, text);
        self.frameworks.add(&id, info.clone(), Phase::Connected(session), self.now);
        if let Some(framework) = self.frameworks.get_mut(&id) {
            framework.info = info;
        }
        self.forget_refusals(&id);
        let heartbeat_interval_ms = self.settings.heartbeat_interval_ms;
        let subscribed = Subscribed { framework_id: (&id).into(), heartbeat_interval_ms };
        self.tell_framework(&id, scheduler_event::Event::Subscribed(subscribed));
        self.watch_data_sets(&id);
        self.repeat_unacknowledged(&id);
        self.plan_heartbeat();
    }

    fn new_framework_id(&mut self) -> FrameworkId {
        loop {
            self.frameworks_made += 1;
            let id =
                FrameworkId::from(format!("{}-framework-{}", self.run_id, self.frameworks_made).as_str());
            if self.phase(&id).is_none() {
                return id;
            }
        }
    }

    /// What the framework may have missed while it was away.
    fn repeat_unacknowledged(&mut self, framework: &FrameworkId) {
        let missed: Vec<_> = self
            .tasks
            .of_framework(framework)
            .filter(|(_, r)| r.status.sequence > r.acked)
            .map(|(_, r)| r.status.clone())
            .collect();
        for status in missed {
            self.tell_framework(framework, scheduler_event::Event::Update(status));
        }
    }

    /// A framework that only its tasks tell of: it gets the default time to come back.
    pub(super) fn expect_framework(&mut self, id: &FrameworkId) {
        if self.phase(id).is_some() {
            return;
        }
        let until = self.now.after_ms(self.settings.failover_timeout_ms);
        let info = FrameworkInfo {
            framework_id: id.into(),
            failover_timeout_ms: self.settings.failover_timeout_ms,
            ..FrameworkInfo::default()
        };
        // Only the name of a framework that has not come back yet is unknown; the rest are the defaults.
        let info = check_subscription(info).unwrap_or_default();
        self.frameworks.add(id, info, Phase::Away { until }, self.now);
        self.timers.set(until, Timer::FrameworkAway(id.clone()));
    }

    pub(super) fn call(&mut self, session: SessionId, call: Call) {
        let Some(id) = self.frameworks.of_session(session).cloned() else { return };
        match call {
            Call::Subscribe(_) => {
                let message = "this stream is subscribed already; open another to subscribe again".to_owned();
                self.tell_framework(&id, scheduler_event::Event::Error(CallError { message }));
            }
            Call::Accept(accept) => self.accept(&id, accept),
            Call::Decline(decline) => self.decline(&id, &decline),
            Call::Kill(kill) => self.kill_task(&id, &kill),
            Call::Acknowledge(ack) => self.acknowledge(&id, &ack),
            Call::Reconcile(reconcile) => self.reconcile(&id, &reconcile),
            Call::Teardown(_) => {
                self.close(session, Closing::Done);
                self.end_framework(&id, "it was torn down");
            }
            Call::Detach(_) => {
                self.close(session, Closing::Done);
                self.detach(&id);
            }
            Call::NameDataSets(named) => self.name_data_sets(&id, named),
            Call::Resize(resize) => self.resize_for_framework(&id, &resize),
            Call::Revive(_) => self.forget_refusals(&id),
        }
    }

    /// Offers that are gone already are passed over: a rescind may cross a decline on the way.
    fn decline(&mut self, framework: &FrameworkId, decline: &Decline) {
        let refuse_ms = if decline.refuse_ms == 0 { self.settings.refuse_ms } else { decline.refuse_ms };
        for id in &decline.offer_ids {
            if self.offers.get(id).is_none_or(|o| o.framework != *framework) {
                continue;
            }
            let Some(offer) = self.release_offer(&OfferId::from(id.as_str())) else { continue };
            self.counters.offers_declined += 1;
            self.refuse(framework, &offer.agent, offer.class, refuse_ms);
        }
    }

    /// The stream broke. The tasks wait for the framework as long as it asked for.
    pub(super) fn framework_leaves(&mut self, id: &FrameworkId) {
        let Some(framework) = self.frameworks.get(id) else { return };
        let failover_timeout_ms = framework.info.failover_timeout_ms;
        let until = self.now.after_ms(failover_timeout_ms);
        self.drop_session(id, Phase::Away { until });
        self.timers.set(until, Timer::FrameworkAway(id.clone()));
        self.log(
            Severity::Info,
            format!("framework {id} disconnected; its tasks wait {failover_timeout_ms} ms for it"),
        );
    }

    /// Nobody listens any more: offers go back without a word.
    fn drop_session(&mut self, id: &FrameworkId, phase: Phase) {
        self.frameworks.set_phase(id, phase);
        self.watch_data_sets(id);
        let offers = self.offers.of_framework(id).cloned().collect();
        self.rescind(offers, "the framework is not connected");
    }

    pub(super) fn framework_may_be_gone(&mut self, id: &FrameworkId) {
        if let Some(Phase::Away { until }) = self.phase(id)
            && until <= self.now
        {
            self.end_framework(id, "its failover timeout is over");
        }
    }

    fn end_framework(&mut self, id: &FrameworkId, why: &str) {
        self.log(Severity::Info, format!("framework {id} ends: {why}"));
        self.drop_session(id, Phase::Leaving);
        for key in self.keys_of(id) {
            self.kill_if_leaving(&key);
        }
        self.acknowledge_all(id);
    }

    /// Kills a task whose framework is ending.
    pub(super) fn kill_if_leaving(&mut self, key: &TaskKey) {
        let is_live = self.tasks.get(key).is_some_and(|r| !r.ended());
        if is_live && self.phase(&key.framework) == Some(Phase::Leaving) {
            self.order_kill(key, KillOrder { reason: TaskReason::FrameworkGone, grace_ms: 0 });
        }
    }

    fn detach(&mut self, id: &FrameworkId) {
        self.log(Severity::Info, format!("framework {id} leaves its tasks to themselves"));
        self.drop_session(id, Phase::Detached);
        self.acknowledge_all(id);
    }

    /// From here on the master acknowledges in the framework's place, beginning with what waits already.
    fn acknowledge_all(&mut self, id: &FrameworkId) {
        for key in self.keys_of(id) {
            if let Some(sequence) = self.tasks.get(&key).map(|r| r.status.sequence).filter(|s| *s > 0) {
                self.acknowledged(&key, sequence);
            }
        }
        self.complete(id);
    }

    fn keys_of(&self, id: &FrameworkId) -> Vec<TaskKey> {
        self.tasks.of_framework(id).map(|(key, _)| key.clone()).collect()
    }

    /// Forgets a framework that is on its own and has no task left.
    pub(super) fn complete(&mut self, id: &FrameworkId) {
        let on_its_own = self.phase(id).is_some_and(Phase::is_on_its_own);
        if on_its_own && self.tasks.of_framework(id).next().is_none() {
            self.frameworks.remove(id);
            self.log(Severity::Info, format!("framework {id} is complete"));
        }
    }

    fn plan_heartbeat(&mut self) {
        if self.next_heartbeat.is_none() {
            let at = self.now.after_ms(self.settings.heartbeat_interval_ms);
            self.next_heartbeat = Some(at);
            self.timers.set(at, Timer::Heartbeat);
        }
    }

    pub(super) fn heartbeat(&mut self) {
        self.next_heartbeat = None;
        let listening: Vec<_> =
            self.frameworks.iter().filter(|(_, f)| f.session().is_some()).map(|(id, _)| id.clone()).collect();
        for id in &listening {
            self.tell_framework(id, scheduler_event::Event::Heartbeat(SchedulerHeartbeat {}));
        }
        if !listening.is_empty() {
            self.plan_heartbeat();
        }
    }
}
