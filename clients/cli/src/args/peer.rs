//! Rules about whom a task may talk to, as the command line writes them.

use std::net::IpAddr;

use bulkhead_proto::v1::{NetAction, NetDirection, NetOptions, NetPeer, NetRule, PortRange, Protocol};
use clap::{Args, ValueEnum};

const FORM: &str =
    "write PEER[,in|out][,tcp[=PORTS]][,udp[=PORTS]][,port=PORTS], like 10.0.0.0/8,out,tcp=443+8000-8099";

/// Whom the task may talk to.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct PeerArgs {
    /// Let the task talk to PEER: PEER[,in|out][,tcp[=PORTS]][,udp[=PORTS]][,port=PORTS]
    ///
    /// PEER is a prefix (10.0.0.0/8, 2001:db8::/32), an address, or a name: `node` (this node's addresses), `outside`
    /// (all others), `any`. `out` is about what the task opens, `in` about what the peer opens; both unless given.
    /// Ports are those to be reached, joined by +: 80+443+8000-8099. The narrowest PEER decides: the longest prefix,
    /// then node and outside; between equals --deny wins. Answers to what was allowed pass. May be repeated.
    #[arg(long, value_name = "RULE", value_parser = parse_rule)]
    allow: Vec<Rule>,
    /// Keep the task from talking to PEER; written as for --allow
    #[arg(long, value_name = "RULE", value_parser = parse_rule)]
    deny: Vec<Rule>,
    /// What holds where no rule matches; allow unless given
    #[arg(long, value_name = "ACTION")]
    net_default: Option<Action>,
}

/// What a default does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    Allow,
    Deny,
}

/// One or more rules, but for what they do.
#[derive(Debug, Clone, PartialEq)]
struct Rule(Vec<NetRule>);

impl PeerArgs {
    /// Changes what was given: all of the rules, if there is any, and the default.
    pub(crate) fn apply(&self, net: &mut NetOptions) {
        if !self.allow.is_empty() || !self.deny.is_empty() {
            let with = |rules: &[Rule], action: NetAction| -> Vec<NetRule> {
                let rules = rules.iter().flat_map(|rule| &rule.0);
                rules.map(|rule| NetRule { action: action.into(), ..rule.clone() }).collect()
            };
            net.rules = with(&self.allow, NetAction::Allow);
            net.rules.extend(with(&self.deny, NetAction::Deny));
        }
        if let Some(action) = self.net_default {
            let action = if action == Action::Allow { NetAction::Allow } else { NetAction::Deny };
            net.net_default = action.into();
        }
    }
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    let mut words = text.split(',');
    let mut rules = peers(words.next().unwrap_or_default())?;
    let (mut direction, mut over, mut ports) = (NetDirection::Unspecified, Vec::new(), None);
    for word in words {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("in" | "out", None) if direction == NetDirection::Unspecified => {
                direction = if name == "in" { NetDirection::Ingress } else { NetDirection::Egress };
            }
            ("tcp", ports) => over.push((Protocol::Tcp, parse_ports(ports)?)),
            ("udp", ports) => over.push((Protocol::Udp, parse_ports(ports)?)),
            ("port", Some(list)) if ports.is_none() => ports = Some(parse_ports(Some(list))?),
            _ => return Err(format!("{word:?} in {text:?}: {FORM}")),
        }
    }
    match ports {
        Some(ports) if over.is_empty() => over.push((Protocol::Unspecified, ports)),
        None if over.is_empty() => over.push((Protocol::Unspecified, Vec::new())),
        Some(_) => {
            return Err(format!("{text:?}: give ports to tcp= and udp=, or to port=, and not to both"));
        }
        None => {}
    }
    rules = rules
        .into_iter()
        .flat_map(|rule| {
            over.iter().map(move |(protocol, ports)| NetRule {
                direction: direction.into(),
                protocol: (*protocol).into(),
                ports: ports.clone(),
                ..rule.clone()
            })
        })
        .collect();
    Ok(Rule(rules))
}

