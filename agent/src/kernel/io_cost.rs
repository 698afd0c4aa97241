//! The kernel's cost model of a disk (`io.cost.model`, `io.cost.qos`): what makes `io.weight` a share of the disk.
//!
//! Both files are in the root cgroup only, with a line for each disk that was ever configured. A write is
//! `MAJOR:MINOR key=value ...`. Needs `CONFIG_BLK_CGROUP_IOCOST` and a disk with a multi-queue driver.
//!
//! Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst`, "IO Interface Files".

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    appender::replace_file,
    block::DeviceNumber,
    cgroupfs::{Cgroup, CgroupError},
};
use crate::measure::node::boot_id;

const MODEL: &str = "io.cost.model";
const QOS: &str = "io.cost.qos";
/// In the agent's work directory: what was there before the agent changed it.
const FOUND: &str = "io-cost.found";

/// The cost model could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum IoCostError {
    /// A file of the root cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The note of what was there before.
    #[error("{op} {}", path.display())]
    Note {
        /// What was tried.
        op: &'static str,
        /// The note.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What to tell the kernel about a disk, as its files take it, without the disk's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostLines {
    /// For `io.cost.model`.
    pub model: String,
    /// For `io.cost.qos`.
    pub qos: String,
}

/// The lines of one disk as they were found; `None` where there was none.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    /// What the kernel was told is gone with its boot.
    boot_id: String,
    disk: String,
    model: Option<String>,
    qos: Option<String>,
}

/// Is there a cost model to set? `root` is the root cgroup.
pub fn available(root: &Cgroup) -> bool {
    root.has(MODEL) && root.has(QOS)
}

/// Does the kernel weigh the traffic of this disk by its cost now?
pub fn enabled(root: &Cgroup, disk: DeviceNumber) -> bool {
    let text = root.read(QOS).unwrap_or_default();
    line_of(&text, &disk.to_string()).is_some_and(|line| line.split(' ').any(|pair| pair == "enable=1"))
}

/// Installs a model. What was there is noted in `work_dir` first, once, for [`restore`].
///
/// # Errors
/// The kernel's refusal: `EINVAL` for a bad line, `EOPNOTSUPP` for a disk that cannot be weighed.
pub fn install(
    root: &Cgroup,
    work_dir: &Path,
    disk: DeviceNumber,
    lines: &CostLines,
) -> Result<(), IoCostError> {
    let number = disk.to_string();
    // What an agent before this one installed is not what was found.
    if read_note(work_dir)?.is_none_or(|found| found.disk != number) {
        restore(root, work_dir)?;
        let line = |file| Ok::<_, CgroupError>(line_of(&root.read(file)?, &number).map(str::to_owned));
        let found = Found { boot_id: boot_id(), model: line(MODEL)?, qos: line(QOS)?, disk: number.clone() };
        let note = work_dir.join(FOUND);
        let bytes = serde_json::to_vec(&found).map_err(io::Error::from);
        let written = bytes.and_then(|bytes| replace_file(&note, &bytes));
        written.map_err(|source| IoCostError::Note { op: "write", path: note, source })?;
    }
    root.write(MODEL, &format!("{disk} {}", lines.model))?;
    root.write(QOS, &format!("{disk} {}", lines.qos))?;
    Ok(())
}

/// Puts the model back that was there before [`install`]; nothing where none was installed from `work_dir`.
///
/// # Errors
/// The note stays where the kernel refuses, so that it can be tried again.
pub fn restore(root: &Cgroup, work_dir: &Path) -> Result<bool, IoCostError> {
    let Some(found) = read_note(work_dir)? else { return Ok(false) };
    let model = found.model.as_deref().map_or_else(|| "ctrl=auto".to_owned(), as_input);
    root.write(MODEL, &format!("{} {model}", found.disk))?;
    let qos = found.qos.as_deref().map_or_else(|| "enable=0 ctrl=auto".to_owned(), as_input);
    root.write(QOS, &format!("{} {qos}", found.disk))?;
    let note = work_dir.join(FOUND);
    fs::remove_file(&note).map_err(|source| IoCostError::Note { op: "remove", path: note, source })?;
    Ok(true)
}

