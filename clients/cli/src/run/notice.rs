//! The line that says what a waiting `run` waits for: it moves on terminals, and is said once elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    need::Need,
    waiting::{Tally, waiting_words},
};
use crate::{connect::Address, list::agents_or_nothing, screen::Screen};

/// A wait shorter than this needs no word; a longer one is looked at again this often.
const INTERVAL: Duration = Duration::from_secs(1);
const SPIN: Duration = Duration::from_millis(100);

/// Says why nothing happens, until it is dropped.
#[derive(Debug)]
pub(super) struct Notice {
    tally: watch::Sender<Tally>,
    bar: Option<ProgressBar>,
    writer: JoinHandle<()>,
}

impl Notice {
    /// Starts the wait.
    pub(super) fn start(address: Address, screen: Screen, need: Need) -> Self {
        let (tally, seen) = watch::channel(Tally::default());
        let bar = screen.err_is_terminal.then(spinner);
        let writer = tokio::spawn(write(address, screen, need, seen, bar.clone()));
        Self { tally, bar, writer }
    }

    /// Tells what was seen since.
    pub(super) fn update(&self, tally: &Tally) {
        self.tally.send_replace(tally.clone());
    }

    /// Says something else in between.
    pub(super) fn suspend(&self, say: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        self.writer.abort();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A moving line that is not shown yet.
pub(super) fn spinner() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    match ProgressStyle::with_template("{spinner} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Shows a [`spinner`] with these words.
pub(super) fn show(bar: &ProgressBar, words: String) {
    if bar.is_hidden() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.enable_steady_tick(SPIN);
    }
    bar.set_message(words);
}

async fn write(
    address: Address,
    screen: Screen,
    need: Need,
    seen: watch::Receiver<Tally>,
    bar: Option<ProgressBar>,
) {
    let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let agents = agents_or_nothing(&address).await;
        let words = waiting_words(&need, &seen.borrow(), agents.as_deref());
        let Some(bar) = &bar else { return screen.note(&words) };
        show(bar, words);
    }
}
