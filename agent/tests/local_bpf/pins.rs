//! What outlives the agent, and what does not.

use std::fs;

use bulkhead_agent::kernel::bpf::{self, PortRules};
use nix::errno::Errno;

use crate::fixture::Node;

#[test]
fn rules_hold_after_the_loader_and_are_adopted() {
    let Some(node) = Node::new("rules_hold_after_the_loader_and_are_adopted") else { return };
    let loaded = node.load();
    assert!(loaded.fresh);
    let task = node.task("a");
    PortRules::open(&loaded.ports).unwrap().grant(task.id, &node.ports(&[0])).unwrap();
    // Nobody has a descriptor of any of it now.
    let mut helper = task.helper();
    assert_eq!(helper.bind("s", "tcp4", node.port), Ok(node.port));
    assert_eq!(helper.bind("t", "tcp4", node.port + 1), Err(Errno::EPERM));

    let adopted = node.adopt().unwrap();
    assert!(!adopted.fresh);
    assert_eq!(adopted.ports, loaded.ports);
    let rules = PortRules::open(&adopted.ports).unwrap();
    assert_eq!(rules.total_denied(task.id).unwrap(), 1);
    // Granting the same again changes nothing, not even what is in use.
    rules.grant(task.id, &node.ports(&[0])).unwrap();
    assert_eq!(helper.bind("u", "tcp4", 0), Err(Errno::EADDRINUSE));
    assert_eq!(rules.total_denied(task.id).unwrap(), 1);
}

#[test]
fn a_loader_that_fails_says_why() {
    let Some(node) = Node::new("a_loader_that_fails_says_why") else { return };
    let error = node.adopt().unwrap_err();
    assert!(error.to_string().contains("the loader ended with exit status: 1"), "{error}");

    let mut nowhere = node.spec.clone();
    nowhere.cgroup.push("missing");
    let error = bpf::load_and_pin(&nowhere).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn removing_leaves_nothing() {
    let Some(node) = Node::new("removing_leaves_nothing") else { return };
    node.load();
    let task = node.task("a");
    let mut helper = task.helper();
    assert_eq!(helper.bind("s", "tcp4", node.port), Err(Errno::EPERM));
    bpf::remove(&node.spec.pin_dir).unwrap();
    assert!(!node.spec.pin_dir.exists());
    assert_eq!(helper.bind("s", "tcp4", node.port), Ok(node.port), "the hooks are gone");
    bpf::remove(&node.spec.pin_dir).unwrap();
    assert!(node.load().fresh, "and can be loaded again");
}

#[test]
fn what_dead_loaders_and_older_agents_left_is_cleared_away() {
    let Some(node) = Node::new("what_dead_loaders_and_older_agents_left_is_cleared_away") else { return };
    let loaded = node.load();
    // No process has this id: it is above the largest that kernels give out.
    let dead = node.spec.pin_dir.join("ports-v1-0-0-0-new-99999999");
    let older = node.spec.pin_dir.join("exits-v0-0-3");
    for dir in [&dead, &older] {
        fs::create_dir(dir).unwrap();
    }
    fs::rename(&loaded.ports, node.spec.pin_dir.join("ports-v0-0-0-0")).unwrap();
    assert!(node.load().fresh);
    let mut left: Vec<_> = fs::read_dir(&node.spec.pin_dir).unwrap().map(|e| e.unwrap().path()).collect();
    left.sort();
    let optional =
        [loaded.devices, loaded.exits, loaded.foreign, loaded.net, loaded.ooms].map(Result::unwrap);
    let mut expected: Vec<_> = optional.into_iter().chain([loaded.ports]).chain(loaded.listen).collect();
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn another_build_takes_the_grants_over() {
    let Some(node) = Node::new("another_build_takes_the_grants_over") else { return };
    let loaded = node.load();
    let (task, ended) = (node.task("a"), node.task("b"));
    let rules = PortRules::open(&loaded.ports).unwrap();
    rules.grant(task.id, &node.ports(&[0, 1])).unwrap();
    rules.grant(ended.id, &node.ports(&[7])).unwrap();
    rules.revoke(ended.id).unwrap();
    let mut helper = task.helper();
    assert_eq!(helper.bind("s", "tcp4", 0), Ok(node.port));
    assert_eq!(helper.bind("t", "tcp4", node.port + 2), Err(Errno::EPERM));

    // Under the name that another build of the programs would have.
    let name = loaded.ports.file_name().unwrap().to_str().unwrap();
    let build = name.split('-').nth(2).unwrap();
    let other = node.spec.pin_dir.join(name.replace(build, "0123456789abcdef"));
    fs::rename(&loaded.ports, &other).unwrap();
    assert!(node.load().fresh);
    assert!(!other.exists());
    let rules = PortRules::open(&loaded.ports).unwrap();
    assert_eq!(rules.total_denied(task.id).unwrap(), 1);
    assert_eq!(helper.bind("u", "tcp4", 0), Ok(node.port + 1), "what is in use is known");
    assert_eq!(helper.bind("v", "tcp4", node.port + 2), Err(Errno::EPERM));
    assert_eq!(helper.ask("close s"), "0");
    assert_eq!(helper.bind("s", "tcp4", 0), Ok(node.port), "and so is who uses it");
}
