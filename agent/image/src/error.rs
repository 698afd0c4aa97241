//! Why an image is not there.

use std::{io, path::PathBuf};

use bulkhead_stage::{BeneathError, Digest, Mismatch};
use oci_client::errors::OciDistributionError;

use crate::{manifest::ManifestError, reference::ReferenceError, unpack::LayerError};

/// An image could not be found, verified or unpacked. What was begun is gone again.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference is malformed.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A local image outside of the directories that the agent allows.
    #[error("{} is not below a directory that images may be read from here: see image_dirs", path.display())]
    NotAllowed {
        /// The directory or file.
        path: PathBuf,
    },
    /// A registry that the agent does not allow.
    #[error("images may not be pulled from {host} here: see registries")]
    RegistryNotAllowed {
        /// HOST[:PORT].
        host: String,
    },
    /// A file of a local image.
    #[error(transparent)]
    Local(#[from] BeneathError),
    /// Reading a file of a local image, or one of the store's own.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// A document of the image.
    #[error("{what}: {why}")]
    Manifest {
        /// Which: its role and its digest or name.
        what: String,
        /// What is wrong with it.
        why: ManifestError,
    },
    /// A blob is not what its digest says.
    #[error("{what} is corrupt: {why}")]
    Corrupt {
        /// Which: its role and its digest or name.
        what: String,
        /// Both digests.
        why: Mismatch,
    },
    /// A blob has another length than its manifest says.
    #[error("{what} is corrupt: it has {found} bytes and not {expected}")]
    Size {
        /// Which: its role and its digest or name.
        what: String,
        /// What the manifest says.
        expected: u64,
        /// What came; one more than expected stands for any number above.
        found: u64,
    },
    /// The archive of `docker save` is not one.
    #[error("{}: {why}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The registry said no, or nothing.
    #[error("{what} from {host}")]
    Registry {
        /// What was asked for.
        what: String,
        /// HOST[:PORT].
        host: String,
        /// What it answered.
        source: Box<OciDistributionError>,
    },
    /// No connection to any registry can be made.
    #[error("set up TLS for registries: are the system's certificates there (package ca-certificates)?")]
    Tls,
    /// The registry took too long.
    #[error("{host} did not answer in {seconds} s")]
    Slow {
        /// HOST[:PORT].
        host: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A layer.
    #[error("layer {layer}")]
    Layer {
        /// Its digest, uncompressed.
        layer: Digest,
        /// What is wrong with it.
        source: LayerError,
    },
    /// A thread of the store ended, as the whole agent does then.
    #[error("the store of images was interrupted")]
    Interrupted,
}

impl ImageError {
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }
}
