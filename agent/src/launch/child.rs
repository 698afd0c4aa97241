//! What a task's process does before it executes the program, in the one order that works. Pure.

use std::{
    ffi::{CString, NulError},
    os::{fd::BorrowedFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use super::{
    confine::Fences,
    view::{View, ViewError},
};
use crate::kernel::spawn::{ChildStep, Identity};

/// Everything that the steps are made of.
#[derive(Debug)]
pub struct Child<'a> {
    /// What stands around it.
    pub fences: &'a Fences,
    /// Who it runs as, seen from the host.
    pub identity: &'a Identity,
    /// Becomes descriptor 0, 1 and 2.
    pub streams: [BorrowedFd<'a>; 3],
    /// The mounts; `None` leaves the host's.
    pub view: Option<&'a View<'a>>,
    /// The sandbox, as it sees it: where it starts.
    pub sandbox: &'a Path,
    /// Where it starts instead, from the sandbox.
    pub directory: Option<&'a Path>,
    /// What it inherits of the agent's own limits, put back.
    pub inherited_limit: Option<ChildStep<'static>>,
    /// The files that Landlock leaves it.
    pub landlock: Option<Landlock<'a>>,
    /// The system calls that it is left with: filters, in the order in which they are installed.
    pub seccomp: Vec<&'a [libc::sock_filter]>,
}

/// A ruleset, and the rights that it gives to mounts that only the child sees.
#[derive(Clone, Copy, Debug)]
pub struct Landlock<'a> {
    /// Of [`crate::kernel::landlock::ruleset`].
    pub ruleset: BorrowedFd<'a>,
    /// Everything, as `LANDLOCK_ACCESS_FS_...`
    pub all: u64,
}

/// A child cannot be made of this.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// Its files.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A path or the host name.
    #[error("a path or the host name has a NUL byte in it")]
    Nul(#[from] NulError),
}

impl Child<'_> {
    /// Is it root, as far as it can see?
    fn as_root(&self) -> bool {
        self.identity.uid == 0 || self.fences.user_namespace
    }

    fn no_new_privs(&self) -> bool {
        // No setuid program lends a task what its user has not.
        self.fences.no_new_privs.unwrap_or_else(|| !self.as_root())
    }

    /// The steps, in their order.
    ///
    /// Mounts need every privilege, so they come before the identity; Landlock and the filter of system calls need
    /// none after `no_new_privs`, so they come after it, and must come before it where the task does without.
    /// The filter is last: what follows it would have to pass it.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn steps(&self) -> Result<Vec<ChildStep<'_>>, ChildError> {
        let mut steps = vec![ChildStep::Session, ChildStep::Streams(self.streams)];
        self.namespaces(&mut steps)?;
        if let Some(view) = self.view {
            steps.extend(view.steps()?);
        }
        steps.push(ChildStep::Directory(cstring(self.sandbox)?));
        steps.extend(self.inherited_limit.clone());
        steps.extend(self.fences.limits.iter().map(|l| ChildStep::Limit {
            resource: l.resource,
            name: l.name,
            soft: l.soft,
            hard: l.hard,
        }));
        if self.fences.core_scheduling {
            steps.push(ChildStep::CoreScheduling);
        }
        let unprivileged = self.no_new_privs();
        if self.fences.user_namespace {
            steps.push(ChildStep::user_namespace(self.identity.clone())?);
        }
        if !unprivileged {
            self.landlock(&mut steps);
            self.seccomp(&mut steps);
        }
        self.privileges(&mut steps);
        if unprivileged {
            steps.push(ChildStep::NoNewPrivileges);
            self.landlock(&mut steps);
        }
        // With the rights of its user, who may not enter every directory.
        if let Some(directory) = self.directory {
            steps.push(ChildStep::Directory(cstring(directory)?));
        }
        steps.extend([ChildStep::Umask(self.fences.umask), ChildStep::Signals]);
        if unprivileged {
            self.seccomp(&mut steps);
        }
        Ok(steps)
    }

    fn namespaces(&self, steps: &mut Vec<ChildStep<'_>>) -> Result<(), NulError> {
        if let Some(name) = &self.fences.hostname {
            steps.push(ChildStep::Hostname(CString::new(name.as_str())?));
        }
        if self.fences.namespaces.network {
            steps.push(ChildStep::LoopbackUp);
        }
        Ok(())
    }

    /// From the agent's privileges to those that the program keeps.
    fn privileges<'a>(&'a self, steps: &mut Vec<ChildStep<'a>>) {
        let kept = self.fences.capabilities(self.as_root()).bits();
        steps.push(ChildStep::BoundingSet(self.fences.bounding_set(self.as_root()).bits()));
        if !self.fences.user_namespace {
            if kept != 0 && self.identity.uid != 0 {
                steps.push(ChildStep::KeepCapabilities);
            }
            steps.push(ChildStep::Identity(self.identity.clone()));
        }
        steps.push(ChildStep::Capabilities(kept));
        if kept != 0 && !self.as_root() {
            steps.push(ChildStep::AmbientCapabilities(kept));
        }
    }

    /// The mounts of its own have no place below one that the agent could name.
    fn landlock<'a>(&'a self, steps: &mut Vec<ChildStep<'a>>) {
        let Some(Landlock { ruleset, all }) = self.landlock else { return };
        for path in [c"/dev", c"/proc"] {
            steps.push(ChildStep::LandlockAllow { ruleset, path: path.to_owned(), access: all });
        }
        steps.push(ChildStep::Landlock(ruleset));
    }

    fn seccomp<'a>(&'a self, steps: &mut Vec<ChildStep<'a>>) {
        steps.extend(self.seccomp.iter().map(|filter| ChildStep::Seccomp(filter)));
    }
}

fn cstring(path: &Path) -> Result<CString, NulError> {
    CString::new(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests;
