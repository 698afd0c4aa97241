//! Files whose pages can be dropped: the guest's own are in memory anyway, or come from the host.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// A small ext4 in a file, unmounted on drop.
pub(super) struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    pub(super) fn make() -> Result<Self> {
        let dir = tempfile::tempdir_in(crate::READABLE)?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let image = dir.path().join("image");
        fs::File::create(&image)?.set_len(64 << 20)?;
        let mount = dir.path().join("mnt");
        fs::create_dir(&mount)?;
        run(Command::new("modprobe").arg("loop"))?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &mount]))?;
        Ok(Self { dir })
    }

    /// A file of zeros that everybody may read. It has no blocks, but pages when it is read.
    pub(super) fn file(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.mount().join(name);
        let file = fs::File::create(&path)?;
        file.set_len(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        unmount(&self.mount());
    }
}

fn unmount(mount: &Path) {
    // Lazily: whoever still reads from it ends with its test.
    let _ = Command::new("umount").arg("-l").arg(mount).status();
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
