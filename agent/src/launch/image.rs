//! A task's root directory, as an image gave it.

use std::{
    io,
    path::{Path, PathBuf},
};

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

/// A user database larger than this is none.
const MAX_DATABASE_BYTES: u64 = 1 << 20;

impl RootImage {
    /// The program and its arguments where the task names none.
    pub fn argv(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// The text of a small file in the image, looked up through all its layers; `None` where there is none.
    ///
    /// # Errors
    /// When a layer cannot be read, or the file is too large.
    pub fn read(&self, path: &str) -> io::Result<Option<String>> {
        let found = bulkhead_image::root::read(&self.layers, Path::new(path), MAX_DATABASE_BYTES);
        let found = found.map_err(io::Error::other)?;
        Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn image(layers: &[&Path]) -> RootImage {
        RootImage { layers: layers.iter().map(|l| (*l).to_owned()).collect(), ..RootImage::default() }
    }

    #[test]
    fn the_upper_layer_counts_and_no_link_leads_out() {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (layer, text) in [(&low, "low"), (&high, "high")] {
            fs::create_dir(layer.path().join("etc")).unwrap();
            fs::write(layer.path().join("etc/passwd"), text).unwrap();
        }
        fs::write(low.path().join("etc/group"), "group").unwrap();
        let both = image(&[low.path(), high.path()]);
        assert_eq!(both.read("etc/passwd").unwrap().as_deref(), Some("high"));
        assert_eq!(both.read("etc/group").unwrap().as_deref(), Some("group"));
        assert_eq!(both.read("etc/shadow").unwrap(), None);
        fs::remove_file(high.path().join("etc/passwd")).unwrap();
        symlink("/etc/passwd", high.path().join("etc/passwd")).unwrap();
        // It points to itself within the image, and so nowhere.
        assert!(both.read("etc/passwd").is_err());
        fs::remove_file(high.path().join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&high.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(both.read("etc/passwd").unwrap(), None);
    }
}