/// What was found in this boot, if anything was changed in it.
fn read_note(work_dir: &Path) -> Result<Option<Found>, IoCostError> {
    let note = work_dir.join(FOUND);
    let read = match fs::read(&note) {
        Ok(bytes) => serde_json::from_slice::<Found>(&bytes).map_err(io::Error::from),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => Err(e),
    };
    let found = read.map_err(|source| IoCostError::Note { op: "read", path: note, source })?;
    Ok(Some(found).filter(|found| found.boot_id == boot_id()))
}

/// The rest of the line that starts with the disk's number.
fn line_of<'a>(text: &'a str, disk: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(disk)?.strip_prefix(' '))
}

/// A line as the kernel prints it, as input for the kernel: a parameter that is given makes the line the user's
/// own, so those that the kernel chose by itself are left out.
fn as_input(line: &str) -> String {
    if !line.split(' ').any(|pair| pair == "ctrl=auto") {
        return line.to_owned();
    }
    let kept = |pair: &&str| pair.starts_with("enable=") || pair.starts_with("ctrl=");
    line.split(' ').filter(kept).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DeviceNumber = DeviceNumber { major: 254, minor: 0 };

    fn root(model: &str, qos: &str) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MODEL), model).unwrap();
        fs::write(dir.path().join(QOS), qos).unwrap();
        let cgroup = Cgroup::at(dir.path());
        (dir, cgroup)
    }

    fn lines() -> CostLines {
        CostLines { model: "ctrl=user rbps=1".into(), qos: "enable=1".into() }
    }

    #[test]
    fn what_was_found_comes_back() {
        let (_dir, cgroup) = root(
            "254:0 ctrl=user model=linear rbps=9\n",
            "8:0 enable=1 ctrl=user\n254:0 enable=1 ctrl=auto rpct=95.00 min=50.00\n",
        );
        let work = tempfile::tempdir().unwrap();
        assert!(available(&cgroup) && enabled(&cgroup, DISK));
        install(&cgroup, work.path(), DISK, &lines()).unwrap();
        // A second start finds what the first one installed, and must not take that for the operator's.
        fs::write(cgroup.path().join(MODEL), "254:0 ctrl=user rbps=1\n").unwrap();
        install(&cgroup, work.path(), DISK, &lines()).unwrap();
        // A plain file keeps the end of what was longer; the kernel's does not.
        for file in [MODEL, QOS] {
            fs::write(cgroup.path().join(file), "").unwrap();
        }
        assert!(restore(&cgroup, work.path()).unwrap());
        assert_eq!(cgroup.read(MODEL).unwrap(), "254:0 ctrl=user model=linear rbps=9");
        assert_eq!(cgroup.read(QOS).unwrap(), "254:0 enable=1 ctrl=auto");
        assert!(!restore(&cgroup, work.path()).unwrap(), "only once");
    }

    #[test]
    fn where_nothing_was_it_is_off_again() {
        let (_dir, cgroup) = root("", "");
        let work = tempfile::tempdir().unwrap();
        assert!(!enabled(&cgroup, DISK));
        install(&cgroup, work.path(), DISK, &lines()).unwrap();
        for file in [MODEL, QOS] {
            fs::write(cgroup.path().join(file), "").unwrap();
        }
        restore(&cgroup, work.path()).unwrap();
        assert_eq!(cgroup.read(QOS).unwrap(), "254:0 enable=0 ctrl=auto");
    }

    #[test]
    fn disks_are_told_apart_by_their_whole_number() {
        assert_eq!(line_of("254:01 a\n1254:0 b\n254:0 c d\n", "254:0"), Some("c d"));
        assert_eq!(line_of("254:01 a\n", "254:0"), None);
    }
}
