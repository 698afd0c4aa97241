//! What a task may bind, and what it is told otherwise.

use std::{collections::BTreeSet, net::TcpStream, time::Duration};

use bulkhead_abi::{MAX_DENIED_PORTS, denied_call};
use bulkhead_agent::kernel::bpf::DenialStream;
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use crate::{
    fixture::{Node, Task},
    helper::Helper,
};

const KINDS: [&str; 6] = ["tcp4", "udp4", "tcp6", "udp6", "tcp6m", "udp6m"];

/// Binds port 0 until that fails; the ports in order.
fn take_all(helper: &mut Helper, kind: &str) -> (Vec<u16>, Errno) {
    let mut ports = Vec::new();
    loop {
        match helper.bind(&format!("{kind}-{}", ports.len()), kind, 0) {
            Ok(port) => ports.push(port),
            Err(errno) => return (ports, errno),
        }
    }
}

fn set(ports: &[u16]) -> BTreeSet<u16> {
    ports.iter().copied().collect()
}

#[test]
fn granted_ports_are_allowed_and_others_refused() {
    let Some(node) = Node::new("granted_ports_are_allowed_and_others_refused") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &node.ports(&[0])).unwrap();
    let mut helper = task.helper();
    for kind in KINDS {
        assert_eq!(helper.bind("s", kind, node.port), Ok(node.port), "{kind}");
        assert_eq!(helper.ask("close s"), "0");
        for port in [node.port + 1, node.port - 1, node.port + 64, 1, 65_535] {
            assert_eq!(helper.bind("s", kind, port), Err(Errno::EPERM), "{kind} {port}");
        }
    }
}

#[test]
fn a_cgroup_below_the_tasks_own_does_not_escape() {
    let Some(node) = Node::new("a_cgroup_below_the_tasks_own_does_not_escape") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &node.ports(&[0])).unwrap();
    let mut helper = task.helper();
    let mut deeper = task.cgroup.clone();
    for name in ["x", "y"] {
        deeper.push(name);
        assert_eq!(helper.ask(&format!("enter {}", deeper.display())), "0");
        for kind in KINDS {
            assert_eq!(helper.bind("s", kind, node.port + 1), Err(Errno::EPERM), "{kind}");
            assert_eq!(helper.bind("s", kind, node.port), Ok(node.port), "{kind}");
            assert_eq!(helper.ask("close s"), "0");
            assert_eq!(helper.bind("s", kind, 0), Ok(node.port), "{kind}");
            assert_eq!(helper.ask("close s"), "0");
        }
    }
    assert_eq!(rules.total_denied(task.id).unwrap(), 2 * KINDS.len() as u64);
}

#[test]
fn processes_above_the_tasks_are_not_held() {
    let Some(node) = Node::new("processes_above_the_tasks_are_not_held") else { return };
    node.load();
    let mut helper = Helper::start(&node.spec.cgroup);
    for kind in KINDS {
        assert_eq!(helper.bind("s", kind, node.port), Ok(node.port), "{kind}");
        assert_eq!(helper.ask("close s"), "0");
    }
}

#[test]
fn without_ports_every_bind_is_refused() {
    let Some(node) = Node::new("without_ports_every_bind_is_refused") else { return };
    let rules = node.rules();
    let (never_granted, granted_none) = (node.task("a"), node.task("b"));
    rules.grant(granted_none.id, &node.ports(&[])).unwrap();
    for task in [&never_granted, &granted_none] {
        let mut helper = task.helper();
        for kind in KINDS {
            assert_eq!(helper.bind("s", kind, 0), Err(Errno::EPERM), "{kind}");
            assert_eq!(helper.bind("s", kind, node.port), Err(Errno::EPERM), "{kind}");
        }
    }
    assert_eq!(rules.total_denied(granted_none.id).unwrap(), 2 * KINDS.len() as u64);
    let of_none = rules.denials(granted_none.id).unwrap();
    assert!(
        of_none.iter().any(|(key, _)| (key.port, key.call) == (0, denied_call::BIND)),
        "bind(0) by itself: {of_none:?}"
    );
    let unknown = rules.denials(never_granted.id).unwrap();
    let count: u64 = unknown.iter().map(|(_, denial)| denial.count).sum();
    assert_eq!(count, 2 * KINDS.len() as u64, "counted even where nothing was ever granted: {unknown:?}");
}

