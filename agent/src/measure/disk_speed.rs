//! What a disk can do, measured.
//!
//! ```text
//! calibrate: scratch file -> phases (io_uring, O_DIRECT) -> figures -> model -> a file
//! agent:                                                               the file -> io.cost, and what is offered
//! ```

pub mod calibrate;
pub mod figures;
pub mod model;

pub use figures::{Figures, Tally};
pub use model::{DiskModel, ModelError};
