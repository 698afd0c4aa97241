//! A task's files, on their way into its sandbox.
//!
//! ```text
//! Artifact -> planned (pure) -> stager -> local file | fetch -> cache -> copy | unpack -> beneath the sandbox
//! ```
//!
//! - [`planned`]: what is to be done, from the description alone; refuses what could be staged nowhere.
//! - [`stager`]: all artifacts of a task, several at once, with [`progress`]; on a failure nothing stays.
//! - `fetch`, `cache`, `copy`: bytes from elsewhere, verified, kept by digest, copied as cheaply as the disk can.
//! - [`unpack`]: archives, as hostile input, within a [`budget`].
//! - `identity`: what is written into a sandbox is written with the rights of the task's user.
//! - [`beneath`]: directories that nothing written through them can leave, whatever is inside.
//! - [`digest`]: SHA-2 digests as `algorithm:hex`, and readers and writers that check them.

pub mod beneath;
pub mod budget;
mod cache;
mod copy;
pub mod digest;
pub mod error;
mod fetch;
mod identity;
pub mod planned;
pub mod progress;
pub mod stager;
pub mod unpack;

pub use beneath::{BadPath, Beneath, BeneathError, Inside};
pub use budget::{Limits, Spent};
pub use cache::{CacheError, CacheUse};
pub use digest::{Digest, DigestError, Hashed, Mismatch};
pub use error::{Problem, StageError};
pub use fetch::FetchError;
pub use identity::Owner;
pub use planned::{ArtifactError, ArtifactProblem, Planned, check, check_all};
pub use progress::{Board, Progress};
pub use stager::{Request, StageConfig, Stager};