#[test]
fn port_0_gives_each_granted_port_once() {
    let Some(node) = Node::new("port_0_gives_each_granted_port_once") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    // In three words of the bitmap, one of them full at its upper end.
    let granted = node.ports(&[0, 1, 3, 63, 64, 65, 127, 199]);
    rules.grant(task.id, &granted).unwrap();
    let all: BTreeSet<u16> = granted.ports.tcp().iter().collect();
    for kind in ["tcp4", "udp4", "tcp6", "udp6"] {
        let mut helper = task.helper();
        let (ports, errno) = take_all(&mut helper, kind);
        assert_eq!((set(&ports), ports.len(), errno), (all.clone(), all.len(), Errno::EADDRINUSE), "{kind}");
        // Closing makes exactly that port free again.
        for (name, port) in [(2, ports[2]), (0, ports[0]), (7, ports[7])] {
            assert_eq!(helper.ask(&format!("close {kind}-{name}")), "0");
            assert_eq!(helper.bind(&format!("{kind}-{name}"), kind, 0), Ok(port), "{kind}");
            assert_eq!(helper.bind("more", kind, 0), Err(Errno::EADDRINUSE), "{kind}");
        }
        // Being killed makes all of them free again.
        drop(helper);
        let (again, errno) = take_all(&mut task.helper(), kind);
        assert_eq!((set(&again), errno), (all.clone(), Errno::EADDRINUSE), "{kind}");
    }
    assert_eq!(rules.total_denied(task.id).unwrap(), 0, "a port in use is not a denial");
}

#[test]
fn port_0_leaves_out_ports_that_were_bound_by_number() {
    let Some(node) = Node::new("port_0_leaves_out_ports_that_were_bound_by_number") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &node.ports(&[0, 1, 2])).unwrap();
    let mut helper = task.helper();
    // Two sockets on one port: it is free again with the second.
    assert_eq!(helper.bind("a-reuse", "tcp4", node.port), Ok(node.port));
    assert_eq!(helper.bind("b-reuse", "tcp4", node.port), Ok(node.port));
    assert_eq!(helper.bind("c", "tcp4", node.port + 2), Ok(node.port + 2));
    assert_eq!(helper.bind("d", "tcp4", 0), Ok(node.port + 1));
    assert_eq!(helper.ask("close a-reuse"), "0");
    assert_eq!(helper.bind("e", "tcp4", 0), Err(Errno::EADDRINUSE));
    // A failed choice is given up with its socket, so the next one is not kept from that port.
    assert_eq!(helper.ask("close b-reuse"), "0");
    assert_eq!(helper.bind("f", "tcp4", 0), Ok(node.port));
}

#[test]
fn a_second_bind_of_a_socket_changes_nothing() {
    let Some(node) = Node::new("a_second_bind_of_a_socket_changes_nothing") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &node.ports(&[0, 1])).unwrap();
    let mut helper = task.helper();
    assert_eq!(helper.bind("a", "udp4", 0), Ok(node.port));
    assert_eq!(helper.ask("bind-again a"), (Errno::EINVAL as i32).to_string());
    assert_eq!(helper.bind("b", "udp4", 0), Ok(node.port + 1));
    assert_eq!(helper.ask("close a"), "0");
    assert_eq!(helper.bind("a", "udp4", 0), Ok(node.port));
}

