//! From an accepted task to a running program: a pure plan, and an executor that undoes what it began.

pub mod capability;
pub mod child;
pub mod confine;
mod error;
pub mod execute;
pub mod faults;
mod files;
pub mod host_parts;
pub mod image;
pub mod lab;
mod owner;
pub mod plan;
pub mod prepared;
mod removal;
pub mod rlimit;
pub mod sandbox;
pub mod seccomp;
mod undo;
pub mod view;
pub mod volume;

pub use error::LaunchError;
pub use execute::Launcher;
pub use plan::{Plan, PlanError};
pub use prepared::{Prepared, Running};
pub use sandbox::Sandbox;

/// Runs what blocks on a thread of its own. A panic there goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}
