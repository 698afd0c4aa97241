//! `bulkhead-bench`: what Bulkhead costs, measured on this machine.
//!
//! ```text
//! args -> launch     accept -> RUNNING     latency, fork_exec, agent_metrics
//!      -> runtimes   launch to exec        beside container runtimes
//!      -> overhead   an idle agent         process_cost
//!      -> churn      many short tasks      and what they leave
//!      -> isolation  a victim, disturbed   victim, antagonist, picture
//!      -> net        bandwidth, held       wire, role, shaped, throughput, cost
//!      -> offers     is it really there?       schedule, role, replay, honesty
//!      -> oversub    a service beside lent CPU    arrivals, lab, point, onset, picture
//!      -> alloc      a large cluster, divided      bare, whole
//!      -> predict    peaks on recorded days
//!           |
//!         report     with the machine, as tables or JSON
//! ```
//!
//! Each benchmark starts a master and an agent of its own on loopback.

#![forbid(unsafe_code)]

mod agent_metrics;
mod alloc;
mod churn;
mod exec_times;
mod fork_exec;
mod isolation;
mod latency;
mod launch;
mod machine;
mod net;
mod offers;
mod overhead;
mod oversub;
mod plain;
mod predict;
mod process_cost;
mod report;
mod runtimes;
mod tables;
mod work;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use bulkhead_testkit::signals::{self, Signals};
use clap::{Args, Parser, Subcommand};

use crate::{machine::Machine, report::Report};

/// Measures what Bulkhead costs on this machine.
///
/// Starts a master and an agent of its own on loopback; nothing is left of them when it ends, also after Ctrl-C.
/// Where the kernel lacks cgroup controllers it measures without them, and the result says so.
#[derive(Parser)]
#[command(name = "bulkhead-bench", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// Print one JSON document; fields carry their units
    #[arg(long, global = true)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  bulkhead-bench all
  bulkhead-bench launch --tasks 1 --samples 1000
  bulkhead-bench overhead --tasks 500 --seconds 60 --json
  deploy/vm/run -t 0 -- target/release/bulkhead-bench all      on a stock Debian kernel, in a virtual machine

Needs root. Figures mean something only of a release build (cargo build --workspace --bins --release) on a
machine that does nothing else. Recorded runs are in bench/runs.

Exit status: 0 measured; 1 could not be measured; 2 a wrong command line; 129, 130, 143 hang-up, Ctrl-C, SIGTERM";

