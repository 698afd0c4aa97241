//! The layers of images on the disk: each once, complete or not at all, within a bound.
//!
//! ```text
//! <dir>/layers/sha256-HEX/      a layer, by the digest of its uncompressed archive; a lowerdir of overlayfs
//! <dir>/images/sha256-HEX.json  an image, by the digest of its configuration; its time is when it was last used
//! <dir>/tmp/N/                  what is on its way in or out
//! ```
//!
//! A layer is unpacked in `tmp`, synced and then renamed: after a crash it is there whole or not at all. Opening
//! the store clears away the rest. One process uses a store; the agent holds a lock on its work directory.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bulkhead_stage::{CacheUse, Digest};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::Semaphore;

use crate::{
    books::Image,
    error::ImageError,
    manifest::{self, ImageConfig, ManifestError, Platform},
    reference::{Reference, Remote, Version},
    source::{Found, LayerBlob, Source, blocking, credentials::Credentials, registry::Registries},
    unpack::LayerBounds,
};

mod disk;
mod layer;

use disk::{Disk, Record};
use layer::{Cancel, Job, Shared};

/// Layers that are unpacked at once. One keeps a core busy.
const AT_ONCE: usize = 2;

/// What a store needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Local images are read from these directories and those below them only.
    pub image_dirs: Vec<PathBuf>,
    /// HOST[:PORT] of registries that are used through TLS.
    pub registries: Vec<String>,
    /// HOST[:PORT] of registries that are used without TLS.
    pub insecure_registries: Vec<String>,
    /// Who the agent is to registries.
    pub credentials: Credentials,
    /// Space of all layers.
    pub bound_bytes: u64,
    /// Of one layer. Its bytes are bounded by the store's too.
    pub layer: LayerBounds,
    /// What machine images must be for.
    pub platform: Platform,
}

impl Settings {
    /// Nothing is allowed; the bounds hold any image that is in use somewhere.
    pub fn new(bound_bytes: u64) -> Self {
        Self {
            image_dirs: Vec::new(),
            registries: Vec::new(),
            insecure_registries: Vec::new(),
            credentials: Credentials::default(),
            bound_bytes,
            layer: LayerBounds { bytes: bound_bytes, entries: 2_000_000 },
            platform: Platform::host(),
        }
    }
}

/// How far an image is. Layers that are there already count as done at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were read, as they are stored at the source.
    pub done_bytes: u64,
    /// Of all its layers.
    pub total_bytes: u64,
    /// Layers that are there.
    pub done_layers: usize,
    /// All its layers.
    pub total_layers: usize,
}

/// Hears of progress, from any thread; must not block.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// An image whose layers are on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Lowest first.
    pub layers: Vec<PathBuf>,
    /// What it wants run.
    pub config: ImageConfig,
    /// Of its configuration: what `docker images` calls the image id. The same for the same content, whatever it
    /// was read from.
    pub digest: Digest,
}

/// Keeps the layers of an image while it exists.
pub struct Lease {
    shared: Arc<Shared>,
    image: Digest,
    layers: Vec<Digest>,
}

impl Lease {
    fn new(shared: &Arc<Shared>, image: Digest, layers: Vec<Digest>) -> Self {
        shared.books().lease(&layers);
        Self { shared: Arc::clone(shared), image, layers }
    }

    /// The image, as [`Unpacked::digest`]: what [`Store::adopt`] takes after a restart.
    pub fn image(&self) -> &Digest {
        &self.image
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.books().release(&self.layers);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("image", &self.image).finish_non_exhaustive()
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    registries: Arc<Registries>,
    settings: Arc<Settings>,
}

impl Store {
    /// Opens or makes the store in `dir`, and clears away what a crash left. Blocks.
    ///
    /// # Errors
    /// When its directories cannot be made or read.
    pub fn open(dir: &Path, settings: Settings) -> Result<Self, ImageError> {
        let (disk, books) = Disk::open(dir, settings.bound_bytes)?;
        let settings = Arc::new(settings);
        let shared = Arc::new(Shared::new(disk, books, settings.layer, Semaphore::new(AT_ONCE)));
        Ok(Self { shared, registries: Arc::new(Registries::new(Arc::clone(&settings))), settings })
    }

    /// Brings an image in, and keeps it while the lease exists. Several calls for the same layers unpack them once.
    ///
    /// # Errors
    /// [`ImageError`]; nothing is left of a layer that failed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work soon, and nothing is left of unfinished layers.
    pub async fn get(&self, reference: &Reference, report: Report) -> Result<(Unpacked, Lease), ImageError> {
        if let Some(kept) = self.kept(reference).await? {
            return Ok(kept);
        }
        let source = Source::open(reference, &self.settings, &self.registries).await?;
        let found = source.find(&self.settings.platform).await?;
        let image = Digest::of(bulkhead_stage::digest::Algorithm::Sha256, &found.config);
        let malformed = |why| ImageError::Manifest { what: format!("the configuration of {reference}"), why };
        let (config, layers) = manifest::config(&found.config, &self.settings.platform).map_err(malformed)?;
        if layers.len() != found.layers.len() {
            let (listed, known) = (found.layers.len(), layers.len());
            let why = format!("it lists {known} layers, and the manifest {listed}");
            return Err(malformed(ManifestError::Content(why)));
        }
        // From here on nothing of it is removed.
        let lease = Lease::new(&self.shared, image.clone(), layers.clone());
        self.fetch(&source, &found, &layers, report).await?;
        let manifests = manifests(reference, &found);
        let (shared, record) = (Arc::clone(&self.shared), Record { layers, config, manifests });
        let unpacked = blocking(move || shared.remember(image, record)).await?;
        Ok((unpacked, lease))
    }

