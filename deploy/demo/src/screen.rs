//! The two output streams: the table on standard output, progress on standard error.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use owo_colors::{OwoColorize as _, Style};

use crate::line::Line;

/// Columns where neither a terminal nor COLUMNS says how many there are.
const WIDTH: u16 = 120;

/// How this run prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// Colours, on both streams.
    pub(crate) color: bool,
    /// Columns of the table.
    pub(crate) width: u16,
    /// No progress: in a test guest both streams are one, and programs read this one.
    pub(crate) quiet: bool,
}

impl Screen {
    /// Asks the streams and the environment: NO_COLOR, FORCE_COLOR (for a test guest, whose output passes
    /// through a pipe to a terminal) and COLUMNS.
    pub(crate) fn new(quiet: bool) -> Self {
        let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let columns = env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let width = columns.or_else(|| comfy_table::Table::new().width()).unwrap_or(WIDTH);
        Self { color: !set("NO_COLOR") && (terminal || set("FORCE_COLOR")), width, quiet }
    }

    /// Prints a result.
    pub(crate) fn out(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).context("write to standard output")
    }

    /// What happens now.
    pub(crate) fn say(&self, text: &str) {
        self.progress(&self.paint(text, Style::new().dimmed()));
    }

    /// A new act.
    pub(crate) fn title(&self, text: &str) {
        self.progress(&self.paint(text, Style::new().bold()));
    }

    /// A command that is run, as a person would type it.
    pub(crate) fn command(&self, text: &str) {
        self.progress(&format!("     {}", self.paint(&format!("$ {text}"), Style::new().cyan())));
    }

    /// How an act ended.
    pub(crate) fn verdict(&self, line: &Line, took: Duration) {
        let verdict = if line.held() {
            self.paint("held", Style::new().green().bold())
        } else {
            self.paint("NOT HELD", Style::new().red().bold())
        };
        self.progress(&format!("     {verdict} ({:.1} s): {}", took.as_secs_f64(), line.summary()));
    }

    /// Why the demo failed.
    pub(crate) fn error(&self, text: &str) {
        write_line(&format!("{} {text}", self.paint("error:", Style::new().red().bold())));
    }

    fn paint(&self, text: &str, style: Style) -> String {
        if self.color { text.style(style).to_string() } else { text.to_owned() }
    }

    fn progress(&self, text: &str) {
        if !self.quiet {
            write_line(text);
        }
    }
}

fn write_line(text: &str) {
    // Nobody is left to be told when standard error itself is gone.
    drop(writeln!(io::stderr().lock(), "{text}"));
}