#[test]
fn connections_do_not_free_the_port_of_their_listener() {
    let Some(node) = Node::new("connections_do_not_free_the_port_of_their_listener") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &node.ports(&[0, 1, 2])).unwrap();
    let mut helper = task.helper();
    let ports: Vec<_> = ["a", "b", "c"].map(|name| helper.bind(name, "tcp4", 0).unwrap()).into();
    assert_eq!(helper.ask("listen a"), "0");
    let connection = TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
    // So that it ends with a reset, and no trace of it is left for the next run.
    let abort = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&connection, sockopt::Linger, &abort).unwrap();
    assert_eq!(helper.ask("accept-and-close a"), "0");
    assert_eq!(helper.ask("close b"), "0");
    // The search comes to the listener's port first; were it taken for free, this would fail.
    assert_eq!(helper.bind("b", "tcp4", 0), Ok(ports[1]));
    drop(connection);
}

#[test]
fn a_large_grant_is_given_out_to_its_last_port() {
    let Some(node) = Node::new("a_large_grant_is_given_out_to_its_last_port") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    let granted = node.ports(&(0..200).collect::<Vec<_>>());
    rules.grant(task.id, &granted).unwrap();
    let (ports, errno) = take_all(&mut task.helper(), "udp4");
    assert_eq!((set(&ports), errno), (granted.ports.tcp().iter().collect(), Errno::EADDRINUSE));
}

#[test]
fn port_0_by_several_processes_at_once_gives_no_port_twice() {
    let Some(node) = Node::new("port_0_by_several_processes_at_once_gives_no_port_twice") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    let granted = node.ports(&(0..200).collect::<Vec<_>>());
    rules.grant(task.id, &granted).unwrap();
    let mut helpers = [(); 4].map(|()| task.helper());
    helpers.iter_mut().for_each(|h| h.tell("take tcp4 50"));
    let answers = helpers.each_mut().map(Helper::answer).join(" ");
    // Each answer begins with its 0 for success.
    let ports: BTreeSet<u16> = answers.split(' ').map(|p| p.parse().unwrap()).filter(|&p| p != 0).collect();
    assert_eq!(ports, granted.ports.tcp().iter().collect(), "{answers}");
}

#[test]
fn a_grant_can_be_changed_and_taken_back() {
    let Some(node) = Node::new("a_grant_can_be_changed_and_taken_back") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    let mut helper = task.helper();
    let mut allowed = |offset: u16| {
        let result = helper.bind("s", "tcp4", node.port + offset);
        helper.ask("close s");
        result.is_ok()
    };
    rules.grant(task.id, &node.ports(&[0, 100])).unwrap();
    assert!(allowed(0) && allowed(100) && !allowed(1));
    rules.grant(task.id, &node.ports(&[1, 100])).unwrap();
    assert!(!allowed(0) && allowed(100) && allowed(1));
    assert_eq!(rules.total_denied(task.id).unwrap(), 2, "counts outlast a change");
    rules.revoke(task.id).unwrap();
    assert!(!allowed(0) && !allowed(100) && !allowed(1));
    rules.revoke(task.id).unwrap();
    assert_eq!(rules.denials(task.id).unwrap(), []);
    assert_eq!(rules.total_denied(task.id).unwrap(), 0);
}

/// 100,000 attempts of 8 processes, at a port outside the grant, in both families and both protocols.
#[test]
fn denials_are_counted_exactly() {
    let Some(node) = Node::new("denials_are_counted_exactly") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &node.ports(&[0])).unwrap();
    let mut helpers = [(); 8].map(|()| task.helper());
    // Half of them in a cgroup of their own making.
    for (n, helper) in helpers.iter_mut().enumerate().skip(4) {
        assert_eq!(helper.ask(&format!("enter {}", task.cgroup.join(n.to_string()).display())), "0");
    }
    for kind in ["tcp4", "tcp6", "udp4", "udp6"] {
        // All eight at once.
        helpers.iter_mut().for_each(|h| h.tell(&format!("refused {kind} {} 0 3125", node.port + 1)));
        helpers.iter_mut().for_each(|h| assert_eq!(h.answer(), "0 3125", "{kind}: not one success"));
    }
    assert_eq!(rules.total_denied(task.id).unwrap(), 100_000);
    let counts: Vec<_> = rules
        .denials(task.id)
        .unwrap()
        .into_iter()
        .map(|(key, denial)| (key.port, key.protocol, key.ip_version, denial.count))
        .collect();
    let expected =
        [(6, 4), (6, 6), (17, 4), (17, 6)].map(|(protocol, ip)| (node.port + 1, protocol, ip, 25_000));
    assert_eq!(counts, expected);
}

