//! The scratch disk of a test guest, with a file system on it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use tempfile::TempDir;

use crate::harness::skip;

/// What `deploy/vm/run` calls the first disk that it makes for `-d`. No disk of a real machine has this serial number.
const SERIAL: &str = "scratch0";

/// A fresh file system on the scratch disk; unmounted when dropped.
#[derive(Debug)]
pub struct ScratchDisk {
    dir: TempDir,
    name: String,
}

impl ScratchDisk {
    /// Makes a file system with `mkfs.TYPE OPTION...`, mounts it with `options`, and lets everybody in.
    ///
    /// # Errors
    /// A skip where there is no scratch disk; else what went wrong.
    pub fn format(kind: &str, mkfs: &[&str], options: &str) -> Result<Self> {
        let Some(name) = find()? else {
            return skip("needs a scratch disk: a test guest with -d");
        };
        let device = PathBuf::from("/dev").join(&name);
        let program = format!("mkfs.{kind}");
        let made = Command::new(&program).args(mkfs).arg(&device).output();
        let made = made.with_context(|| format!("run {program}"))?;
        ensure!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr));
        let dir = tempfile::Builder::new().prefix("bulkhead-disk-").tempdir().context("make a directory")?;
        mount(Some(&device), dir.path(), Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("mount {} with {options:?}", device.display()))?;
        let disk = Self { dir, name };
        fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o755))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The disk's name below /sys/block.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `MAJOR:MINOR`, as cgroup files have it.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn number(&self) -> Result<String> {
        let number = fs::read_to_string(Path::new("/sys/block").join(&self.name).join("dev"))?;
        Ok(number.trim().to_owned())
    }
}

impl Drop for ScratchDisk {
    fn drop(&mut self) {
        if let Err(error) = umount(self.path()) {
            eprintln!("unmount {}: {error}", self.path().display());
        }
    }
}

fn find() -> Result<Option<String>> {
    for entry in fs::read_dir("/sys/block").context("list the disks")?.flatten() {
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim() == SERIAL {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}
