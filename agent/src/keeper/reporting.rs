//! What the keeper tells the master and the local API about the node.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bulkhead_proto::v1;
use tokio::sync::{oneshot, watch};

use super::{Keeper, Listed, Located};
use crate::{
    launch::sandbox::{self, Sandbox},
    offer::{Observation, Seen, ledger::TaskKey, provenance, report::Strain},
};

impl Keeper {
    pub(super) fn register(&mut self, reply: oneshot::Sender<v1::Register>) {
        self.outbox = None;
        self.table.new_session();
        self.reported = None;
        self.forget_data_sets();
        let report = self.report();
        let report = self.parts.reporter.stamp(report, Instant::now());
        self.parts.metrics.resources(&report);
        let tasks = self.table.current().map(|(key, record)| record.to_task(key)).collect();
        // A link that gave up meanwhile asks again.
        drop(reply.send(v1::Register { agent: Some(self.parts.agent.clone()), report: Some(report), tasks }));
    }

    /// The master has lost its picture.
    pub(super) fn send_report(&mut self) {
        self.reported = None;
        self.parts.reporter.forget();
    }

    /// The books, and how busy the node is.
    pub(super) fn report(&self) -> v1::ResourceReport {
        let report = self.strain.tell(self.parts.ledger.report());
        match &self.seen {
            Some((seen, _)) => seen.tell(&self.parts.ledger, report),
            None => report,
        }
    }

    pub(super) fn observe(&mut self, seen: Observation) {
        self.strain = Strain { pressure: seen.pressure.mean, runqueue_p99_usec: seen.runqueue_p99_usec };
        let seen = Seen::new(seen, &self.parts.ledger);
        let lendable_milli = seen.lending.lendable_milli;
        self.parts.ledger.observe(seen.strangers(&self.parts.ledger), lendable_milli);
        let watched = seen.observation.watched;
        self.seen = Some((seen, Instant::now()));
        if let Some(cap) = watched.then(|| self.revocable_cap.next(lendable_milli)).flatten() {
            self.lend(cap);
        }
    }

    /// In the background, as everything that touches files.
    fn lend(&self, cap_milli: u64) {
        let revocable = Arc::clone(&self.parts.revocable);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = revocable.lend(cap_milli) {
                tracing::warn!(cap_milli, error = crate::error_chain(&error), "cap the revocable tasks");
            }
        });
    }

    /// Removes old sandboxes of tasks that are over, in the background.
    pub(super) fn sweep_sandboxes(&self) {
        let live: Vec<_> = self.table.current().map(|(_, record)| record.sandbox.clone()).collect();
        let (work_dir, keep) = (self.parts.work_dir.clone(), self.parts.keep);
        let isolators = Arc::clone(self.parts.launcher.isolators());
        tokio::task::spawn_blocking(move || {
            // A directory without a record yet may be a task that is just being launched.
            let settled = SystemTime::now() - Duration::from_secs(60);
            let ended =
                sandbox::list(&work_dir).into_iter().filter(|(dir, at)| !live.contains(dir) && *at < settled);
            for dir in sandbox::expired(ended.collect(), keep, SystemTime::now()) {
                isolators.discard(&dir);
                if let Err(error) = Sandbox::at(dir).remove() {
                    tracing::warn!(error = crate::error_chain(&error), "remove an old sandbox");
                }
            }
        });
    }

    pub(super) fn info(&self) -> v1::GetInfoResponse {
        let mut report = self.report();
        report.enforced = Some(*self.parts.reporter.enforced());
        v1::GetInfoResponse {
            agent: Some(self.parts.agent.clone()),
            report: Some(report),
            connected_to_master: self.outbox.as_ref().is_some_and(|o| !o.is_closed()),
        }
    }

    /// Where each number of the report comes from.
    pub(super) fn explain(&self) -> v1::ExplainResponse {
        let seen = self.seen.as_ref();
        let mut provenance = provenance(&self.parts.ledger, seen.map(|(seen, _)| seen), self.parts.predictor);
        provenance.enforced = Some(*self.parts.reporter.enforced());
        let age_ms = |at: &Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        provenance.measured_ms_ago = seen.map(|(_, at)| age_ms(at));
        v1::ExplainResponse { agent: Some(self.parts.agent.clone()), provenance: Some(provenance) }
    }

    pub(super) fn list(&self) -> Vec<Listed> {
        let listed = |(key, record): (&TaskKey, &crate::task::Record)| Listed {
            task: record.to_task(key),
            sandbox: record.sandbox.clone(),
            cgroup: if record.ended() { None } else { self.live.get(key).and_then(|l| l.cgroup.clone()) },
            staging: self.live.get(key).map(super::Live::staging_words).unwrap_or_default(),
        };
        self.table.all().map(listed).collect()
    }

    pub(super) fn locate(&self, key: &TaskKey) -> Option<Located> {
        let record = self.table.get(key)?;
        let ended = match self.live.get(key) {
            Some(live) => live.ended.subscribe(),
            None => watch::channel(true).1,
        };
        Some(Located { sandbox: record.sandbox.clone(), ended })
    }
}
