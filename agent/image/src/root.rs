//! Files of an image, looked up through its layers as overlayfs would show them.
//!
//! The agent needs a few small files (`/etc/passwd`, `/etc/group`) before there is a mount. Links are followed
//! within the image only.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use crate::error::ImageError;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// A directory of the image: those of the layers that it consists of, highest first.
type Merged = Vec<OwnedFd>;

enum Node {
    Missing,
    Directory(Merged),
    Link(OsString),
    Other(OwnedFd),
}

/// The content of a regular file of the image, or `None` where there is none. `layers` lowest first. Blocks.
///
/// # Errors
/// When a layer cannot be read, or the file is larger than `max_bytes`.
pub fn read(layers: &[PathBuf], path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, ImageError> {
    let failed =
        |e: Errno| ImageError::Io { op: "look up in the image", path: path.into(), source: e.into() };
    let Some(file) = open(layers, path).map_err(failed)? else { return Ok(None) };
    let mut content = Vec::new();
    let read = File::from(file).take(max_bytes + 1).read_to_end(&mut content);
    read.map_err(ImageError::io("read from the image", path))?;
    if content.len() as u64 > max_bytes {
        let large = io::Error::other(format!("it is larger than {max_bytes} bytes"));
        return Err(ImageError::io("read from the image", path)(large));
    }
    Ok(Some(content))
}

fn parts(path: &OsStr) -> impl DoubleEndedIterator<Item = OsString> {
    let parts = path.as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsStr::from_bytes(part).to_owned())
}

fn open(layers: &[PathBuf], path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = layers.iter().rev().map(|layer| rustix::fs::open(layer, flags, Mode::empty()));
    let mut stack: Vec<Merged> = vec![root.collect::<Result<_, _>>()?];
    let mut rest: VecDeque<OsString> = parts(path.as_os_str()).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            // The root is its own parent.
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let Some(here) = stack.last() else { return Ok(None) };
        match child(here, &name)? {
            Node::Missing => return Ok(None),
            Node::Directory(dir) => stack.push(dir),
            Node::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                if target.as_bytes().starts_with(b"/") {
                    stack.truncate(1);
                }
                for part in parts(&target).rev() {
                    rest.push_front(part);
                }
            }
            Node::Other(file) if rest.is_empty() => {
                let stat = rustix::fs::fstat(&file)?;
                let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                return Ok(regular.then_some(file));
            }
            Node::Other(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// What the layers make of one name.
fn child(dirs: &Merged, name: &OsStr) -> rustix::io::Result<Node> {
    let mut merged = Merged::new();
    for dir in dirs {
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match kind {
            FileType::Directory => {
                let opened = rustix::fs::openat(dir, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                let opaque = is_opaque(&opened);
                merged.push(opened);
                if opaque {
                    break;
                }
            }
            // What is not a directory hides and ends everything below it.
            _ if !merged.is_empty() => break,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                return Ok(Node::Link(OsStr::from_bytes(target.as_bytes()).to_owned()));
            }
            FileType::RegularFile => {
                return Ok(Node::Other(rustix::fs::openat(dir, name, flags, Mode::empty())?));
            }
            // Whiteouts too.
            _ => return Ok(Node::Missing),
        }
    }
    Ok(if merged.is_empty() { Node::Missing } else { Node::Directory(merged) })
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0_u8; 1];
    let length = rustix::fs::fgetxattr(dir, "trusted.overlay.opaque", &mut value[..]);
    length == Ok(1) && value == *b"y"
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn the_upper_layer_counts_and_no_link_leads_out() {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (layer, text) in [(&low, "low"), (&high, "high")] {
            fs::create_dir(layer.path().join("etc")).unwrap();
            fs::write(layer.path().join("etc/passwd"), text).unwrap();
        }
        fs::write(low.path().join("etc/group"), "group").unwrap();
        let layers = [low.path().to_owned(), high.path().to_owned()];
        let content =
            |path: &str| read(&layers, Path::new(path), 100).map(|found| found.map(String::from_utf8));
        assert_eq!(content("etc/passwd").unwrap(), Some(Ok("high".into())));
        assert_eq!(content("etc/group").unwrap(), Some(Ok("group".into())));
        assert_eq!(content("etc/shadow").unwrap(), None);
        assert!(read(&layers, Path::new("etc/group"), 4).unwrap_err().to_string().contains("etc/group"));
        let above = high.path().join("etc/passwd");
        fs::remove_file(&above).unwrap();
        symlink("/etc/passwd", &above).unwrap();
        // It points to itself within the image, and so nowhere.
        assert!(content("etc/passwd").is_err());
        fs::remove_file(&above).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &above, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(content("etc/passwd").unwrap(), None);
    }
}
