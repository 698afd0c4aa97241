//! `bulkhead-master`: reads its configuration and serves until it is told to stop.

use std::{io::IsTerminal as _, path::PathBuf};

use anyhow::Context as _;
use bulkhead_master::{Config, Options, serve};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The Bulkhead master: passes what agents offer to frameworks, and their launches to agents.
///
/// Agents, frameworks, operators, /metrics and /healthz share one port. Streams are neither encrypted nor
/// authenticated: listen on loopback or a trusted network only.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// TOML file with any of the settings below, with _ for - in their names
    #[arg(long, env = "BULKHEAD_MASTER_CONFIG", value_name = "PATH")]
    config: Option<PathBuf>,
    /// What to log, as in RUST_LOG: error, warn, info, debug, or module=level
    #[arg(long, env = "BULKHEAD_MASTER_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter =
        EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?} is not a filter", args.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let config = Config::load(args.options, args.config.as_deref())?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    serve(&config, stopped).await?.finished().await?;
    Ok(())
}
