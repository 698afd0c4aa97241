//! What outlives the agent, and what does not.

use std::{fs, path::Path};

use aya::programs::loaded_programs;
use bulkhead_abi::names;
use bulkhead_agent::kernel::bpf::{self, PortRules};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType, libbpf_sys};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

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

/// What the verifier has to look at decides how long an agent takes to start. Functions that many ways lead to are
/// looked at once, which takes type information that the kernel accepts.
#[test]
fn programs_are_verified_at_once() {
    const MOST_INSTRUCTIONS: u32 = 20_000;
    let Some(node) = Node::new("programs_are_verified_at_once") else { return };
    node.load();
    let sets = fs::read_dir(&node.spec.pin_dir).unwrap().map(|set| set.unwrap().path());
    let sets: Vec<_> = sets.filter(|path| path.is_dir()).collect();
    let hooks = names::ENFORCE_PROGRAMS.iter().chain(&names::TALK_PROGRAMS).chain(&names::NET_PROGRAMS);
    for name in hooks.chain([&names::DEVICE_PROGRAM, &names::CONNECTIONS_PROGRAM]) {
        let pin = sets.iter().map(|set| set.join(name)).find(|pin| pin.exists()).unwrap();
        let id = libbpf_rs::Link::open(pin).unwrap().info().unwrap().prog_id;
        let program = loaded_programs().flatten().find(|program| program.id() == id).unwrap();
        assert!(program.btf_id().is_some(), "{name} was loaded without its type information");
        // 5.16 and later tell.
        let looked_at = program.verified_instruction_count().unwrap_or(0);
        assert!(looked_at < MOST_INSTRUCTIONS, "{name}: {looked_at} instructions");
    }
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
    let (devices, talk, net) = (loaded.devices, loaded.talk, loaded.net);
    let (exits, ooms, foreign) = (loaded.exits, loaded.ooms, loaded.foreign);
    let everywhere = [loaded.connections, devices, exits, foreign, net, ooms, talk].map(Result::unwrap);
    let where_it_can_be = [loaded.listen, loaded.runqueue, loaded.block_io].into_iter().flatten();
    let mut expected: Vec<_> = everywhere.into_iter().chain([loaded.ports]).chain(where_it_can_be).collect();
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

#[test]
fn sockets_of_the_second_layout_are_known() {
    let Some(node) = Node::new("sockets_of_the_second_layout_are_known") else { return };
    let loaded = node.load();
    let task = node.task("a");
    PortRules::open(&loaded.ports).unwrap().grant(task.id, &node.ports(&[0, 1])).unwrap();
    let mut helper = task.helper();
    assert_eq!(helper.bind("s", "tcp4", 0), Ok(node.port));
    let name = loaded.ports.file_name().unwrap().to_str().unwrap();
    // ports-v2-<build>-<cgroup>-<level>-<network namespace>
    let place: Vec<_> = name.split('-').skip(3).collect();
    let older = node.spec.pin_dir.join(format!("ports-v2-0123456789abcdef-{}", place.join("-")));
    fs::rename(&loaded.ports, &older).unwrap();
    // The second layout had one entry for each socket.
    let sets = older.join(names::SOCKETS);
    let map = MapHandle::from_pinned_path(&sets).unwrap();
    let all = map.keys().filter_map(|key| map.lookup(&key, MapFlags::ANY).unwrap());
    let set = all.into_iter().find(|set| set.iter().any(|byte| *byte != 0)).expect("the socket is noted");
    fs::remove_file(&sets).unwrap();
    old_map(&older, names::SOCKETS, MapType::LruHash, (&set[..8], &set[32..48]));

    assert!(node.load().fresh);
    assert_eq!(helper.bind("t", "tcp4", 0), Ok(node.port + 1), "what is in use is known");
    assert_eq!(helper.ask("close s"), "0");
    assert_eq!(helper.bind("u", "tcp4", 0), Ok(node.port), "and so is who uses it");
}

/// A pinned map as the first layout had it, with one entry.
fn old_map(dir: &Path, name: &str, kind: MapType, (key, value): (&[u8], &[u8])) {
    let flags = if kind == MapType::LruHash { 0 } else { libbpf_sys::BPF_F_NO_PREALLOC };
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: flags,
        ..Default::default()
    };
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
    let mut map = MapHandle::create(kind, Some(name), size(key), size(value), 64, &options).unwrap();
    map.update(key, value, MapFlags::ANY).unwrap();
    map.pin(dir.join(name)).unwrap();
}

