use super::*;

fn task(confinement: v1::Confinement) -> v1::TaskSpec {
    v1::TaskSpec { confinement: Some(confinement), ..v1::TaskSpec::default() }
}

fn check(confinement: v1::Confinement, rules: &Rules) -> Result<Fences, ConfineError> {
    Fences::check(&task(confinement), false, rules)
}

fn strict() -> Rules {
    Rules::default()
}

fn trusting() -> Rules {
    Rules { allow_trusted: true, ..Rules::default() }
}

fn asked() -> v1::Confinement {
    v1::Confinement::default()
}

#[test]
fn the_default_profile_has_every_fence() {
    let fences = Fences::check(&v1::TaskSpec::default(), false, &strict()).unwrap();
    assert_eq!(fences.namespaces, Namespaces { network: false, ..Namespaces::ALL });
    assert!(fences.private_files && fences.landlock && !fences.quota_guard);
    assert_eq!((fences.no_new_privs, fences.seccomp.as_deref(), fences.umask), (Some(true), Some(""), 0o022));
    for root in [true, false] {
        assert_eq!(fences.capabilities(root), CapSet::EMPTY);
    }
}

#[test]
fn trusted_tasks_have_none_and_need_permission() {
    let trusted = v1::Confinement { profile: "trusted".into(), ..asked() };
    let refused = check(trusted.clone(), &strict()).unwrap_err();
    assert!(refused.to_string().contains("allow_trusted_tasks"), "{refused}");
    let fences = check(trusted, &trusting()).unwrap();
    assert_eq!(fences.namespaces, Namespaces::default());
    assert!(!fences.private_files && !fences.landlock);
    assert_eq!((fences.no_new_privs, fences.seccomp.clone(), fences.quota_guard), (None, None, true));
    let held = CapSet::ALL - CapSet::SYS_RESOURCE - CapSet::NET_RAW;
    assert_eq!((fences.capabilities(true), fences.capabilities(false)), (held, CapSet::EMPTY));
}

#[test]
fn whatever_weakens_a_profile_needs_permission() {
    let rlimit = |name: &str| vec![v1::Rlimit { name: name.into(), soft: 1, hard: 1 }];
    let weaker = [
        v1::Confinement { pid_namespace: Some(false), ..asked() },
        v1::Confinement { ipc_namespace: Some(false), ..asked() },
        v1::Confinement { no_new_privs: Some(false), ..asked() },
        v1::Confinement { seccomp: "unconfined".into(), ..asked() },
        v1::Confinement { seccomp: "{}".into(), ..asked() },
        v1::Confinement { add_capabilities: vec!["CAP_NET_ADMIN".into()], ..asked() },
        v1::Confinement { readable_paths: vec!["/srv".into()], ..asked() },
        v1::Confinement { rlimits: rlimit("rtprio"), ..asked() },
    ];
    for confinement in weaker {
        let refused = check(confinement.clone(), &strict());
        assert!(matches!(refused, Err(ConfineError::NotTrusted(_))), "{confinement:?}: {refused:?}");
        check(confinement, &trusting()).unwrap();
    }
}

#[test]
fn raw_sockets_and_their_capability_go_together() {
    let wanted = v1::Confinement { add_capabilities: vec!["CAP_NET_RAW".into()], ..asked() };
    let refused = check(wanted.clone(), &trusting()).unwrap_err();
    assert!(refused.to_string().contains("net.sockets"), "{refused}");
    let inside = v1::Confinement { network_namespace: Some(true), ..wanted.clone() };
    assert_eq!(check(inside, &trusting()).unwrap().capabilities(false), CapSet::NET_RAW);
    let with = |kind: v1::SocketKind| {
        let net = v1::NetOptions { sockets: vec![kind.into()], ..v1::NetOptions::default() };
        let grant = Some(v1::Grant { net: Some(net), ..v1::Grant::default() });
        let spec = v1::TaskSpec { grant, confinement: Some(wanted.clone()), ..v1::TaskSpec::default() };
        Fences::check(&spec, false, &trusting()).map(|fences| fences.capabilities(false))
    };
    assert_eq!(with(v1::SocketKind::Raw), Ok(CapSet::NET_RAW));
    assert_eq!(with(v1::SocketKind::Packet), Ok(CapSet::NET_RAW));
    assert_eq!(with(v1::SocketKind::Sctp), Err(ConfineError::NetRaw));
}

