//! `bulkhead run`: a framework of one task.
//!
//! ```text
//! args -> need -> session (master) --inputs--> plan --effects--> session, output (agent), screen
//! ```

mod need;
mod notice;
pub(crate) mod outcome;
mod plan;
mod report;
mod session;
mod staging;
mod waiting;

use std::{collections::VecDeque, time::Duration};

use bulkhead_proto::v1::{AgentInfo, FrameworkInfo, LogStream, scheduler_call::Call};
use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::{JoinError, JoinHandle},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use self::{
    need::Need,
    notice::Notice,
    plan::{Effect, Input, Plan},
    report::Report,
    session::{FAILOVER, Session, SessionEvent},
    staging::StagingLine,
    waiting::{Tally, timeout_words},
};
use crate::{
    args::RunArgs,
    connect::Address,
    error::CliError,
    list::agents_or_nothing,
    log_sink::Sink,
    log_stream::{LogSource, follow},
    quantity::millis,
    screen::Screen,
};

/// Letters of the random part of a task id: no two of a name's live tasks get the same.
const SUFFIX_LETTERS: usize = 8;

/// Runs the task; the exit code of this process.
///
/// # Errors
/// No master, or one that refuses the subscription. Everything later is in the exit code.
pub(crate) async fn run(address: &Address, screen: Screen, args: &RunArgs) -> Result<u8, CliError> {
    let mut suffix = Uuid::new_v4().simple().to_string();
    suffix.truncate(SUFFIX_LETTERS);
    let need = Need::new(args, &suffix);
    let mut interrupts = Interrupts::new().map_err(CliError::Signals)?;
    let session = Session::open(address.clone(), framework(&need)).await?;
    let mut driver = Driver {
        address,
        screen,
        notice: Some(Notice::start(address.clone(), screen, need.clone())),
        staging: None,
        plan: Plan::new(need.clone(), args.detach),
        need,
        tally: Tally::default(),
        session,
        output: None,
        ask_again_at: None,
        give_up_at: (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout),
        timeout: args.timeout,
    };
    loop {
        let input = driver.next(&mut interrupts).await;
        if let Some(code) = driver.take(input).await? {
            driver.session.close().await;
            return Ok(code);
        }
    }
}

fn framework(need: &Need) -> FrameworkInfo {
    FrameworkInfo {
        framework_id: String::new(),
        name: format!("run {}", need.name()),
        role: String::new(),
        classes: vec![need.class.into()],
        failover_timeout_ms: millis(FAILOVER),
        minimum: Some(need.minimum()),
        // It takes the first offer that is large enough.
        data_sets: Vec::new(),
    }
}

struct Driver<'a> {
    address: &'a Address,
    screen: Screen,
    notice: Option<Notice>,
    staging: Option<StagingLine>,
    plan: Plan,
    need: Need,
    tally: Tally,
    session: Session,
    output: Option<Output>,
    ask_again_at: Option<Instant>,
    give_up_at: Option<Instant>,
    timeout: Duration,
}

