//! `bulkhead-demo`: real programs as tasks, and what the kernel held them to.
//!
//! ```text
//! args -> stage        a master and an agent of their own, driven through the CLI
//!           |
//!         acts         one program each -> line: asked, granted, measured, refused, held
//!           |
//!         table        or JSON
//!
//! args -> up           the same master and agent, left up for whoever wants to try
//! ```

#![forbid(unsafe_code)]

mod acts;
mod line;
mod screen;
mod stage;
mod table;
mod up;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use bulkhead_testkit::signals::{self, Signals};
use clap::{Parser, Subcommand};
use tokio::time::timeout;

use crate::{
    acts::{ACTS, Act},
    line::Line,
    screen::Screen,
    stage::{Kind, Stage},
};

/// A line of the table did not hold, or the demo could not run to its end.
const FAILED: u8 = 1;
/// How far apart two processes of a group may hear of one signal.
const SAME_SIGNAL: Duration = Duration::from_millis(500);
/// This kernel lacks what the demo shows; as sysexits' EX_UNAVAILABLE.
const UNAVAILABLE: u8 = 69;

/// Runs real programs as tasks, and shows what the kernel held them to.
///
/// Starts a master and an agent of its own, runs each program through `bulkhead run`, compares what it was granted
/// with what the kernel counted and refused, and prints a table. Nothing is left when it ends, also after Ctrl-C.
#[derive(Parser)]
#[command(name = "bulkhead-demo", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print the lines as one JSON document, without progress; fields carry their units
    #[arg(long)]
    json: bool,
    /// Only these programs, in this order
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = act)]
    only: Vec<&'static Act>,
}

const EXAMPLES: &str = "\
Programs: web, cpu, memory, ports, forks, kill

Examples:
  bulkhead-demo
  bulkhead-demo --only ports,kill --json
  bulkhead-demo up
  deploy/vm/run -- target/debug/bulkhead-demo      on a stock Debian kernel, in a virtual machine

Needs root and a kernel that enforces CPU, memory, processes and ports; `make demo` finds one.

Exit status: 0 every line held; 1 a line did not, or the demo failed; 2 a wrong command line;
69 this kernel cannot enforce what the demo shows; 129, 130, 143 hang-up, Ctrl-C, SIGTERM";

#[derive(Subcommand)]
enum Command {
    /// Start a master (127.0.0.1:5050) and an agent (127.0.0.1:5051), and leave them up until Ctrl-C
    Up,
}

fn act(name: &str) -> Result<&'static Act, String> {
    let names = || ACTS.map(|act| act.name).join(", ");
    ACTS.into_iter().find(|act| act.name == name).ok_or_else(|| format!("the programs are {}", names()))
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::new(cli.json);
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return failed(&screen, &error),
    };
    // Whatever is dropped half-way takes its processes, cgroups, pins and files with it.
    let result = match cli.command {
        Some(Command::Up) => up::run(&screen, &mut signals).await,
        None => tokio::select! {
            biased;
            number = signals.next() => Ok(signals::exit_code(number)),
            result = demo(&screen, &cli) => match result {
                // Ctrl-C reaches everything that this terminal started: what ended may have been told before us.
                Err(error) => match timeout(SAME_SIGNAL, signals.next()).await {
                    Ok(number) => Ok(signals::exit_code(number)),
                    Err(_) => Err(error),
                },
                done => done,
            },
        },
    };
    result.unwrap_or_else(|error| failed(&screen, &error))
}

fn failed(screen: &Screen, error: &anyhow::Error) -> ExitCode {
    screen.error(&format!("{error:#}"));
    ExitCode::from(FAILED)
}

async fn demo(screen: &Screen, cli: &Cli) -> Result<ExitCode> {
    let acts: Vec<&Act> = if cli.only.is_empty() { ACTS.to_vec() } else { cli.only.clone() };
    screen.say("starting a master and an agent");
    let stage = Stage::open(screen).await?;
    if let Some(why) = cannot_show(&stage.missing().await?, &acts) {
        stage.close().await?;
        screen.error(&why);
        return Ok(ExitCode::from(UNAVAILABLE));
    }
    let mut lines = Vec::new();
    for (number, act) in acts.iter().enumerate() {
        screen.title(&format!("{}/{}  {}", number + 1, acts.len(), act.title));
        let start = Instant::now();
        let line = (act.play)(&stage).await.unwrap_or_else(|error| Line::failed(act, &error));
        screen.verdict(&line, start.elapsed());
        lines.push(line);
    }
    stage.close().await?;
    if cli.json {
        screen.out(&serde_json::to_string_pretty(&lines)?)?;
    } else {
        screen.out(&table::render(&lines, screen))?;
    }
    Ok(if lines.iter().all(Line::held) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Why these acts would show nothing on this kernel.
fn cannot_show(missing: &[Kind], acts: &[&Act]) -> Option<String> {
    let can = |act: &Act| act.needs.is_none_or(|kind| !missing.contains(&kind));
    if acts.iter().all(|act| can(act)) {
        return None;
    }
    let missing: Vec<&str> = missing.iter().map(|kind| kind.words()).collect();
    let rest: Vec<&str> = ACTS.iter().filter(|act| can(act)).map(|act| act.name).collect();
    Some(format!(
        "this kernel cannot hold tasks to {}: run `make demo`, which takes a virtual machine where it has to, or \
         only what works here, with --only {}",
        missing.join(" or "),
        rest.join(",")
    ))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_help_names_every_program() {
        Cli::command().debug_assert();
        assert!(EXAMPLES.starts_with(&format!("Programs: {}\n", ACTS.map(|a| a.name).join(", "))));
        assert!(Cli::try_parse_from(["bulkhead-demo", "--only", "web,nonsense"]).is_err());
        assert!(Cli::try_parse_from(["bulkhead-demo", "up", "--json"]).is_err());
        let cli = Cli::try_parse_from(["bulkhead-demo", "--only", "kill,web"]).unwrap();
        assert_eq!(cli.only.iter().map(|a| a.name).collect::<Vec<_>>(), ["kill", "web"]);
    }

    #[test]
    fn what_this_kernel_cannot_show_is_said_with_what_it_can() {
        let all = ACTS.to_vec();
        assert_eq!(cannot_show(&[], &all), None);
        let why = cannot_show(&[Kind::Cpu, Kind::Memory, Kind::Processes], &all).unwrap();
        assert!(why.contains("CPU or memory") && why.ends_with("--only web,ports,kill"), "{why}");
        assert_eq!(cannot_show(&[Kind::Cpu], &[act("kill").unwrap()]), None);
    }
}
