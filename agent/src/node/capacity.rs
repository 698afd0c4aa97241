//! What this node has to offer: its books, empty.

use bulkhead_proto::{
    resources::PortSet,
    v1::{Enforced, Resources},
};

use super::NodeError;
use crate::{
    config::{Config, ConfigError},
    isolate::{disk_io, network::uplink},
    measure::{DiskUse, NodeCapacity},
    offer::Ledger,
};

/// What the machine has and the operator wants offered, without kinds that nothing would enforce.
pub(super) fn ledger(
    config: &Config,
    machine: NodeCapacity,
    disk_io: &Resources,
    link_bits_per_sec: u64,
    enforced: &Enforced,
) -> Result<Ledger, NodeError> {
    let disk = DiskUse::read(&config.work_dir)?;
    let offered = |kind, enforced| enforced || config.allows_unenforced(kind);
    let all_cpu_milli = machine.cpus.saturating_mul(1000);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be finite and not negative; the cast saturates"
    )]
    let wanted_milli = (config.cpus * 1000.0).round() as u64;
    let limit = |wanted: u64, all: u64| if wanted == 0 { all } else { wanted.min(all) };
    // Whoever has the agent offer what nothing holds may have it offer any number of it.
    let all_cpu_milli = if enforced.cpu { all_cpu_milli } else { all_cpu_milli.max(wanted_milli) };
    let ports = config.port_set().map_err(|e| ConfigError::Value {
        key: "ports",
        value: config.ports.clone(),
        why: e.to_string(),
    })?;
    // Nothing can be promised next to a task that may fork without bound.
    let bounded = offered("pids", enforced.pids);
    if !bounded {
        tracing::warn!(
            "nothing is offered: this kernel cannot bound processes (see --allow-unenforced pids)"
        );
    }
    let when = |yes: bool, amount: u64| if yes && bounded { amount } else { 0 };
    let link_bits_per_sec = when(offered("net", enforced.net), link_bits_per_sec);
    let link_kept_back = uplink::kept_back(link_bits_per_sec, config.net_offer_percent);
    let capacity = Resources {
        cpu_milli: when(offered("cpu", enforced.cpu), limit(wanted_milli, all_cpu_milli)),
        mem_bytes: when(offered("mem", enforced.mem), limit(config.mem.as_u64(), machine.mem_bytes)),
        ports: if bounded && offered("ports", enforced.ports) { ports } else { PortSet::default() }
            .to_ranges(),
        disk_bytes: when(offered("disk", enforced.disk), disk.usable_bytes),
        net_egress_bits_per_sec: link_bits_per_sec,
        net_ingress_bits_per_sec: link_bits_per_sec,
        ..Resources::default()
    };
    let floor = Resources {
        cpu_milli: config.reserve_cpu_milli,
        mem_bytes: config.reserve_mem.as_u64(),
        ports: Vec::new(),
        disk_bytes: config.reserve_disk.as_u64(),
        net_egress_bits_per_sec: link_kept_back,
        net_ingress_bits_per_sec: link_kept_back,
        ..Resources::default()
    };
    let disk_io_offered = bounded && offered("disk_io", enforced.disk_io);
    let disk_io = if disk_io_offered { disk_io.clone() } else { Resources::default() };
    let kept = disk_io::kept_back(&disk_io, config.disk_offer_percent);
    // Smaller changes may not have been told.
    let slack = config.report.disk_step.as_u64();
    Ok(Ledger::new(capacity.plus(&disk_io), &floor.plus(&kept)).with_disk_slack(slack))
}
