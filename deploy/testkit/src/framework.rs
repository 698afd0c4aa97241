//! A scheduler that a test drives step by step, and that remembers everything it was told.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_proto::v1::{
    self, Accept, AcknowledgeStatus, DataAccess, DataAccessChanged, Decline, FrameworkInfo, Grant, KillTask,
    NameDataSets, Offer, Reconcile, ResizeTask, ResourceClass, Resources, Revive, SchedulerCall,
    SchedulerEvent, Subscribe, TaskResized, TaskSpec, TaskState, TaskStatus, Teardown, scheduler_call::Call,
    scheduler_client::SchedulerClient, scheduler_event::Event,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{HANG, Task};

/// Calls that may wait for the stream.
const CALLS: usize = 256;
const STREAM_ENDED: &str = "the stream to the master has ended";
/// What is declined does not come again before [`Framework::offers_for`] asks for it.
const NOT_AGAIN_MS: u64 = 3_600_000;

/// A subscribed framework. Its tasks are killed when it is dropped, unless it has a failover timeout.
///
/// Offers are declined by themselves, so that others get them, except while [`Framework::offers_for`]
/// waits for some.
#[derive(Debug)]
pub struct Framework {
    id: String,
    calls: mpsc::Sender<SchedulerCall>,
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    reading: JoinHandle<()>,
}

/// A status with the moment of its arrival.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it came.
    pub at: Instant,
    /// What it said.
    pub status: TaskStatus,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    auto_acknowledge: bool,
}

#[derive(Debug, Default)]
struct State {
    wants: Option<ResourceClass>,
    offers: Vec<Offer>,
    statuses: Vec<Seen>,
    errors: Vec<String>,
    rescinded: Vec<String>,
    resized: Vec<TaskResized>,
    data_access: Vec<DataAccessChanged>,
    /// Everything, for a test that fails.
    log: Vec<String>,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Framework {
    /// Subscribes under this name for guaranteed resources.
    ///
    /// # Errors
    /// When the master does not answer.
    pub async fn subscribe(master: Channel, name: &str) -> Result<Self> {
        let info = FrameworkInfo { name: name.to_owned(), ..FrameworkInfo::default() };
        Self::subscribe_as(master, info, true).await
    }

    /// Subscribes as `info` says; without `auto_acknowledge` statuses are acknowledged only by
    /// [`Framework::acknowledge`].
    ///
    /// # Errors
    /// When the master does not answer.
    pub async fn subscribe_as(master: Channel, info: FrameworkInfo, auto_acknowledge: bool) -> Result<Self> {
        let (calls, queue) = mpsc::channel(CALLS);
        send(&calls, Call::Subscribe(Subscribe { framework: Some(info) })).await?;
        let session = SchedulerClient::new(master).session(ReceiverStream::new(queue)).await;
        let mut stream = session.context("subscribe")?.into_inner();
        let first =
            tokio::time::timeout(HANG, stream.message()).await.context("wait for the subscription")??;
        let Some(Event::Subscribed(subscribed)) = first.and_then(|e| e.event) else {
            bail!("the first event is not the subscription");
        };
        let (version, changed) = watch::channel(0);
        let shared = Arc::new(Shared { state: Mutex::default(), version, auto_acknowledge });
        let reading = tokio::spawn(read(stream, calls.clone(), Arc::clone(&shared)));
        Ok(Self { id: subscribed.framework_id, calls, shared, changed, reading })
    }

    /// The id that the master gave it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for offers of the class that together have `wanted`, and takes them.
    ///
    /// # Errors
    /// When they do not come; tells everything that came instead.
    pub async fn offers_for(&self, class: ResourceClass, wanted: &Resources) -> Result<Vec<Offer>> {
        self.want(class).await?;
        let enough = self
            .wait_for("an offer that has what the task needs", |state| {
                let sum = state.offers.iter().filter_map(|o| o.resources.as_ref());
                let sum = sum.fold(Resources::default(), |sum, more| sum.plus(more));
                // An offer of nothing would do for a task that needs nothing.
                let some = !sum.is_empty() && sum.contains(wanted);
                some.then(|| std::mem::take(&mut state.offers))
            })
            .await;
        let rest = {
            let mut state = self.shared.lock();
            state.wants = None;
            std::mem::take(&mut state.offers)
        };
        self.decline(&rest, NOT_AGAIN_MS).await?;
        enough
    }

    /// Launches tasks on these offers; what they leave goes to other frameworks.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn accept(&self, offers: &[Offer], tasks: impl IntoIterator<Item = Task>) -> Result<()> {
        let tasks = tasks.into_iter().map(TaskSpec::from).collect();
        self.send(Call::Accept(Accept { offer_ids: ids(offers), tasks, refuse_ms: NOT_AGAIN_MS })).await
    }

