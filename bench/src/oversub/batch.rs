//! The work that fills the machine: as many threads as it asked for CPUs, and a count of what they got done.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::work::Work;

/// In the directory where it starts: a count for each thread, so that nobody has to ask a task that stands still.
pub(crate) const COUNTS: &str = "units";
const COUNT_BYTES: usize = size_of::<u64>();

/// How much it wants.
#[derive(Args, Clone, Debug)]
pub(crate) struct Batch {
    /// Thousandths of a CPU, over all threads
    #[arg(long)]
    pub(crate) asked_milli: u64,
    /// Of a unit
    #[arg(long)]
    pub(crate) rounds: u64,
    /// What a unit takes alone
    #[arg(long)]
    pub(crate) unit_us: u64,
    /// All threads on the first CPU that it may use
    #[arg(long)]
    pub(crate) on_one_cpu: bool,
}

impl Batch {
    /// The command line that is this work.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let Self { asked_milli, rounds, unit_us, on_one_cpu } = self;
        let pin = if *on_one_cpu { " --on-one-cpu" } else { "" };
        format!("oversub-role batch --asked-milli {asked_milli} --rounds {rounds} --unit-us {unit_us}{pin}")
            .split(' ')
            .map(str::to_owned)
            .collect()
    }

    /// Works until it is killed.
    pub(crate) fn run(&self) -> Result<()> {
        if self.on_one_cpu {
            pin().context("stay on one CPU")?;
        }
        let file = File::create(COUNTS).with_context(|| format!("create {COUNTS}"))?;
        let threads: Vec<_> = (0_u64..)
            .zip(demands(self.asked_milli))
            .map(|(number, demand_milli)| {
                let (file, batch) = (file.try_clone(), self.clone());
                thread::spawn(move || batch.work(&file?, number, demand_milli))
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    }

    fn work(&self, file: &File, number: u64, demand_milli: u64) -> Result<()> {
        let mut work = Work::new();
        let every = Duration::from_micros(self.unit_us * 1000 / demand_milli.max(1));
        let mut due = Instant::now();
        for done in 1_u64.. {
            work.rounds(self.rounds);
            file.write_all_at(&done.to_le_bytes(), number * COUNT_BYTES as u64)?;
            if demand_milli < 1000 {
                // What could not be done in time is not made up for: it asks for no more than it said.
                due = (due + every).max(Instant::now());
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(())
    }
}

/// The threads to come are where this one is.
fn pin() -> nix::Result<()> {
    let this = Pid::from_raw(0);
    let may = sched_getaffinity(this)?;
    let first = (0..CpuSet::count()).find(|cpu| may.is_set(*cpu).unwrap_or(false)).unwrap_or(0);
    let mut one = CpuSet::new();
    one.set(first)?;
    sched_setaffinity(this, &one)
}

/// Of each thread: whole CPUs, and the rest.
fn demands(asked_milli: u64) -> Vec<u64> {
    let whole = usize::try_from(asked_milli / 1000).unwrap_or(0);
    let rest = Some(asked_milli % 1000).filter(|rest| *rest > 0);
    std::iter::repeat_n(1000, whole).chain(rest).collect()
}

/// Units of all threads so far; none where it has not begun.
pub(crate) fn units(dir: &Path) -> u64 {
    let mut bytes = Vec::new();
    let read = File::open(dir.join(COUNTS)).and_then(|mut file| file.read_to_end(&mut bytes));
    if read.is_err() {
        return 0;
    }
    bytes.as_chunks::<COUNT_BYTES>().0.iter().copied().map(u64::from_le_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_wants_a_cpu_and_the_last_one_the_rest() {
        assert_eq!(demands(2300), [1000, 1000, 300]);
        assert_eq!(demands(1000), [1000]);
        assert_eq!(demands(0), [0_u64; 0]);
    }

    #[test]
    fn counts_of_all_threads_are_added_up() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(units(dir.path()), 0, "not begun");
        std::fs::write(dir.path().join(COUNTS), [3_u64, 4].map(u64::to_le_bytes).concat()).unwrap();
        assert_eq!(units(dir.path()), 7);
    }
}
