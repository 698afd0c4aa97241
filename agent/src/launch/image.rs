//! A task's root directory, as an image gave it.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
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

/// A user database larger than this is none.
const MAX_DATABASE_BYTES: u64 = 1 << 20;

impl RootImage {
    /// The program and its arguments where the task names none.
    pub fn argv(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// The text of a small file in the image; `None` where there is none.
    ///
    /// Links are followed within the layer that has the file, and never out of it. Nothing but a plain file is
    /// opened for reading.
    ///
    /// # Errors
    /// When a layer cannot be read.
    pub fn read(&self, path: &str) -> io::Result<Option<String>> {
        for layer in self.layers.iter().rev() {
            match open_within(layer, path) {
                Ok(found) => return read_small(found),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }
}

fn open_within(layer: &Path, path: &str) -> Result<OwnedFd, Errno> {
    let directory = nix::fcntl::open(
        layer,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    // Not opened yet: a device or a pipe would answer to that.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(directory.as_fd(), path, how)
}

/// A whiteout, like everything that is no plain file, reads as nothing.
fn read_small(found: OwnedFd) -> io::Result<Option<String>> {
    use std::os::fd::AsRawFd as _;
    let found = File::from(found);
    if !found.metadata()?.is_file() {
        return Ok(None);
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let mut bytes = Vec::new();
    file.take(MAX_DATABASE_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
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
        // It points to itself within the layer, and so nowhere.
        assert_eq!(both.read("etc/passwd").unwrap().as_deref(), Some("low"));
        fs::remove_file(high.path().join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&high.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(both.read("etc/passwd").unwrap(), None);
    }
}
