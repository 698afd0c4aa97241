//! The line that says how far a task's artifacts are. It moves on terminals; elsewhere nothing is said.

use std::time::Duration;

use bulkhead_proto::v1::{AgentInfo, ListLocalTasksRequest};
use indicatif::ProgressBar;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::notice::{show, spinner};
use crate::connect;

/// Staging that is shorter than this needs no word; longer staging is looked at this often.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says how staging goes on, until it is dropped.
#[derive(Debug)]
pub(super) struct StagingLine {
    bar: ProgressBar,
    writer: JoinHandle<()>,
}

impl StagingLine {
    /// Asks this agent about this task.
    pub(super) fn start(agent: &AgentInfo, framework_id: &str, task_id: &str) -> Self {
        let bar = spinner();
        let (address, key) = (agent.api_address.clone(), (framework_id.to_owned(), task_id.to_owned()));
        let shown = bar.clone();
        let writer = tokio::spawn(async move {
            let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // An agent that does not answer has nothing to say; the task goes on all the same.
                if let Some(words) = ask(&address, &key).await {
                    show(&shown, format!("staging: {words}"));
                }
            }
        });
        Self { bar, writer }
    }

    /// Says something else in between.
    pub(super) fn suspend(&self, say: impl FnOnce()) {
        self.bar.suspend(say);
    }
}

impl Drop for StagingLine {
    fn drop(&mut self) {
        self.writer.abort();
        self.bar.finish_and_clear();
    }
}

async fn ask(address: &str, (framework_id, task_id): &(String, String)) -> Option<String> {
    let mut agent = connect::agent(address).await.ok()?;
    let tasks = agent.list_local_tasks(ListLocalTasksRequest {}).await.ok()?.into_inner().tasks;
    let ours = tasks.into_iter().find(|local| {
        local.task.as_ref().is_some_and(|task| {
            task.framework_id == *framework_id && task.spec.as_ref().is_some_and(|s| s.task_id == *task_id)
        })
    })?;
    Some(ours.staging).filter(|words| !words.is_empty())
}
