//! Fetched files, kept by their digest.
//!
//! ```text
//! <work_dir>/cache/sha256/<hex>      complete, verified and synced; its mtime is its last use
//! <work_dir>/cache/tmp/...           on the way; removed at start
//! ```
//!
//! A file gets its name only when its content was verified and is on the disk, so a crash leaves nothing that
//! looks complete. What is used least recently goes first; who has it open keeps it.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use crate::{
    digest::{Algorithm, Digest},
    error::Problem,
};

/// The cache directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}", path.display())]
pub struct CacheError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// How much good a cache does, since its agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// What was asked for and there.
    pub hits: u64,
    /// What was asked for and had to be fetched, or could not be.
    pub misses: u64,
    /// What it holds now.
    pub bytes: u64,
}

/// One directory of files. Only one may be open on a directory.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    max_bytes: u64,
    books: Mutex<Books>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What is there, and what is being fetched.
#[derive(Debug, Default)]
struct Books {
    kept: HashMap<Digest, Kept>,
    /// One lock for each digest that somebody wants: the first fetches, the others find it.
    wanted: HashMap<Digest, Weak<tokio::sync::Mutex<()>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    bytes: u64,
    used: SystemTime,
}

impl Cache {
    /// Opens the cache in `root`, which is made where it is missing: removes what a crash left, and what is too
    /// much. Blocks.
    pub(crate) fn open(root: PathBuf, max_bytes: u64) -> Result<Self, CacheError> {
        let failed = |step, path: &Path| {
            let path = path.to_owned();
            move |source| CacheError { step, path, source }
        };
        let tmp = root.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("empty", &tmp)(e)),
            _ => {}
        }
        let mut books = Books::default();
        // Nobody but the agent: its files may be what a task fetched with a secret.
        let dirs = [root.clone(), tmp, dir_of(&root, Algorithm::Sha256), dir_of(&root, Algorithm::Sha512)];
        for dir in &dirs {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make", dir))?;
        }
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = dir_of(&root, algorithm);
            for entry in fs::read_dir(&dir).map_err(failed("list", &dir))? {
                let entry = entry.map_err(failed("list", &dir))?;
                let name = format!("{}:{}", algorithm.name(), entry.file_name().to_string_lossy());
                let (Ok(digest), Ok(meta)) = (name.parse::<Digest>(), entry.metadata()) else {
                    tracing::warn!(path = %entry.path().display(), "not a file of the artifact cache");
                    continue;
                };
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                books.kept.insert(digest, Kept { bytes: meta.len(), used });
            }
        }
        let (hits, misses) = Default::default();
        let cache = Self { root, max_bytes, books: Mutex::new(books), hits, misses };
        cache.make_room(0);
        Ok(cache)
    }

    /// The file of this digest, from the cache or, where it is not there, from `fill`, which writes it and says
    /// which digest that has. Concurrent calls for one digest run one `fill`; where that fails or is given up, the
    /// next tries its own.
    ///
    /// # Errors
    /// Of `fill`; [`Problem::Mismatch`], and nothing is kept; a full disk.
    pub(crate) async fn get(
        &self,
        digest: &Digest,
        fill: impl AsyncFnOnce(&File, &Path) -> Result<Digest, Problem>,
    ) -> Result<File, Problem> {
        let lock = self.lock_of(digest);
        let _alone = lock.lock().await;
        if let Some(file) = self.hit(digest) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(file);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let failed = |step| {
            let path = self.root.clone();
            move |source| Problem::caching(step, path, source)
        };
        let tmp = tempfile::NamedTempFile::new_in(self.root.join("tmp")).map_err(failed("make a file in"))?;
        let found = fill(tmp.as_file(), tmp.path()).await?;
        digest.check(&found)?;
        let bytes = tmp.as_file().metadata().map_err(failed("stat a file in"))?.len();
        let file = File::open(tmp.path()).map_err(failed("open a file in"))?;
        if bytes <= self.max_bytes {
            self.make_room(bytes);
            let place = self.path(digest);
            let kept = tokio::task::spawn_blocking(move || keep(tmp, &place)).await;
            kept.map_err(io::Error::other).and_then(|r| r).map_err(failed("keep a file in"))?;
            self.books().kept.insert(digest.clone(), Kept { bytes, used: SystemTime::now() });
        }
        Ok(file)
    }

    /// A nameless file for what is not kept.
    pub(crate) fn scratch(&self) -> Result<File, Problem> {
        tempfile::tempfile_in(self.root.join("tmp"))
            .map_err(|source| Problem::caching("make a file in", self.root.clone(), source))
    }

    /// How much good it does.
    pub(crate) fn usage(&self) -> CacheUse {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let bytes = self.books().kept.values().map(|kept| kept.bytes).sum();
        CacheUse { hits: count(&self.hits), misses: count(&self.misses), bytes }
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn hit(&self, digest: &Digest) -> Option<File> {
        let path = self.path(digest);
        if !self.books().kept.contains_key(digest) {
            return None;
        }
        let now = SystemTime::now();
        match File::open(&path) {
            Ok(file) => {
                // The time of the last use outlives the agent; where it cannot be noted, the order suffers.
                drop(file.set_modified(now));
                if let Some(kept) = self.books().kept.get_mut(digest) {
                    kept.used = now;
                }
                Some(file)
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "gone from the artifact cache");
                self.books().kept.remove(digest);
                None
            }
        }
    }

    /// Removes what was used least recently until `bytes` more fit.
    fn make_room(&self, bytes: u64) {
        let mut books = self.books();
        for digest in to_evict(&books.kept, self.max_bytes.saturating_sub(bytes)) {
            let path = self.path(&digest);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "remove from the artifact cache");
                }
                _ => drop(books.kept.remove(&digest)),
            }
        }
    }

    fn lock_of(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut books = self.books();
        books.wanted.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = books.wanted.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        books.wanted.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        dir_of(&self.root, digest.algorithm()).join(digest.hex())
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dir_of(root: &Path, algorithm: Algorithm) -> PathBuf {
    root.join(algorithm.name())
}

/// On the disk first, then under its name, then the name on the disk.
fn keep(tmp: tempfile::NamedTempFile, place: &Path) -> io::Result<()> {
    tmp.as_file().sync_all()?;
    tmp.persist(place).map_err(|e| e.error)?;
    match place.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// What is to go so that the rest is at most `max_bytes`: least recently used first. Pure.
fn to_evict(kept: &HashMap<Digest, Kept>, max_bytes: u64) -> Vec<Digest> {
    let mut total: u64 = kept.values().map(|k| k.bytes).sum();
    let mut oldest: Vec<(&Digest, &Kept)> = kept.iter().collect();
    oldest.sort_by(|a, b| (a.1.used, a.0).cmp(&(b.1.used, b.0)));
    let mut gone = Vec::new();
    for (digest, kept) in oldest {
        if total <= max_bytes {
            break;
        }
        total -= kept.bytes;
        gone.push(digest.clone());
    }
    gone
}

#[cfg(test)]
#[path = "cache/tests.rs"]
mod tests;
