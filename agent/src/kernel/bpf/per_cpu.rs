//! Pinned maps with a value for each CPU, read many entries at a time.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::{
    Pod,
    maps::{MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use libbpf_rs::{MapHandle, libbpf_sys};

use super::{
    BpfError,
    table::{errno, open_map, with_memory},
};

const ONLY_NEW: u64 = 1;
/// Entries that one system call reads. The more, the more memory it takes for a moment.
const BATCH_ENTRIES: usize = 256;

/// How many values an entry has: one for each CPU that may ever be there.
fn cpus() -> Result<usize, BpfError> {
    nr_cpus().map_err(|(_, source)| BpfError::io("read", "/sys/devices/system/cpu/possible")(source))
}

/// Opens a map that is to be read with [`Batch`].
fn open_for_batches(dir: &Path, name: &str) -> Result<MapHandle, BpfError> {
    let path = dir.join(name);
    MapHandle::from_pinned_path(&path)
        .map_err(|source| BpfError::Observe { op: format!("open {}", path.display()), source })
}

/// Room for entries of a map with a value for each CPU, which one system call fills. Values are whole 8 bytes.
struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    cpus: usize,
    filled: usize,
}

impl<K: Pod + Default, V: Pod + Default> Batch<K, V> {
    fn with_room(entries: usize) -> Result<Self, BpfError> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let cpus = cpus()?;
        let (keys, values) = (vec![K::default(); entries], vec![V::default(); entries * cpus]);
        Ok(Self { keys, values, cpus, filled: 0 })
    }

    /// Reads the entries at `from`, or the first ones; the answer is where the next are, `None` after the last.
    fn fill(&mut self, map: BorrowedFd<'_>, from: Option<u32>) -> io::Result<Option<u32>> {
        let mut count = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
        let (mut from, mut next) = (from, 0u32);
        let from = from.as_mut().map_or(std::ptr::null_mut(), |from| std::ptr::from_mut(from).cast());
        // SAFETY: the kernel writes at most `count` keys and as many values, each one for every possible CPU and whole 8
        // bytes long, which is what the vectors have room for; the other pointers are to locals that live through the
        // call, and null where there is nothing to say.
        let answer = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_raw_fd(),
                from,
                (&raw mut next).cast(),
                self.keys.as_mut_ptr().cast(),
                self.values.as_mut_ptr().cast(),
                &raw mut count,
                std::ptr::null(),
            )
        };
        let error = (answer < 0).then(|| -answer);
        self.filled = match error {
            None | Some(libc::ENOENT) => usize::try_from(count).unwrap_or_default().min(self.keys.len()),
            Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
        };
        Ok(error.is_none().then_some(next))
    }

    /// What was read, with the values of all CPUs.
    fn entries(&self) -> impl Iterator<Item = (K, &[V])> {
        self.keys.iter().copied().zip(self.values.chunks_exact(self.cpus)).take(self.filled)
    }
}

/// A pinned array of counts for each CPU, which programs write.
pub(super) struct CpuSlots<V: Pod> {
    name: &'static str,
    map: Mutex<PerCpuArray<MapData, V>>,
    /// The same map.
    batches: MapHandle,
}

impl<V: Pod + Default> CpuSlots<V> {
    /// Opens the map pinned as `name` in `dir`.
    pub(super) fn open(dir: &Path, name: &'static str) -> Result<Self, BpfError> {
        let map = PerCpuArray::try_from(open_map(dir, name)?);
        let map = map.map_err(|source| BpfError::Map { op: "open", name, source })?;
        Ok(Self { name, map: Mutex::new(map), batches: open_for_batches(dir, name)? })
    }