#[test]
fn a_scan_of_many_ports_stays_bounded_and_counted() {
    let Some(node) = Node::new("a_scan_of_many_ports_stays_bounded_and_counted") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &node.ports(&[0])).unwrap();
    assert_eq!(task.helper().ask("refused udp4 1024 1 1000"), "0 1000");
    let denials = rules.denials(task.id).unwrap();
    assert_eq!(
        denials.iter().filter(|(key, _)| key.call != denied_call::OTHERS).count() as u64,
        MAX_DENIED_PORTS
    );
    assert_eq!(denials.iter().map(|(_, denial)| denial.count).sum::<u64>(), 1000);
    assert_eq!(rules.total_denied(task.id).unwrap(), 1000);
}

#[test]
fn events_come_at_powers_of_two() {
    let Some(node) = Node::new("events_come_at_powers_of_two") else { return };
    let (loaded, task) = (node.load(), node.task("a"));
    let mut helper = task.helper();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut stream = DenialStream::open(&loaded.ports).unwrap();
        assert_eq!(stream.take(), None);
        let rules = node.rules();
        rules.grant(task.id, &node.ports(&[0])).unwrap();
        assert_eq!(helper.ask(&format!("refused udp6 {} 0 20", node.port + 1)), "0 20");
        for count in [1, 2, 4, 8, 16] {
            let event = stream.next().await.unwrap();
            assert_eq!(event.count, count);
            let key = event.key;
            assert_eq!((key.cgroup_id, key.port), (task.id, node.port + 1));
            assert_eq!((key.protocol, key.ip_version, key.call), (17, 6, denied_call::BIND));
            assert!(event.time_ns > 0 && event.pid > 0, "{event:?}");
        }
        assert_eq!(stream.take(), None);
        // One that comes while somebody waits.
        helper.tell(&format!("refused udp6 {} 0 12", node.port + 1));
        let event = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.unwrap().unwrap();
        assert_eq!(event.count, 32);
    });
}

#[test]
fn multipath_sockets_are_held_too() {
    let Some(node) = Node::new("multipath_sockets_are_held_too") else { return };
    let (rules, task) = (node.rules(), node.task("a"));
    rules.grant(task.id, &node.ports(&[0])).unwrap();
    let Task { cgroup, .. } = &task;
    let program = "import os, socket, sys\n\
        open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\n\
        for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):\n\
        \x20   for port in map(int, sys.argv[2:]):\n\
        \x20       try: s = socket.socket(family, socket.SOCK_STREAM, 262)\n\
        \x20       except OSError as e: sys.exit('SKIP multipath_sockets_are_held_too: no MPTCP: %s' % e)\n\
        \x20       try: s.bind((address, port)); print(0)\n\
        \x20       except OSError as e: print(e.errno)\n\
        \x20       s.close()\n";
    let (granted, other) = (node.port.to_string(), (node.port + 1).to_string());
    let run = std::process::Command::new("python3")
        .args(["-c", program])
        .arg(cgroup)
        .args([granted, other])
        .output();
    let Ok(output) = run else { return println!("SKIP multipath_sockets_are_held_too: no python3") };
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.starts_with("SKIP") {
        return print!("{errors}");
    }
    let eperm = Errno::EPERM as i32;
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("0\n{eperm}\n0\n{eperm}\n"), "{errors}");
}
