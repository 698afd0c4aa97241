//! The keeper's part of a resize: another grant for a running task.

use bulkhead_proto::v1::{self, agent_message};

use super::Keeper;

impl Keeper {
    pub(super) fn resize(&mut self, resize: &v1::Resize) {
        let key = (resize.framework_id.clone(), resize.task_id.clone());
        let Some(outbox) = self.outbox.clone() else { return };
        let answer = v1::Resized {
            framework_id: key.0.clone(),
            task_id: key.1.clone(),
            request: resize.request,
            grant: self.table.get(&key).and_then(|record| record.spec.grant.clone()),
            refusal: "this agent resizes no tasks".to_owned(),
        };
        self.send(&outbox, agent_message::Message::Resized(answer));
    }
}
