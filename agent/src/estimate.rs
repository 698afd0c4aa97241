//! What is in use, what will be, and what is safe to lend, from samples. Pure: `now` is an argument.

mod lending;
mod node_peaks;
pub mod peak;
mod periods;

pub use lending::{RevocableCap, WindowPeak, lendable_cpu_milli};
pub use node_peaks::{NodePeaks, NodePeaksState, StateError};
pub use periods::TaskUse;
