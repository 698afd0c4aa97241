//! Time of others on cores that belong to one task.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::{
    maps::{Array, MapData, MapError},
    programs::{
        BtfTracePoint, ProgramError, RawTracePoint,
        links::{FdLink, LinkError},
    },
};
use bulkhead_abi::{ForeignTime, names};

use super::{
    BpfError,
    table::{Table, open_map},
};
use crate::kernel::cpu_set::CpuSet;

/// The kernel's count of who ran on whose cores: see `ebpf/observe/foreign.bpf.c`.
///
/// The program sits in the scheduler, so it is attached only while some core has an owner.
pub struct ForeignTimes {
    dir: PathBuf,
    owners: Mutex<Array<MapData, u64>>,
    times: Table<u64, ForeignTime>,
    /// Of owners that are gone.
    past: Mutex<ForeignTime>,
}

impl ForeignTimes {
    /// Opens what is pinned in [`Loaded::foreign`](super::Loaded::foreign).
    ///
    /// # Errors
    /// The maps are not pinned there, or not readable.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        let name = names::CORE_OWNERS;
        let owners = open_map(dir, name)?;
        let owners = Array::try_from(owners).map_err(|source| BpfError::Map { op: "open", name, source })?;
        Ok(Self {
            dir: dir.to_owned(),
            owners: Mutex::new(owners),
            times: Table::open(dir, names::FOREIGN_TIMES)?,
            past: Mutex::new(ForeignTime::default()),
        })
    }

    /// Makes exactly these the owners of their CPUs, by cgroup id, and counts while there are any. Counts of
    /// owners that stay are kept, those of others are closed.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn own(&self, owners: &[(u64, CpuSet)]) -> Result<(), BpfError> {
        for (cgroup_id, _) in owners {
            self.times.make(*cgroup_id, ForeignTime::default())?;
        }
        self.write_owners(owners)?;
        let is_gone = |id: &u64| !owners.iter().any(|(owner, _)| owner == id);
        for (cgroup_id, time) in self.times.select(is_gone)? {
            self.times.delete(&cgroup_id)?;
            let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            *past = plus(*past, time);
        }
        if owners.is_empty() { self.detach() } else { self.attach() }
    }

    /// What others used of this owner's cores so far; `None` for who owns none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn of(&self, cgroup_id: u64) -> Result<Option<ForeignTime>, BpfError> {
        self.times.get(&cgroup_id)
    }

    /// Of all owners since this handle was opened, those that are gone included.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn total(&self) -> Result<ForeignTime, BpfError> {
        let past = *self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.times.select(|_| true)?;
        Ok(live.into_iter().fold(past, |sum, (_, time)| plus(sum, time)))
    }

    fn write_owners(&self, owners: &[(u64, CpuSet)]) -> Result<(), BpfError> {
        let failed = |op| move |source| BpfError::Map { op, name: names::CORE_OWNERS, source };
        let mut map = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        for cpu in 0..map.len() {
            let owner = owners.iter().find(|(_, cpus)| cpus.contains(cpu)).map_or(0, |(id, _)| *id);
            let before = map.get(&cpu, 0).map_err(failed("read"))?;
            if before != owner {
                map.set(cpu, owner, 0).map_err(|e: MapError| failed("write")(e))?;
            }
        }
        Ok(())
    }

    fn attach(&self) -> Result<(), BpfError> {
        let path = self.dir.join(names::FOREIGN_LINK);
        if path.exists() {
            return Ok(());
        }
        let name = names::FOREIGN_PROGRAM;
        let link = attach(&self.dir.join(name)).map_err(|source| BpfError::Program {
            op: "attach",
            name,
            source,
        })?;
        link.pin(&path).map(drop).map_err(|source| BpfError::Pin { path, source })
    }

    fn detach(&self) -> Result<(), BpfError> {
        let path = self.dir.join(names::FOREIGN_LINK);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(BpfError::io("remove", path)(e)),
            _ => Ok(()),
        }
    }
}

fn plus(a: ForeignTime, b: ForeignTime) -> ForeignTime {
    ForeignTime { kernel_ns: a.kernel_ns + b.kernel_ns, others_ns: a.others_ns + b.others_ns }
}

/// Which of its two forms the loader got into the kernel only the kernel knows: the typed one takes no name.
fn attach(program: &Path) -> Result<FdLink, ProgramError> {
    let mut typed = BtfTracePoint::from_pin(program)?;
    let link: Result<FdLink, LinkError> = match typed.attach() {
        Ok(id) => typed.take_link(id).map(Into::into).map(Ok)?,
        Err(_) => {
            let mut raw = RawTracePoint::from_pin(program)?;
            let id = raw.attach("sched_switch")?;
            raw.take_link(id).map(Into::into).map(Ok)?
        }
    };
    link.map_err(|_| ProgramError::NotAttached)
}
