//! Whom a task may talk to: rules that were checked. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    str::FromStr,
};

use bulkhead_proto::v1::{self, NetAction, NetDirection, NetPeer, Protocol};

/// Most rules of one task. Ten thousand prefixes fit; more belong into the network, not into a task.
pub const MAX_RULES: usize = 16_384;

/// Rules, and what holds where none matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TalkGrant {
    /// In no order: which decides follows from what they are about.
    pub rules: Vec<TalkRule>,
    /// What no rule matches is refused.
    pub deny_rest: bool,
}

/// Whether a task and its peers may talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TalkRule {
    /// They may, or may not.
    pub allow: bool,
    /// Where the task opens.
    pub egress: bool,
    /// Where the peer opens.
    pub ingress: bool,
    /// With whom.
    pub peer: Peer,
    /// Over what.
    pub protocol: TalkProtocol,
    /// To which ports; empty is every port, and protocols without ports too.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Tasks of the same framework on this node.
    Framework,
    /// Tasks of the same role on this node.
    Role,
    /// Addresses.
    Prefix(Prefix),
    /// Addresses of this node.
    Node,
    /// All other addresses.
    Outside,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TalkProtocol {
    /// Everything; with ports, TCP and UDP.
    Any,
    /// TCP alone.
    Tcp,
    /// UDP alone.
    Udp,
}

/// The addresses that begin alike. IPv4 mapped into IPv6 is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Neither IPv4 nor IPv6.
    #[error("{0:?} is no address: write 10.0.0.0/8, 2001:db8::/32 or one address")]
    Address(String),
    /// Not a length of this family.
    #[error("/{bits} in {text:?}: an address of this family has {most} bits")]
    Length {
        /// As it was asked for.
        text: String,
        /// The length.
        bits: String,
        /// The longest.
        most: u8,
    },
    /// Bits are set behind the prefix.
    #[error("{text} has bits set behind its prefix: did you mean {meant}, or {address} alone?")]
    HostBits {
        /// As it was asked for.
        text: String,
        /// Without these bits.
        meant: Prefix,
        /// The address before the slash.
        address: IpAddr,
    },
}

/// Rules that no kernel can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TalkError {
    /// More than fit.
    #[error("{0} rules: a task has at most {MAX_RULES}; name shorter prefixes")]
    TooMany(usize),
    /// A value of an enumeration that this agent does not know.
    #[error("rule {rule}: {what} {value} is not known to this agent")]
    Unknown {
        /// Its place, from 1.
        rule: usize,
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: i32,
    },
    /// What holds where no rule matches.
    #[error("net_default {0} is neither allow (1) nor deny (2)")]
    Default(i32),
    /// The rule does not say what it does.
    #[error("rule {0}: say whether it allows or denies")]
    NoAction(usize),
    /// No peer, or two.
    #[error("rule {0}: give a prefix or a peer by name, and not both")]
    Peer(usize),
    /// A malformed prefix.
    #[error("rule {rule}: {source}")]
    Prefix {
        /// Its place, from 1.
        rule: usize,
        /// What is wrong.
        source: PrefixError,
    },
    /// Ports that do not exist.
    #[error("rule {rule}: ports {first}-{last}: give ports from 1 to 65535, the lower one first")]
    Ports {
        /// Its place, from 1.
        rule: usize,
        /// As it was asked for.
        first: u32,
        /// As it was asked for.
        last: u32,
    },
    /// A range of ports with a protocol of its own.
    #[error("rule {0}: a rule names its protocol once, and not with its ports")]
    PortProtocol(usize),
    /// Rules that tell too many ports apart.
    #[error(
        "the rules for {peer} tell more than {} stretches of ports apart: join some of them",
        bulkhead_abi::MAX_STRETCHES
    )]
    Stretches {
        /// Whose.
        peer: String,
    },
}

impl TalkGrant {
    /// Checks the rules of a grant.
    ///
    /// # Errors
    /// [`TalkError`] names the rule and what is impossible about it.
    pub fn check(options: &v1::NetOptions) -> Result<Self, TalkError> {
        if options.rules.len() > MAX_RULES {
            return Err(TalkError::TooMany(options.rules.len()));
        }
        let deny_rest = match NetAction::try_from(options.net_default) {
            Ok(NetAction::Unspecified | NetAction::Allow) => false,
            Ok(NetAction::Deny) => true,
            Err(_) => return Err(TalkError::Default(options.net_default)),
        };
        let rules = options.rules.iter().enumerate().map(|(at, asked)| rule(at + 1, asked));
        Ok(Self { rules: rules.collect::<Result<_, _>>()?, deny_rest })
    }

