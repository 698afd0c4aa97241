//! Requests to stop, for programs that have to leave nothing behind.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP. Once listened for, they no longer end the process: also not while it clears up.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals over from the kernel's defaults.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("handle signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Number {
        tokio::select! {
            _ = self.interrupt.recv() => Number::SIGINT,
            _ = self.terminate.recv() => Number::SIGTERM,
            _ = self.hangup.recv() => Number::SIGHUP,
        }
    }
}

/// As shells show the end by a signal: 130 after Ctrl-C.
pub fn exit_code(number: Number) -> ExitCode {
    match number {
        Number::SIGHUP => ExitCode::from(129),
        Number::SIGINT => ExitCode::from(130),
        _ => ExitCode::from(143),
    }
}
