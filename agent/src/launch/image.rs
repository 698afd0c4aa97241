//! A task's root directory, as an image gave it.

use std::path::PathBuf;

/// An image, unpacked on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootImage {
    /// Directories in overlayfs' own form (whiteouts are character devices 0/0), lowest first; at least one.
    pub layers: Vec<PathBuf>,
    /// Before the command.
    pub entrypoint: Vec<String>,
    /// The program's arguments, or the program itself where there is no entry point.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `USER[:GROUP]` by name or number; empty is not said.
    pub user: String,
    /// Where the program starts; empty is not said.
    pub working_dir: String,
}

impl From<bulkhead_image::Unpacked> for RootImage {
    fn from(unpacked: bulkhead_image::Unpacked) -> Self {
        let config = unpacked.config;
        Self {
            layers: unpacked.layers,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            env: config.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            user: config.user,
            working_dir: config.working_dir,
        }
    }
}

impl RootImage {
    /// The program and its arguments where the task names none.
    pub fn argv(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }
}
