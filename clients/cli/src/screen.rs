//! The two output streams: results on standard output, words about them on standard error.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use owo_colors::{OwoColorize, Style};
use serde::Serialize;

use crate::{args::ColorWhen, error::CliError};

/// How this invocation prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    /// Results as JSON.
    pub(crate) json: bool,
    /// More words on standard error.
    pub(crate) verbose: bool,
    /// Colours in results.
    pub(crate) color_out: bool,
    /// Colours in words about them.
    pub(crate) color_err: bool,
    /// Is somebody watching standard error?
    pub(crate) err_is_terminal: bool,
}

impl Screen {
    /// Asks the two streams and the environment once.
    pub(crate) fn new(json: bool, verbose: bool, color: ColorWhen) -> Self {
        let plain = env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || env::var_os("TERM").is_some_and(|v| v == "dumb");
        let wanted = |terminal: bool| match color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => terminal && !plain,
        };
        let err_is_terminal = io::stderr().is_terminal();
        Self {
            json,
            verbose,
            color_out: wanted(io::stdout().is_terminal()),
            color_err: wanted(err_is_terminal),
            err_is_terminal,
        }
    }

    /// Prints a result.
    pub(crate) fn out(&self, text: &str) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// Prints a result as one JSON document over several lines.
    pub(crate) fn document(&self, value: &impl Serialize) -> Result<(), CliError> {
        self.out(&serde_json::to_string_pretty(value)?)
    }

    /// Prints one line of a stream of JSON values.
    pub(crate) fn line(&self, value: &impl Serialize) -> Result<(), CliError> {
        self.out(&serde_json::to_string(value)?)
    }

    /// Says something that everybody should know.
    pub(crate) fn note(&self, text: &str) {
        self.say(Style::new().bold(), "bulkhead", text);
    }

    /// Says something that may surprise and stops nothing.
    pub(crate) fn warn(&self, text: &str) {
        self.say(Style::new().yellow().bold(), "warning", text);
    }

    /// Says why the command failed.
    pub(crate) fn error(&self, text: &str) {
        self.say(Style::new().red().bold(), "error", text);
    }

    /// Says something only to those who asked for more words.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose {
            self.say(Style::new().dimmed(), "bulkhead", text);
        }
    }

    fn say(&self, style: Style, prefix: &str, text: &str) {
        let prefix = format!("{prefix}:");
        let line = if self.color_err {
            format!("{} {text}\n", prefix.style(style))
        } else {
            format!("{prefix} {text}\n")
        };
        // Nobody is left to be told when standard error itself is gone.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}
