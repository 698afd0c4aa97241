//! When a report is worth sending. Pure: `now` is an argument.

use std::time::{Duration, Instant};

use bulkhead_proto::v1::{Enforced, NodePressure, ResourceReport, Unchanged, agent_message};

use super::Steps;
use crate::measure::tasks::{Stalled, Stalls};

/// How busy a node is, whatever of it is granted to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// Part of the last while in which processes stood still.
    pub pressure: Stalls<Stalled>,
    /// What 99 of 100 waits of guaranteed tasks for a CPU took at most.
    pub runqueue_p99_usec: Option<u64>,
}

impl Strain {
    /// The report with it.
    pub fn tell(&self, mut report: ResourceReport) -> ResourceReport {
        let Stalls { cpu, mem, io } = self.pressure;
        let told = [cpu, mem, io].iter().any(Option::is_some);
        let [cpu, mem, io] = [cpu, mem, io].map(Option::unwrap_or_default);
        report.pressure = told.then_some(NodePressure {
            cpu_some_permille: cpu.some_permille,
            mem_some_permille: mem.some_permille,
            mem_full_permille: mem.full_permille,
            io_some_permille: io.some_permille,
            io_full_permille: io.full_permille,
        });
        report.runqueue_p99_usec = self.runqueue_p99_usec;
        report
    }
}

/// What the master is told.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Everything.
    Report(Box<ResourceReport>),
    /// The report of this number still holds: a few bytes.
    Unchanged {
        /// Of that report.
        sequence: u64,
    },
}

impl From<News> for agent_message::Message {
    fn from(news: News) -> Self {
        match news {
            News::Report(report) => Self::Report(*report),
            News::Unchanged { sequence } => Self::Unchanged(Unchanged { sequence }),
        }
    }
}

/// How old the master's picture may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// It is confirmed, or replaced, at least this often.
    pub at_least_every: Duration,
    /// Changes that are too small to be news are told after this long.
    pub whole_every: Duration,
}

/// Numbers the reports of a session and holds back those that say nothing new.
#[derive(Debug)]
pub struct Reporter {
    enforced: Enforced,
    steps: Steps,
    pace: Pace,
    last: Option<Last>,
    sequence: u64,
}

/// What the master has.
#[derive(Debug)]
struct Last {
    report: ResourceReport,
    sent: Instant,
    /// When it was sent, or confirmed.
    confirmed: Instant,
}

impl Reporter {
    /// A reporter that has said nothing yet.
    pub fn new(enforced: Enforced, steps: Steps, pace: Pace) -> Self {
        Self { enforced, steps, pace, last: None, sequence: 0 }
    }

    /// What this node's kernel enforces.
    pub fn enforced(&self) -> &Enforced {
        &self.enforced
    }

    /// What to tell the master of this report, if anything.
    pub fn due(&mut self, report: ResourceReport, now: Instant) -> Option<News> {
        let whole = |reporter: &mut Self, report| Some(News::Report(Box::new(reporter.stamp(report, now))));
        let Some(last) = self.last.as_mut() else { return whole(self, report) };
        if self.steps.differ(&last.report, &report) {
            return whole(self, report);
        }
        if now.saturating_duration_since(last.confirmed) < self.pace.at_least_every {
            return None;
        }
        let report = ResourceReport { sequence: self.sequence, enforced: Some(self.enforced), ..report };
        if report != last.report && now.saturating_duration_since(last.sent) >= self.pace.whole_every {
            return whole(self, report);
        }
        last.confirmed = now;
        Some(News::Unchanged { sequence: self.sequence })
    }

    /// The next report is a whole one: the master lacks the last.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// The report completed, unconditionally: for a registration.
    pub fn stamp(&mut self, mut report: ResourceReport, now: Instant) -> ResourceReport {
        self.sequence += 1;
        report.sequence = self.sequence;
        report.enforced = Some(self.enforced);
        self.last = Some(Last { report: report.clone(), sent: now, confirmed: now });
        report
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::{AgentMessage, Resources};
    use prost::Message as _;

    use super::*;
    use crate::config::ReportConfig;

    fn report(allocated: u64, reserve: u64) -> ResourceReport {
        let cpu = |cpu_milli| Some(Resources { cpu_milli, ..Default::default() });
        ResourceReport { allocated: cpu(allocated), reserve: cpu(reserve), ..Default::default() }
    }

    fn reporter() -> Reporter {
        let pace = Pace { at_least_every: Duration::from_secs(5), whole_every: Duration::from_secs(12) };
        Reporter::new(Enforced::default(), ReportConfig::default().steps().unwrap(), pace)
    }

    fn whole(news: Option<News>) -> Option<u64> {
        match news {
            Some(News::Report(report)) => Some(report.sequence),
            _ => None,
        }
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_left_out() {
        assert_eq!(Strain::default().tell(report(0, 0)).pressure, None);
        let io = Some(Stalled { some_permille: 20, full_permille: 0 });
        let strain = Strain { pressure: Stalls { io, ..Stalls::default() }, runqueue_p99_usec: None };
        assert_eq!(strain.tell(report(0, 0)).pressure.unwrap().io_some_permille, 20);
    }

    #[test]
    fn noise_is_held_back_and_then_confirmed_as_none() {
        let mut reporter = reporter();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(whole(reporter.due(report(0, 500), at(0))), Some(1));
        assert_eq!(reporter.due(report(0, 599), at(1)), None);
        assert_eq!(whole(reporter.due(report(0, 600), at(2))), Some(2));
        assert_eq!(whole(reporter.due(report(1, 600), at(2))), Some(3), "a grant is no noise");
        assert_eq!(reporter.due(report(1, 600), at(6)), None);
        assert_eq!(reporter.due(report(1, 650), at(7)), Some(News::Unchanged { sequence: 3 }));
        assert_eq!(reporter.due(report(1, 650), at(11)), None, "confirmed four seconds ago");
        assert_eq!(reporter.due(report(1, 650), at(12)), Some(News::Unchanged { sequence: 3 }));
        assert_eq!(whole(reporter.due(report(1, 650), at(17))), Some(4), "small changes are told in time");
        for s in [22, 27, 32, 600] {
            assert_eq!(reporter.due(report(1, 650), at(s)), Some(News::Unchanged { sequence: 4 }));
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_repeats_nothing() {
        let mut reporter = reporter();
        let start = Instant::now();
        let later = start + Duration::from_secs(3600);
        assert_eq!(whole(reporter.due(report(0, 0), later)), Some(1));
        assert_eq!(reporter.due(report(0, 0), later), None);
        assert_eq!(reporter.due(report(0, 0), start), None);
        assert_eq!(whole(reporter.due(report(1, 0), start)), Some(2), "news is told at any time");
    }

    #[test]
    fn a_master_without_the_last_report_gets_a_whole_one() {
        let mut reporter = reporter();
        let now = Instant::now();
        reporter.stamp(report(0, 0), now);
        assert_eq!(reporter.due(report(0, 0), now), None);
        reporter.forget();
        assert_eq!(whole(reporter.due(report(0, 0), now)), Some(2));
    }

    #[test]
    fn an_unchanged_node_costs_a_few_bytes() {
        for sequence in [1, 127, 1 << 20, u64::MAX] {
            let message = Some(News::Unchanged { sequence }.into());
            let bytes = AgentMessage { message }.encoded_len();
            assert!(bytes <= 16, "{bytes} bytes for {sequence}");
        }
    }
}
