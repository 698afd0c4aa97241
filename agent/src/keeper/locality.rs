//! Data sets on their way to those who look at them, and the answers on their way to the master.

use bulkhead_proto::v1::{AgentMessage, DataAccess, DataAccessReport, WatchDataSets, agent_message};
use tokio::sync::mpsc;

use super::Keeper;

impl Keeper {
    /// A framework names data sets. Names that no master passes on are not taken either.
    pub(super) fn watch_data_sets(&mut self, watch: WatchDataSets) {
        if let Err(error) = bulkhead_proto::data_sets::check_names(&watch.data_sets) {
            tracing::warn!(framework = watch.framework_id, error, "data sets are left out");
            return;
        }
        self.parts.data_sets.set(&watch.framework_id, watch.data_sets);
    }

    /// Keeps answers until there is room for them; a newer one takes the place of one that waits.
    pub(super) fn note_data_access(&mut self, news: Vec<DataAccess>) {
        self.data_access.extend(news.into_iter().map(|access| (access.data_set.clone(), access)));
    }

    /// A new session: the master says again what is named.
    pub(super) fn forget_data_sets(&mut self) {
        self.data_access.clear();
        self.parts.data_sets.new_session();
    }

    pub(super) fn flush_data_access(&mut self, outbox: &mpsc::Sender<AgentMessage>) {
        if self.data_access.is_empty() || outbox.capacity() == 0 {
            return;
        }
        let data_access = std::mem::take(&mut self.data_access).into_values().collect();
        self.send(outbox, agent_message::Message::DataAccess(DataAccessReport { data_access }));
    }
}
