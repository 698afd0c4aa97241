//! `bulkhead resize`: another grant for a running task.

use bulkhead_proto::v1::{Grant, ResizeTaskRequest};
use serde::Serialize;

use crate::{
    args::ResizeArgs,
    connect::{Address, operator, refused_by_master},
    error::CliError,
    list::tasks,
    quantity::resources,
    screen::Screen,
    task_ref::{id, resolve},
};

/// `resize --json`.
#[derive(Debug, Serialize)]
struct Resized<'t> {
    task_id: &'t str,
    framework_id: &'t str,
    grant: Grant,
}

/// `bulkhead resize`.
pub(crate) async fn resize(address: &Address, screen: Screen, args: &ResizeArgs) -> Result<(), CliError> {
    let mut operator = operator(address).await?;
    let tasks = tasks(&mut operator, true).await?;
    let task = resolve(&tasks, &args.task)?;
    let now = task.spec.as_ref().and_then(|spec| spec.grant.clone()).unwrap_or_default();
    let request = ResizeTaskRequest {
        task_id: id(task).to_owned(),
        framework_id: task.framework_id.clone(),
        grant: Some(wanted(now, args)),
    };
    let answer = operator.resize_task(request).await.map_err(refused_by_master("ResizeTask"))?;
    let grant = answer.into_inner().grant.unwrap_or_default();
    if screen.json {
        return screen.document(&Resized { task_id: id(task), framework_id: &task.framework_id, grant });
    }
    screen.out(&format!("{}: {}", id(task), resources(&grant.resources.unwrap_or_default())))
}

/// The present grant with what was asked for in it.
fn wanted(mut grant: Grant, args: &ResizeArgs) -> Grant {
    let mut amounts = grant.resources.take().unwrap_or_default();
    amounts.cpu_milli = args.cpus.unwrap_or(amounts.cpu_milli);
    amounts.mem_bytes = args.mem.unwrap_or(amounts.mem_bytes);
    if let Some(ports) = &args.ports {
        amounts.ports = ports.to_ranges();
    }
    args.more.amounts(&mut amounts);
    args.more.options(&mut grant);
    Grant { resources: Some(amounts), ..grant }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::Resources;
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn only_what_is_named_changes() {
        let line = ["bulkhead", "resize", "--mem", "1GiB", "--pids", "9", "web"];
        let Command::Resize(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not a resize")
        };
        let amounts = Resources { cpu_milli: 500, mem_bytes: 64 << 20, ..Resources::default() };
        let before =
            Grant { resources: Some(amounts.clone()), class: 1, cpu_burst: true, ..Grant::default() };
        let after = wanted(before.clone(), &args);
        let expected = Resources { mem_bytes: 1 << 30, ..amounts };
        assert_eq!(after, Grant { resources: Some(expected), pids_max: 9, ..before });
    }
}
