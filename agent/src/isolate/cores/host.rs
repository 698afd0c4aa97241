//! Keeps the rest of the host off exclusive cores where the kernel cannot do it by itself.
//!
//! The cgroups beside the agent's tree (system.slice, user.slice, ...) get a cpuset of the other cores. Only those
//! whose cpuset is empty or has all of them, which means that nobody has decided about it; each carries a mark with what was written, so
//! that whoever comes after a crash of the agent tells it from the operator's own, and empties it again. The marks
//! live and end with the cgroups.
//!
//! Processes in the root cgroup, the kernel's threads among them, have no cpuset and stay.

use std::io;

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};

use super::{CPUS, Done, read_set, release, write_set};
use crate::{
    isolate::tree::Tree,
    kernel::{
        cgroupfs::{Cgroup, CgroupError},
        cpu_set::CpuSet,
    },
};

/// An extended attribute of the cgroup's directory.
const MARK: &str = "trusted.bulkhead_cpus";
/// Longer than any list of CPUs that is worth writing.
const MARK_BYTES: usize = 4096;

/// Restricts every cgroup beside the way to the tree to `rest` of `all` CPUs; where that is all of them, what was
/// taken is given back.
pub(super) fn restrict(tree: &Tree, rest: &CpuSet, all: &CpuSet) -> Done {
    let way = tree.path_from_mount();
    let mut level = tree.mount();
    for own in &way {
        for beside in level.children()?.into_iter().filter(|c| c != own && c.has(CPUS)) {
            if let Err(error) = restrict_one(&beside, rest, all) {
                // It may have gone away, and what is left is counted as foreign time.
                let cgroup = beside.path().display();
                tracing::warn!(%cgroup, error = crate::error_chain(&error), "keep it off exclusive cores");
            }
        }
        level = own.clone();
    }
    Ok(())
}

fn restrict_one(cgroup: &Cgroup, rest: &CpuSet, all: &CpuSet) -> Done {
    let is = read_set(cgroup, CPUS)?;
    let ours = mark(cgroup);
    if !is.is_empty() && is != *all && !ours.contains(&is) {
        return Ok(());
    }
    let failed = |op: &str| {
        let op = format!("{op} {MARK} of");
        |errno: rustix::io::Errno| CgroupError::Io {
            op,
            path: cgroup.path().to_owned(),
            source: io::Error::from(errno),
        }
    };
    if rest == all {
        release(cgroup, all)?;
        return match removexattr(cgroup.path(), MARK) {
            Err(errno) if !ours.is_empty() => Err(failed("remove")(errno)),
            _ => Ok(()),
        };
    }
    // Both, because a crash may come before or after the change.
    let text = format!("{is}\n{rest}");
    setxattr(cgroup.path(), MARK, text.as_bytes(), XattrFlags::empty()).map_err(failed("set"))?;
    write_set(cgroup, CPUS, rest)
}

/// What an agent wrote here last, and what it found there.
fn mark(cgroup: &Cgroup) -> Vec<CpuSet> {
    let mut bytes = [0; MARK_BYTES];
    let length = getxattr(cgroup.path(), MARK, &mut bytes[..]).unwrap_or(0);
    let text = bytes.get(..length).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
    text.lines().filter_map(|set| set.parse().ok()).collect()
}
