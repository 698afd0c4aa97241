//! Looks at what guaranteed tasks wait for, and at who may be to blame: counters of the kernel, from files that are kept open.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use procfs::{Current as _, Meminfo};

use super::evidence::{Counted, Evidence, Moved, Recent};
use crate::{
    isolate::tree::{Branch, Tree},
    kernel::{
        pressure::{CPU_PRESSURE, IO_PRESSURE, MEMORY_PRESSURE},
        reread::{Reread, Room},
    },
    measure::tasks::{
        StallCount, Stalls,
        reading::{cpu_count, disk_count, number, stall_count},
    },
};

/// A look is about so long: less is mostly chance, more hides what has just begun.
const WHILE: Duration = Duration::from_millis(100);

/// Reads the counters.
#[derive(Debug)]
pub(super) struct Looker {
    shared: Guaranteed,
    exclusive: Guaranteed,
    cpu: Option<Reread>,
    mem: Option<Reread>,
    disk: Option<Reread>,
    room: Room,
    recent: Recent,
}

/// What is read of one branch of guaranteed tasks.
#[derive(Debug)]
struct Guaranteed {
    stalls: Stalls<Reread>,
    disk: Option<Reread>,
}

impl Guaranteed {
    fn open(branch: &Path) -> Self {
        let open = |file| Reread::open(branch.join(file)).ok();
        let stalls = Stalls { cpu: open(CPU_PRESSURE), mem: open(MEMORY_PRESSURE), io: open(IO_PRESSURE) };
        Self { stalls, disk: open("io.stat") }
    }

    fn stalls(&self, room: &mut Room) -> Stalls<StallCount> {
        let mut stall = |file: &Option<Reread>| stall_count(file.as_ref()?.read(room).ok()?);
        let Stalls { cpu, mem, io } = &self.stalls;
        Stalls { cpu: stall(cpu), mem: stall(mem), io: stall(io) }
    }
}

impl Looker {
    /// A file that is not there tells nothing.
    pub(super) fn open(tree: &Tree) -> Self {
        let path = |branch| tree.branch(branch).path().to_owned();
        let revocable = path(Branch::Revocable);
        let open = |file| Reread::open(revocable.join(file)).ok();
        let mut exclusive = Guaranteed::open(&path(Branch::Exclusive));
        // Their cores are their own: they wait for each other there, and for nobody else.
        exclusive.stalls.cpu = None;
        Self {
            shared: Guaranteed::open(&path(Branch::Guaranteed)),
            exclusive,
            cpu: open("cpu.stat"),
            mem: open("memory.current"),
            disk: open("io.stat"),
            room: Room::default(),
            recent: Recent::new(WHILE),
        }
    }

    /// Does the kernel tell of waiting at all?
    pub(super) fn sees_waits(&mut self) -> bool {
        self.shared.stalls(&mut self.room).cpu.is_some()
    }

    /// What was before does not count any more.
    pub(super) fn begin(&mut self, now: Instant) {
        let counted = self.count(now);
        self.recent.begin(counted);
    }

    /// What has happened in the last while. What memory there is, is read where somebody waits for it.
    pub(super) fn look(&mut self, now: Instant) -> Evidence {
        let counted = self.count(now);
        let mut seen = self.recent.look(counted);
        if seen.waited.mem.is_some_and(|waited| waited.some_permille > 0) {
            let text = self.mem.as_ref().and_then(|file| file.read(&mut self.room).ok());
            seen.mem_bytes = text.and_then(number).unwrap_or(0);
            seen.available_permille = available_permille();
        }
        seen
    }

    fn count(&mut self, at: Instant) -> Counted {
        let room = &mut self.room;
        let guaranteed = [&self.shared, &self.exclusive];
        let stalls = guaranteed.map(|branch| branch.stalls(room));
        let mut disk = |file: &Option<Reread>| Some(disk_count(file.as_ref()?.read(room).ok()?));
        let [shared, exclusive] = guaranteed.map(|branch| disk(&branch.disk));
        let disk = disk(&self.disk).map(|revocable| Moved {
            guaranteed: shared.unwrap_or_default().plus(exclusive.unwrap_or_default()),
            revocable,
        });
        let text = self.cpu.as_ref().and_then(|file| file.read(room).ok());
        Counted { at, stalls, cpu_usec: text.map_or(0, |text| cpu_count(text).used_usec), disk }
    }
}

/// Of the machine's memory.
fn available_permille() -> Option<u64> {
    let mem = Meminfo::current().ok()?;
    mem.mem_available?.saturating_mul(1000).checked_div(mem.mem_total)
}