    /// An image that a digest names is looked for on the disk first: it cannot have changed.
    async fn kept(&self, reference: &Reference) -> Result<Option<(Unpacked, Lease)>, ImageError> {
        let Reference::Registry(Remote { version: Version::Digest(digest), .. }) = reference else {
            return Ok(None);
        };
        // The registry must be allowed all the same.
        Source::open(reference, &self.settings, &self.registries).await?;
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        blocking(move || {
            let Some((image, record)) = shared.disk.find_manifest(&digest) else { return Ok(None) };
            let Some(lease) = lease_whole(&shared, &image) else { return Ok(None) };
            shared.hits.fetch_add(lease.layers.len() as u64, Ordering::Relaxed);
            Ok(Some((shared.remember(image, record)?, lease)))
        })
        .await
    }

    async fn fetch(
        &self,
        source: &Source,
        found: &Found,
        layers: &[Digest],
        report: Report,
    ) -> Result<(), ImageError> {
        let mut seen = BTreeSet::new();
        // The same layer may be there twice.
        let all = layers.iter().zip(&found.layers);
        let wanted: Vec<_> = all.filter(|(diff_id, _)| seen.insert(*diff_id)).collect();
        let total_bytes = wanted.iter().filter_map(|(_, blob)| blob.size).sum();
        let total = Progress { total_bytes, total_layers: wanted.len(), ..Progress::default() };
        let meter = Arc::new(Meter::new(total, report));
        let cancel = Cancel::default();
        let mut work: FuturesUnordered<_> =
            wanted.into_iter().map(|(id, blob)| self.layer(source, id, blob, &meter, &cancel)).collect();
        let mut first = Ok(());
        while let Some(done) = work.next().await {
            // The others end soon, and are waited for: then nothing of them is left.
            if first.is_ok() && done.is_err() {
                cancel.cancel();
                first = done;
            }
        }
        first
    }

    async fn layer(
        &self,
        source: &Source,
        diff_id: &Digest,
        blob: &LayerBlob,
        meter: &Arc<Meter>,
        cancel: &Cancel,
    ) -> Result<(), ImageError> {
        let turn = self.shared.turn(diff_id);
        let _turn = turn.lock().await;
        if !self.shared.books().has_layer(diff_id) {
            self.shared.misses.fetch_add(1, Ordering::Relaxed);
            let _at_once = self.shared.permits.acquire().await.map_err(|_| ImageError::Interrupted)?;
            if cancel.flag().load(Ordering::Relaxed) {
                return Err(ImageError::Interrupted);
            }
            let bytes = source.layer(blob).await?;
            let job = Job {
                shared: Arc::clone(&self.shared),
                diff_id: diff_id.clone(),
                blob: blob.clone(),
                meter: Arc::clone(meter),
                cancelled: cancel.flag(),
            };
            blocking(move || job.work(bytes)).await?;
        } else {
            self.shared.hits.fetch_add(1, Ordering::Relaxed);
            meter.read(blob.size.unwrap_or(0));
        }
        meter.layer();
        Ok(())
    }

    /// Keeps the layers of an image that a task used before this agent started. `None` where it is not there.
    ///
    /// Called before any [`Store::get`], which might make room.
    pub fn adopt(&self, image: &Digest) -> Option<Lease> {
        lease_whole(&self.shared, image)
    }

    /// The layers of an image that is there, lowest first. `None` where it is not there.
    pub fn layers(&self, image: &Digest) -> Option<Vec<PathBuf>> {
        let books = self.shared.books();
        let layers = &books.image(image)?.layers;
        Some(layers.iter().map(|layer| self.shared.disk.layer(layer)).collect())
    }

    /// Space of all layers that are there or on their way, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.shared.books().used_bytes()
    }

    /// How much good it does: hits and misses are layers.
    pub fn usage(&self) -> CacheUse {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (hits, misses) = (count(&self.shared.hits), count(&self.shared.misses));
        CacheUse { hits, misses, bytes: self.used_bytes() }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Digests that lead to this image and no other.
fn manifests(reference: &Reference, found: &Found) -> Vec<Digest> {
    let asked = match reference {
        Reference::Registry(Remote { version: Version::Digest(digest), .. }) => Some(digest.clone()),
        _ => None,
    };
    let mut all: Vec<_> = found.manifest.clone().into_iter().chain(asked).collect();
    all.dedup();
    all
}

fn lease_whole(shared: &Arc<Shared>, image: &Digest) -> Option<Lease> {
    let mut books = shared.books();
    let layers = books.image(image)?.layers.clone();
    books.lease(&layers);
    drop(books);
    Some(Lease { shared: Arc::clone(shared), image: image.clone(), layers })
}

/// Adds up the progress of all layers of one image.
pub(crate) struct Meter {
    total: Progress,
    done_bytes: AtomicU64,
    done_layers: AtomicU64,
    report: Report,
}

impl Meter {
    fn new(total: Progress, report: Report) -> Self {
        Self { total, done_bytes: AtomicU64::new(0), done_layers: AtomicU64::new(0), report }
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell();
    }

    fn layer(&self) {
        self.done_layers.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        let done_bytes = self.done_bytes.load(Ordering::Relaxed);
        let done_layers = usize::try_from(self.done_layers.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        (self.report)(Progress { done_bytes, done_layers, ..self.total });
    }
}

/// A directory that only root enters: what lies in it may have set-id files of strangers.
fn make_private(dir: &Path) -> Result<(), ImageError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(ImageError::io("create", dir))
}

/// A record of an image that was used now.
pub(crate) fn image_of(record: &Record, used: u64) -> Image {
    Image { layers: record.layers.clone(), used }
}
