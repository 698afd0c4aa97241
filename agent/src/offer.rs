//! What the node has to give, in parts that always add up. Pure.

pub mod ledger;
mod observation;
mod provenance;
pub mod report;
mod steps;

pub use ledger::{Ledger, Refusal};
pub use observation::{Observation, Seen};
pub use provenance::provenance;
pub use report::Reporter;
pub use steps::Steps;
