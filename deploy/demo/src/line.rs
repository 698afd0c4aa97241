//! One line of the table: a program, what it was promised, and what the kernel made of it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::acts::Act;

/// What one program was granted and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Line {
    /// The act's name.
    pub(crate) name: &'static str,
    /// The command, as a person would type it.
    pub(crate) asked: String,
    /// What the task was granted.
    pub(crate) granted: String,
    /// What the kernel counted, in words.
    pub(crate) measured: String,
    /// What the kernel refused or ended, in words.
    pub(crate) refused: String,
    /// The same as numbers, with units in their names.
    pub(crate) figures: BTreeMap<&'static str, Value>,
    held: bool,
    /// What should have been and was not.
    pub(crate) broken: Vec<String>,
}

impl Line {
    /// A line that holds so far.
    pub(crate) fn new(name: &'static str, asked: String, granted: String) -> Self {
        Self {
            name,
            asked,
            granted,
            measured: String::new(),
            refused: String::new(),
            figures: BTreeMap::new(),
            held: true,
            broken: Vec::new(),
        }
    }

    /// The line of an act that could not be played to its end.
    pub(crate) fn failed(act: &Act, error: &anyhow::Error) -> Self {
        let mut line = Self::new(act.name, act.title.to_owned(), String::new());
        line.check(false, || format!("{error:#}"));
        line
    }

    /// What the kernel counted, in words.
    pub(crate) fn measured(&mut self, words: impl Into<String>) -> &mut Self {
        self.measured = words.into();
        self
    }

    /// What the kernel refused or ended, in words.
    pub(crate) fn refused(&mut self, words: impl Into<String>) -> &mut Self {
        self.refused = words.into();
        self
    }

    /// A number for programs that read this.
    pub(crate) fn figure(&mut self, name: &'static str, value: impl Into<Value>) -> &mut Self {
        self.figures.insert(name, value.into());
        self
    }

    /// What must be so. The line holds only where every check does.
    pub(crate) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) -> &mut Self {
        if !holds {
            self.held = false;
            self.broken.push(otherwise());
        }
        self
    }

    /// Did every check hold?
    pub(crate) fn held(&self) -> bool {
        self.held
    }

    /// One sentence for the progress.
    pub(crate) fn summary(&self) -> String {
        if !self.held {
            return self.broken.join("; ");
        }
        format!("{}; refused: {}", self.measured, self.refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_only_where_every_check_does() {
        let mut line = Line::new("cpu", "run".into(), "0.5 CPU".into());
        line.measured("0.49 CPU").refused("more").check(true, || unreachable!());
        assert!(line.held());
        assert_eq!(line.summary(), "0.49 CPU; refused: more");
        line.check(false, || "too much".into()).check(true, || unreachable!());
        assert!(!line.held());
        assert_eq!(line.summary(), "too much");
    }
}
