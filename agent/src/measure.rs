//! What the node has and what is in use, read from the kernel: one file a source.

pub mod budget;
pub mod disk;
pub mod disk_speed;
pub mod locality;
pub mod network;
pub mod node;
pub mod numa;
pub mod ports;
pub mod predictions;
pub mod pressure;
pub mod runqueue;
pub mod sampler;
pub mod tasks;
pub mod topology;

pub use disk::DiskUse;
pub use network::NetSampler;
pub use node::{NodeCapacity, NodeSampler, NodeUse};
