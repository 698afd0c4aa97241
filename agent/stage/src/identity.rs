//! Threads that touch files only as a task's user may.
//!
//! What is unpacked into a sandbox is written by a thread whose file system ids are the task's and which has no
//! capability left. So files are born with the right owner, the kernel itself refuses what the user could not do,
//! and quotas hold: ext4 ignores them for CAP_SYS_RESOURCE, which the agent has.

use std::io;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_thread_groups};
use tokio::sync::oneshot;

/// User and group.
pub type Owner = (u32, u32);

/// Runs `work` on a new thread that has only the rights of `owner` on files.
///
/// # Errors
/// When there can be no such thread; `work` was not run then.
pub(crate) async fn as_owner<T: Send + 'static>(
    owner: Owner,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("stage".into()).spawn(move || {
        // Whoever asked may be gone.
        drop(answer.send(assume(owner).map(|()| work())));
    })?;
    let result = match result.await {
        Ok(result) => result,
        // The thread ended without an answer: it panicked, and that goes on here.
        Err(_) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => Err(io::Error::other("the staging thread ended without a result")),
        },
    };
    result.map_err(|e| io::Error::new(e.kind(), format!("become user {} for files: {e}", owner.0)))
}

/// Gives up, for this thread and for good, what the owner does not have. Without root it has to be the owner.
fn assume((uid, gid): Owner) -> io::Result<()> {
    if Uid::effective().is_root() {
        // The kernel's own call, which changes this thread alone.
        set_thread_groups(&[])?;
    }
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    // Both calls only tell what was before: asked for an id that is none, they change nothing.
    let nobody = u32::MAX;
    let now = (setfsuid(Uid::from_raw(nobody)).as_raw(), setfsgid(Gid::from_raw(nobody)).as_raw());
    if now != (uid, gid) {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[tokio::test]
    async fn only_this_thread_changes_and_it_cannot_go_back() {
        if !Uid::effective().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (private, shared) = (dir.path().join("private"), dir.path().join("shared"));
        fs::create_dir(&private).unwrap();
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&shared, Some(65_534), Some(65_534)).unwrap();
        let (inside, outside) = (shared.join("file"), private.join("file"));
        let made = inside.clone();
        let (written, refused, back) = as_owner((65_534, 65_534), move || {
            (fs::write(inside, "x"), fs::write(outside, "x"), assume((0, 0)))
        })
        .await
        .unwrap();
        written.unwrap();
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(back.is_err());
        let meta = fs::metadata(made).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (65_534, 65_534));
        fs::write(private.join("mine"), "x").unwrap();
    }
}
