//! Descriptors that a task's process needs until it executes the program: mounts, layers, rules.

use std::{
    fs::OpenOptions,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    LaunchError,
    prepared::Prepared,
    seccomp::{Filter, FilterCache},
    view::{HostParts, Tree as FileTree, View},
    volume::OpenVolume,
};
use crate::kernel::{
    landlock::{self, LandlockError},
    mounts,
};

/// Open for as long as the process is being made.
pub(super) struct Files {
    /// The sandbox, where the task has mounts of its own.
    sandbox: Option<OwnedFd>,
    /// Readable paths that its own /tmp would hide.
    readable: Vec<(OwnedFd, PathBuf)>,
    /// Of its root, the highest first; none is the host's.
    layers: Vec<PathBuf>,
    devices: Vec<(OwnedFd, PathBuf)>,
    pub(super) landlock: Option<OwnedFd>,
    /// In the order in which they are to be installed.
    pub(super) filters: Vec<Arc<Filter>>,
}

impl Files {
    pub(super) fn open(task: &Prepared, cache: &FilterCache) -> Result<Self, LaunchError> {
        let fences = &task.plan.fences;
        let hidden = fences.readable_paths.iter().filter(|p| fences.private_files && p.starts_with("/tmp"));
        let readable = hidden.map(|path| Ok((clone_tree(path)?, path.clone())));
        let devices = task.plan.grant.devices.iter().filter(|_| fences.private_files);
        Ok(Self {
            sandbox: if fences.private_files { Some(clone_tree(&task.sandbox.work())?) } else { None },
            landlock: if fences.landlock { Some(ruleset(task)?) } else { None },
            devices: devices
                .map(|d| Ok((clone_tree(&d.path)?, d.path.clone())))
                .collect::<Result<_, LaunchError>>()?,
            filters: filters(task, cache)?,
            readable: readable.collect::<Result<_, LaunchError>>()?,
            layers: layers(task)?,
        })
    }

    pub(super) fn view<'a>(
        &'a self,
        task: &'a Prepared,
        parts: &'a HostParts,
        sandbox: &Path,
        tmp: &'a Path,
    ) -> Option<View<'a>> {
        let fences = &task.plan.fences;
        if !fences.namespaces.mount {
            return None;
        }
        let own = self.sandbox.as_ref();
        let own = own.map(|fd| FileTree { fd: fd.as_fd(), target: sandbox.to_owned(), writable: true });
        let volumes = task.plan.volumes.iter().zip(&task.volumes).map(|(volume, open)| FileTree {
            fd: open.tree.as_fd(),
            target: volume.target.clone(),
            writable: open.writable,
        });
        Some(View {
            parts,
            layers: self.layers.iter().map(PathBuf::as_path).collect(),
            private: fences.private_files,
            pid_namespace: fences.namespaces.pid,
            trees: own.into_iter().chain(of_host(&self.readable, false)).chain(volumes).collect(),
            tmp,
            devices: of_host(&self.devices, true),
        })
    }
}

/// The directories that a task's root is made of. On top lie those that the rest is mounted on: the targets of its own
/// volumes, and the skeleton of every image.
fn layers(task: &Prepared) -> Result<Vec<PathBuf>, LaunchError> {
    let Some(image) = &task.image else { return Ok(Vec::new()) };
    let targets = || task.plan.volumes.iter().map(|volume| volume.target.as_path());
    let own = if task.volumes.is_empty() { None } else { Some(task.sandbox.layer(targets())?) };
    let skeleton = &task.launcher.shared.parts.host_parts.skeleton;
    let highest_first = own.iter().chain([skeleton]).chain(image.layers.iter().rev());
    Ok(highest_first.cloned().collect())
}

fn filters(task: &Prepared, cache: &FilterCache) -> Result<Vec<Arc<Filter>>, LaunchError> {
    let fences = &task.plan.fences;
    let kept = fences.capabilities(task.identity.uid == 0 || fences.user_namespace);
    // A filter of the task's own may not let the next one be installed.
    let guard = fences.quota_guard.then(|| Ok(cache.quota_guard()));
    let own = fences.seccomp.as_ref().map(|json| cache.get(json, kept));
    Ok(guard.into_iter().chain(own).collect::<Result<_, _>>()?)
}

/// What a task may reach of the host's root.
fn ruleset(task: &Prepared) -> Result<OwnedFd, LandlockError> {
    // Its output too, which it may open again through /dev/stdout.
    let sandbox = &task.sandbox;
    let own = [sandbox.work(), sandbox.tmp(), sandbox.stdout(), sandbox.stderr()];
    let paths: Vec<(PathBuf, bool)> =
        task.volumes.iter().map(|v: &OpenVolume| (v.path(), v.writable)).collect();
    let of = |writable| paths.iter().filter(move |(_, w)| *w == writable).map(|(path, _)| path.as_path());
    let readable = task.plan.fences.readable_paths.iter().map(PathBuf::as_path);
    let system = landlock::SYSTEM.iter().map(Path::new);
    let read_exec: Vec<&Path> = system.chain(readable).chain(of(false)).collect();
    let read_write: Vec<&Path> = own.iter().map(PathBuf::as_path).chain(of(true)).collect();
    landlock::ruleset(&read_exec, &read_write)
}

fn of_host(trees: &[(OwnedFd, PathBuf)], writable: bool) -> Vec<FileTree<'_>> {
    trees.iter().map(|(fd, path)| FileTree { fd: fd.as_fd(), target: path.clone(), writable }).collect()
}

fn clone_tree(path: &Path) -> Result<OwnedFd, LaunchError> {
    // Not opened for reading: a device would answer to that.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    let opened = opened.and_then(|directory| mounts::clone_tree(directory.as_fd()));
    opened.map_err(|source| LaunchError::Mount { path: path.to_owned(), source })
}
