//! OCI images become the lower layers of an overlayfs.
//!
//! ```text
//! Reference -> source (layout, archive, registry) -> manifest, config -> unpack each layer -> Store -> Unpacked
//!                                                                                                 \-> Lease
//! ```
//!
//! - [`reference`]: what a task names its image by. Pure.
//! - `manifest`: what the JSON documents say, and which image is for this machine. Pure.
//! - `source`: where documents and layers are read from, verified by digest.
//! - `tarball`, [`unpack`]: a layer becomes a directory; hostile input neither leaves it nor fills memory.
//! - `books`: what the store holds, who uses it and what has to go. Pure.
//! - [`store`]: every layer once, safe against crashes, bounded.
//! - [`root`]: files of the whole image, looked up through its layers as overlayfs would show them.
//! - [`user`]: who the image's user is.

mod books;
pub mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod manifest;
pub mod reference;
pub mod root;
mod source;
pub mod store;
mod tarball;
pub mod unpack;
pub mod user;

pub use error::ImageError;
pub use manifest::{ImageConfig, MAX_LAYERS, ManifestError, Platform};
pub use reference::{Reference, ReferenceError};
pub use source::credentials::{Credentials, CredentialsError};
pub use store::{Lease, Progress, Report, Settings, Store, Unpacked};
