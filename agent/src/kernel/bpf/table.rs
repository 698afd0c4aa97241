//! A pinned hash map with typed entries.

use std::{
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
    sys::SyscallError,
};

use super::BpfError;

const REPLACE: u64 = 0;
const ONLY_NEW: u64 = 1;
/// The kernel fills its per-CPU stock of entries in the background; a burst of inserts can outrun it.
const TRIES_WITHOUT_MEMORY: u32 = 100;

/// The lock serialises this process's writers only. Programs and other processes read and write at any time.
pub(super) struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: Mutex<HashMap<MapData, K, V>>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens the map pinned as `name` in `dir`.
    pub(super) fn open(dir: &Path, name: &'static str) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Map { op: "open", name, source };
        let map = open_map(dir, name)?;
        Ok(Self { name, map: Mutex::new(HashMap::try_from(map).map_err(failed)?) })
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, BpfError> {
        match self.lock().get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(self.failed("read", source)),
        }
    }

    /// Makes or replaces an entry.
    pub(super) fn set(&self, key: K, value: V) -> Result<(), BpfError> {
        self.insert(key, value, REPLACE)
    }

    /// Makes an entry; one that is there stays as it is.
    pub(super) fn make(&self, key: K, value: V) -> Result<(), BpfError> {
        match self.insert(key, value, ONLY_NEW) {
            Err(BpfError::Map { source, .. }) if errno(&source) == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Deletes an entry, if there is one.
    pub(super) fn delete(&self, key: &K) -> Result<(), BpfError> {
        match self.lock().remove(key) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(source) if errno(&source) == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(|source| self.failed("delete from", source)),
        }
    }

    /// The entries whose key is wanted. Entries made or deleted meanwhile may or may not be among them.
    pub(super) fn select(&self, wanted: impl Fn(&K) -> bool) -> Result<Vec<(K, V)>, BpfError> {
        let keys = self.lock().keys().collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(|source| self.failed("list", source))?;
        let mut found = Vec::new();
        for key in keys.into_iter().filter(wanted) {
            if let Some(value) = self.get(&key)? {
                found.push((key, value));
            }
        }
        Ok(found)
    }

    fn insert(&self, key: K, value: V, flags: u64) -> Result<(), BpfError> {
        let mut map = self.lock();
        match with_memory(|| map.insert(key, value, flags)) {
            Err(source) if errno(&source) == Some(libc::E2BIG) => Err(BpfError::Full { name: self.name }),
            other => other.map_err(|source| self.failed("write", source)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<MapData, K, V>> {
        // Nothing is left half done by a panic: every call is one system call.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, op: &'static str, source: MapError) -> BpfError {
        BpfError::Map { op, name: self.name, source }
    }
}

/// Opens the map pinned as `name` in `dir`, without looking at the kernel's type information.
pub(super) fn open_map(dir: &Path, name: &'static str) -> Result<Map, BpfError> {
    MapData::from_pin(dir.join(name)).and_then(Map::from_map_data).map_err(|source| BpfError::Map {
        op: "open",
        name,
        source,
    })
}

/// Writes, again and again where the kernel has no memory at hand.
pub(super) fn with_memory(mut write: impl FnMut() -> Result<(), MapError>) -> Result<(), MapError> {
    for _ in 1..TRIES_WITHOUT_MEMORY {
        match write() {
            Err(error) if errno(&error) == Some(libc::ENOMEM) => std::thread::yield_now(),
            other => return other,
        }
    }
    write()
}

/// The kernel's answer in an error.
pub(super) fn errno(error: &MapError) -> Option<i32> {
    let source: &io::Error = match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => io_error,
        MapError::IoError(io_error) => io_error,
        _ => return None,
    };
    source.raw_os_error()
}
