//! What all revocable tasks together are held to, on top of what each was granted: by what is lent, and by what the guaranteed
//! tasks need back at once.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::tree::{Branch, Tree};
use crate::kernel::cgroupfs::{Cgroup, CgroupError};

/// The weight that a cgroup has when nobody says otherwise.
const DEFAULT_IO_WEIGHT: &str = "default 100";
const LEAST_IO_WEIGHT: &str = "default 1";

/// What guaranteed tasks leave to the revocable ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// `None`: all that is lent.
    pub cpu_milli: Option<u64>,
    /// Above it their memory is taken back. `None`: no such bound.
    pub mem_high_bytes: Option<u64>,
    /// They get the disk only while nobody else wants it much.
    pub io_least: bool,
    /// They stand still.
    pub frozen: bool,
}

/// Writes it to the cgroup above them. Shared by who lends and who protects.
#[derive(Debug)]
pub struct Revocable {
    tree: Tree,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lent_cpu_milli: Option<u64>,
    held: Held,
}

impl Revocable {
    /// Takes back what an agent before this one held them to: whoever protects begins anew.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn release(tree: Tree) -> Result<Self, CgroupError> {
        let revocable = Self { tree, state: Mutex::default() };
        let free = Held::default();
        revocable.freeze(free)?;
        // Until it is known what can be lent, the weights hold.
        revocable.tree.cap_revocable(None)?;
        revocable.bound_memory(free)?;
        revocable.weigh_io(free)?;
        Ok(revocable)
    }

    /// This much CPU is idle, and theirs until somebody needs it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn lend(&self, cpu_milli: u64) -> Result<(), CgroupError> {
        let mut state = self.lock();
        state.lent_cpu_milli = Some(cpu_milli);
        self.cap_cpu(&state)
    }

    /// Holds them to this in place of what they were held to before. Where one of it fails, all else is done, and the next
    /// call tries again.
    ///
    /// # Errors
    /// The kernel's first refusal.
    pub fn hold(&self, held: Held) -> Result<(), CgroupError> {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.held, held);
        // Standing still comes first, and is taken back last.
        let results = [
            if held.frozen && !before.frozen { self.freeze(held) } else { Ok(()) },
            if held.cpu_milli == before.cpu_milli { Ok(()) } else { self.cap_cpu(&state) },
            if held.mem_high_bytes == before.mem_high_bytes { Ok(()) } else { self.bound_memory(held) },
            if held.io_least == before.io_least { Ok(()) } else { self.weigh_io(held) },
            if before.frozen && !held.frozen { self.freeze(held) } else { Ok(()) },
        ];
        let result: Result<(), _> = results.into_iter().collect();
        if result.is_err() {
            state.held = before;
        }
        result
    }

    /// The cgroup above them.
    pub fn cgroup(&self) -> Cgroup {
        self.tree.branch(Branch::Revocable)
    }

    fn cap_cpu(&self, state: &State) -> Result<(), CgroupError> {
        let caps = [state.lent_cpu_milli, state.held.cpu_milli];
        self.tree.cap_revocable(caps.into_iter().flatten().min())
    }

    fn bound_memory(&self, held: Held) -> Result<(), CgroupError> {
        let bound = held.mem_high_bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        self.write_if_there("memory.high", &bound)
    }

    fn weigh_io(&self, held: Held) -> Result<(), CgroupError> {
        self.write_if_there("io.weight", if held.io_least { LEAST_IO_WEIGHT } else { DEFAULT_IO_WEIGHT })
    }

    fn freeze(&self, held: Held) -> Result<(), CgroupError> {
        self.write_if_there("cgroup.freeze", if held.frozen { "1" } else { "0" })
    }

    /// A controller that is not there holds nobody.
    fn write_if_there(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let cgroup = self.cgroup();
        if cgroup.has(file) { cgroup.write(file, value) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every field is replaced as a whole, so a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Plain files in place of the kernel's, without the cpu controller.
    fn files(dir: &std::path::Path) -> (Revocable, impl Fn(&str) -> String) {
        let branch = dir.join("revocable");
        fs::create_dir(&branch).unwrap();
        for file in ["memory.high", "io.weight", "cgroup.freeze"] {
            fs::write(branch.join(file), "?").unwrap();
        }
        let revocable = Revocable::release(Tree::in_files(dir)).unwrap();
        (revocable, move |file| fs::read_to_string(branch.join(file)).unwrap())
    }

    #[test]
    fn only_what_changes_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (revocable, read) = files(dir.path());
        let all = || ["memory.high", "io.weight", "cgroup.freeze"].map(&read);
        assert_eq!(all(), ["max", "default 100", "0"], "what an agent before held");
        // The kernel takes a write for the whole value; a plain file keeps what was longer.
        let blank = || {
            for file in ["memory.high", "io.weight", "cgroup.freeze"] {
                fs::write(dir.path().join("revocable").join(file), "").unwrap();
            }
        };
        blank();
        let held = Held { mem_high_bytes: Some(1 << 20), io_least: true, frozen: true, ..Held::default() };
        revocable.hold(held).unwrap();
        assert_eq!(all(), ["1048576", "default 1", "1"]);
        blank();
        revocable.hold(Held { frozen: false, ..held }).unwrap();
        assert_eq!(all(), ["", "", "0"]);
        fs::remove_file(dir.path().join("revocable/memory.high")).unwrap();
        revocable.hold(Held::default()).unwrap();
        assert_eq!(read("io.weight"), "default 100", "where there is no memory controller");
    }
}
