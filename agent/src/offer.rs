//! What the node has to give, in parts that always add up. Pure.

pub mod ledger;
pub mod report;
mod steps;

pub use ledger::{Ledger, Refusal};
pub use report::Reporter;
pub use steps::Steps;
