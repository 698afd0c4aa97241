//! Who works in the replay: guaranteed tasks, strangers, and the probe that takes what is offered.

use std::{
    fs::File,
    net::TcpListener,
    os::unix::fs::FileExt as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::schedule::Levels;
use crate::work::Work;

/// A unit of work, and how often a guaranteed task is given some.
pub(crate) const UNIT: Duration = Duration::from_millis(2);
const STEP: Duration = Duration::from_millis(100);
/// Where a guaranteed task counts: units done, and units that it could not do in their step, for each thread.
pub(crate) const COUNTS: &str = "counts";
/// Where the probe says what it has, once it has all that it can get.
pub(crate) const READY: &str = "ready";
/// Touched at a time.
const PIECE_BYTES: usize = 4 << 20;
const PAGE_BYTES: usize = 4096;
/// Between two walks of the probe through all of its memory.
const WALK_EVERY: Duration = Duration::from_millis(500);
/// Whoever must end first when the machine has no memory left.
const END_FIRST: &str = "1000";

/// A part in the replay.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Role {
    /// Uses a changing part of its grant
    Steady { granted_milli: u64, rounds: u64, seed: u64 },
    /// Uses CPU, memory and a port
    Stranger { cpu_milli: u64, rounds: u64, mem_bytes: usize, port: u16 },
    /// Uses everything it was given
    Probe {
        cpu_milli: u64,
        mem_bytes: usize,
        #[arg(value_delimiter = ',')]
        ports: Vec<u16>,
    },
}

/// What the probe got besides CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Got {
    pub(crate) touched_bytes: usize,
    pub(crate) ports: usize,
}

impl Role {
    /// The command line that is this role.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let words = match self {
            Self::Steady { granted_milli, rounds, seed } => format!("steady {granted_milli} {rounds} {seed}"),
            Self::Stranger { cpu_milli, rounds, mem_bytes, port } => {
                format!("stranger {cpu_milli} {rounds} {mem_bytes} {port}")
            }
            Self::Probe { cpu_milli, mem_bytes, ports } => {
                let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
                format!("probe {cpu_milli} {mem_bytes} {}", ports.join(","))
            }
        };
        ["offers-role"].into_iter().chain(words.split_whitespace()).map(str::to_owned).collect()
    }

    /// Plays it until it is killed.
    pub(crate) fn play(&self) -> Result<()> {
        match self {
            Self::Steady { granted_milli, rounds, seed } => steady(*granted_milli, *rounds, *seed),
            Self::Stranger { cpu_milli, rounds, mem_bytes, port } => {
                // Somebody may have it already; then this stranger does without.
                let _listener = TcpListener::bind(("127.0.0.1", *port));
                let _memory = taken(*mem_bytes);
                burn(*cpu_milli, *rounds)
            }
            Self::Probe { cpu_milli, mem_bytes, ports } => probe(*cpu_milli, *mem_bytes, ports),
        }
    }
}

/// Threads, and what each of them may use of a CPU.
fn threads(milli: u64) -> (u64, u64) {
    let count = milli.div_ceil(1000).max(1);
    (count, milli / count)
}

fn steady(granted_milli: u64, rounds: u64, seed: u64) -> Result<()> {
    let file = Arc::new(File::create(COUNTS).with_context(|| format!("create {COUNTS}"))?);
    let (count, each_milli) = threads(granted_milli);
    let begun = Instant::now();
    in_threads(count, move |number| {
        let (mut work, mut levels) = (Work::new(), Levels::new(seed));
        let mut tally = Tally::default();
        for step in 1_u32.. {
            let end = begun + STEP * step;
            let milli = each_milli * levels.percent(STEP * step) / 100;
            tally.owe(STEP, milli);
            while tally.owes() && Instant::now() < end {
                work.rounds(rounds);
                tally.did();
            }
            tally.miss();
            file.write_all_at(&tally.bytes(), number * size_of::<[u64; 2]>() as u64)?;
            thread::sleep(end.saturating_duration_since(Instant::now()));
        }
        Ok(())
    })
}

/// Units of one thread.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    missed: u64,
    /// In thousandths of a unit.
    owed: u64,
}

impl Tally {
    /// This part of a CPU, for so long.
    fn owe(&mut self, time: Duration, milli: u64) {
        self.owed += milli * u64::try_from(time.as_micros() / UNIT.as_micros()).unwrap_or(0);
    }

