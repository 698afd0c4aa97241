//! How tasks ended, compared with what wait(2) says of the same process.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
};

use bulkhead_abi::{MAX_EXITS, names};
use bulkhead_agent::kernel::{
    bpf::{ExitRecords, probe_exits},
    pidfd::Exit,
};
use bulkhead_ebpf::observe::exits::ExitsSkelBuilder;
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use nix::unistd::Pid;

use crate::fixture::{Node, Task};

/// A node with records, or the reason is printed.
fn node(test: &str) -> Option<(Node, ExitRecords)> {
    let node = Node::new(test)?;
    let support = probe_exits();
    if !support.available {
        println!("SKIP {test}: {}", support.reason);
        return None;
    }
    let records = ExitRecords::open(&node.load().exits.unwrap()).unwrap();
    Some((node, records))
}

/// Starts a program in the task that waits for a line on standard input before it does anything.
fn start(task: &Task, program: &[&str]) -> Child {
    let enter = "echo 0 >\"$1\"/cgroup.procs && shift && echo ready && read go && exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", enter, "sh"]).arg(&task.cgroup).args(program);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Lets the program go, and waits for its end.
fn finish(mut child: Child) -> ExitStatus {
    use std::io::Write as _;
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap()
}

fn as_waited(status: ExitStatus) -> Exit {
    status.code().map_or_else(|| Exit::Signal(status.signal().unwrap()), Exit::Code)
}

#[test]
fn codes_and_signals_are_recorded_as_waited_for() {
    let Some((node, records)) = node("codes_and_signals_are_recorded_as_waited_for") else { return };
    let programs = ["exit 0", "exit 7", "exit 255", "kill -9 $$", "kill -15 $$", "kill -11 $$", "kill -6 $$"];
    for (n, program) in programs.into_iter().enumerate() {
        let task = node.task(&n.to_string());
        let child = start(&task, &["sh", "-c", program]);
        records.watch(task.id, pid(&child)).unwrap();
        assert_eq!(records.take(task.id).unwrap(), None, "{program}: it lives");
        let status = finish(child);
        assert_eq!(records.take(task.id).unwrap(), Some(as_waited(status)), "{program}");
        assert_eq!(records.take(task.id).unwrap(), None, "{program}: taken once");
    }
}

#[test]
fn only_the_watched_process_counts() {
    let Some((node, records)) = node("only_the_watched_process_counts") else { return };
    let (task, elsewhere) = (node.task("a"), node.task("b"));
    // Children of the main process, and main processes of other tasks, come and go.
    let child = start(&task, &["sh", "-c", "sh -c 'exit 1'; (exit 2); exit 5"]);
    records.watch(task.id, pid(&child)).unwrap();
    let other = start(&elsewhere, &["sh", "-c", "exit 3"]);
    assert_eq!(finish(other).code(), Some(3));
    assert_eq!(records.take(elsewhere.id).unwrap(), None);
    assert_eq!(records.take(task.id).unwrap(), None);
    assert_eq!(finish(child).code(), Some(5));
    assert_eq!(records.take(task.id).unwrap(), Some(Exit::Code(5)));

    let forgotten = start(&elsewhere, &["sh", "-c", "exit 4"]);
    records.watch(elsewhere.id, pid(&forgotten)).unwrap();
    records.forget(elsewhere.id).unwrap();
    assert_eq!(finish(forgotten).code(), Some(4));
    assert_eq!(records.take(elsewhere.id).unwrap(), None);
}

/// Ends the first thread with SYS_exit(3); when it is a zombie, a second thread runs `$last`.
const LEADER_FIRST: &str = "
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
SYS_exit = {'x86_64': 60}.get(os.uname().machine, 93)
def last():
    stat = '/proc/self/task/%d/stat' % os.getpid()
    while open(stat).read().rsplit(')', 1)[1].split()[0] != 'Z': pass
    eval(sys.argv[1])
threading.Thread(target=last).start()
libc.syscall(SYS_exit, 3)
";

#[test]
fn a_process_lives_until_its_last_thread() {
    let Some((node, records)) = node("a_process_lives_until_its_last_thread") else { return };
    if Command::new("python3").arg("--version").output().is_err() {
        return println!("SKIP a_process_lives_until_its_last_thread: no python3");
    }
    // The status of the first thread, 3, is that of no process here.
    let last_words = [
        ("os._exit(7)", Exit::Code(7)),
        ("os.kill(os.getpid(), 9)", Exit::Signal(9)),
        ("libc.syscall(SYS_exit, 9)", Exit::Code(9)),
    ];
    for (n, (last, expected)) in last_words.into_iter().enumerate() {
        let task = node.task(&n.to_string());
        let child = start(&task, &["python3", "-c", LEADER_FIRST, last]);
        records.watch(task.id, pid(&child)).unwrap();
        let status = finish(child);
        assert_eq!(as_waited(status), expected, "{last}");
        assert_eq!(records.take(task.id).unwrap(), Some(expected), "{last}");
    }
}

#[test]
fn records_outlive_whoever_asked_for_them() {
    let Some((node, records)) = node("records_outlive_whoever_asked_for_them") else { return };
    let task = node.task("a");
    let child = start(&task, &["sh", "-c", "exit 42"]);
    records.watch(task.id, pid(&child)).unwrap();
    drop(records);
    finish(child);
    let adopted = node.adopt().unwrap();
    let records = ExitRecords::open(&adopted.exits.unwrap()).unwrap();
    assert_eq!(records.take(task.id).unwrap(), Some(Exit::Code(42)));
}

#[test]
fn the_plain_tracepoint_records_the_same() {
    let Some((node, _)) = node("the_plain_tracepoint_records_the_same") else { return };
    // What the loader does where the typed tracepoint is refused.
    let mut memory = std::mem::MaybeUninit::uninit();
    let mut open = ExitsSkelBuilder::default().open(&mut memory).unwrap();
    open.progs.process_exit_btf.set_autoload(false);
    open.maps.exits.set_max_entries(MAX_EXITS).unwrap();
    open.maps.rodata_data.as_mut().unwrap().task_level = 3;
    let mut plain = open.load().unwrap();
    let _link = plain.progs.process_exit_raw.attach().unwrap();
    let dir = node.spec.pin_dir.join("plain");
    plain.maps.exits.pin(dir.join(names::EXITS)).unwrap();
    let records = ExitRecords::open(&dir).unwrap();

    for (n, program) in ["exit 9", "kill -9 $$"].into_iter().enumerate() {
        let task = node.task(&n.to_string());
        let child = start(&task, &["sh", "-c", program]);
        records.watch(task.id, pid(&child)).unwrap();
        let status = finish(child);
        assert_eq!(records.take(task.id).unwrap(), Some(as_waited(status)), "{program}");
    }
}
