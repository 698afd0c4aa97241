//! What the master lists: tasks, agents, offers, frameworks.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bulkhead_proto::v1::{
    AgentEntry, FrameworkEntry, ListAgentsRequest, ListFrameworksRequest, ListOffersRequest,
    ListTasksRequest, Task, operator_client::OperatorClient,
};
use serde::Serialize;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::{
    args::PsArgs,
    connect::{Address, operator, refused_by_master},
    error::CliError,
    quantity::millis,
    screen::Screen,
    table::View,
};

/// How long an answer that only makes a message better is waited for.
const BY_THE_WAY: Duration = Duration::from_secs(3);

/// `bulkhead ps`.
pub(crate) async fn ps(address: &Address, screen: Screen, args: &PsArgs) -> Result<(), CliError> {
    let mut tasks = tasks(&mut operator(address).await?, !args.all).await?;
    tasks.sort_by_key(|t| std::cmp::Reverse(t.started_unix_ms));
    let empty = if args.all { "no tasks" } else { "no live tasks; `bulkhead ps -a` lists ended ones too" };
    show(screen, &tasks, empty, View::tasks)
}

/// `bulkhead agents`.
pub(crate) async fn agents(address: &Address, screen: Screen) -> Result<(), CliError> {
    let agents = agents_of(&mut operator(address).await?).await?;
    show(
        screen,
        &agents,
        "no agents; start one with `bulkhead-agent --master` and this master's address",
        View::agents,
    )
}

/// `bulkhead offers`.
pub(crate) async fn offers(address: &Address, screen: Screen) -> Result<(), CliError> {
    let answer = operator(address).await?.list_offers(ListOffersRequest {}).await;
    let offers = answer.map_err(refused_by_master("ListOffers"))?.into_inner().offers;
    show(screen, &offers, "no offers are out: no framework waits for one, or nothing is free", View::offers)
}

/// `bulkhead frameworks`.
pub(crate) async fn frameworks(address: &Address, screen: Screen) -> Result<(), CliError> {
    let frameworks = frameworks_of(&mut operator(address).await?).await?;
    show(screen, &frameworks, "no frameworks", View::frameworks)
}

/// The tasks that the master knows, page by page. One that ended meanwhile, and was listed twice, is told once, as ended.
pub(crate) async fn tasks(
    operator: &mut OperatorClient<Channel>,
    live_only: bool,
) -> Result<Vec<Task>, CliError> {
    let (mut tasks, mut places) = (Vec::<Task>::new(), HashMap::new());
    let mut request = ListTasksRequest { live_only, ..ListTasksRequest::default() };
    loop {
        let answer = operator.list_tasks(request.clone()).await;
        let page = answer.map_err(refused_by_master("ListTasks"))?.into_inner();
        for task in page.tasks {
            let id = task.spec.as_ref().map(|spec| spec.task_id.clone());
            let place = places.entry((task.framework_id.clone(), id, task.started_unix_ms));
            match place {
                Entry::Occupied(place) => tasks[*place.get()] = task,
                Entry::Vacant(place) => {
                    place.insert(tasks.len());
                    tasks.push(task);
                }
            }
        }
        if page.next_page_token.is_empty() || page.next_page_token == request.page_token {
            return Ok(tasks);
        }
        request.page_token = page.next_page_token;
    }
}

/// The agents that the master knows.
pub(crate) async fn agents_of(operator: &mut OperatorClient<Channel>) -> Result<Vec<AgentEntry>, CliError> {
    let answer = operator.list_agents(ListAgentsRequest {}).await;
    Ok(answer.map_err(refused_by_master("ListAgents"))?.into_inner().agents)
}

/// The frameworks that the master knows.
pub(crate) async fn frameworks_of(
    operator: &mut OperatorClient<Channel>,
) -> Result<Vec<FrameworkEntry>, CliError> {
    let answer = operator.list_frameworks(ListFrameworksRequest {}).await;
    Ok(answer.map_err(refused_by_master("ListFrameworks"))?.into_inner().frameworks)
}

/// The agents, where the master answers soon: for messages that are good enough without.
pub(crate) async fn agents_or_nothing(address: &Address) -> Option<Vec<AgentEntry>> {
    let ask = async { agents_of(&mut operator(address).await.ok()?).await.ok() };
    timeout(BY_THE_WAY, ask).await.ok().flatten()
}

fn show<T: Serialize>(
    screen: Screen,
    things: &[T],
    empty: &str,
    table: impl Fn(&View, &[T]) -> String,
) -> Result<(), CliError> {
    if screen.json {
        return screen.document(&things);
    }
    if things.is_empty() {
        screen.note(empty);
        return Ok(());
    }
    screen.out(&table(&view(screen), things))
}

/// How tables look now.
pub(crate) fn view(screen: Screen) -> View {
    View { now_unix_ms: now_unix_ms(), color: screen.color_out }
}

fn now_unix_ms() -> u64 {
    // A clock before 1970 makes ages wrong, nothing else.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
