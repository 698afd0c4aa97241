use std::{fs::File, os::fd::AsFd as _};

use bulkhead_proto::v1;

use super::*;
use crate::launch::confine::Rules;

fn steps(confinement: v1::Confinement, uid: u32) -> Vec<String> {
    let spec = v1::TaskSpec { confinement: Some(confinement), ..v1::TaskSpec::default() };
    let rules = Rules { allow_trusted: true, ..Rules::default() };
    let fences = Fences::check(&spec, false, &rules).unwrap();
    let null = File::open("/dev/null").unwrap();
    let identity = Identity { uid, gid: 7, groups: vec![7] };
    let filter = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 }];
    let child = Child {
        identity: &identity,
        streams: [null.as_fd(); 3],
        view: None,
        sandbox: Path::new("/s"),
        directory: Some(Path::new("below")),
        inherited_limit: None,
        landlock: fences.landlock.then(|| Landlock { ruleset: null.as_fd(), all: 1 }),
        seccomp: vec![&filter[..]; usize::from(fences.quota_guard) + usize::from(fences.seccomp.is_some())],
        fences: &fences,
    };
    child.steps().unwrap().iter().map(ToString::to_string).collect()
}

fn order(steps: &[String], expected: &[&str]) {
    let mut rest = steps.iter();
    for step in expected {
        assert!(rest.any(|s| s == step), "{step:?}, in this order, in {steps:#?}");
    }
}

fn asked() -> v1::Confinement {
    v1::Confinement::default()
}

#[test]
fn the_default_profile_gives_everything_up_and_filters_last() {
    for uid in [7, 0] {
        let steps = steps(asked(), uid);
        let identity = format!("become user {uid} of group 7");
        let expected = [
            "place stdin, stdout and stderr",
            "enter the directory /s",
            "bound the capabilities to 0x0",
            &identity,
            "set the capabilities 0x0",
            "give up gaining privileges",
            "allow /proc by Landlock",
            "confine the files by Landlock",
            "enter the directory below",
            "reset the signals",
            "filter the system calls",
        ];
        order(&steps, &expected);
        assert_eq!(steps.last().unwrap(), "filter the system calls");
    }
}

#[test]
fn without_no_new_privs_the_fences_stand_before_the_privileges_go() {
    let steps = steps(v1::Confinement { no_new_privs: Some(false), ..asked() }, 7);
    order(&steps, &["confine the files by Landlock", "filter the system calls", "become user 7 of group 7"]);
    assert!(!steps.iter().any(|s| s == "give up gaining privileges"));
}

#[test]
fn trusted_tasks_are_only_made_their_user() {
    let trusted = v1::Confinement { profile: "trusted".into(), ..asked() };
    let of_user = steps(trusted.clone(), 7);
    order(&of_user, &["become user 7 of group 7", "give up gaining privileges"]);
    let of_root = steps(trusted, 0);
    assert!(!of_root.iter().any(|s| s == "give up gaining privileges"));
    for steps in [of_user, of_root] {
        assert!(!steps.iter().any(|s| s.contains("Landlock")), "{steps:?}");
        // The one that keeps it in its quota.
        assert_eq!(steps.iter().filter(|s| s.contains("system calls")).count(), 1, "{steps:?}");
    }
}

#[test]
fn root_of_a_user_namespace_is_bounded_inside_it() {
    let steps = steps(v1::Confinement { user_namespace: Some(true), ..asked() }, 7);
    order(
        &steps,
        &[
            "enter the directory /s",
            "enter a user namespace as user 7 of group 7",
            "bound the capabilities to 0x0",
            "set the capabilities 0x0",
        ],
    );
    assert!(!steps.iter().any(|s| s.starts_with("become user")));
}

#[test]
fn a_capability_outlives_the_change_of_user() {
    let steps = steps(v1::Confinement { add_capabilities: vec!["NET_ADMIN".into()], ..asked() }, 7);
    order(
        &steps,
        &[
            "bound the capabilities to 0x1000",
            "keep capabilities over the change of user",
            "become user 7 of group 7",
            "set the capabilities 0x1000",
            "set the ambient capabilities 0x1000",
        ],
    );
}
