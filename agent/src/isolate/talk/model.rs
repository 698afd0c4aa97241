//! What a task's rules say to an attempt, in the plainest way: every rule is looked at. Tests compare the kernel with
//! it; nothing else needs it.

use std::net::IpAddr;

use crate::grant::talk::{Peer, TalkGrant, TalkProtocol, TalkRule};

/// Somebody opens something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The peer.
    pub address: IpAddr,
    /// It is an address of this node.
    pub here: bool,
    /// It is a task of the same framework.
    pub same_framework: bool,
    /// It is a task of the same role.
    pub same_role: bool,
    /// The task opens, or else the peer.
    pub egress: bool,
    /// What [`TalkProtocol::Any`] stands for here is a protocol without ports.
    pub protocol: TalkProtocol,
    /// That is to be reached.
    pub port: u16,
}

/// May they?
pub fn allows(talk: &TalkGrant, attempt: &Attempt) -> bool {
    let matching = talk.rules.iter().filter(|rule| matches(rule, attempt));
    // Narrower ones are greater; of equals, the denial.
    let deciding = matching.max_by_key(|rule| (narrowness(rule.peer), !rule.allow));
    deciding.map_or(!talk.deny_rest, |rule| rule.allow)
}

fn narrowness(peer: Peer) -> u32 {
    match peer {
        Peer::Node | Peer::Outside => 0,
        Peer::Prefix(prefix) => 1 + u32::from(prefix.bits()),
        Peer::Role => 200,
        Peer::Framework => 201,
    }
}

fn matches(rule: &TalkRule, attempt: &Attempt) -> bool {
    let peer = match rule.peer {
        Peer::Framework => attempt.same_framework,
        Peer::Role => attempt.same_role,
        Peer::Prefix(prefix) => prefix.contains(attempt.address),
        Peer::Node => attempt.here,
        Peer::Outside => !attempt.here,
    };
    let has_ports = attempt.protocol != TalkProtocol::Any;
    let protocol = rule.protocol == TalkProtocol::Any || rule.protocol == attempt.protocol;
    let port = rule.ports.is_empty() || has_ports && rule.ports.iter().any(|r| r.contains(&attempt.port));
    let direction = if attempt.egress { rule.egress } else { rule.ingress };
    peer && protocol && port && direction
}