    /// Nothing is ever refused.
    pub fn allows_all(&self) -> bool {
        !self.deny_rest && self.rules.iter().all(|rule| rule.allow)
    }
}

fn rule(number: usize, asked: &v1::NetRule) -> Result<TalkRule, TalkError> {
    let unknown = |what, value| TalkError::Unknown { rule: number, what, value };
    let allow = match NetAction::try_from(asked.action) {
        Ok(NetAction::Allow) => true,
        Ok(NetAction::Deny) => false,
        Ok(NetAction::Unspecified) => return Err(TalkError::NoAction(number)),
        Err(_) => return Err(unknown("action", asked.action)),
    };
    let (egress, ingress) = match NetDirection::try_from(asked.direction) {
        Ok(NetDirection::Unspecified) => (true, true),
        Ok(NetDirection::Egress) => (true, false),
        Ok(NetDirection::Ingress) => (false, true),
        Err(_) => return Err(unknown("direction", asked.direction)),
    };
    let protocol = match Protocol::try_from(asked.protocol) {
        Ok(Protocol::Unspecified) => TalkProtocol::Any,
        Ok(Protocol::Tcp) => TalkProtocol::Tcp,
        Ok(Protocol::Udp) => TalkProtocol::Udp,
        Err(_) => return Err(unknown("protocol", asked.protocol)),
    };
    let named = NetPeer::try_from(asked.peer).map_err(|_| unknown("peer", asked.peer))?;
    let peer = match (asked.prefix.as_str(), named) {
        ("", NetPeer::Node) => Peer::Node,
        ("", NetPeer::Outside) => Peer::Outside,
        ("", NetPeer::Framework) => Peer::Framework,
        ("", NetPeer::Role) => Peer::Role,
        (text, NetPeer::Unspecified) if !text.is_empty() => {
            Peer::Prefix(text.parse().map_err(|source| TalkError::Prefix { rule: number, source })?)
        }
        _ => return Err(TalkError::Peer(number)),
    };
    let ports = asked.ports.iter().map(|range| ports(number, *range)).collect::<Result<_, _>>()?;
    Ok(TalkRule { allow, egress, ingress, peer, protocol, ports })
}

fn ports(rule: usize, range: v1::PortRange) -> Result<RangeInclusive<u16>, TalkError> {
    if range.protocol != 0 {
        return Err(TalkError::PortProtocol(rule));
    }
    let bad = TalkError::Ports { rule, first: range.first, last: range.last };
    match (u16::try_from(range.first), u16::try_from(range.last)) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(first..=last),
        _ => Err(bad),
    }
}

impl Prefix {
    /// The addresses that share this many bits with this one. `None` where it has fewer bits.
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let (address, bits) = match address {
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) if bits >= 96 => (IpAddr::V4(v4), bits - 96),
                _ => (address, bits),
            },
            IpAddr::V4(_) => (address, bits),
        };
        (bits <= length(address)).then(|| Self { address: cut(address, bits), bits })
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses share.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// The prefix around it that is `bits` long.
    #[must_use]
    pub fn widen(&self, bits: u8) -> Self {
        let bits = bits.min(self.bits);
        Self { address: cut(self.address, bits), bits }
    }

    /// Is the address one of them? IPv4 mapped into IPv6 is IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && cut(address, self.bits) == self.address
    }
}

fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn cut(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Address(text.to_owned()))?;
        let most = length(address);
        let bits =
            match bits {
                None => most,
                Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(|| {
                    PrefixError::Length { text: text.to_owned(), bits: bits.to_owned(), most }
                })?,
            };
        let meant = Self::new(address, bits).ok_or_else(|| PrefixError::Address(text.to_owned()))?;
        if cut(address, bits) != address {
            return Err(PrefixError::HostBits { text: text.to_owned(), meant, address });
        }
        Ok(meant)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Framework => f.write_str("framework"),
            Self::Role => f.write_str("role"),
            Self::Prefix(prefix) => prefix.fmt(f),
            Self::Node => f.write_str("node"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

#[cfg(test)]
mod tests;
