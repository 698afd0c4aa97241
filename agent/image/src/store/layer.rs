//! One layer comes into the store, on a thread that may block.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bulkhead_stage::{Digest, Hashed, digest::Algorithm};
use flate2::bufread::MultiGzDecoder;
use tokio::sync::Semaphore;

use super::{
    Meter, Unpacked,
    disk::{Disk, Record, remove_tree, unix_ms},
    image_of,
};
use crate::{
    books::{Books, Removed},
    error::ImageError,
    source::{Bytes, LayerBlob},
    unpack::{self, Counts, LayerBounds, LayerError},
};

/// What the clones of a store, its leases and its threads share.
pub(crate) struct Shared {
    pub(crate) disk: Disk,
    books: Mutex<Books>,
    bounds: LayerBounds,
    /// Whose turn it is to bring a layer in.
    turns: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    pub(crate) permits: Semaphore,
    /// Layers that were there when they were wanted, and those that were not.
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
}

/// Digests of manifests that are kept for one image.
const MAX_MANIFESTS: usize = 16;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these can panic halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(disk: Disk, books: Books, bounds: LayerBounds, permits: Semaphore) -> Self {
        let (hits, misses) = Default::default();
        Self { disk, books: Mutex::new(books), bounds, turns: Mutex::default(), permits, hits, misses }
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        locked(&self.books)
    }

    /// The lock of a layer: who holds it looks whether it is there, and brings it in.
    pub(crate) fn turn(&self, layer: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = locked(&self.turns);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(layer).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(layer.clone(), Arc::downgrade(&turn));
        turn
    }

    /// An image is complete, or was asked for again.
    pub(crate) fn remember(&self, image: Digest, mut record: Record) -> Result<Unpacked, ImageError> {
        let mut books = self.books();
        match self.disk.record(&image) {
            Some(known) if record.manifests.iter().all(|m| known.manifests.contains(m)) => {
                self.disk.touch(&image)?;
            }
            known => {
                let known = known.map_or_else(Vec::new, |known| known.manifests);
                record.manifests.extend(known);
                record.manifests.truncate(MAX_MANIFESTS);
                self.disk.write(&image, &record, &books)?;
            }
        }
        books.add_image(image.clone(), image_of(&record, unix_ms(SystemTime::now())));
        drop(books);
        let layers = record.layers.iter().map(|layer| self.disk.layer(layer)).collect();
        Ok(Unpacked { layers, config: record.config, digest: image })
    }

    /// Room for a part of a layer; what has to go for it goes.
    fn take(&self, bytes: u64) -> Result<(), LayerError> {
        let mut books = self.books();
        let removed = match books.take(bytes) {
            Ok(removed) if removed == Removed::default() => return Ok(()),
            Ok(removed) => removed,
            Err(full) => {
                let bound_bytes = books.bound_bytes();
                return Err(LayerError::StoreFull { used_bytes: full.used_bytes, bound_bytes });
            }
        };
        // Out of their places before anybody else looks at the books.
        let aside: Vec<_> =
            removed.layers.iter().map(|layer| self.disk.set_aside(&self.disk.layer(layer))).collect();
        let forgotten: Vec<_> = removed.images.iter().map(|image| self.disk.forget(image)).collect();
        drop(books);
        tracing::info!(
            images = removed.images.len(),
            layers = removed.layers.len(),
            "made room for an image"
        );
        let gone = aside.into_iter().map(|path| path.and_then(|path| remove_tree(&path)));
        for error in gone.chain(forgotten).filter_map(Result::err) {
            tracing::warn!(%error, "make room for an image");
        }
        Ok(())
    }
}

/// Brings one layer in.
pub(crate) struct Job {
    pub(crate) shared: Arc<Shared>,
    pub(crate) diff_id: Digest,
    pub(crate) blob: LayerBlob,
    pub(crate) meter: Arc<Meter>,
    /// Nobody waits for it any more.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// Ends the threads of one image when nobody waits for them any more.
#[derive(Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The bytes as they are at the source: measured, and ended when nobody wants them.
struct Watched {
    inner: Bytes,
    meter: Arc<Meter>,
    cancelled: Arc<AtomicBool>,
    untold: u64,
}

/// Progress is told about this often.
const TELL_BYTES: u64 = 1 << 20;

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        let n = self.inner.read(buffer)?;
        self.untold += n as u64;
        if self.untold >= TELL_BYTES || n == 0 {
            self.meter.read(std::mem::take(&mut self.untold));
        }
        Ok(n)
    }
}

type Compressed = BufReader<Hashed<io::Take<Watched>>>;

