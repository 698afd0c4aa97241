//! The list of ports that the kernel does not choose, in a network namespace of the test's own.

use std::{fs, net::UdpSocket, path::Path};

use bulkhead_agent::kernel::reserved_ports::{give_back, listed, reserve};
use bulkhead_proto::resources::{PortNumbers, PortSet};
use nix::sched::{CloneFlags, unshare};

const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

fn numbers(text: &str) -> PortNumbers {
    text.parse::<PortSet>().unwrap().numbers()
}

fn list() -> PortNumbers {
    listed().unwrap()
}

/// Runs in a thread with a network namespace of its own and an empty directory for notes.
fn in_a_namespace(test: &'static str, body: impl FnOnce(&Path) + Send + 'static) {
    let run = move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            return println!("SKIP {test}: unshare: {errno}");
        }
        let notes = std::env::temp_dir().join(format!("bulkhead-test-notes-{}-{test}", std::process::id()));
        body(&notes);
        assert!(!notes.exists(), "nothing is left");
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn the_operators_list_is_kept_and_comes_back() {
    in_a_namespace("the_operators_list_is_kept_and_comes_back", |notes| {
        fs::write(LIST, "8080,31005\n").unwrap();
        reserve(notes, "a", &numbers("31000-31010")).unwrap();
        assert_eq!(list(), numbers("8080,31000-31010"));
        // Nothing of an agent that is killed now is in memory: the next one finds its notes, and offers other ports.
        reserve(notes, "a", &numbers("31004-31012")).unwrap();
        assert_eq!(list(), numbers("8080,31004-31012"));
        reserve(notes, "b", &numbers("31012-31020")).unwrap();
        assert_eq!(list(), numbers("8080,31004-31020"));
        // The operator reserves another one meanwhile.
        fs::write(LIST, "8080,9090,31004-31020\n").unwrap();
        give_back(notes, "a").unwrap();
        assert_eq!(list(), numbers("8080,9090,31005,31012-31020"), "the other agent's part is kept");
        give_back(notes, "a").unwrap();
        give_back(notes, "b").unwrap();
        assert_eq!(list(), numbers("8080,9090,31005"));
    });
}

#[test]
fn a_list_of_every_second_port_comes_back_whole() {
    in_a_namespace("a_list_of_every_second_port_comes_back_whole", |notes| {
        let odd: Vec<_> = (1..u16::MAX).step_by(2).map(|port| port.to_string()).collect();
        let operators = numbers(&odd.join(","));
        // As much as one call may write.
        let some = |ports: &[String]| fs::write(LIST, format!("{}\n", ports.join(","))).unwrap();
        some(&odd);
        assert_eq!(list(), operators);
        reserve(notes, "a", &numbers("31000-31010")).unwrap();
        assert_eq!(list(), operators.union(&numbers("31000-31010")));
        give_back(notes, "a").unwrap();
        assert_eq!(list(), operators);
    });
}

#[test]
fn the_kernel_chooses_no_reserved_port() {
    in_a_namespace("the_kernel_chooses_no_reserved_port", |notes| {
        fs::write(RANGE, "40000 40009\n").unwrap();
        reserve(notes, "a", &numbers("40000-40008")).unwrap();
        let only = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(only.local_addr().unwrap().port(), 40_009);
        assert!(UdpSocket::bind("0.0.0.0:0").is_err(), "nothing else is left to choose");
        assert!(UdpSocket::bind("0.0.0.0:40000").is_ok(), "by number it can be bound");
        give_back(notes, "a").unwrap();
        assert_eq!(list(), PortNumbers::default());
        assert!(UdpSocket::bind("0.0.0.0:0").is_ok());
    });
}

#[test]
fn a_list_that_cannot_be_understood_is_left_alone() {
    in_a_namespace("a_list_that_cannot_be_understood_is_left_alone", |notes| {
        reserve(notes, "a", &numbers("31000")).unwrap();
        let of_namespace = fs::read_dir(notes).unwrap().next().unwrap().unwrap().path();
        fs::write(of_namespace.join("added"), "what is this").unwrap();
        let error = reserve(notes, "a", &numbers("31001")).unwrap_err();
        assert!(error.to_string().contains("added"), "{error}");
        assert_eq!(list(), numbers("31000"));
        fs::remove_dir_all(notes).unwrap();
    });
}
