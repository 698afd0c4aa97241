//! The programs under test, as `cargo build` left them.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Where the three programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `bulkhead-master`
    pub master: PathBuf,
    /// `bulkhead-agent`
    pub agent: PathBuf,
    /// `bulkhead`
    pub cli: PathBuf,
}

impl Binaries {
    /// Looks beside the program that runs, and one directory up where that is a test in `deps`.
    ///
    /// # Errors
    /// Where one is missing; says how to build it.
    pub fn find() -> Result<Self> {
        let exe = env::current_exe().context("find this program's own file")?;
        let dir = exe.parent().context("this program's file is in no directory")?;
        Self::in_dir(if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir })
    }

    fn in_dir(dir: &Path) -> Result<Self> {
        let program = |name: &str| {
            let path = dir.join(name);
            if !path.is_file() {
                let profile = if dir.ends_with("release") { " --release" } else { "" };
                bail!("{} is missing: run `cargo build --workspace --bins{profile}`", path.display());
            }
            Ok(path)
        };
        Ok(Self {
            master: program("bulkhead-master")?,
            agent: program("bulkhead-agent")?,
            cli: program("bulkhead")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = Binaries::in_dir(&dir.path().join("release")).unwrap_err().to_string();
        assert!(error.contains("bulkhead-master") && error.contains("cargo build"), "{error}");
        assert!(error.contains("--release"), "{error}");
    }
}
