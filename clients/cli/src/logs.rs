//! `bulkhead logs`: a task's output, asked of the agent that runs or ran it.

use bulkhead_proto::v1::LogStream;

use crate::{
    args::LogsArgs,
    connect::{Address, operator},
    error::CliError,
    list::{agents_of, tasks},
    log_sink::Sink,
    log_stream::{LogSource, follow, print},
    screen::Screen,
    task_ref::{id, resolve},
};

/// `bulkhead logs`.
pub(crate) async fn logs(address: &Address, screen: Screen, args: &LogsArgs) -> Result<(), CliError> {
    let stream = match (args.stdout, args.stderr) {
        (true, _) => LogStream::Stdout,
        (_, true) => LogStream::Stderr,
        _ => LogStream::Unspecified,
    };
    let source = LogSource { stream, tail_bytes: args.tail.unwrap_or(0), ..find(address, &args.task).await? };
    let mut sink = match stream {
        _ if screen.json => Sink::json(screen, None),
        LogStream::Unspecified => Sink::apart(screen),
        LogStream::Stdout | LogStream::Stderr => Sink::together(screen),
    };
    if args.follow { follow(&source, &mut sink, None).await } else { print(&source, &mut sink).await }
}

async fn find(address: &Address, wanted: &str) -> Result<LogSource, CliError> {
    let mut operator = operator(address).await?;
    let tasks = tasks(&mut operator, false).await?;
    let task = resolve(&tasks, wanted)?;
    let agents = agents_of(&mut operator).await?;
    let agent = agents.into_iter().filter_map(|e| e.agent).find(|a| a.agent_id == task.agent_id);
    let Some(agent) = agent else {
        return Err(CliError::AgentUnknown { task_id: id(task).to_owned(), agent_id: task.agent_id.clone() });
    };
    Ok(LogSource {
        api_address: agent.api_address,
        framework_id: task.framework_id.clone(),
        task_id: id(task).to_owned(),
        stream: LogStream::Unspecified,
        tail_bytes: 0,
    })
}
