use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::isolate::talk::model::{Attempt, allows};

/// Looks up as the kernel does.
fn decide(verdicts: Option<&Verdicts>, attempt: &Attempt) -> bool {
    let Some(all) = verdicts else { return true };
    let class = match attempt.protocol {
        TalkProtocol::Tcp => class::TCP,
        TalkProtocol::Udp => class::UDP,
        TalkProtocol::Any => class::OTHER,
    };
    let index = (if attempt.egress { class } else { class + INGRESS_CELL }) as usize;
    let say = |cells: &Cells| match cells[index] {
        word if word < verdict::FIRST_PORTS => word,
        number => {
            let stretches = all.ports[(number - verdict::FIRST_PORTS) as usize].stretches;
            let at = stretches.partition_point(|word| word >> 16 <= u32::from(attempt.port)) - 1;
            stretches[at] & 0xffff
        }
    };
    let family = if attempt.address.to_canonical().is_ipv4() { talk_flag::V4 } else { talk_flag::V6 };
    let holding =
        all.prefixes.iter().filter(|p| all.flags & family != 0 && p.prefix.contains(attempt.address));
    let longest = holding.max_by_key(|p| p.prefix.bits()).map(|p| &p.cells);
    let names = all.flags & talk_flag::NAMES != 0;
    let last = if attempt.here && all.flags & talk_flag::NODE != 0 { &all.node } else { &all.outside };
    let kinds = [
        (names && attempt.same_framework).then_some(&all.of_framework),
        (names && attempt.same_role).then_some(&all.of_role),
        longest,
        Some(last),
    ];
    let verdict = kinds.into_iter().flatten().map(say).find(|verdict| *verdict != verdict::PASS);
    verdict == Some(verdict::ALLOW)
}

prop_compose! {
    /// Few bits vary, so that rules and attempts meet.
    fn address()(v4: bool, high in 0u8..4, low in 0u8..4) -> IpAddr {
        if v4 {
            Ipv4Addr::new(10, high << 6, 0, low).into()
        } else {
            Ipv6Addr::new(0x2001, u16::from(high) << 14, 0, 0, 0, 0, 0, low.into()).into()
        }
    }
}

fn peer() -> impl Strategy<Value = Peer> {
    let lengths = prop::sample::select(vec![0u8, 7, 8, 9, 10, 16, 17, 18, 24, 30, 31, 32, 126, 127, 128]);
    let prefix = (address(), lengths).prop_map(|(address, bits)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        Peer::Prefix(Prefix::new(address, bits.min(most)).unwrap())
    });
    let names = prop::sample::select(vec![Peer::Framework, Peer::Role, Peer::Node, Peer::Outside]);
    prop_oneof![4 => prefix, 1 => names]
}

fn protocol() -> impl Strategy<Value = TalkProtocol> {
    prop::sample::select(vec![TalkProtocol::Any, TalkProtocol::Tcp, TalkProtocol::Udp])
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![1u16..12, 65_530u16..=65_535]
}

prop_compose! {
    fn any_rule()(
        allow: bool,
        direction in 0..3,
        peer in peer(),
        protocol in protocol(),
        ports in prop::collection::vec((port(), port()), 0..3),
    ) -> TalkRule {
        let ports = ports.into_iter().map(|(a, b)| a.min(b)..=a.max(b)).collect();
        TalkRule { allow, egress: direction != 1, ingress: direction != 0, peer, protocol, ports }
    }
}

prop_compose! {
    fn attempt()(
        address in address(), here: bool, same_framework: bool, same_role: bool, egress: bool,
        protocol in protocol(), port in port(),
    ) -> Attempt {
        Attempt { address, here, same_framework, same_role, egress, protocol, port }
    }
}

proptest! {
    #[test]
    fn compiled_rules_decide_as_the_rules_do(
        rules in prop::collection::vec(any_rule(), 0..12),
        deny_rest: bool,
        attempts in prop::collection::vec(attempt(), 40),
    ) {
        let talk = TalkGrant { rules, deny_rest };
        let compiled = verdicts(&talk).unwrap();
        for attempt in attempts {
            prop_assert_eq!(decide(compiled.as_ref(), &attempt), allows(&talk, &attempt), "{:?}", attempt);
        }
    }

    #[test]
    fn painting_is_what_it_looks_like(ranges in prop::collection::vec((any::<u16>(), any::<u16>(), 0u32..3), 0..20)) {
        let mut cell = vec![(0, 2)];
        let mut plain = vec![2u32; 65_536];
        for (a, b, verdict) in ranges {
            let (first, last) = (a.min(b), a.max(b));
            paint(&mut cell, &(first..=last), verdict);
            plain[usize::from(first)..=usize::from(last)].fill(verdict);
        }
        prop_assert!(cell.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 != w[1].1), "{:?}", cell);
        for (port, verdict) in (0..=u16::MAX).zip(plain) {
            let at = cell.partition_point(|(first, _)| *first <= port) - 1;
            prop_assert_eq!(cell[at].1, verdict);
        }
    }
}

fn rule(peer: &str, allow: bool) -> TalkRule {
    TalkRule {
        allow,
        egress: true,
        ingress: true,
        peer: Peer::Prefix(peer.parse().unwrap()),
        protocol: TalkProtocol::Any,
        ports: vec![],
    }
}

#[test]
fn a_task_that_may_do_everything_has_no_verdicts() {
    assert_eq!(verdicts(&TalkGrant::default()), Ok(None));
    let only_allows = TalkGrant { rules: vec![rule("10.0.0.0/8", true)], deny_rest: false };
    assert_eq!(verdicts(&only_allows), Ok(None));
    let nothing = verdicts(&TalkGrant { rules: vec![], deny_rest: true }).unwrap().unwrap();
    assert_eq!((nothing.flags, nothing.outside), (0, [verdict::DENY; CELLS]));
}

#[test]
fn too_many_stretches_of_ports_are_refused_by_name() {
    let ports = |n: u16| (1..=n).map(|i| 10 * i..=10 * i).collect();
    let with = |n| TalkGrant {
        rules: vec![TalkRule { ports: ports(n), ..rule("10.0.0.0/8", false) }],
        deny_rest: false,
    };
    assert!(verdicts(&with(31)).is_ok());
    let words = verdicts(&with(32)).unwrap_err().to_string();
    assert!(words.contains("10.0.0.0/8") && words.contains("64 stretches"), "{words}");
}

#[test]
fn prefixes_with_the_same_ports_share_one_table() {
    let rules =
        (0..=255).map(|i| TalkRule { ports: vec![80..=81], ..rule(&format!("10.{i}.0.0/16"), false) });
    let compiled = verdicts(&TalkGrant { rules: rules.collect(), deny_rest: false }).unwrap().unwrap();
    assert_eq!((compiled.prefixes.len(), compiled.ports.len()), (256, 1));
}
