//! A pinned table of prefixes.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::{
    Pod,
    maps::{MapData, MapError, lpm_trie},
};

use super::{
    BpfError,
    table::{errno, open_map, with_memory},
};

/// The first bits of a key of `N` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TrieKey<const N: usize> {
    /// How many.
    pub(super) bits: u32,
    /// The rest of it is 0.
    pub(super) bytes: [u8; N],
}

impl<const N: usize> TrieKey<N> {
    fn raw(&self) -> lpm_trie::Key<[u8; N]> {
        lpm_trie::Key::new(self.bits, self.bytes)
    }
}

/// The lock serialises this process's writers only.
pub(super) struct Trie<const N: usize, V: Pod> {
    name: &'static str,
    map: Mutex<lpm_trie::LpmTrie<MapData, [u8; N], V>>,
}

impl<const N: usize, V: Pod> Trie<N, V> {
    /// Opens the map pinned as `name` in `dir`.
    pub(super) fn open(dir: &Path, name: &'static str) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Map { op: "open", name, source };
        let map = open_map(dir, name)?;
        Ok(Self { name, map: Mutex::new(lpm_trie::LpmTrie::try_from(map).map_err(failed)?) })
    }

    /// Makes or replaces an entry.
    pub(super) fn set(&self, key: &TrieKey<N>, value: V) -> Result<(), BpfError> {
        let mut map = self.lock();
        match with_memory(|| map.insert(&key.raw(), value, 0)) {
            Err(source) if errno(&source) == Some(libc::ENOSPC) => Err(BpfError::Full { name: self.name }),
            other => other.map_err(|source| self.failed("write", source)),
        }
    }

    /// Deletes an entry, if there is one.
    pub(super) fn delete(&self, key: &TrieKey<N>) -> Result<(), BpfError> {
        match self.lock().remove(&key.raw()) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(source) if errno(&source) == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(|source| self.failed("delete from", source)),
        }
    }

    /// All entries. Nobody may write meanwhile.
    pub(super) fn all(&self) -> Result<Vec<(TrieKey<N>, V)>, BpfError> {
        let map = self.lock();
        let entries = map.iter().map(|entry| {
            entry.map(|(key, value)| (TrieKey { bits: key.prefix_len(), bytes: key.data() }, value))
        });
        entries.collect::<Result<_, _>>().map_err(|source| self.failed("list", source))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, lpm_trie::LpmTrie<MapData, [u8; N], V>> {
        // Nothing is left half done by a panic: every call is one system call.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, op: &'static str, source: MapError) -> BpfError {
        BpfError::Map { op, name: self.name, source }
    }
}
