//! A task's files, on their way into its sandbox.
//!
//! - [`beneath`]: directories that nothing written through them can leave, whatever is inside.
//! - [`digest`]: SHA-2 digests as `algorithm:hex`, and readers and writers that check them.

pub mod beneath;
pub mod digest;

pub use beneath::{BadPath, Beneath, BeneathError, Inside};
pub use digest::{Digest, DigestError, Hashed, Mismatch};