    fn owes(&self) -> bool {
        self.owed >= 1000
    }

    fn did(&mut self) {
        (self.done, self.owed) = (self.done + 1, self.owed.saturating_sub(1000));
    }

    /// The time is over. What is less than a unit is carried over.
    fn miss(&mut self) {
        self.missed += self.owed / 1000;
        self.owed %= 1000;
    }

    fn bytes(&self) -> Vec<u8> {
        [self.done, self.missed].map(u64::to_le_bytes).concat()
    }
}

fn burn(cpu_milli: u64, rounds: u64) -> Result<()> {
    let (count, each_milli) = threads(cpu_milli);
    in_threads(count, move |_| {
        let mut work = Work::new();
        let begun = Instant::now();
        for step in 1_u32.. {
            let mut tally = Tally::default();
            let end = begun + STEP * step;
            tally.owe(STEP, each_milli);
            while tally.owes() && Instant::now() < end {
                work.rounds(rounds);
                tally.did();
            }
            thread::sleep(end.saturating_duration_since(Instant::now()));
        }
        Ok(())
    })
}

fn probe(cpu_milli: u64, mem_bytes: usize, ports: &[u16]) -> Result<()> {
    // Where the file cannot be written, the largest process ends first: that is this one, too.
    drop(std::fs::write("/proc/self/oom_score_adj", END_FIRST));
    let listeners: Vec<_> =
        ports.iter().filter_map(|port| TcpListener::bind(("127.0.0.1", *port)).ok()).collect();
    let mut memory = taken(mem_bytes);
    let got = Got { touched_bytes: memory.iter().map(Vec::len).sum(), ports: listeners.len() };
    let (count, _) = threads(cpu_milli);
    let burning = thread::spawn(move || {
        in_threads(count, |_| {
            let mut work = Work::new();
            loop {
                work.rounds(1000);
            }
        })
    });
    // In one step, so that nobody reads half of it.
    let half = format!("{READY}.half");
    std::fs::write(&half, serde_json::to_string(&got)?).and_then(|()| std::fs::rename(&half, READY))?;
    while !burning.is_finished() {
        memory.iter_mut().for_each(|piece| touch(piece));
        thread::sleep(WALK_EVERY);
    }
    Ok(())
}

/// Memory that is really there.
fn taken(bytes: usize) -> Vec<Vec<u8>> {
    let piece = |_| {
        let mut piece = vec![0; PIECE_BYTES];
        touch(&mut piece);
        piece
    };
    (0..bytes / PIECE_BYTES).map(piece).collect()
}

fn touch(piece: &mut [u8]) {
    piece.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = byte.wrapping_add(1));
}

/// Ends with the first thread that does.
fn in_threads(count: u64, work: impl Fn(u64) -> Result<()> + Clone + Send + 'static) -> Result<()> {
    let (ended, end) = std::sync::mpsc::channel();
    for number in 0..count {
        let (ended, work) = (ended.clone(), work.clone());
        thread::spawn(move || ended.send(work(number)));
    }
    end.recv()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_done_or_missed() {
        let mut tally = Tally::default();
        // A third of a CPU for 100 ms are 16.65 units of 2 ms.
        tally.owe(STEP, 333);
        for _ in 0..10 {
            tally.did();
        }
        tally.miss();
        assert_eq!((tally.done, tally.missed, tally.owed), (10, 6, 650));
        tally.owe(STEP, 7);
        assert!(tally.owes(), "the rest of the step before counts");
        assert_eq!(tally.bytes().len(), 16);
    }

    #[test]
    fn a_thread_has_at_most_a_cpu() {
        assert_eq!([0, 300, 1000, 2500].map(threads), [(1, 0), (1, 300), (1, 1000), (3, 833)]);
    }

    #[test]
    fn command_lines_are_taken() {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(subcommand)]
            role: Role,
        }
        let roles = [
            Role::Steady { granted_milli: 1, rounds: 2, seed: 3 },
            Role::Stranger { cpu_milli: 1, rounds: 2, mem_bytes: 3, port: 4 },
            Role::Probe { cpu_milli: 1, mem_bytes: 2, ports: vec![3, 4] },
            Role::Probe { cpu_milli: 1, mem_bytes: 2, ports: vec![] },
        ];
        for role in roles {
            let parsed = Cli::try_parse_from(role.arguments()).unwrap();
            assert_eq!(parsed.role.arguments(), role.arguments());
        }
    }
}