#[test]
fn maps_of_the_first_layout_are_converted_before_the_programs_are_attached() {
    let Some(node) = Node::new("maps_of_the_first_layout_are_converted_before_the_programs_are_attached")
    else {
        return;
    };
    let loaded = node.load();
    let name = loaded.ports.file_name().unwrap().to_str().unwrap().to_owned();
    bpf::remove(&node.spec.pin_dir).unwrap();
    let (task, cookie) = (node.task("a"), 1u64);
    // ports-v1-<build>-<cgroup>-<level>
    let place: Vec<_> = name.split('-').skip(3).take(2).collect();
    let dir = node.spec.pin_dir.join(format!("ports-v1-0123456789abcdef-{}", place.join("-")));
    fs::create_dir_all(&dir).unwrap();
    let (word, bit) = (u32::from(node.port) / 64, 1u64 << (node.port % 64));
    let id = task.id.to_ne_bytes();
    let mut index = [0u64; 32];
    for protocol in [0, 16] {
        index[protocol + word as usize / 64] = 1 << (word % 64);
    }
    let index: Vec<u8> = index.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // Of TCP, so that what is granted of one protocol is not taken for the other's.
    let key = [&id[..], &word.to_ne_bytes(), &0u32.to_ne_bytes()].concat();
    let mut usage = vec![0; 520];
    usage[..8].copy_from_slice(&0u64.to_ne_bytes());
    let counters: Vec<u8> = [7u64, 1, 0, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let denial: Vec<u8> = [7u64, 1, 2].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let denied = [&id[..], &[9, 0, 6, 0, 4, 0, 0, 0]].concat();
    let socket = [&id[..], &u32::from(node.port).to_ne_bytes(), &0u32.to_ne_bytes()].concat();
    let hash = MapType::Hash;
    old_map(&dir, "GRANT_INDEX", hash, (&id, &index));
    old_map(&dir, "GRANTS", hash, (&key, &bit.to_ne_bytes()));
    old_map(&dir, "PORT_USE", hash, (&key, &usage));
    old_map(&dir, names::COUNTERS, hash, (&id, &counters));
    old_map(&dir, names::DENIALS, hash, (&denied, &denial));
    old_map(&dir, names::SOCKETS, MapType::LruHash, (&cookie.to_ne_bytes(), &socket));

    let loaded = node.load();
    assert!(!dir.exists(), "nothing of it is left");
    let mut helper = task.helper();
    assert_eq!(helper.bind("s", "tcp4", node.port), Ok(node.port), "granted by nobody since");
    assert_eq!(helper.ask("close s"), "0");
    assert_eq!(helper.bind("s", "tcp4", 0), Ok(node.port));
    assert_eq!(helper.bind("u", "udp4", node.port), Err(Errno::EPERM));
    assert_eq!(helper.bind("t", "tcp4", node.port + 1), Err(Errno::EPERM));
    let rules = PortRules::open(&loaded.ports).unwrap();
    assert_eq!(rules.total_denied(task.id).unwrap(), 7 + 2, "counts go on");
    rules.revoke(task.id).unwrap();
    assert_eq!(helper.bind("s", "tcp4", node.port), Err(Errno::EPERM), "and it can be taken back");
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none() {
    const TEST: &str = "a_bpffs_is_mounted_where_there_is_none";
    let Some(node) = Node::new(TEST) else { return };
    // In a mount namespace of this thread's own; its children, the loader too, are in it.
    let run = move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
            return println!("SKIP {TEST}: unshare: {errno}");
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        while umount2("/sys/fs/bpf", MntFlags::MNT_DETACH).is_ok() {}
        let loaded = node.load();
        assert!(loaded.mounted && loaded.fresh);
        let mut helper = node.task("a").helper();
        assert_eq!(helper.bind("s", "tcp4", node.port), Err(Errno::EPERM));
        assert!(!node.adopt().unwrap().mounted, "once is enough");
    };
    std::thread::spawn(run).join().unwrap();
}
