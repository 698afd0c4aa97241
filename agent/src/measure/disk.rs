//! The file system that the sandboxes are on.

use std::{io, path::Path};

use nix::sys::statvfs::statvfs;

use super::node::MeasureError;

/// What a file system has, as its tasks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUse {
    /// Its size, without what is kept back for root.
    pub usable_bytes: u64,
    /// Everything that is in use of it.
    pub used_bytes: u64,
}

impl DiskUse {
    /// Asks the file system of this directory.
    ///
    /// # Errors
    /// Where the directory is not there.
    pub fn read(dir: &Path) -> Result<Self, MeasureError> {
        let stat = statvfs(dir).map_err(|source| MeasureError {
            file: "the work directory's file system",
            source: io::Error::from(source).into(),
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let for_root = stat.blocks_free().saturating_sub(stat.blocks_available());
        Ok(Self {
            usable_bytes: bytes(stat.blocks().saturating_sub(for_root)),
            used_bytes: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_a_size_and_a_use() {
        let disk = DiskUse::read(Path::new("/")).unwrap();
        assert!(0 < disk.used_bytes && disk.used_bytes <= disk.usable_bytes, "{disk:?}");
        assert!(DiskUse::read(Path::new("/no/such")).is_err());
    }
}