/// A layer is recognised by its first bytes: media types are often wrong.
enum Decoded {
    Plain(Compressed),
    Gzip(MultiGzDecoder<Compressed>),
    Zstd(zstd::Decoder<'static, Compressed>),
}

impl Decoded {
    fn new(mut bytes: Compressed) -> io::Result<Self> {
        use io::BufRead as _;
        let head: [u8; 4] = match bytes.fill_buf()? {
            [a, b, c, d, ..] => [*a, *b, *c, *d],
            _ => [0; 4],
        };
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip(MultiGzDecoder::new(bytes))),
            [0x28, 0xb5, 0x2f, 0xfd] => zstd::Decoder::with_buffer(bytes).map(Self::Zstd),
            _ => Ok(Self::Plain(bytes)),
        }
    }

    fn into_inner(self) -> Compressed {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl Read for Decoded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(bytes) => bytes.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

impl Job {
    /// Unpacks, verifies and publishes. Blocks.
    pub(crate) fn work(self, bytes: Bytes) -> Result<(), ImageError> {
        let temporary = self.shared.disk.temporary();
        let taken = AtomicU64::new(0);
        let done = self.fill(&temporary, bytes, &taken);
        let taken = taken.into_inner();
        let published = done.and_then(|counts| self.publish(&temporary, counts, taken));
        if !matches!(published, Ok(true)) {
            self.shared.books().give_back(taken);
            if let Err(error) = remove_tree(&temporary) {
                tracing::warn!(%error, "clear away a layer");
            }
        }
        published.map(drop)
    }

    /// Unpacks into a directory of its own, and verifies both digests.
    fn fill(&self, into: &Path, bytes: Bytes, taken: &AtomicU64) -> Result<Counts, ImageError> {
        fs::DirBuilder::new().mode(0o700).create(into).map_err(ImageError::io("create", into))?;
        let watched = Watched {
            inner: bytes,
            meter: Arc::clone(&self.meter),
            cancelled: Arc::clone(&self.cancelled),
            untold: 0,
        };
        // One byte more than there may be shows that there is more.
        let most = self.blob.size.map_or(u64::MAX, |size| size.saturating_add(1));
        let algorithm = self.blob.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let compressed = BufReader::with_capacity(128 << 10, Hashed::new(watched.take(most), algorithm));
        let layer = |source| ImageError::Layer { layer: self.diff_id.clone(), source };
        let decoded = Decoded::new(compressed).map_err(|e| layer(LayerError::Read(e)))?;
        let mut stream = Hashed::new(decoded, self.diff_id.algorithm());
        let charge = |bytes: u64| {
            self.shared.take(bytes)?;
            taken.fetch_add(bytes, Ordering::Relaxed);
            Ok(())
        };
        let unpacked = unpack::unpack(&mut stream, into, self.shared.bounds, &charge).and_then(|counts| {
            self.drain(&mut stream)?;
            Ok(counts)
        });
        let (decoded, _, diff_id) = stream.finish();
        let counts = match unpacked {
            Ok(counts) => {
                self.check_blob(decoded.into_inner())?;
                counts
            }
            // Of a damaged layer the digest says more than where the damage showed.
            Err(error) if error.is_of_the_content() => match self.check_blob(decoded.into_inner()) {
                Err(why @ (ImageError::Corrupt { .. } | ImageError::Size { .. })) => return Err(why),
                _ => return Err(layer(error)),
            },
            Err(error) => return Err(layer(error)),
        };
        let what = || format!("layer {}, uncompressed,", self.blob.name);
        self.diff_id.check(&diff_id).map_err(|why| ImageError::Corrupt { what: what(), why })?;
        Ok(counts)
    }

    /// Reads what follows the end of the archive; it is part of the digest.
    fn drain(&self, stream: &mut Hashed<Decoded>) -> Result<(), LayerError> {
        let left = self.shared.bounds.bytes.saturating_sub(Hashed::bytes(stream));
        io::copy(&mut stream.by_ref().take(left), &mut io::sink()).map_err(LayerError::Read)?;
        match stream.read(&mut [0; 1]).map_err(LayerError::Read)? {
            0 => Ok(()),
            _ => Err(LayerError::TooLarge(format!("more than {} bytes", self.shared.bounds.bytes))),
        }
    }

    /// The bytes as they are at the source must be those that the manifest names.
    fn check_blob(&self, mut compressed: Compressed) -> Result<(), ImageError> {
        let copied = io::copy(&mut compressed, &mut io::sink());
        let (_, found, digest) = compressed.into_inner().finish();
        let what = || format!("layer {}", self.blob.name);
        if let (Some(wanted), true) = (&self.blob.digest, self.blob.size.is_none_or(|size| size == found)) {
            wanted.check(&digest).map_err(|why| ImageError::Corrupt { what: what(), why })?;
        }
        let layer = |e| ImageError::Layer { layer: self.diff_id.clone(), source: LayerError::Read(e) };
        copied.map_err(layer)?;
        match self.blob.size.filter(|size| *size != found) {
            Some(expected) => Err(ImageError::Size { what: what(), expected, found }),
            None => Ok(()),
        }
    }

    /// True when the layer is this one now; false when somebody else's came first.
    fn publish(&self, temporary: &PathBuf, counts: Counts, taken: u64) -> Result<bool, ImageError> {
        let sync = |dir: &Path| rustix::fs::syncfs(File::open(dir)?).map_err(io::Error::from);
        sync(temporary).map_err(ImageError::io("sync", temporary))?;
        let mut books = self.shared.books();
        if self.cancelled.load(Ordering::Relaxed) || books.has_layer(&self.diff_id) {
            return Ok(false);
        }
        self.shared.disk.publish(temporary, &self.diff_id)?;
        books.add_layer(self.diff_id.clone(), counts.bytes, taken);
        if counts.skipped > 0 {
            tracing::debug!(layer = %self.diff_id, skipped = counts.skipped, "device files of a layer were left out");
        }
        Ok(true)
    }
}
