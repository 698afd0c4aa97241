//! `bulkhead kill`: orders to stop, each carried out or explained on its own.

use bulkhead_proto::v1::{StopTaskRequest, Task, operator_client::OperatorClient};
use serde::Serialize;
use tonic::transport::Channel;

use crate::{
    args::KillArgs,
    connect::{Address, operator, refused_by_master},
    error::CliError,
    list::tasks,
    quantity::millis,
    screen::Screen,
    task_ref::{id, is_live, resolve},
};

/// One task of `kill --json`.
#[derive(Debug, Serialize)]
struct Stopped<'t> {
    task_id: &'t str,
    framework_id: &'t str,
    /// False where it had already ended.
    stopping: bool,
}

/// `bulkhead kill`.
pub(crate) async fn kill(address: &Address, screen: Screen, args: &KillArgs) -> Result<(), CliError> {
    let mut operator = operator(address).await?;
    let tasks = tasks(&mut operator, false).await?;
    let grace_ms = args.grace.map_or(0, |g| millis(g).max(1));
    let mut stopped = Vec::new();
    let mut failed = 0;
    for wanted in &args.tasks {
        match stop(&mut operator, &tasks, wanted, grace_ms).await {
            Ok(done) => {
                if !screen.json {
                    tell(screen, &done)?;
                }
                stopped.push(done);
            }
            Err(error) => {
                screen.error(&error.to_string());
                failed += 1;
            }
        }
    }
    if screen.json {
        screen.document(&stopped)?;
    }
    match failed {
        0 => Ok(()),
        failed => Err(CliError::Some { failed, asked: args.tasks.len(), noun: "orders to stop" }),
    }
}

async fn stop<'t>(
    operator: &mut OperatorClient<Channel>,
    tasks: &'t [Task],
    wanted: &str,
    grace_ms: u64,
) -> Result<Stopped<'t>, CliError> {
    let task = resolve(tasks, wanted)?;
    let (task_id, framework_id) = (id(task), task.framework_id.as_str());
    let stopping = is_live(task);
    if stopping {
        let request =
            StopTaskRequest { task_id: task_id.to_owned(), framework_id: framework_id.to_owned(), grace_ms };
        operator.stop_task(request).await.map_err(refused_by_master("StopTask"))?;
    }
    Ok(Stopped { task_id, framework_id, stopping })
}

fn tell(screen: Screen, done: &Stopped<'_>) -> Result<(), CliError> {
    if done.stopping {
        screen.out(done.task_id)
    } else {
        screen.note(&format!("{} had already ended", done.task_id));
        Ok(())
    }
}
