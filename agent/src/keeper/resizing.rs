//! The keeper's part of a resize: another grant for a running task.
//!
//! The books hold the larger of both grants until the kernel has been told. Growth is booked before, so that no
//! launch takes it meanwhile; what a task shrinks by is free after.

use std::sync::Arc;

use bulkhead_proto::v1::{self, agent_message};

use super::{Keeper, Message};
use crate::{
    grant::Grant,
    journal::{Fact, Journal},
    launch::blocking,
    offer::ledger::TaskKey,
};

/// How a resize ended.
pub struct Done {
    key: TaskKey,
    resize: v1::Resize,
    before: Arc<Grant>,
    after: Grant,
    result: Result<(), String>,
}

impl Keeper {
    pub(super) fn resize(&mut self, resize: v1::Resize) {
        let key = (resize.framework_id.clone(), resize.task_id.clone());
        match self.plan_resize(&key, &resize) {
            Ok((before, after)) => self.change_limits(key, resize, before, after),
            Err(refusal) => self.answer_resize(&key, resize.request, refusal),
        }
    }

    fn plan_resize(&mut self, key: &TaskKey, resize: &v1::Resize) -> Result<(Arc<Grant>, Grant), String> {
        let not_running = || format!("no task {:?} is running on this agent", key.1);
        let live = self.live.get_mut(key).ok_or_else(not_running)?;
        let grants = live.grants.as_ref().filter(|_| !*live.ended.borrow()).ok_or_else(not_running)?;
        if live.resizing {
            return Err("another resize of this task is under way: wait for its answer".to_owned());
        }
        let before = Arc::clone(&grants.borrow());
        let after =
            Grant::check(resize.grant.as_ref(), &self.parts.defaults.grant).map_err(|e| e.to_string())?;
        if before.class != after.class {
            return Err("a running task keeps its class".to_owned());
        }
        let booked = self.parts.ledger.stretch(key, &after);
        booked.map_err(|refusal| format!("the grant does not fit this node: {refusal}"))?;
        live.resizing = true;
        Ok((before, after))
    }

    /// In the background: lowering a limit may have to wait for memory to be given back.
    fn change_limits(&self, key: TaskKey, resize: v1::Resize, before: Arc<Grant>, after: Grant) {
        let Some(live) = self.live.get(&key) else { return };
        let (Some(place), changing) = (live.cgroup.clone(), Arc::clone(&live.changing)) else { return };
        let isolators = Arc::clone(self.parts.launcher.isolators());
        let (journal, myself) = (self.parts.journal.clone(), self.myself.clone());
        tokio::spawn(async move {
            let _changing = changing.lock_owned().await;
            let (from, to) = (Arc::clone(&before), after.clone());
            let updated = blocking(move || isolators.update(&place, &from, &to)).await;
            let result = updated
                .map_err(|(part, error)| format!("change the {part} limit: {}", crate::error_chain(&*error)));
            if result.is_ok() {
                record(&journal, &key, resize.grant.clone()).await;
            }
            let done = Done { key, resize, before, after, result };
            drop(myself.send(Message::Resized(Box::new(done))).await);
        });
    }

    pub(super) fn resized(&mut self, done: Done) {
        let Done { key, resize, before, after, result } = done;
        if let Some(live) = self.live.get_mut(&key) {
            live.resizing = false;
            if let (Ok(()), Some(grants)) = (&result, &live.grants) {
                grants.send_replace(Arc::new(after.clone()));
            }
        }
        match &result {
            Ok(()) => {
                self.parts.ledger.settle(&key, &after);
                self.table.resized(&key, resize.grant.unwrap_or_default());
            }
            Err(_) => self.parts.ledger.settle(&key, &before),
        }
        self.answer_resize(&key, resize.request, result.err().unwrap_or_default());
    }

    /// An answer that finds no session is not repeated: the registration of the next one says what the task holds.
    fn answer_resize(&mut self, key: &TaskKey, request: u64, refusal: String) {
        tracing::info!(task = key.1, refusal, "resize");
        let Some(outbox) = self.outbox.clone() else { return };
        let grant = self.table.get(key).and_then(|record| record.spec.grant.clone());
        let (framework_id, task_id) = key.clone();
        let answer = v1::Resized { framework_id, task_id, request, grant, refusal };
        self.send(&outbox, agent_message::Message::Resized(answer));
    }
}

/// A crash before the record leaves the kernel at the new limits and the books at the old ones; the isolators'
/// `recover` makes both agree.
async fn record(journal: &Journal, key: &TaskKey, grant: Option<v1::Grant>) {
    let fact = Fact::Resized(grant.unwrap_or_default());
    if let Err(error) = journal.record(&key.0, &key.1, fact).await {
        tracing::error!(error = crate::error_chain(&error), task = key.1, "journal a resize");
    }
}
