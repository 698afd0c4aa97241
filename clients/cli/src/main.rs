//! `bulkhead`: run, watch and stop tasks from the shell.
//!
//! ```text
//! args -> connect -> run                       a framework of one task; master and agent
//!                 -> list, logs, kill, resize, events, explain, roles  questions and orders; master, agents
//!                          -> table, log_sink -> screen
//! ```

#![forbid(unsafe_code)]

mod agent_ref;
mod args;
mod connect;
mod error;
mod events;
mod explain;
mod framework_ref;
mod kill;
mod list;
mod log_sink;
mod log_stream;
mod logs;
mod quantity;
mod resize;
mod roles;
mod run;
mod screen;
mod table;
mod task_ref;

use std::{ffi::OsString, io, process::ExitCode};

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use crate::{
    args::{Cli, Command},
    error::{BAD_USAGE, CliError, FAILED, OUTPUT_CLOSED, RUN_FAILED},
    screen::Screen,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let screen = Screen::new(cli.global.json, cli.global.verbose > 0, cli.global.color);
    trace(cli.global.verbose, screen);
    let is_run = matches!(cli.command, Command::Run(_));
    match carry_out(&cli, screen) {
        Ok(code) => ExitCode::from(code),
        Err(CliError::OutputClosed) => ExitCode::from(OUTPUT_CLOSED),
        Err(error) => {
            screen.error(&error.to_string());
            ExitCode::from(if is_run { RUN_FAILED } else { FAILED })
        }
    }
}

fn carry_out(cli: &Cli, screen: Screen) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let result = runtime.block_on(dispatch(cli, screen));
    // A write to a pipe that nobody reads may still hold a thread; everything else is done.
    runtime.shutdown_background();
    result
}

async fn dispatch(cli: &Cli, screen: Screen) -> Result<u8, CliError> {
    let master = &cli.global.master;
    match &cli.command {
        Command::Run(args) => return run::run(master, screen, args).await,
        Command::Ps(args) => list::ps(master, screen, args).await,
        Command::Logs(args) => logs::logs(master, screen, args).await,
        Command::Kill(args) => kill::kill(master, screen, args).await,
        Command::Resize(args) => resize::resize(master, screen, args).await,
        Command::Offers => list::offers(master, screen).await,
        Command::Agents => list::agents(master, screen).await,
        Command::Frameworks => list::frameworks(master, screen).await,
        Command::Roles(args) => roles::roles(master, screen, args).await,
        Command::Explain(args) => explain::explain(master, screen, args).await,
        Command::Events(args) => events::events(master, screen, args).await,
    }
    .map(|()| 0)
}

/// Prints help or what is wrong with the command line. `run` keeps the small codes for its task.
fn usage(error: &clap::Error) -> ExitCode {
    if error.print().is_err() {
        return ExitCode::from(OUTPUT_CLOSED);
    }
    match error.use_stderr() {
        false => ExitCode::SUCCESS,
        true if names_run(std::env::args_os()) => ExitCode::from(RUN_FAILED),
        true => ExitCode::from(BAD_USAGE),
    }
}

fn names_run(line: impl Iterator<Item = OsString>) -> bool {
    let lenient = Cli::command().ignore_errors(true).try_get_matches_from(line);
    lenient.is_ok_and(|matches| matches.subcommand_name() == Some("run"))
}

/// `-vv` shows what is sent, `-vvv` the network libraries' words too; RUST_LOG says it exactly.
fn trace(verbose: u8, screen: Screen) {
    let level = match verbose {
        0 | 1 => "off",
        2 => "off,bulkhead=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    lines.with_ansi(screen.color_err).init();
}
