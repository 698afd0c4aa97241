//! How far a task's files are, for whoever waits for them.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

/// What is being done with one artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its bytes come from elsewhere, or are verified.
    Fetching,
    /// It is written into the sandbox; of an archive, `done` is what was unpacked.
    Placing,
    /// It is there.
    Done,
}

/// One artifact at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which, from 0, in the task's order.
    pub artifact: usize,
    /// What is done with it.
    pub phase: Phase,
    /// Bytes of the phase that are behind it.
    pub done_bytes: u64,
    /// All bytes of the phase, where that is known.
    pub total_bytes: Option<u64>,
}

/// Hears how staging goes on. Called from several threads, often; must not block.
pub trait Progress: Send + Sync {
    /// An artifact went on by a piece or into another phase.
    fn step(&self, step: Step);
}

/// Nobody listens.
impl Progress for () {
    fn step(&self, _: Step) {}
}

/// Remembers the newest step of every artifact; its text is one line for people.
#[derive(Debug)]
pub struct Board(Mutex<Vec<Option<Step>>>);

impl Board {
    /// For so many artifacts.
    pub fn new(artifacts: usize) -> Self {
        Self(Mutex::new(vec![None; artifacts]))
    }
}

impl Progress for Board {
    fn step(&self, step: Step) {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = steps.get_mut(step.artifact) {
            *known = Some(step);
        }
    }
}

/// `1 of 3 artifacts; fetching 12.0 of 40.5 MiB; unpacking 3.1 MiB`.
impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = |phase| steps.iter().flatten().filter(move |s| s.phase == phase);
        let done = under_way(Phase::Done).count();
        write!(f, "{done} of {} artifact{}", steps.len(), if steps.len() == 1 { "" } else { "s" })?;
        for (phase, word) in [(Phase::Fetching, "fetching"), (Phase::Placing, "writing")] {
            if under_way(phase).next().is_none() {
                continue;
            }
            write!(f, "; {word} {}", mib(under_way(phase).map(|s| s.done_bytes).sum()))?;
            let total: Option<u64> = under_way(phase).map(|s| s.total_bytes).sum();
            if let Some(total) = total {
                write!(f, " of {}", mib(total))?;
            }
            f.write_str(" MiB")?;
        }
        Ok(())
    }
}

/// With one decimal.
fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_sums_up_what_is_under_way() {
        let board = Board::new(4);
        assert_eq!(board.to_string(), "0 of 4 artifacts");
        let step = |artifact, phase, mib: u64, total: Option<u64>| {
            board.step(Step { artifact, phase, done_bytes: mib << 20, total_bytes: total.map(|t| t << 20) });
        };
        step(0, Phase::Done, 9, Some(9));
        step(1, Phase::Fetching, 1, Some(3));
        step(2, Phase::Fetching, 2, Some(4));
        step(3, Phase::Placing, 5, None);
        step(99, Phase::Placing, 5, None);
        assert_eq!(board.to_string(), "1 of 4 artifacts; fetching 3.0 of 7.0 MiB; writing 5.0 MiB");
        step(2, Phase::Fetching, 2, None);
        assert_eq!(board.to_string(), "1 of 4 artifacts; fetching 3.0 MiB; writing 5.0 MiB");
        assert_eq!(Board::new(1).to_string(), "0 of 1 artifact");
    }
}
