use proptest::prelude::*;

use super::*;

fn prefixed(prefix: &str) -> v1::NetRule {
    v1::NetRule { action: NetAction::Deny.into(), prefix: prefix.to_owned(), ..v1::NetRule::default() }
}

fn check(rule: v1::NetRule) -> Result<TalkRule, TalkError> {
    let options = v1::NetOptions { rules: vec![rule], ..v1::NetOptions::default() };
    TalkGrant::check(&options).map(|grant| grant.rules[0].clone())
}

fn refused(rule: v1::NetRule) -> String {
    check(rule).unwrap_err().to_string()
}

#[test]
fn a_rule_says_what_it_is_about() {
    let range = |first, last| v1::PortRange { first, last, ..v1::PortRange::default() };
    let asked = v1::NetRule {
        action: NetAction::Allow.into(),
        direction: NetDirection::Ingress.into(),
        protocol: Protocol::Udp.into(),
        ports: vec![range(1, 1), range(80, 90), range(85, 65_535)],
        ..prefixed("2001:db8::/32")
    };
    let rule = check(asked).unwrap();
    assert_eq!((rule.allow, rule.egress, rule.ingress), (true, false, true));
    assert_eq!(rule.peer, Peer::Prefix("2001:db8::/32".parse().unwrap()));
    assert_eq!(rule.ports, [1..=1, 80..=90, 85..=65_535], "overlapping ranges add up");
    let named = v1::NetRule { prefix: String::new(), peer: NetPeer::Role.into(), ..prefixed("") };
    assert_eq!(check(named).unwrap().peer, Peer::Role);
}

#[test]
fn rules_that_say_nothing_are_named() {
    assert!(refused(v1::NetRule { action: 0, ..prefixed("::/0") }).contains("allows or denies"));
    assert!(refused(v1::NetRule { action: 7, ..prefixed("::/0") }).contains("action 7"));
    assert!(refused(v1::NetRule { direction: 7, ..prefixed("::/0") }).contains("direction 7"));
    assert!(refused(v1::NetRule { protocol: 7, ..prefixed("::/0") }).contains("protocol 7"));
    assert!(refused(v1::NetRule { peer: 9, ..prefixed("") }).contains("peer 9"));
    assert!(refused(prefixed("")).contains("not both"));
    assert!(refused(v1::NetRule { peer: 1, ..prefixed("::/0") }).contains("not both"));
    let options = v1::NetOptions { net_default: 3, ..v1::NetOptions::default() };
    assert_eq!(TalkGrant::check(&options), Err(TalkError::Default(3)));
}

#[test]
fn ports_that_do_not_exist_are_refused() {
    for (first, last) in [(0, 10), (1, 65_536), (9, 8), (0, 0), (70_000, 70_001)] {
        let ports = vec![v1::PortRange { first, last, ..v1::PortRange::default() }];
        let words = refused(v1::NetRule { ports, ..prefixed("10.0.0.0/8") });
        assert!(words.contains(&format!("ports {first}-{last}")), "{words}");
    }
    let ports = vec![v1::PortRange { first: 1, last: 2, protocol: 1 }];
    assert!(refused(v1::NetRule { ports, ..prefixed("10.0.0.0/8") }).contains("once"));
}

#[test]
fn prefixes_are_written_without_host_bits() {
    let words = refused(prefixed("10.1.0.0/8"));
    assert!(
        words.contains("rule 1") && words.contains("10.0.0.0/8") && words.contains("10.1.0.0 alone"),
        "{words}"
    );
    assert!(refused(prefixed("2001:db8::1/64")).contains("2001:db8::/64"));
    assert!(refused(prefixed("::ffff:10.1.0.0/104")).contains("10.0.0.0/8"));
    assert!(refused(prefixed("10.0.0.0/33")).contains("32 bits"));
    assert!(refused(prefixed("::/129")).contains("128 bits"));
    for text in ["10.0.0/8", "10.0.0.0/", "10.0.0.0/+8x", "fe80::1%eth0", "example.org", "/8", "10.0.0.0/8/8"]
    {
        assert!(check(prefixed(text)).is_err(), "{text}");
    }
}

#[test]
fn mapped_addresses_are_ipv4() {
    let parse = |text: &str| text.parse::<Prefix>().unwrap();
    assert_eq!(parse("::ffff:10.0.0.0/104"), parse("10.0.0.0/8"));
    assert_eq!(parse("::ffff:1.2.3.4"), parse("1.2.3.4/32"));
    assert!(parse("10.0.0.0/8").contains("::ffff:10.9.9.9".parse().unwrap()));
    assert!(
        !parse("::/0").contains("::ffff:10.9.9.9".parse().unwrap()),
        "every IPv6 address is none of IPv4"
    );
    assert!(!parse("0.0.0.0/0").contains("::1".parse().unwrap()));
}

#[test]
fn a_task_has_a_bounded_number_of_rules() {
    let rules = vec![prefixed("10.0.0.0/8"); MAX_RULES];
    assert!(TalkGrant::check(&v1::NetOptions { rules, ..v1::NetOptions::default() }).is_ok());
    let rules = vec![prefixed("10.0.0.0/8"); 100_000];
    let error = TalkGrant::check(&v1::NetOptions { rules, ..v1::NetOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("100000 rules") && error.to_string().contains("16384"), "{error}");
}

proptest! {
    #[test]
    fn prefixes_read_as_they_are_written(v4: u32, v6: u128, bits in 0u8..=128) {
        let four = Prefix::new(Ipv4Addr::from_bits(v4).into(), bits.min(32)).unwrap();
        let six = Prefix::new(Ipv6Addr::from_bits(v6).into(), bits).unwrap();
        for prefix in [four, six] {
            prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
            prop_assert!(prefix.contains(prefix.address()));
            prop_assert!(prefix.widen(prefix.bits() / 2).contains(prefix.address()));
        }
        prop_assert!(four.contains(Ipv4Addr::from_bits(v4).into()));
        prop_assert!(six.contains(Ipv6Addr::from_bits(v6).into()) || Ipv6Addr::from_bits(v6).to_ipv4_mapped().is_some());
    }
}
