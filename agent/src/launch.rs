//! From an accepted task to a running program: a pure plan, and an executor that undoes what it began.

pub mod execute;
pub mod plan;
pub mod sandbox;

pub use execute::{LaunchError, Launcher, Running};
pub use plan::{Plan, PlanError};
pub use sandbox::Sandbox;
