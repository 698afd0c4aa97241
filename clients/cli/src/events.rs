//! `bulkhead events`: what the kernels refused or ended, from every agent, merged by time.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use bulkhead_proto::v1::{AgentEntry, AgentInfo, Event, WatchEventsRequest};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    args::EventsArgs,
    connect::{self, Address, operator, status_text},
    error::CliError,
    list::{agents_of, tasks, view},
    screen::Screen,
    table::event_line,
    task_ref::{id, resolve},
};

/// How long events of different agents are held back to be put in order.
const SETTLE: Duration = Duration::from_millis(200);
/// Before an agent that broke off is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
const QUEUE: usize = 256;

/// `bulkhead events`.
pub(crate) async fn events(address: &Address, screen: Screen, args: &EventsArgs) -> Result<(), CliError> {
    let (agents, task_id) = whom_to_ask(address, args.task.as_deref()).await?;
    if agents.is_empty() {
        screen.note("no agents to ask");
        return Ok(());
    }
    let (queue, mut heard) = mpsc::channel(QUEUE);
    let asked = agents.len();
    for agent in agents {
        let request = WatchEventsRequest { task_id: task_id.clone(), follow: args.follow };
        tokio::spawn(listen(agent, request, queue.clone()));
    }
    drop(queue);
    if args.follow {
        print_as_they_come(screen, &mut heard).await
    } else {
        print_all(screen, &mut heard, asked).await
    }
}

/// The agents that may have something to say, and the id of the task that is asked about (empty: of all).
async fn whom_to_ask(address: &Address, wanted: Option<&str>) -> Result<(Vec<AgentInfo>, String), CliError> {
    let mut operator = operator(address).await?;
    let agents = agents_of(&mut operator).await?;
    let infos = |of: Vec<AgentEntry>| of.into_iter().filter_map(|e| e.agent).collect::<Vec<_>>();
    let Some(wanted) = wanted else { return Ok((infos(agents), String::new())) };
    let tasks = tasks(&mut operator, false).await?;
    let task = resolve(&tasks, wanted)?;
    let its_own = infos(agents).into_iter().filter(|a| a.agent_id == task.agent_id).collect();
    Ok((its_own, id(task).to_owned()))
}

/// What an agent, or the way to it, had to say.
enum Heard {
    Event(Box<Event>),
    Unreachable { hostname: String, cause: String },
}

/// Passes on what one agent says, until it ends; with `follow`, until nobody listens.
async fn listen(agent: AgentInfo, request: WatchEventsRequest, queue: mpsc::Sender<Heard>) {
    let mut said_why = false;
    loop {
        let result = pass_on(&agent, &request, &queue).await;
        if let Err(cause) = result
            && !said_why
        {
            said_why = true;
            let hostname = agent.hostname.clone();
            if queue.send(Heard::Unreachable { hostname, cause }).await.is_err() {
                return;
            }
        }
        if !request.follow || queue.is_closed() {
            return;
        }
        sleep(RETRY_PAUSE).await;
    }
}

async fn pass_on(
    agent: &AgentInfo,
    request: &WatchEventsRequest,
    queue: &mpsc::Sender<Heard>,
) -> Result<(), String> {
    let mut client = connect::agent(&agent.api_address).await.map_err(|e| e.to_string())?;
    let answer = client.watch_events(request.clone()).await.map_err(|s| status_text(&s))?;
    let mut stream = answer.into_inner();
    while let Some(mut event) = stream.message().await.map_err(|s| status_text(&s))? {
        if event.agent_id.is_empty() {
            event.agent_id.clone_from(&agent.agent_id);
        }
        if queue.send(Heard::Event(Box::new(event))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn warn(screen: Screen, hostname: &str, cause: &str) {
    screen.warn(&format!("no events from {hostname}: {cause}"));
}

async fn print_all(screen: Screen, heard: &mut mpsc::Receiver<Heard>, asked: usize) -> Result<(), CliError> {
    let mut all = Vec::new();
    let mut failed = 0;
    while let Some(next) = heard.recv().await {
        match next {
            Heard::Event(event) => all.push(*event),
            Heard::Unreachable { hostname, cause } => {
                warn(screen, &hostname, &cause);
                failed += 1;
            }
        }
    }
    if failed == asked {
        return Err(CliError::Some { failed, asked, noun: "agents" });
    }
    all.sort_by_key(|e| e.last_unix_ms);
    if screen.json {
        return all.iter().try_for_each(|e| screen.line(e));
    }
    if all.is_empty() {
        screen.note("no events: the kernel refused nothing and ended nothing");
        return Ok(());
    }
    screen.out(&view(screen).events(&all))
}

async fn print_as_they_come(screen: Screen, heard: &mut mpsc::Receiver<Heard>) -> Result<(), CliError> {
    let mut news = News::default();
    while let Some(first) = heard.recv().await {
        let mut batch = vec![first];
        let more = async {
            while let Some(next) = heard.recv().await {
                batch.push(next);
            }
        };
        // Running out of time is the usual end: what has come by then is put in order.
        let _ = timeout(SETTLE, more).await;
        let mut events = Vec::new();
        for next in batch {
            match next {
                Heard::Event(event) if news.is_new(&event) => events.push(*event),
                Heard::Event(_) => {}
                Heard::Unreachable { hostname, cause } => warn(screen, &hostname, &cause),
            }
        }
        events.sort_by_key(|e| e.last_unix_ms);
        for event in &events {
            if screen.json { screen.line(event)? } else { screen.out(&event_line(event))? }
        }
    }
    Ok(())
}

/// What was printed so far: an agent that is asked again starts from the beginning.
#[derive(Debug, Default)]
struct News {
    counts: HashMap<EventKey, u64>,
}

/// Who did what: events count by it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct EventKey {
    agent_id: String,
    framework_id: String,
    task_id: String,
    what: (i32, i32, u32, u32),
    /// Tells devices and peers apart.
    message: String,
}

impl News {
    fn is_new(&mut self, event: &Event) -> bool {
        let key = EventKey {
            agent_id: event.agent_id.clone(),
            framework_id: event.framework_id.clone(),
            task_id: event.task_id.clone(),
            what: (event.kind, event.protocol, event.ip_version, event.port),
            message: event.message.clone(),
        };
        match self.counts.entry(key) {
            Entry::Occupied(mut known) => event.count > known.insert(event.count),
            Entry::Vacant(unknown) => {
                unknown.insert(event.count);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_news_when_it_counts_further() {
        let mut news = News::default();
        let event = |port, count| Event { task_id: "t".to_owned(), port, count, ..Event::default() };
        assert!(news.is_new(&event(80, 1)));
        assert!(!news.is_new(&event(80, 1)));
        assert!(news.is_new(&event(80, 3)));
        assert!(news.is_new(&event(81, 1)));
    }
}