fn peers(text: &str) -> Result<Vec<NetRule>, String> {
    let named = |peer: NetPeer| NetRule { peer: peer.into(), ..NetRule::default() };
    let prefix = |text: &str| NetRule { prefix: text.to_owned(), ..NetRule::default() };
    Ok(match text {
        "node" => vec![named(NetPeer::Node)],
        "outside" => vec![named(NetPeer::Outside)],
        "framework" => vec![named(NetPeer::Framework)],
        "role" => vec![named(NetPeer::Role)],
        "any" => vec![prefix("0.0.0.0/0"), prefix("::/0")],
        _ => {
            let address = text.split_once('/').map_or(text, |(address, _)| address);
            if address.parse::<IpAddr>().is_err() {
                return Err(format!(
                    "{text:?} is no peer: give a prefix, an address, node, outside, framework, role or any; {FORM}"
                ));
            }
            vec![prefix(text)]
        }
    })
}

fn parse_ports(list: Option<&str>) -> Result<Vec<PortRange>, String> {
    let Some(list) = list else { return Ok(Vec::new()) };
    list.split('+')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
            match (port(first), port(last)) {
                (Some(first), Some(last)) if first <= last => {
                    Ok(PortRange { first: first.into(), last: last.into(), ..PortRange::default() })
                }
                _ => Err(format!("ports {range:?}: give ports from 1 to 65535, joined by +: 80+8000-8099")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PeerArgs,
    }

    fn net(line: &[&str]) -> NetOptions {
        let mut net = NetOptions::default();
        Line::try_parse_from([&["x"], line].concat()).unwrap().args.apply(&mut net);
        net
    }

    fn said(text: &str) -> Vec<String> {
        let of = |rule: &NetRule| {
            let peer = if rule.prefix.is_empty() { rule.peer().as_str_name() } else { &rule.prefix };
            let ports: Vec<_> = rule.ports.iter().map(|r| format!("{}-{}", r.first, r.last)).collect();
            let protocol = rule.protocol().as_str_name().trim_start_matches("PROTOCOL_");
            let direction = rule.direction().as_str_name().trim_start_matches("NET_DIRECTION_");
            format!("{peer} {direction} {protocol} {}", ports.join("+"))
        };
        parse_rule(text).unwrap().0.iter().map(of).collect()
    }

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        assert_eq!(said("10.0.0.0/8"), ["10.0.0.0/8 UNSPECIFIED UNSPECIFIED "]);
        assert_eq!(said("::1,out,tcp=443+8000-8099"), ["::1 EGRESS TCP 443-443+8000-8099"]);
        assert_eq!(said("node,in,port=53"), ["NET_PEER_NODE INGRESS UNSPECIFIED 53-53"]);
        assert_eq!(
            said("role,tcp,udp=53"),
            ["NET_PEER_ROLE UNSPECIFIED TCP ", "NET_PEER_ROLE UNSPECIFIED UDP 53-53"]
        );
        assert_eq!(said("any,out").len(), 2, "both families");
    }

    #[test]
    fn what_cannot_be_meant_says_what_to_write() {
        for (text, says) in [
            ("", "no peer"),
            ("example.org", "no peer"),
            ("10.0.0.0/8,up", "PEER[,in|out]"),
            ("10.0.0.0/8,in,out", "PEER[,in|out]"),
            ("10.0.0.0/8,tcp=", "1 to 65535"),
            ("10.0.0.0/8,tcp=0", "1 to 65535"),
            ("10.0.0.0/8,tcp=65536", "1 to 65535"),
            ("10.0.0.0/8,udp=9-8", "1 to 65535"),
            ("10.0.0.0/8,tcp=1,port=2", "not to both"),
            ("10.0.0.0/8,port", "PEER[,in|out]"),
        ] {
            let error = parse_rule(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        let mut grown = net(&["--deny", "10.0.0.0/8", "--net-default", "deny"]);
        assert_eq!(grown.rules.len(), 1);
        assert_eq!((grown.rules[0].action(), grown.net_default()), (NetAction::Deny, NetAction::Deny));
        let before = grown.clone();
        Line::try_parse_from(["x"]).unwrap().args.apply(&mut grown);
        assert_eq!(grown, before);
        Line::try_parse_from(["x", "--allow", "node", "--allow", "any,out"]).unwrap().args.apply(&mut grown);
        assert_eq!(grown.rules.len(), 3, "one rule replaces all of them");
        assert!(grown.rules.iter().all(|rule| rule.action() == NetAction::Allow));
        assert_eq!(grown.net_default(), NetAction::Deny);
    }
}
