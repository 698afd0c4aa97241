//! The guaranteed service: requests of a fixed cost that come by a schedule, whether it is ready or not.
//!
//! The latency of a request is the time from its scheduled arrival to its end. So a request that had to wait because the service
//! stood still counts with all its waiting (no coordinated omission).

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::arrivals::Arrivals;
use crate::{latency::Latencies, work::Work};

/// A service that falls behind has this long to answer what came in the window. What it has not answered then counts as
/// having taken until then.
pub(crate) const LATE: Duration = Duration::from_secs(5);

/// How the service works.
#[derive(Args, Clone, Debug)]
pub(crate) struct Service {
    /// Of loopback, where it is told to measure
    #[arg(long)]
    pub(crate) port: u16,
    /// Requests that are worked on at once
    #[arg(long)]
    pub(crate) workers: usize,
    /// Of one request
    #[arg(long)]
    pub(crate) rounds: u64,
    /// Between two requests, in the mean
    #[arg(long)]
    pub(crate) every_us: u64,
    /// Of the schedule
    #[arg(long)]
    pub(crate) seed: u64,
}

/// What the service measured of itself in one window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Requests that came.
    pub(crate) requests: u64,
    /// Of those, requests that were not answered even some time after the end.
    pub(crate) unanswered: u64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
    /// Answers within the window.
    pub(crate) per_second: f64,
}

impl Service {
    /// The command line that is this service.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let Self { port, workers, rounds, every_us, seed } = self;
        format!(
            "oversub-role service --port {port} --workers {workers} --rounds {rounds} --every-us {every_us} --seed {seed}"
        )
        .split(' ')
        .map(str::to_owned)
        .collect()
    }

    /// Works until it is killed. Each line `SECONDS` on its port begins a window, and is answered with what was measured.
    pub(crate) fn run(&self) -> Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).context("listen")?;
        let every = Duration::from_micros(self.every_us.max(1));
        let state = State::new(Arrivals::new(self.seed, every), Instant::now(), 0);
        let desk = Arc::new(Desk { state: Mutex::new(state), changed: Condvar::new() });
        for _ in 0..self.workers.max(1) {
            let (desk, rounds) = (Arc::clone(&desk), self.rounds);
            thread::spawn(move || work(&desk, rounds));
        }
        for stream in listener.incoming() {
            // Whoever hangs up early asks again.
            drop(self.answer(&desk, stream?));
        }
        Ok(())
    }

    fn answer(&self, desk: &Desk, mut stream: TcpStream) -> Result<()> {
        for line in BufReader::new(stream.try_clone()?).lines() {
            let window = Duration::from_secs_f64(line?.trim().parse()?);
            let arrivals = Arrivals::new(self.seed, Duration::from_micros(self.every_us.max(1)));
            let measured = desk.measure(arrivals, window)?;
            writeln!(stream, "{}", serde_json::to_string(&measured)?)?;
        }
        Ok(())
    }
}

fn work(desk: &Desk, rounds: u64) {
    let mut work = Work::new();
    loop {
        let request = desk.next();
        thread::sleep(request.at.saturating_duration_since(Instant::now()));
        work.rounds(rounds);
        desk.done(&request, Instant::now());
    }
}

/// A request that somebody works on.
#[derive(Clone, Copy, Debug)]
struct Request {
    at: Instant,
    /// Of which schedule.
    schedule: u64,
}

/// Where workers take requests and bring answers.
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

/// Pure: moments are arguments.
#[derive(Debug)]
struct State {
    arrivals: Arrivals,
    begun: Instant,
    /// Counts schedules: an answer to a request of one before is none of this.
    schedule: u64,
    /// The next that nobody has taken.
    next: Duration,
    window: Duration,
    /// Of the window, taken and not answered yet.
    open: Vec<Instant>,
    /// Of the window: latencies, and whether the answer came within it.
    answered: Vec<(Duration, bool)>,
}

impl State {
    /// Nobody looks yet: the window has no length.
    fn new(mut arrivals: Arrivals, begun: Instant, schedule: u64) -> Self {
        let next = arrivals.next().unwrap_or_default();
        let window = Duration::ZERO;
        Self { arrivals, begun, schedule, next, window, open: Vec::new(), answered: Vec::new() }
    }

