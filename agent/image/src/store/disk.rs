//! The directories of a store, and what is read back from them when it is opened.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use bulkhead_stage::Digest;
use serde::{Deserialize, Serialize};

use super::{image_of, make_private};
use crate::{books::Books, error::ImageError, manifest::ImageConfig};

/// What is kept of an image besides its layers.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) layers: Vec<Digest>,
    pub(crate) config: ImageConfig,
    /// Digests of manifests and indexes that led to it.
    pub(crate) manifests: Vec<Digest>,
}

/// As it is in the file.
#[derive(Serialize, Deserialize)]
struct RecordFile {
    /// Digest and bytes.
    layers: Vec<(String, u64)>,
    config: ImageConfig,
    manifests: Vec<String>,
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    /// For names in `tmp`.
    counter: AtomicU64,
}

/// The colon of a digest separates the lower directories of an overlayfs.
fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

fn from_file_name(name: &str) -> Option<Digest> {
    name.replacen('-', ":", 1).parse().ok()
}

impl Disk {
    /// Opens the store, and keeps of it what is whole.
    pub(crate) fn open(dir: &Path, bound_bytes: u64) -> Result<(Self, Books), ImageError> {
        let disk = Self { dir: dir.to_owned(), counter: AtomicU64::new(0) };
        for part in ["", "layers", "images", "tmp"] {
            make_private(&dir.join(part))?;
        }
        for entry in names(&dir.join("tmp"))? {
            remove_tree(&dir.join("tmp").join(entry))?;
        }
        let mut books = Books::new(bound_bytes);
        for name in names(&dir.join("images"))? {
            let path = dir.join("images").join(&name);
            if !disk.adopt(&name, &path, &mut books) {
                tracing::warn!(path = %path.display(), "the record of an image is damaged or incomplete: removed");
                fs::remove_file(&path).map_err(ImageError::io("remove", path))?;
            }
        }
        for name in names(&dir.join("layers"))? {
            if !from_file_name(&name).is_some_and(|layer| books.has_layer(&layer)) {
                disk.discard(&dir.join("layers").join(name))?;
            }
        }
        Ok((disk, books))
    }

    /// One image of the last run.
    fn adopt(&self, name: &str, path: &Path, books: &mut Books) -> bool {
        let image = name.strip_suffix(".json").and_then(from_file_name);
        let (Some(image), Some((record, sizes))) = (image, read(path)) else { return false };
        if !record.layers.iter().all(|layer| self.layer(layer).is_dir()) {
            return false;
        }
        for (layer, bytes) in record.layers.iter().zip(sizes) {
            books.add_layer(layer.clone(), bytes, 0);
        }
        books.add_image(image, image_of(&record, last_used(path)))
    }

    /// The directory of a layer.
    pub(crate) fn layer(&self, layer: &Digest) -> PathBuf {
        self.dir.join("layers").join(file_name(layer))
    }

    fn image(&self, image: &Digest) -> PathBuf {
        self.dir.join("images").join(format!("{}.json", file_name(image)))
    }

    /// A name in `tmp` that nothing has.
    pub(crate) fn temporary(&self) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.dir.join("tmp").join(number.to_string())
    }

    /// Makes a directory that was written completely the layer's, for good.
    pub(crate) fn publish(&self, from: &Path, layer: &Digest) -> Result<(), ImageError> {
        let to = self.layer(layer);
        fs::rename(from, &to).map_err(ImageError::io("rename", &to))?;
        sync_dir(&self.dir.join("layers"))
    }

    /// Writes the record of an image, for good.
    pub(crate) fn write(&self, image: &Digest, record: &Record, books: &Books) -> Result<(), ImageError> {
        let file = RecordFile {
            layers: record.layers.iter().map(|l| (l.to_string(), books.layer_bytes(l))).collect(),
            config: record.config.clone(),
            manifests: record.manifests.iter().map(ToString::to_string).collect(),
        };
        let (path, temporary) = (self.image(image), self.temporary());
        let text = serde_json::to_vec(&file).map_err(|e| ImageError::io("encode", &path)(e.into()))?;
        let written = fs::write(&temporary, text).and_then(|()| File::open(&temporary)?.sync_all());
        written.map_err(ImageError::io("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(ImageError::io("rename", &path))?;
        sync_dir(&self.dir.join("images"))
    }

    /// What is kept of an image.
    pub(crate) fn record(&self, image: &Digest) -> Option<Record> {
        read(&self.image(image)).map(|(record, _)| record)
    }

    /// An image was used now.
    pub(crate) fn touch(&self, image: &Digest) -> Result<(), ImageError> {
        let path = self.image(image);
        let touched = File::options().write(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        touched.map_err(ImageError::io("touch", path))
    }

    /// The image that the digest of a manifest leads to.
    pub(crate) fn find_manifest(&self, manifest: &Digest) -> Option<(Digest, Record)> {
        let dir = self.dir.join("images");
        names(&dir).ok()?.into_iter().find_map(|name| {
            let (record, _) = read(&dir.join(&name))?;
            let image = from_file_name(name.strip_suffix(".json")?)?;
            record.manifests.contains(manifest).then_some((image, record))
        })
    }

    /// Forgets an image.
    pub(crate) fn forget(&self, image: &Digest) -> Result<(), ImageError> {
        let path = self.image(image);
        fs::remove_file(&path).map_err(ImageError::io("remove", path))
    }

    /// Takes a directory out of its place at once, and then away.
    pub(crate) fn discard(&self, dir: &Path) -> Result<(), ImageError> {
        let temporary = self.set_aside(dir)?;
        remove_tree(&temporary)
    }

    /// Takes a directory out of its place.
    pub(crate) fn set_aside(&self, dir: &Path) -> Result<PathBuf, ImageError> {
        let temporary = self.temporary();
        fs::rename(dir, &temporary).map_err(ImageError::io("rename", dir))?;
        Ok(temporary)
    }
}

/// Removes a file or directory that may not be there.
pub(crate) fn remove_tree(path: &Path) -> Result<(), ImageError> {
    let removed = match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        other => other,
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let read =
        || fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    let names: io::Result<_> = read();
    names.map_err(ImageError::io("list", dir))
}

fn read(path: &Path) -> Option<(Record, Vec<u64>)> {
    let file: RecordFile = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let (layers, sizes): (Vec<_>, Vec<_>) = file.layers.into_iter().unzip();
    let digests = |texts: Vec<String>| texts.iter().map(|t| t.parse().ok()).collect::<Option<Vec<Digest>>>();
    let record =
        Record { layers: digests(layers)?, config: file.config, manifests: digests(file.manifests)? };
    (!record.layers.is_empty()).then_some((record, sizes))
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn last_used(path: &Path) -> u64 {
    fs::metadata(path).and_then(|m| m.modified()).map_or(0, unix_ms)
}

fn sync_dir(dir: &Path) -> Result<(), ImageError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(ImageError::io("sync", dir))
}