#[test]
fn whatever_strengthens_a_profile_is_for_everybody() {
    let stronger = v1::Confinement {
        network_namespace: Some(true),
        user_namespace: Some(true),
        pid_namespace: Some(true),
        no_new_privs: Some(true),
        drop_capabilities: vec!["ALL".into()],
        hostname: "inner".into(),
        umask: Some(0o077),
        rlimits: vec![v1::Rlimit { name: "nofile".into(), soft: 10, hard: 20 }],
        ..asked()
    };
    let fences = check(stronger, &strict()).unwrap();
    assert_eq!(fences.namespaces, Namespaces::ALL);
    assert_eq!((fences.user_namespace, fences.umask, fences.limits.len()), (true, 0o077, 1));
    assert_eq!(fences.hostname.as_deref(), Some("inner"));
}

#[test]
fn a_path_that_the_operator_named_weakens_nothing() {
    let rules = Rules { readable_paths: vec!["/srv".into()], ..strict() };
    let below = |path: &str| check(v1::Confinement { readable_paths: vec![path.into()], ..asked() }, &rules);
    assert_eq!(below("/srv/app").unwrap().readable_paths, [PathBuf::from("/srv"), "/srv/app".into()]);
    assert!(matches!(below("/srvx"), Err(ConfineError::NotTrusted(_))));
    assert!(matches!(below("/srv/../root"), Err(ConfineError::Value { .. })));
}

#[test]
fn a_fence_that_the_kernel_lacks_fails_the_launch_unless_it_is_waived() {
    for feature in WAIVABLE {
        let mut rules = Rules { lacks: BTreeMap::from([(feature, "no".into())]), ..strict() };
        let refused = check(asked(), &rules).unwrap_err();
        assert!(refused.to_string().contains(feature) && refused.to_string().contains("allow_unenforced"));
        rules.waived.insert(feature.to_owned());
        let fences = check(asked(), &rules).unwrap();
        assert_eq!(
            (fences.landlock, fences.seccomp.is_some()),
            (feature != "landlock", feature != "seccomp")
        );
        // What the task itself asks for is never left out.
        rules.allow_trusted = true;
        let own = check(v1::Confinement { seccomp: "{}".into(), ..asked() }, &rules);
        assert_eq!(own.is_err(), feature == "seccomp");
    }
    let rules = Rules {
        lacks: BTreeMap::from([("namespaces", "no".into())]),
        waived: BTreeSet::from(["namespaces".to_owned()]),
        ..strict()
    };
    assert!(matches!(check(asked(), &rules), Err(ConfineError::Missing { feature: "namespaces", .. })));
}

#[test]
fn malformed_wishes_are_named() {
    let refused = |confinement| check(confinement, &trusting()).unwrap_err().to_string();
    assert!(refused(v1::Confinement { profile: "lax".into(), ..asked() }).contains("lax"));
    assert!(refused(v1::Confinement { add_capabilities: vec!["CAP_X".into()], ..asked() }).contains("CAP_X"));
    assert!(refused(v1::Confinement { umask: Some(0o1000), ..asked() }).contains("umask"));
    assert!(refused(v1::Confinement { hostname: "a b".into(), ..asked() }).contains("a b"));
    assert!(refused(v1::Confinement { readable_paths: vec!["x".into()], ..asked() }).contains("absolute"));
    let rlimit = |name: &str, soft, hard| v1::Confinement {
        rlimits: vec![v1::Rlimit { name: name.into(), soft, hard }],
        ..asked()
    };
    assert!(refused(rlimit("files", 1, 1)).contains("files"));
    assert!(refused(rlimit("nofile", 2, 1)).contains("above"));
}
