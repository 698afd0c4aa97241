//! An OCI image layout: `oci-layout`, `index.json`, and blobs by their digests.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_stage::{Beneath, Digest, Inside};
use serde::Deserialize;

use super::{Bytes, Found, LayerBlob, allowed, bounded, verified};
use crate::{
    error::ImageError,
    manifest::{self, Blob, Document, MAX_BYTES, MAX_NESTING, ManifestError, Platform},
};

/// An open layout.
#[derive(Clone)]
pub(crate) struct Layout {
    dir: Arc<Beneath>,
    path: PathBuf,
    tag: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

fn plain(name: &str) -> Result<Inside, ImageError> {
    Inside::new(name).map_err(|_| ImageError::NotAllowed { path: name.into() })
}

impl Layout {
    pub(crate) fn open(path: &Path, image_dirs: &[PathBuf], tag: Option<String>) -> Result<Self, ImageError> {
        let (base, rest) = allowed(path, image_dirs)?;
        let dir = match rest {
            Some(rest) => base.dir(&rest)?,
            None => base,
        };
        let layout = Self { dir: Arc::new(dir), path: path.to_owned(), tag };
        let marker = layout.small("oci-layout")?;
        match serde_json::from_slice::<Marker>(&marker) {
            Ok(marker) if marker.image_layout_version.starts_with("1.") => Ok(layout),
            Ok(marker) => {
                let version: String = marker.image_layout_version.chars().take(50).collect();
                Err(layout.malformed(
                    "oci-layout",
                    ManifestError::Content(format!("version {version:?} is not known")),
                ))
            }
            Err(e) => Err(layout.malformed("oci-layout", ManifestError::Json(e.to_string()))),
        }
    }

    fn malformed(&self, what: &str, why: ManifestError) -> ImageError {
        ImageError::Manifest { what: format!("{}/{what}", self.path.display()), why }
    }

    fn small(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let file = self.dir.read(&plain(name)?)?;
        bounded(name, MAX_BYTES, file, &self.path.join(name))
    }

    fn blob_path(digest: &Digest) -> String {
        format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
    }

    fn blob(&self, what: &str, blob: &Blob) -> Result<Vec<u8>, ImageError> {
        let name = Self::blob_path(&blob.digest);
        let file = self.dir.read(&plain(&name)?)?;
        verified(what, blob, MAX_BYTES, file, &self.path.join(name))
    }

    pub(crate) fn find(&self, platform: &Platform) -> Result<Found, ImageError> {
        let mut name = "index.json".to_owned();
        let mut bytes = self.small(&name)?;
        let mut digest = None;
        for nesting in 0..=MAX_NESTING {
            // Only the outermost index has names.
            let tag = self.tag.as_deref().filter(|_| nesting == 0);
            let read = manifest::document(&bytes, tag, platform).map_err(|why| self.malformed(&name, why))?;
            match read {
                Document::Image(image) => {
                    let config = self.blob("the image's configuration", &image.config)?;
                    let layers = image.layers.into_iter().map(Into::into).collect();
                    return Ok(Found { manifest: digest, config, layers });
                }
                Document::Elsewhere(blob) => {
                    name = Self::blob_path(&blob.digest);
                    bytes = self.blob(&format!("the manifest {}", blob.digest), &blob)?;
                    digest = Some(blob.digest);
                }
            }
        }
        let why = format!("indexes lead to indexes more than {MAX_NESTING} times");
        Err(self.malformed("index.json", ManifestError::Content(why)))
    }

    pub(crate) fn layer(&self, layer: &LayerBlob) -> Result<Bytes, ImageError> {
        // The names of a layout's layers are their digests.
        let digest = layer.digest.as_ref().ok_or(ImageError::Interrupted)?;
        Ok(Box::new(self.dir.read(&plain(&Self::blob_path(digest))?)?))
    }
}