    /// Gives offers back.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn decline(&self, offers: &[Offer], refuse_ms: u64) -> Result<()> {
        if offers.is_empty() {
            return Ok(());
        }
        self.send(Call::Decline(Decline { offer_ids: ids(offers), refuse_ms })).await
    }

    /// Waits for what the task needs and launches it.
    ///
    /// # Errors
    /// When no such offer comes.
    pub async fn launch(&self, task: Task) -> Result<()> {
        let class = task.spec().grant.as_ref().map(Grant::class).unwrap_or_default();
        let offers = self.offers_for(class, &task.wanted()).await?;
        self.accept(&offers, [task]).await
    }

    /// Launches a task and waits until its program runs.
    ///
    /// # Errors
    /// When no offer comes, or the task ends first.
    pub async fn start(&self, task: Task) -> Result<TaskStatus> {
        let id = task.id().to_owned();
        self.launch(task).await?;
        self.running(&id).await
    }

    /// Launches a task and waits for its last status.
    ///
    /// # Errors
    /// When no offer comes, or it does not end.
    pub async fn run(&self, task: Task) -> Result<TaskStatus> {
        let id = task.id().to_owned();
        self.launch(task).await?;
        self.end_of(&id).await
    }

    /// Waits until the task's program runs.
    ///
    /// # Errors
    /// When it ends first.
    pub async fn running(&self, task: &str) -> Result<TaskStatus> {
        let status = self.wait_status(task, |s| s.state() == TaskState::Running || is_last(s)).await?;
        ensure!(status.state() == TaskState::Running, "{task} should run: {status:?}");
        Ok(status)
    }

    /// Waits for the task's last status.
    ///
    /// # Errors
    /// When none comes.
    pub async fn end_of(&self, task: &str) -> Result<TaskStatus> {
        self.wait_status(task, is_last).await
    }

    /// Waits for a status of the task that `matches`; the first of those that came.
    ///
    /// # Errors
    /// When none comes.
    pub async fn wait_status(&self, task: &str, matches: impl Fn(&TaskStatus) -> bool) -> Result<TaskStatus> {
        let found = |state: &mut State| {
            let of_task = state.statuses.iter().map(|seen| &seen.status).filter(|s| s.task_id == task);
            of_task.clone().find(|s| matches(s)).cloned()
        };
        self.wait_for(&format!("a status of {task}"), found).await
    }

    /// Waits for the next answer to a call that could not be carried out.
    ///
    /// # Errors
    /// When none comes.
    pub async fn next_error(&self) -> Result<String> {
        self.wait_for("an error", |state| (!state.errors.is_empty()).then(|| state.errors.remove(0))).await
    }

    /// Waits until the master has taken this offer back.
    ///
    /// # Errors
    /// When it does not.
    pub async fn rescinded(&self, offer: &Offer) -> Result<()> {
        let rescinded = |state: &mut State| state.rescinded.contains(&offer.offer_id).then_some(());
        self.wait_for("the end of an offer", rescinded).await
    }

    /// Every status of a task so far, in order of arrival, repetitions included.
    pub fn statuses(&self, task: &str) -> Vec<Seen> {
        self.shared.lock().statuses.iter().filter(|s| s.status.task_id == task).cloned().collect()
    }

    /// Asks for the end of a task; 0 takes the grace it was launched with.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn kill(&self, task: &str, grace_ms: u64) -> Result<()> {
        self.send(Call::Kill(KillTask { task_id: task.to_owned(), grace_ms })).await
    }

    /// Gives a running task the grant of `after`, paid for with offers where it grows, and waits for the answer.
    ///
    /// # Errors
    /// When no offer or no answer comes; a refusal is in the answer.
    pub async fn resize(&self, before: &Task, after: &Task) -> Result<TaskResized> {
        let grant = after.spec().grant.clone().unwrap_or_default();
        let growth = after.wanted().saturating_sub(&before.wanted());
        let offers =
            if growth.is_empty() { Vec::new() } else { self.offers_for(grant.class(), &growth).await? };
        let task_id = after.id().to_owned();
        self.send(Call::Resize(ResizeTask { task_id, grant: Some(grant), offer_ids: ids(&offers) })).await?;
        self.wait_for("the answer to a resize", |state| {
            let answer = state.resized.iter().position(|r| r.task_id == after.id())?;
            Some(state.resized.remove(answer))
        })
        .await
    }

    /// Names data sets instead of those named before, and forgets news about them.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn name_data_sets(&self, data_sets: &[&str]) -> Result<()> {
        let data_sets = data_sets.iter().map(|name| (*name).to_owned()).collect();
        self.shared.lock().data_access.clear();
        self.send(Call::NameDataSets(NameDataSets { data_sets })).await
    }

    /// Waits for news about the access to data, which come while it holds an offer, that `matches`.
    ///
    /// # Errors
    /// When none comes.
    pub async fn data_access(&self, matches: impl Fn(&DataAccess) -> bool) -> Result<DataAccess> {
        let found = |state: &mut State| {
            let mut all = state.data_access.iter().flat_map(|changed| &changed.data_access);
            all.find(|access| matches(access)).cloned()
        };
        self.wait_for("news about the access to data", found).await
    }

    /// Acknowledges a status.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn acknowledge(&self, status: &TaskStatus) -> Result<()> {
        let (task_id, sequence) = (status.task_id.clone(), status.sequence);
        self.send(Call::Acknowledge(AcknowledgeStatus { task_id, sequence })).await
    }

    /// Asks for the newest status of all tasks again.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn reconcile(&self) -> Result<()> {
        self.send(Call::Reconcile(Reconcile { task_ids: Vec::new() })).await
    }

    /// Ends the framework and its tasks, and waits until the master has closed the stream.
    ///
    /// # Errors
    /// When it does not.
    pub async fn teardown(self) -> Result<()> {
        self.send(Call::Teardown(Teardown {})).await?;
        self.wait_closed().await
    }

    /// Waits until the master has ended the stream.
    ///
    /// # Errors
    /// When it does not.
    pub async fn wait_closed(&self) -> Result<()> {
        let closed = |state: &State| state.closed;
        self.wait(HANG, |state| closed(state).then_some(())).await.context("the master closes the stream")
    }

    async fn send(&self, call: Call) -> Result<()> {
        send(&self.calls, call).await
    }

    /// Asks for offers. Queued while the state is locked, after every decline of what came before: a refusal
    /// that reached the master later would outlast the revival.
    async fn want(&self, class: ResourceClass) -> Result<()> {
        let place = self.calls.reserve().await.context(STREAM_ENDED)?;
        let mut state = self.shared.lock();
        state.wants = Some(class);
        place.send(SchedulerCall { call: Some(Call::Revive(Revive {})) });
        Ok(())
    }

    async fn wait_for<T>(&self, what: &str, mut find: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        let found = self
            .wait(HANG, |state| match find(state) {
                Some(found) => Some(Some(found)),
                None => state.closed.then_some(None),
            })
            .await;
        match found {
            Some(Some(found)) => Ok(found),
            Some(None) => bail!("the stream ended without {what}; {}", self.told()),
            None => bail!("no sign of {what} within {HANG:?}; {}", self.told()),
        }
    }

    async fn wait<T>(&self, within: Duration, mut find: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut changed = self.changed.clone();
        let waiting = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = find(&mut self.shared.lock()) {
                    return Some(found);
                }
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(within, waiting).await.ok().flatten()
    }

    /// Everything that the master said, for a test that fails.
    fn told(&self) -> String {
        let mut text = format!("framework {} was told:", self.id);
        for line in &self.shared.lock().log {
            text += "\n  ";
            text += line;
        }
        text
    }
}

