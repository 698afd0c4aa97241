//! What the keeper tells the master and the local API about the node.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bulkhead_proto::{
    resources::PortSet,
    v1::{self, Resources},
};
use tokio::sync::{oneshot, watch};

use super::{Keeper, Listed, Located};
use crate::{
    estimate::lendable_cpu_milli,
    launch::sandbox::{self, Sandbox},
    measure::{network::NetUse, pressure::Pressure},
    offer::{ledger::TaskKey, report::Strain},
};

/// What the sampler found: peaks over its window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// CPU of everything that is not a task.
    pub strangers_cpu_milli: u64,
    /// Memory of everything that is not a task.
    pub strangers_mem_bytes: u64,
    /// Disk that is in use and no running task's.
    pub strangers_disk_bytes: u64,
    /// What goes over the link and is no task's.
    pub strangers_net: NetUse,
    /// The link's speed now, 0 where there is none.
    pub link_bits_per_sec: u64,
    /// CPU of guaranteed tasks, at its peak of the last while or the predicted one of the next hour, whichever is larger;
    /// `None` while it was not watched for long enough to lend any.
    pub guaranteed_cpu_milli: Option<u64>,
    /// The predicted peak of guaranteed tasks; `None` in the first minutes.
    pub predicted_cpu_milli: Option<u64>,
    /// The same of their memory.
    pub predicted_mem_bytes: Option<u64>,
    /// Ports that the node offers and some socket on the host holds, tasks' included.
    pub ports_in_use: PortSet,
    /// What the machine stands still for.
    pub pressure: Pressure,
    /// What 99 of 100 waits of guaranteed tasks for a CPU took at most, to a factor of two; `None` where that is not
    /// counted, or there were too few.
    pub runqueue_p99_usec: Option<u64>,
    /// What each memory node has, and what is free of it.
    pub numa: Vec<v1::NumaNode>,
}

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
        let books = v1::ResourceReport { numa: self.numa.clone(), ..self.parts.ledger.report() };
        self.strain.tell(books)
    }

    pub(super) fn observe(&mut self, seen: &Observation) {
        self.strain = Strain { pressure: seen.pressure.mean, runqueue_p99_usec: seen.runqueue_p99_usec };
        self.numa.clone_from(&seen.numa);
        let ledger = &mut self.parts.ledger;
        let ports = seen.ports_in_use.difference(&ledger.granted_ports());
        let strangers = Resources {
            cpu_milli: seen.strangers_cpu_milli,
            mem_bytes: seen.strangers_mem_bytes,
            ports: ports.to_ranges(),
            // Their files stay, so what is kept free comes on top of them.
            disk_bytes: seen.strangers_disk_bytes.saturating_add(ledger.floor().disk_bytes),
            // Of a link that has become slower, or is gone, nobody can have the rest.
            net_egress_bits_per_sec: seen
                .strangers_net
                .sent_bits_per_sec
                .max(ledger.capacity().net_egress_bits_per_sec.saturating_sub(seen.link_bits_per_sec)),
            net_ingress_bits_per_sec: seen
                .strangers_net
                .received_bits_per_sec
                .max(ledger.capacity().net_ingress_bits_per_sec.saturating_sub(seen.link_bits_per_sec)),
            ..Resources::default()
        }
        .at_most(ledger.capacity());
        // What a task leaves of cores of its own, nobody else can use.
        let capacity = ledger.capacity().cpu_milli.saturating_sub(ledger.exclusive_cpu_milli());
        let lend = |peak| lendable_cpu_milli(capacity, seen.strangers_cpu_milli, peak);
        let revocable = seen.guaranteed_cpu_milli.map_or(0, lend);
        ledger.observe(strangers, revocable);
        if let Some(cap) = seen.guaranteed_cpu_milli.and_then(|_| self.revocable_cap.next(revocable)) {
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
