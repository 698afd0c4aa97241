//! The files of one cgroup, kept open.

use std::{io, path::Path, time::Instant};

use super::reading::{
    MemUse, Reading, StallCount, Stalls, cpu_count, disk_count, mem_use, number, stall_count,
};
use crate::kernel::reread::{Reread, Room};

/// How many files a task's cgroup has that are kept open, where all controllers are there.
pub const FILES_A_TASK: u64 = 8;

/// Why a cgroup was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was removed, before or while it was read: nothing of this reading is used.
    #[error("the cgroup is gone")]
    Gone,
    /// The kernel's answer for one file.
    #[error("read {file}")]
    Io {
        /// Which file.
        file: String,
        /// `EMFILE` where the limit of open files is too low for so many tasks.
        source: io::Error,
    },
}

/// Those that are there: which controllers a cgroup has does not change while it has processes.
#[derive(Debug)]
pub struct TaskFiles {
    cpu: Reread,
    mem: Option<MemFiles>,
    stalls: Stalls<Reread>,
    disk: Option<Reread>,
}

#[derive(Debug)]
struct MemFiles {
    current: Reread,
    stat: Reread,
    /// Not there where the kernel has no swap.
    swap: Option<Reread>,
}

impl TaskFiles {
    /// Opens what is there.
    ///
    /// # Errors
    /// [`ReadError::Gone`] where there is no such cgroup.
    pub fn open(cgroup: &Path) -> Result<Self, ReadError> {
        let open = |name: &str| match Reread::open(cgroup.join(name)) {
            Ok(file) => Ok(Some(file)),
            // Not this controller, or no pressure in this kernel.
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Ok(None)
            }
            Err(source) => Err(failed(&cgroup.join(name), source)),
        };
        let cpu = open("cpu.stat")?.ok_or(ReadError::Gone)?;
        let mem = match (open("memory.current")?, open("memory.stat")?) {
            (Some(current), Some(stat)) => {
                Some(MemFiles { current, stat, swap: open("memory.swap.current")? })
            }
            _ => None,
        };
        let stalls =
            Stalls { cpu: open("cpu.pressure")?, mem: open("memory.pressure")?, io: open("io.pressure")? };
        Ok(Self { cpu, mem, stalls, disk: open("io.stat")? })
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// [`ReadError::Gone`] where the cgroup vanished, also in the midst of it.
    pub fn read(&self, at: Instant, room: &mut Room) -> Result<Reading, ReadError> {
        let cpu = cpu_count(text(&self.cpu, room)?);
        let mem = self.mem.as_ref().map(|files| files.read(room)).transpose()?;
        let mut stall = |file: Option<&Reread>| file.map_or(Ok(None), |file| stalled(file, room));
        let stalls = Stalls {
            cpu: stall(self.stalls.cpu.as_ref())?,
            mem: stall(self.stalls.mem.as_ref())?,
            io: stall(self.stalls.io.as_ref())?,
        };
        let disk = self.disk.as_ref().map(|file| text(file, room).map(disk_count)).transpose()?;
        Ok(Reading { at, cpu, mem, stalls, disk })
    }
}

impl MemFiles {
    fn read(&self, room: &mut Room) -> Result<MemUse, ReadError> {
        let all_bytes = number(text(&self.current, room)?).unwrap_or(0);
        let swap_bytes = match &self.swap {
            Some(file) => number(text(file, room)?).unwrap_or(0),
            None => 0,
        };
        Ok(mem_use(all_bytes, swap_bytes, text(&self.stat, room)?))
    }
}

/// `None` where the kernel was started with psi=0.
fn stalled(file: &Reread, room: &mut Room) -> Result<Option<StallCount>, ReadError> {
    match file.read(room) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        text => text.map(stall_count).map_err(|source| failed(file.path(), source)),
    }
}

fn text<'a>(file: &Reread, room: &'a mut Room) -> Result<&'a str, ReadError> {
    file.read(room).map_err(|source| failed(file.path(), source))
}

fn failed(path: &Path, source: io::Error) -> ReadError {
    match source.raw_os_error() {
        Some(libc::ENODEV | libc::ENOENT) => ReadError::Gone,
        _ => ReadError::Io { file: path.display().to_string(), source },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PRESSURE: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";

    fn cgroup(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    fn read(dir: &tempfile::TempDir) -> Result<Reading, ReadError> {
        TaskFiles::open(dir.path())?.read(Instant::now(), &mut Room::default())
    }

    #[test]
    fn each_controller_is_there_or_not() {
        let bare = read(&cgroup(&[("cpu.stat", "usage_usec 3\n")])).unwrap();
        assert_eq!((bare.cpu.used_usec, bare.mem, bare.disk), (3, None, None));
        assert_eq!(bare.stalls, Stalls::default());
        let all = read(&cgroup(&[
            ("cpu.stat", "usage_usec 3\n"),
            ("cpu.pressure", PRESSURE),
            ("memory.pressure", PRESSURE),
            ("io.pressure", PRESSURE),
            ("memory.current", "9\n"),
            ("memory.swap.current", "2\n"),
            ("memory.stat", "anon 4\n"),
            ("io.stat", "8:0 rbytes=6\n"),
        ]))
        .unwrap();
        let mem = all.mem.unwrap();
        assert_eq!((mem.all_bytes, mem.swap_bytes, mem.anon_bytes), (9, 2, 4));
        assert_eq!(all.disk.unwrap().read_bytes, 6);
        assert!(all.stalls.by_name().iter().all(|(_, stall)| stall.is_some_and(|s| s.some_usec == 5)));
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_gone() {
        assert!(matches!(TaskFiles::open(Path::new("/no/such/cgroup")), Err(ReadError::Gone)));
        assert!(matches!(
            failed(Path::new("x"), io::Error::from_raw_os_error(libc::ENODEV)),
            ReadError::Gone
        ));
        let error = failed(Path::new("x"), io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(error.to_string(), "read x");
    }
}
