//! What `bulkhead roles` says of a role.

use std::collections::BTreeMap;

use bulkhead_proto::{rate::parse_bits_per_sec, v1::Amounts};
use clap::{ArgGroup, Args, Subcommand};

use crate::quantity::{parse_cpus, parse_size};

#[derive(Debug, Args)]
pub(crate) struct RolesArgs {
    #[command(subcommand)]
    pub(crate) action: Option<RolesAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RolesAction {
    /// Change weight, priority, limit or guarantee of a role
    ///
    /// Changes what is named and keeps the rest. It holds at once, and until the master ends: what is to stay is in the
    /// master's configuration. A lower limit takes nothing back that tasks or offers hold.
    #[command(after_help = "\
Amounts are KIND=AMOUNT with commas between them: cpu, mem, disk, disk-read, disk-write, disk-read-iops,
disk-write-iops, net-egress, net-ingress, ports, revocable-cpu. They replace those of every kind; `none` is none.

Examples:
  bulkhead roles set team --weight 2
  bulkhead roles set team/web --guarantee cpu=4,mem=8GiB --limit cpu=16
  bulkhead roles set batch --limit cpu=0
  bulkhead roles set team --clear")]
    Set(SetRoleArgs),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(["weight", "priority", "limit", "guarantee", "clear"]))]
pub(crate) struct SetRoleArgs {
    /// The role: team, or team/web for one below it
    #[arg(value_name = "ROLE")]
    pub(crate) role: String,
    /// Its part beside its siblings: twice the weight, twice the share
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) weight: Option<f64>,
    /// For the policy `priority`: the larger goes first
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    /// What the role and all below it hold at most: cpu=16,mem=64GiB, or none
    #[arg(long, value_name = "AMOUNTS", value_parser = parse_amounts)]
    pub(crate) limit: Option<Amounts>,
    /// What is kept free for the role and all below it until they hold it: cpu=4,mem=8GiB, or none
    #[arg(long, value_name = "AMOUNTS", value_parser = parse_amounts)]
    pub(crate) guarantee: Option<Amounts>,
    /// First take back all that was said of it, in the master's configuration too
    #[arg(long)]
    pub(crate) clear: bool,
}

type Parse = fn(&str) -> Result<u64, String>;

/// What a kind is called here, what in the protocol, and how it is written.
const KINDS: [(&str, &str, Parse); 11] = [
    ("cpu", "cpu_milli", cpu),
    ("mem", "mem_bytes", bytes),
    ("disk", "disk_bytes", bytes),
    ("disk-read", "disk_read_bytes_per_sec", bytes),
    ("disk-write", "disk_write_bytes_per_sec", bytes),
    ("disk-read-iops", "disk_read_ops_per_sec", count),
    ("disk-write-iops", "disk_write_ops_per_sec", count),
    ("net-egress", "net_egress_bits_per_sec", bits),
    ("net-ingress", "net_ingress_bits_per_sec", bits),
    ("ports", "ports", count),
    ("revocable-cpu", "revocable_cpu_milli", cpu),
];

fn cpu(text: &str) -> Result<u64, String> {
    parse_cpus(text).map_err(|e| e.to_string())
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

fn bits(text: &str) -> Result<u64, String> {
    parse_bits_per_sec(text).map_err(|e| e.to_string())
}

fn count(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "write a whole number".to_owned())
}

fn parse_amounts(text: &str) -> Result<Amounts, String> {
    let mut kinds = BTreeMap::new();
    if text == "none" {
        return Ok(Amounts { kinds });
    }
    for part in text.split(',') {
        let (name, amount) =
            part.split_once('=').ok_or_else(|| format!("write KIND=AMOUNT, not {part:?}"))?;
        let Some((_, kind, parse)) = KINDS.iter().find(|(known, ..)| *known == name) else {
            let known: Vec<_> = KINDS.iter().map(|(known, ..)| *known).collect();
            return Err(format!("{name:?} is no kind of resource; the kinds are {}", known.join(", ")));
        };
        // Nothing at all is an amount here: a limit of it keeps a role from offers.
        let amount = if amount == "0" { 0 } else { parse(amount).map_err(|e| format!("{name}: {e}"))? };
        if kinds.insert((*kind).to_owned(), amount).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(Amounts { kinds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_kinds_and_units() {
        let amounts = parse_amounts("cpu=1.5,mem=1GiB,net-egress=10Mbit,ports=0,revocable-cpu=2").unwrap();
        let expected = [
            ("cpu_milli", 1500),
            ("mem_bytes", 1 << 30),
            ("net_egress_bits_per_sec", 10_000_000),
            ("ports", 0),
            ("revocable_cpu_milli", 2000),
        ];
        assert_eq!(amounts.kinds, expected.map(|(kind, amount)| (kind.to_owned(), amount)).into());
        assert_eq!(parse_amounts("none"), Ok(Amounts::default()));
        for (bad, says) in [
            ("", "KIND=AMOUNT"),
            ("cpu", "KIND=AMOUNT"),
            ("cores=1", "the kinds are cpu, mem"),
            ("cpu=-1", "cpu: write a number"),
            ("mem=lots", "mem: write an amount"),
            ("cpu=1,cpu=2", "twice"),
            ("ports=1.5", "whole number"),
        ] {
            let error = parse_amounts(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn every_kind_that_the_protocol_has_can_be_written() {
        let mut known: Vec<_> = KINDS.iter().map(|(_, kind, _)| *kind).collect();
        let scalars = bulkhead_proto::resources::SCALARS.iter().map(|kind| kind.name);
        let mut all: Vec<_> = scalars.chain(["ports", "revocable_cpu_milli"]).collect();
        known.sort_unstable();
        all.sort_unstable();
        assert_eq!(known, all);
    }
}