    /// The values of all CPUs.
    pub(super) fn get(&self, slot: u32) -> Result<PerCpuValues<V>, BpfError> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(&slot, 0).map_err(|source| BpfError::Map { op: "read", name: self.name, source })
    }

    /// Makes them zero.
    pub(super) fn clear(&self, slot: u32) -> Result<(), BpfError> {
        let zero = PerCpuValues::try_from(vec![V::default(); cpus()?]);
        let zero = zero.map_err(BpfError::io("make values for", self.name))?;
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.set(slot, zero, 0).map_err(|source| BpfError::Map { op: "write", name: self.name, source })
    }

    /// Each of the first slots, with the values of all CPUs made one by `sum`. One system call.
    pub(super) fn first(&self, slots: u32, sum: impl Fn(&[V]) -> V) -> Result<Vec<V>, BpfError> {
        let places = usize::try_from(slots).unwrap_or_default();
        if places == 0 {
            return Ok(Vec::new());
        }
        let mut batch: Batch<u32, V> = Batch::with_room(places)?;
        batch.fill(self.batches.as_fd(), None).map_err(BpfError::io("read all of", self.name))?;
        Ok(batch.entries().map(|(_, of_cpus)| sum(of_cpus)).collect())
    }
}

/// A pinned hash map from cgroup ids to counts for each CPU, which programs write.
pub(super) struct CpuTable<V: Pod> {
    name: &'static str,
    map: Mutex<PerCpuHashMap<MapData, u64, V>>,
    /// The same map.
    batches: MapHandle,
}

impl<V: Pod + Default> CpuTable<V> {
    /// Opens the map pinned as `name` in `dir`.
    pub(super) fn open(dir: &Path, name: &'static str) -> Result<Self, BpfError> {
        let map = PerCpuHashMap::try_from(open_map(dir, name)?);
        let map = map.map_err(|source| BpfError::Map { op: "open", name, source })?;
        Ok(Self { name, map: Mutex::new(map), batches: open_for_batches(dir, name)? })
    }

    /// Makes an entry with this value for each CPU; one that is there stays as it is.
    pub(super) fn make(&self, cgroup_id: u64, value: V) -> Result<(), BpfError> {
        let first = vec![value; cpus()?];
        let mut map = self.lock();
        let mut insert = || map.insert(cgroup_id, PerCpuValues::try_from(first.clone())?, ONLY_NEW);
        match with_memory(&mut insert) {
            Err(source) if errno(&source) == Some(libc::EEXIST) => Ok(()),
            Err(source) if errno(&source) == Some(libc::E2BIG) => Err(BpfError::Full { name: self.name }),
            other => other.map_err(|source| self.failed("write", source)),
        }
    }

    /// The values of all CPUs.
    pub(super) fn get(&self, cgroup_id: u64) -> Result<Option<PerCpuValues<V>>, BpfError> {
        match self.lock().get(&cgroup_id, 0) {
            Err(MapError::KeyNotFound) => Ok(None),
            values => values.map(Some).map_err(|source| self.failed("read", source)),
        }
    }

    /// All entries. Those made or deleted meanwhile may or may not be among them.
    pub(super) fn each(&self, mut take: impl FnMut(u64, &[V])) -> Result<(), BpfError> {
        let mut room = BATCH_ENTRIES;
        let (mut batch, mut from) = (Batch::with_room(room)?, None);
        loop {
            match batch.fill(self.batches.as_fd(), from) {
                // More entries share one place than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    batch = Batch::with_room(room)?;
                }
                Err(error) => return Err(BpfError::io("read all of", self.name)(error)),
                Ok(next) => {
                    batch.entries().for_each(|(id, values)| take(id, values));
                    if next.is_none() {
                        return Ok(());
                    }
                    from = next;
                }
            }
        }
    }

    /// Deletes an entry, if there is one.
    pub(super) fn delete(&self, cgroup_id: u64) -> Result<(), BpfError> {
        match self.lock().remove(&cgroup_id) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(source) if errno(&source) == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(|source| self.failed("delete from", source)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PerCpuHashMap<MapData, u64, V>> {
        // Nothing is left half done by a panic: every call is one system call.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, op: &'static str, source: MapError) -> BpfError {
        BpfError::Map { op, name: self.name, source }
    }
}