    fn take(&mut self) -> Request {
        let request = Request { at: self.begun + self.next, schedule: self.schedule };
        if self.next < self.window {
            self.open.push(request.at);
        }
        self.next = self.arrivals.next().unwrap_or_default();
        request
    }

    fn done(&mut self, request: &Request, now: Instant) {
        if request.schedule != self.schedule {
            return;
        }
        if let Some(place) = self.open.iter().position(|at| *at == request.at) {
            self.open.swap_remove(place);
            let latency = now.saturating_duration_since(request.at);
            self.answered.push((latency, now < self.begun + self.window));
        }
    }

    /// All that came in the window is answered.
    fn complete(&self) -> bool {
        self.next >= self.window && self.open.is_empty()
    }

    fn measured(&self, now: Instant) -> Result<Measured> {
        let mut latencies = Latencies::new()?;
        self.answered.iter().for_each(|(latency, _)| latencies.add(*latency));
        let rest = std::iter::once(self.next).chain(self.arrivals.clone());
        let rest = rest.take_while(|at| *at < self.window).map(|at| self.begun + at);
        let mut unanswered = 0;
        for at in self.open.iter().copied().chain(rest) {
            latencies.add(now.saturating_duration_since(at));
            unanswered += 1;
        }
        let in_time = self.answered.iter().filter(|(_, in_time)| *in_time).count();
        Ok(Measured {
            requests: u64::try_from(self.answered.len())? + unanswered,
            unanswered,
            p50_us: latencies.at(0.5),
            p99_us: latencies.at(0.99),
            p999_us: latencies.at(0.999),
            max_us: latencies.at(1.0),
            per_second: f64::from(u32::try_from(in_time)?) / self.window.as_secs_f64().max(f64::MIN_POSITIVE),
        })
    }
}

impl Desk {
    fn next(&self) -> Request {
        let request = self.lock().take();
        self.changed.notify_all();
        request
    }

    fn done(&self, request: &Request, now: Instant) {
        self.lock().done(request, now);
        self.changed.notify_all();
    }

    /// Begins a schedule, and waits for its answers.
    fn measure(&self, arrivals: Arrivals, window: Duration) -> Result<Measured> {
        let mut state = self.lock();
        let schedule = state.schedule + 1;
        *state = State { window, ..State::new(arrivals, Instant::now(), schedule) };
        let until = state.begun + window + LATE;
        while !state.complete() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.measured(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(window_ms: u64) -> State {
        let arrivals = Arrivals::new(1, Duration::from_millis(1));
        State { window: Duration::from_millis(window_ms), ..State::new(arrivals, Instant::now(), 1) }
    }

    #[test]
    fn waiting_for_a_worker_is_part_of_the_latency() {
        let mut state = state(50);
        // One worker that takes 10 ms for each: ten times more than come.
        let mut now = state.begun;
        while !state.complete() {
            let request = state.take();
            now = now.max(request.at) + Duration::from_millis(10);
            state.done(&request, now);
        }
        let measured = state.measured(now).unwrap();
        assert_eq!(
            (measured.requests, measured.unanswered),
            (state.answered.len() as u64, 0),
            "{measured:?}"
        );
        assert!(measured.max_us > 300_000 && measured.p50_us > 100_000, "{measured:?}");
        assert!(measured.per_second <= 100.0, "{measured:?}");
    }

    #[test]
    fn what_is_not_answered_counts_until_now() {
        let mut state = state(50);
        let first = state.take();
        state.done(&first, first.at + Duration::from_micros(100));
        state.take();
        let measured = state.measured(state.begun + Duration::from_secs(2)).unwrap();
        assert_eq!(measured.requests - 1, measured.unanswered, "{measured:?}");
        assert!(measured.unanswered > 20 && measured.p50_us > 1_900_000, "{measured:?}");
    }

    #[test]
    fn an_answer_to_an_earlier_schedule_is_none() {
        let mut state = state(50);
        let request = Request { schedule: 0, ..state.take() };
        state.done(&request, request.at);
        assert!(state.answered.is_empty());
    }

    #[test]
    fn the_command_line_is_taken() {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            service: Service,
        }
        let service = Service { port: 5, workers: 2, rounds: 3, every_us: 4, seed: 6 };
        let arguments = service.arguments();
        let parsed = Cli::try_parse_from(["x".to_owned()].iter().chain(&arguments[2..])).unwrap();
        assert_eq!(parsed.service.arguments(), arguments);
    }
}