#[derive(Subcommand)]
enum Benchmark {
    /// How long a launch takes: from a framework's accept to the status RUNNING
    ///
    /// A framework accepts an offer with a burst of tasks; the time until it has the status RUNNING is taken for
    /// each task of the burst. On the way are the master, the agent, two writes to its journal that are waited for,
    /// cgroup, limits, sandbox, clone3 and exec. Beside it, in the same run, the same program is started by plain
    /// fork and exec (posix_spawn), counted from the start of the burst, too; and the agent's own histogram says
    /// how much of the time it took itself.
    #[command(after_help = "\
Percentiles are over the tasks of all bursts of a size. A first burst of each size is left out: it warms caches up.
The agent's figures come from its buckets: at_most is the upper bound of the one with the percentile.")]
    Launch(launch::Settings),
    /// How the agent's launcher compares with crun and runc, behind the same fences
    ///
    /// Launches the same static program in turn: by the launcher, inside this process, and by each container runtime
    /// that is in PATH. All of them give it a cgroup, mount, pid, ipc and uts namespaces, no capabilities,
    /// no_new_privs and a filter of system calls. Repeated while this process holds more memory.
    #[command(after_help = "\
crun and runc need cgroup v2 at /sys/fs/cgroup. Where older hierarchies are mounted there, give them a view of their own:
  unshare -m sh -c 'umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec bulkhead-bench runtimes'")]
    Runtimes(runtimes::Settings),
    /// What the agent and the master cost when nothing happens
    ///
    /// Measures both without a task and then with many sleeping ones: CPU time over the window (from the kernel's
    /// counts of the process, and of the agent's cgroup, which is finer), resident memory, threads, descriptors.
    #[command(after_help = "\
cpu_percent is of one CPU: 100 is one that does nothing else. Process times are counted in ticks of 10 ms, so one
tick of a window of 30 s is 0.03 %.")]
    Overhead(overhead::Settings),
    /// How fast one agent takes many short tasks, and that nothing of them is left
    ///
    /// Runs /bin/true many times, so many at once, and counts cgroups, mounts, descriptors, children and BPF map
    /// entries of the agent before and after.
    Churn(churn::Settings),
    /// What neighbours do to a victim, without isolation and with it
    ///
    /// A victim measures its own latency alone, next to an antagonist as plain processes, and next to it where both
    /// are tasks held to grants. Work happens in the directory for temporary files (TMPDIR): put it on the disk to
    /// be measured, where quotas and I/O limits are to count with `-o prjquota`.
    #[command(after_help = "\
Needs about 1 GiB of memory, 512 MiB of disk, and cgroup v2 controllers to isolate with. On a scratch disk of a virtual machine:
  deploy/vm/run -t 0 -m 2048 -d 2048 -w bench/runs -- bench/on-disk /dev/vda target/release/bulkhead-bench \\
    isolation --picture bench/runs/isolation.svg")]
    Isolation(isolation::Settings),
    /// How exactly bandwidth is kept, and what that costs
    ///
    /// Tasks send through a veth pair into a network namespace: a flood at several rates, by departure times and, in the same
    /// run, by HTB and TBF; small requests of one task beside the bulk of another, against HTB; one TCP stream of iperf3
    /// over loopback and over veth with everything on and everything off; and the kernel's own statistics of each BPF
    /// program meanwhile. What this kernel or machine lacks (fq, iperf3) is left out and said.
    #[command(after_help = "\
Needs ip and tc, and fq for departure times. Every figure of a program contains one reading of the clock, by which the
kernel takes it.")]
    Net(net::Settings),
    /// What work that fills the machine does to a guaranteed service, at several ratios of overcommit
    ///
    /// A service answers requests that come by a schedule of their own, and the latency of each counts from when it should have
    /// begun. Beside it a batch asks for as much CPU as makes up the ratio: with plain cgroup weights, and as revocable work of an
    /// agent. Then the time from the onset of interference to the first squeeze is taken.
    #[command(after_help = "\
Needs the cgroup v2 controllers. With less than a machine of its own:
  deploy/vm/run -t 0 -m 2048 -w bench/runs -- target/release/bulkhead-bench oversub --pictures bench/runs

Figures are medians over the rounds. UNITS are pieces of the batch's work, each 2 ms of an idle CPU; STEPS are
corrections of the agent that hold revocable work to less, over all rounds.")]
    Oversub(oversub::Settings),
    /// Whether what is offered is really there
    ///
    /// Guaranteed tasks use changing parts of their grants, and strangers come and go: plain processes that use CPU, memory and
    /// a port. At random moments a task takes exactly what is offered, and tries to use all of it: CPU within 2 %, memory touched
    /// without waiting, every port bound. The same once more with an agent that only keeps books.
    #[command(after_help = "\
Needs the cgroup v2 controllers, and a machine that nobody needs: books know nothing of memory that strangers use, so
the probe takes all of it and may be ended by the kernel (it asks to be the first). --books measured does without.
  deploy/vm/run -t 0 -m 2048 -- target/release/bulkhead-bench offers --trials 10")]
    Offers(offers::Settings),
    /// How well peaks are predicted on recorded days
    ///
    /// Walks machines of recorded tasks through their days. From the third hour on, the predictor sees what was before and says
    /// the machine's peak over the next hour; the truth is the largest total in it.
    #[command(after_help = "\
violation_rate is the share of predictions below the truth, margin the sum of predictions over the sum of truths: of two
predictors that are too low as often, the one with the smaller margin leaves more to lend.")]
    Predict(predict::Settings),
    /// What dividing a large cluster costs the master
    ///
    /// Deals tens of thousands of simulated agents out to thousands of frameworks: with the allocator alone, and with the
    /// master's whole core, one event after the other. Nothing is started and nothing is sent.
    #[command(after_help = "\
Needs no root. A row of the allocator is one allocation of everything that changed; a row of the core is one event, with
everything that it makes the master do but the sending.")]
    Alloc(alloc::Settings),
    /// Run launch, runtimes, overhead and churn with their defaults
    All,
    /// The disturbed part of `isolation`
    #[command(hide = true)]
    Victim {
        /// What it does.
        kind: isolation::victim::Victim,
        /// For how long.
        seconds: u64,
    },
    /// A part in `offers`
    #[command(hide = true)]
    OffersRole {
        /// Which.
        #[command(subcommand)]
        role: offers::Role,
    },
    /// A part in `oversub`
    #[command(hide = true)]
    OversubRole {
        /// Which.
        #[command(subcommand)]
        role: oversub::Role,
    },
    /// A part in `net`
    #[command(hide = true)]
    NetRole {
        /// Which.
        #[command(subcommand)]
        role: net::role::Role,
    },
    /// The disturbing part of `isolation`
    #[command(hide = true)]
    Antagonist {
        /// What it does.
        kind: isolation::antagonist::Antagonist,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.benchmark {
        Benchmark::Victim { kind, seconds } => kind.run(*seconds).and_then(|measured| {
            let line = serde_json::to_string(&measured)?;
            writeln!(io::stdout(), "{line}")?;
            Ok(ExitCode::SUCCESS)
        }),
        Benchmark::Antagonist { kind } => kind.run().map(|()| ExitCode::SUCCESS),
        Benchmark::Predict(settings) => predict::run(settings).and_then(|predictions| {
            let text = match cli.json {
                true => serde_json::to_string_pretty(&predictions)?,
                false => tables::predictions(&predictions),
            };
            writeln!(io::stdout(), "{text}")?;
            Ok(ExitCode::SUCCESS)
        }),
        Benchmark::OffersRole { role } => role.play().map(|()| ExitCode::SUCCESS),
        Benchmark::OversubRole { role } => role.play().map(|()| ExitCode::SUCCESS),
        Benchmark::NetRole { role } => role.play().and_then(|summary| {
            if let Some(summary) = summary {
                writeln!(io::stdout(), "{}", serde_json::to_string(&summary)?)?;
            }
            Ok(ExitCode::SUCCESS)
        }),
        _ => conduct(&cli),
    };
    outcome.unwrap_or_else(|error| {
        // Nobody is left to be told when standard error itself is gone.
        drop(writeln!(io::stderr(), "error: {error:#}"));
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn conduct(cli: &Cli) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    // What is dropped half-way takes its processes, cgroups, pins and files with it.
    tokio::select! {
        measured = measure(&cli.benchmark) => {
            print(&measured?, cli.json)?;
            Ok(ExitCode::SUCCESS)
        }
        number = signals.next() => Ok(signals::exit_code(number)),
    }
}

async fn measure(benchmark: &Benchmark) -> Result<Report> {
    let mut report = Report::of(Machine::read()?);
    match benchmark {
        Benchmark::Launch(settings) => report.launch = Some(launch::run(settings).await?),
        Benchmark::Runtimes(settings) => report.runtimes = Some(runtimes::run(settings).await?),
        Benchmark::Overhead(settings) => report.overhead = Some(overhead::run(settings).await?),
        Benchmark::Churn(settings) => report.churn = Some(churn::run(settings).await?),
        Benchmark::Isolation(settings) => report.isolation = Some(isolation::run(settings).await?),
        Benchmark::Alloc(settings) => report.alloc = Some(alloc::run(settings)?),
        Benchmark::Net(settings) => report.net = Some(net::run(settings).await?),
        Benchmark::Offers(settings) => report.offers = Some(offers::run(settings).await?),
        Benchmark::Oversub(settings) => report.oversub = Some(oversub::run(settings).await?),
        Benchmark::Victim { .. }
        | Benchmark::Antagonist { .. }
        | Benchmark::OffersRole { .. }
        | Benchmark::OversubRole { .. }
        | Benchmark::NetRole { .. }
        | Benchmark::Predict(_) => {}
        Benchmark::All => {
            report.runtimes = Some(runtimes::run(&defaults()?).await?);
            report.churn = Some(churn::run(&defaults()?).await?);
            report.launch = Some(launch::run(&defaults()?).await?);
            report.overhead = Some(overhead::run(&defaults()?).await?);
        }
    }
    Ok(report)
}

/// What a benchmark does without options.
fn defaults<T: Args + clap::FromArgMatches>() -> Result<T> {
    let command = T::augment_args(clap::Command::new("defaults"));
    let matches = command.try_get_matches_from(["defaults"])?;
    Ok(T::from_arg_matches(&matches)?)
}

fn print(report: &Report, json: bool) -> Result<()> {
    let text = if json { serde_json::to_string_pretty(report)? } else { tables::render(report) };
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("write to standard output")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_benchmark_has_defaults() {
        Cli::command().debug_assert();
        let launch: launch::Settings = defaults().unwrap();
        assert_eq!(launch.tasks, [1, 10, 100]);
        let overhead: overhead::Settings = defaults().unwrap();
        assert_eq!(overhead.tasks, [100, 1000]);
        assert!(Cli::try_parse_from(["bulkhead-bench", "launch", "--tasks", "0"]).is_err());
        assert!(Cli::try_parse_from(["bulkhead-bench"]).is_err());
    }
}
