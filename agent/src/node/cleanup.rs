//! A node without an agent: everything that one left is taken away.

use std::path::Path;

use super::{
    NodeError,
    programs::{pin_dir, pin_name_of},
};
use crate::{
    config::Config,
    identity,
    isolate::{cores, disk_io, network::uplink, tree::Tree},
    kernel::{
        bpf,
        reserved_ports::{self, NOTES},
    },
    measure::topology::{self, Topology},
};

/// Ends every task below the cgroup root and takes everything of this agent out of the kernel.
///
/// # Errors
/// Where an agent is still running, or something cannot be removed.
pub async fn cleanup(config: &Config) -> Result<(), NodeError> {
    let mut alone = identity::lock_work_dir(&config.work_dir)?;
    let tree = Tree::locate(&config.cgroup_root).map_err(NodeError::Tree)?;
    if tree.root.exists() {
        // An agent with another work directory may be at work in it.
        alone.also(tree.root.path())?;
        let root = tree.root.clone();
        root.kill().map_err(NodeError::Tree)?;
        root.wait_empty().await.map_err(NodeError::Tree)?;
        let topology = Topology::read(Path::new(topology::SYSFS)).unwrap_or_default();
        if let Err(error) = cores::forget(&tree, topology.possible()) {
            tracing::warn!(error = crate::error_chain(&error), "give exclusive cores back to the host");
        }
        root.remove().map_err(NodeError::Tree)?;
        tracing::info!(cgroup = %root.path().display(), "removed");
    }
    uplink::put_back();
    disk_io::restore_model(config)?;
    // Last: tasks are held to their ports as long as they run.
    bpf::remove(&pin_dir(config))?;
    reserved_ports::give_back(Path::new(NOTES), &pin_name_of(config))?;
    // Shared with other agents on this host: it goes with the last one.
    drop(std::fs::remove_dir(&config.bpf_dir));
    Ok(())
}
