//! What stands around a task besides its limits: tried on a child that ends before it would run a program.

use std::{fs::File, os::fd::AsFd as _};

use nix::errno::Errno;

use super::{Feature, feature};
use crate::kernel::{
    cgroupfs::Cgroup,
    spawn::{self, ChildStep, Identity, Namespaces},
};

/// Nobody in particular: a number that needs no entry in any database.
const SOMEBODY: u32 = 65_534;

/// Asks for each of them.
pub(super) fn fences(cgroup: &Result<Cgroup, String>) -> Vec<Feature> {
    let attempt = |namespaces, steps: Vec<ChildStep<'static>>, what: &str| {
        let cgroup = cgroup.as_ref().map_err(Clone::clone)?;
        attempt(cgroup, namespaces, steps).map(|()| what.to_owned())
    };
    let somebody = Identity { uid: SOMEBODY, gid: SOMEBODY, groups: Vec::new() };
    let user = ChildStep::user_namespace(somebody).map_err(|e| e.to_string());
    vec![
        feature(
            "namespaces",
            attempt(Namespaces::ALL, Vec::new(), "mount, pid, ipc, uts, network"),
            "what a task sees of the host's files, processes and names",
            "tasks that are to be confined are refused",
        ),
        feature(
            "user_namespace",
            user.and_then(|step| {
                attempt(Namespaces::default(), vec![step], "root inside, another user outside")
            }),
            "tasks that are root only for themselves",
            "tasks that ask for a user namespace are refused",
        ),
    ]
}

/// Starts a program that is not there: the steps before it either work or say why not.
pub(super) fn attempt(
    cgroup: &Cgroup,
    namespaces: Namespaces,
    steps: Vec<ChildStep<'_>>,
) -> Result<(), String> {
    let dir = cgroup.open_dir().map_err(|e| crate::error_chain(&e))?;
    let null = File::open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
    let streams = [ChildStep::Session, ChildStep::Streams([null.as_fd(); 3])];
    let command = spawn::Command {
        cgroup: dir.as_fd(),
        namespaces,
        steps: streams.into_iter().chain(steps).collect(),
        programs: vec![c"/nonexistent/bulkhead-probe".to_owned()],
        argv: vec![c"probe".to_owned()],
        env: Vec::new(),
    };
    match spawn::spawn(&command) {
        Err(error) if error.exec_errno() == Some(Errno::ENOENT) => Ok(()),
        Err(error) => Err(crate::error_chain(&error)),
        Ok(_) => Err("a program that is not there was executed".to_owned()),
    }
}
