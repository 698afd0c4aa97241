//! One task's life: what its framework is told, and who watches its processes.

pub mod outcome;
pub mod record;
pub mod recover;
pub mod supervise;

pub use outcome::{End, KillRequest};
pub use record::{Record, Table};
