//! Why a layer cannot be unpacked.

use std::{io, path::PathBuf};

use crate::tarball::TarError;

/// A layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream.
    #[error("its archive is cut off or damaged")]
    Read(#[source] io::Error),
    /// A header of the archive.
    #[error("its archive is malformed: {0}")]
    Malformed(String),
    /// An entry that no layer may have.
    #[error("its entry {path:?} is refused: {why}")]
    Refused {
        /// As it is in the archive.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The disk, or the kernel.
    #[error("unpack its entry {path:?}: {op}")]
    Write {
        /// As it is in the archive.
        path: String,
        /// What was tried.
        op: &'static str,
        /// The failure.
        source: io::Error,
    },
    /// The directory of the layer.
    #[error("{op} {}", path.display())]
    Directory {
        /// What was tried.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// Larger than a layer may be.
    #[error("it is larger than a layer may be ({0})")]
    TooLarge(String),
    /// The store is full of what tasks use.
    #[error(
        "the store is full: {used_bytes} of {bound_bytes} bytes are used by images of running tasks or images \
         that are being fetched; raise image_store_size"
    )]
    StoreFull {
        /// What cannot be removed.
        used_bytes: u64,
        /// What the store may hold.
        bound_bytes: u64,
    },
}

impl From<TarError> for LayerError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(source) => Self::Read(source),
            other @ TarError::Header { .. } => Self::Malformed(other.to_string()),
        }
    }
}

impl LayerError {
    /// Would it be different if the bytes were those that the publisher wrote?
    pub(crate) fn is_of_the_content(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Malformed(_) | Self::Refused { .. })
    }
}