impl Driver<'_> {
    /// Waits for the next thing that happens.
    async fn next(&mut self, interrupts: &mut Interrupts) -> Input {
        loop {
            let waiting = self.plan.is_waiting();
            let event = select! {
                event = self.session.next() => event,
                () = interrupts.next() => return Input::Interrupted,
                () = at(self.ask_again_at) => {
                    self.ask_again_at = None;
                    return Input::AskAgain;
                }
                () = at(self.give_up_at), if waiting => {
                    let agents = agents_or_nothing(self.address).await;
                    let waited = humantime::format_duration(self.timeout).to_string();
                    return Input::NoOfferInTime(timeout_words(&self.need, &self.tally, agents.as_deref(), &waited));
                }
                done = done(&mut self.output) => {
                    self.output = None;
                    return output_input(done);
                }
            };
            match self.translate(event) {
                Some(input) => return input,
                None => continue,
            }
        }
    }

    fn translate(&mut self, event: SessionEvent) -> Option<Input> {
        Some(match event {
            SessionEvent::Subscribed { framework_id } => Input::Subscribed { framework_id },
            SessionEvent::Offers(offers) => {
                self.tally.count(&self.need, &offers);
                if let Some(notice) = &self.notice {
                    notice.update(&self.tally);
                }
                Input::Offers(offers)
            }
            SessionEvent::Status(status) => Input::Status(status),
            SessionEvent::CallError(message) => Input::CallError(message),
            SessionEvent::GaveUp(why) => Input::GaveUp(why),
            SessionEvent::Broken(why) => {
                self.screen
                    .warn(&format!("lost the master ({why}); trying again for {} s", FAILOVER.as_secs()));
                return None;
            }
        })
    }

    /// Gives the plan what happened and does what it says; the exit code when it says to leave.
    async fn take(&mut self, input: Input) -> Result<Option<u8>, CliError> {
        let mut effects = VecDeque::from(self.plan.on(input));
        if !self.plan.is_waiting() {
            self.notice = None;
        }
        self.watch_staging();
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Call(call) => self.call(call).await,
                Effect::FollowOutput(agent) => self.output = Some(self.follow_output(agent)),
                Effect::EndOutput => match &self.output {
                    Some(output) => output.end(),
                    None => effects.extend(self.plan.on(Input::OutputDone(Ok(())))),
                },
                Effect::AskAgain(pause) => self.ask_again_at = Some(Instant::now() + pause),
                Effect::Note(text) => self.quietly(|s| s.note(&text)),
                Effect::Detail(text) => self.quietly(|s| s.detail(&text)),
                Effect::Report(report) => self.report(&report)?,
                Effect::Leave(code) => {
                    self.notice = None;
                    self.staging = None;
                    return Ok(Some(code));
                }
            }
        }
        Ok(None)
    }

    async fn call(&self, call: Call) {
        tracing::debug!(?call, "to the master");
        self.session.send(call).await;
    }

    /// Words on standard error, with the moving line out of their way.
    fn quietly(&self, say: impl FnOnce(&Screen)) {
        match (&self.notice, &self.staging) {
            (Some(notice), _) => notice.suspend(|| say(&self.screen)),
            (None, Some(staging)) => staging.suspend(|| say(&self.screen)),
            (None, None) => say(&self.screen),
        }
    }

    /// Somebody who watches is told how far the artifacts of a task are, until it runs.
    fn watch_staging(&mut self) {
        let watched = self.screen.err_is_terminal && self.need.has_artifacts();
        self.staging =
            match self.plan.starting_on() {
                Some(agent) if watched => Some(self.staging.take().unwrap_or_else(|| {
                    StagingLine::start(agent, self.plan.framework_id(), self.need.task_id())
                })),
                _ => None,
            };
    }

    fn report(&self, report: &Report) -> Result<(), CliError> {
        match report {
            report if self.screen.json => self.screen.line(report),
            Report::Detached { task_id, .. } => self.screen.out(task_id),
            _ => Ok(()),
        }
    }

    fn follow_output(&self, agent: AgentInfo) -> Output {
        let source = LogSource {
            api_address: agent.api_address,
            framework_id: self.plan.framework_id().to_owned(),
            task_id: self.need.task_id().to_owned(),
            stream: LogStream::Unspecified,
            tail_bytes: 0,
        };
        let mut sink =
            if self.screen.json { Sink::json(self.screen, Some("output")) } else { Sink::apart(self.screen) };
        let (ended, told) = watch::channel(false);
        let reader = tokio::spawn(async move { follow(&source, &mut sink, Some(told)).await });
        Output { ended, reader }
    }
}

/// The task that writes the output.
struct Output {
    ended: watch::Sender<bool>,
    reader: JoinHandle<Result<(), CliError>>,
}

impl Output {
    fn end(&self) {
        self.ended.send_replace(true);
    }
}

async fn done(output: &mut Option<Output>) -> Result<Result<(), CliError>, JoinError> {
    match output {
        Some(output) => (&mut output.reader).await,
        None => std::future::pending().await,
    }
}

fn output_input(done: Result<Result<(), CliError>, JoinError>) -> Input {
    match done {
        Ok(Ok(())) => Input::OutputDone(Ok(())),
        Ok(Err(CliError::OutputClosed)) => Input::OutputFailed(None),
        Ok(Err(error @ CliError::Output(_))) => Input::OutputFailed(Some(error.to_string())),
        Ok(Err(error)) => Input::OutputDone(Err(error.to_string())),
        Err(error) => Input::OutputDone(Err(error.to_string())),
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// The signals that ask to stop.
struct Interrupts {
    signals: [Signal; 3],
}

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        let [int, term, hup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Ok(Self { signals: [signal(int)?, signal(term)?, signal(hup)?] })
    }

    async fn next(&mut self) {
        let [int, term, hup] = &mut self.signals;
        select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    }
}