impl Drop for Framework {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Is this the last status of a task?
pub fn is_last(status: &TaskStatus) -> bool {
    !matches!(status.state(), TaskState::Unspecified | TaskState::Staging | TaskState::Running)
}

fn ids(offers: &[Offer]) -> Vec<String> {
    offers.iter().map(|o| o.offer_id.clone()).collect()
}

async fn send(calls: &mpsc::Sender<SchedulerCall>, call: Call) -> Result<()> {
    calls.send(SchedulerCall { call: Some(call) }).await.context(STREAM_ENDED)
}

async fn read(
    mut stream: Streaming<SchedulerEvent>,
    calls: mpsc::Sender<SchedulerCall>,
    shared: Arc<Shared>,
) {
    loop {
        // A stream that has ended is noticed when it is read.
        let place = calls.reserve().await;
        let message = stream.message().await;
        let closed = {
            let mut state = shared.lock();
            match message {
                Ok(Some(SchedulerEvent { event: Some(event) })) => {
                    let answer = note(&mut state, event, shared.auto_acknowledge);
                    if let (Some(call), Ok(place)) = (answer, place) {
                        place.send(SchedulerCall { call: Some(call) });
                    }
                }
                Ok(Some(SchedulerEvent { event: None })) => {}
                ended => {
                    state.log.push(format!("end of the stream: {ended:?}"));
                    state.closed = true;
                }
            }
            state.closed
        };
        shared.version.send_modify(|v| *v += 1);
        if closed {
            return;
        }
    }
}

/// Remembers an event; the call that answers it, if one does.
fn note(state: &mut State, event: Event, acknowledge: bool) -> Option<Call> {
    if !matches!(event, Event::Heartbeat(_)) {
        state.log.push(format!("{event:?}"));
    }
    match event {
        Event::Offers(v1::Offers { offers }) => {
            // Memory and ports are one pool: an offer of one class keeps them from the other.
            let (wanted, others): (Vec<_>, _) =
                offers.into_iter().partition(|o| state.wants == Some(o.class()));
            state.offers.extend(wanted);
            let decline = || Call::Decline(Decline { offer_ids: ids(&others), refuse_ms: NOT_AGAIN_MS });
            return (!others.is_empty()).then(decline);
        }
        Event::Rescind(rescind) => {
            state.offers.retain(|o| !rescind.offer_ids.contains(&o.offer_id));
            state.rescinded.extend(rescind.offer_ids);
        }
        Event::Update(status) => {
            let (task_id, sequence) = (status.task_id.clone(), status.sequence);
            state.statuses.push(Seen { at: Instant::now(), status });
            if acknowledge && sequence > 0 {
                return Some(Call::Acknowledge(AcknowledgeStatus { task_id, sequence }));
            }
        }
        Event::Error(error) => state.errors.push(error.message),
        Event::Resized(resized) => state.resized.push(resized),
        Event::DataAccess(changed) => state.data_access.push(changed),
        Event::Subscribed(_) | Event::Heartbeat(_) => {}
    }
    None
}
