//! Where the documents and layers of an image are read from.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use bulkhead_stage::{Beneath, Digest, Inside};

use crate::{
    error::ImageError,
    manifest::{Blob, Platform},
    reference::Reference,
    store::Settings,
};

mod archive;
pub(crate) mod credentials;
mod layout;
pub(crate) mod registry;

/// An image that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Of the manifest, where the source has one.
    pub(crate) manifest: Option<Digest>,
    /// Its configuration, verified.
    pub(crate) config: Vec<u8>,
    /// Its layers, lowest first.
    pub(crate) layers: Vec<LayerBlob>,
}

/// A layer as the source has it.
#[derive(Clone, Debug)]
pub(crate) struct LayerBlob {
    /// For messages.
    pub(crate) name: String,
    /// Of the bytes as they are there, where the source says so.
    pub(crate) digest: Option<Digest>,
    /// Of those bytes.
    pub(crate) size: Option<u64>,
}

impl From<Blob> for LayerBlob {
    fn from(blob: Blob) -> Self {
        Self { name: blob.digest.to_string(), digest: Some(blob.digest), size: Some(blob.size) }
    }
}

/// One place to read an image from.
pub(crate) enum Source {
    Layout(layout::Layout),
    Archive(archive::Archive),
    Registry(registry::Pull),
}

/// The bytes of a layer, to be read on a thread that may block.
pub(crate) type Bytes = Box<dyn Read + Send>;

impl Source {
    /// The source that a reference names, where the agent allows it.
    pub(crate) async fn open(
        reference: &Reference,
        settings: &Settings,
        registries: &registry::Registries,
    ) -> Result<Self, ImageError> {
        match reference {
            Reference::Registry(remote) => registries.pull(remote).await.map(Self::Registry),
            Reference::Layout { dir, tag } => {
                let (path, allowed, tag) = (dir.clone(), settings.image_dirs.clone(), tag.clone());
                blocking(move || layout::Layout::open(&path, &allowed, tag)).await.map(Self::Layout)
            }
            Reference::Archive { file, image } => {
                let (path, allowed, image) = (file.clone(), settings.image_dirs.clone(), image.clone());
                blocking(move || archive::Archive::open(&path, &allowed, image)).await.map(Self::Archive)
            }
        }
    }

    /// What the image for `platform` consists of.
    pub(crate) async fn find(&self, platform: &Platform) -> Result<Found, ImageError> {
        match self {
            Self::Registry(pull) => pull.find(platform).await,
            Self::Layout(layout) => {
                let (layout, platform) = (layout.clone(), platform.clone());
                blocking(move || layout.find(&platform)).await
            }
            Self::Archive(archive) => {
                let archive = archive.clone();
                blocking(move || archive.find()).await
            }
        }
    }

    /// The bytes of one of its layers.
    pub(crate) async fn layer(&self, layer: &LayerBlob) -> Result<Bytes, ImageError> {
        match self {
            Self::Registry(pull) => pull.layer(layer).await,
            Self::Layout(layout) => layout.layer(layer),
            Self::Archive(archive) => archive.layer(layer),
        }
    }
}

/// Runs what waits for disks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(ImageError::Interrupted))
}

/// The allowed directory that `path` lies in, opened, and the rest of the path. Nothing below it is reached
/// through links.
fn allowed(path: &Path, image_dirs: &[PathBuf]) -> Result<(Beneath, Option<Inside>), ImageError> {
    let not_allowed = || ImageError::NotAllowed { path: path.to_owned() };
    let dir = image_dirs.iter().filter(|dir| path.starts_with(dir)).max_by_key(|dir| dir.as_os_str().len());
    let dir = dir.ok_or_else(not_allowed)?;
    let rest = path.strip_prefix(dir).map_err(|_| not_allowed())?;
    // The operator may have named a link; who writes below it may not make one.
    let real = std::fs::canonicalize(dir).map_err(ImageError::io("find", dir))?;
    let opened = Beneath::open(&real)?;
    if rest.as_os_str().is_empty() {
        return Ok((opened, None));
    }
    Ok((opened, Some(Inside::new(rest).map_err(|_| not_allowed())?)))
}

/// Reads all of a document, which must be what its digest and size say.
fn verified(what: &str, blob: &Blob, max: u64, from: impl Read, path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = bounded(what, max, from, path)?;
    check(what, blob, &bytes)?;
    Ok(bytes)
}

fn bounded(what: &str, max: u64, from: impl Read, path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    from.take(max + 1).read_to_end(&mut bytes).map_err(ImageError::io("read", path))?;
    if bytes.len() as u64 > max {
        return Err(ImageError::Io {
            op: "read",
            path: path.to_owned(),
            source: io::Error::other(format!("{what} is larger than {max} bytes")),
        });
    }
    Ok(bytes)
}

fn check(what: &str, blob: &Blob, bytes: &[u8]) -> Result<(), ImageError> {
    if bytes.len() as u64 != blob.size {
        let (expected, found) = (blob.size, bytes.len() as u64);
        return Err(ImageError::Size { what: what.into(), expected, found });
    }
    let found = Digest::of(blob.digest.algorithm(), bytes);
    blob.digest.check(&found).map_err(|why| ImageError::Corrupt { what: what.into(), why })
}
