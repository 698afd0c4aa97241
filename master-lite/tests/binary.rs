//! `bulkhead-master` as operators meet it: bad input, and its end.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn master() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-master"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("BULKHEAD_MASTER_LISTEN").env_remove("BULKHEAD_MASTER_CONFIG");
    command
}

/// What the master says when it does not start.
#[track_caller]
fn refusal(args: &[&str]) -> String {
    let Output { status, stderr, .. } = master().args(args).output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(!status.success(), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn wait_for_file(path: &Path, child: &mut Child) -> String {
    let begun = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the master ended with {status} before it listened");
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "no address file");
        std::thread::yield_now();
    }
}

#[test]
fn an_unknown_flag_is_named() {
    assert!(refusal(&["--lisen", "127.0.0.1:0"]).contains("--lisen"));
}

#[test]
fn a_malformed_value_is_named_with_its_flag() {
    let said = refusal(&["--offer-timeout", "soon"]);
    assert!(said.contains("--offer-timeout") && said.contains("soon") && said.contains("5s"), "{said}");
}

#[test]
fn a_malformed_file_is_named_with_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.toml");
    std::fs::write(&path, "history = 10\nheartbeet_interval = \"5s\"\n").unwrap();
    let said = refusal(&["--config", path.to_str().unwrap()]);
    for part in ["master.toml", "line 2", "heartbeet_interval", "heartbeat_interval"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refusal(&["--listen", &address]);
    assert!(said.contains(&address) && said.contains("in use") && said.contains("--listen"), "{said}");
}

#[test]
fn an_address_of_another_machine_is_named() {
    // TEST-NET-1: no machine has it.
    let said = refusal(&["--listen", "192.0.2.1:5050"]);
    assert!(said.contains("192.0.2.1:5050") && said.contains("address of this machine"), "{said}");
}

#[test]
fn it_says_where_it_listens_and_ends_well_when_told_to() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("address");
        let mut child = master()
            .args(["--listen", "127.0.0.1:0", "--address-file", path.to_str().unwrap()])
            .spawn()
            .unwrap();
        let address = wait_for_file(&path, &mut child);
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{signal}: {said}");
        assert!(said.contains(&format!("listening on {}", address.trim())), "{said}");
        assert!(output.stdout.is_empty(), "logs go to stderr");
    }
}
