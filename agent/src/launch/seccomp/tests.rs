use nix::errno::Errno;
use proptest::prelude::*;
use syscalls::Sysno;

use super::{
    program::{AUDIT_ARCH, FIRST_X32, MAX_INSTRUCTIONS},
    *,
};

const I386: u32 = 3 | 0x4000_0000;

/// What the kernel's interpreter answers, for the instructions that seccomp(2) takes.
fn run(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let low_word = |value: u64| u32::try_from(value & 0xFFFF_FFFF).unwrap();
    let load = |offset: u32| match offset {
        0 => number,
        4 => arch,
        16..64 if offset.is_multiple_of(4) => {
            let value = args[usize::try_from((offset - 16) / 8).unwrap()];
            if offset.is_multiple_of(8) { low_word(value) } else { low_word(value >> 32) }
        }
        _ => panic!("a load from {offset}"),
    };
    let (mut at, mut a) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let mut branch = |yes: bool| at += usize::from(if yes { jt } else { jf });
        match code {
            0x20 => a = load(k),
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => branch(a == k),
            0x25 => branch(a > k),
            0x35 => branch(a >= k),
            0x54 => a &= k,
            0x06 => return k,
            _ => panic!("instruction {code:#x}"),
        }
    }
}

fn number(call: Sysno) -> u32 {
    call.id().cast_unsigned()
}

fn errno(code: Errno) -> u32 {
    libc::SECCOMP_RET_ERRNO | (code as i32).cast_unsigned()
}

/// The answer to a call of this processor.
fn answer(filter: &Filter, call: Sysno, args: [u64; 6]) -> u32 {
    run(filter.program(), AUDIT_ARCH, number(call), args)
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NO_ARGS: [u64; 6] = [0; 6];

/// Puts a thread of its own under the filter, where it does something.
fn under<T: Send + 'static>(filter: &Filter, act: impl FnOnce() -> T + Send + 'static) -> T {
    let program: Vec<_> = filter
        .program()
        .iter()
        .map(|i| seccompiler::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k })
        .collect();
    std::thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        act()
    })
    .join()
    .unwrap()
}

#[test]
fn calls_of_other_processors_never_pass() {
    let everything = Filter::parse(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#, CapSet::ALL).unwrap();
    let default = Filter::default_profile(CapSet::ALL).unwrap();
    for filter in [&everything, &default] {
        for call in [0, 11, 39, 59, 400] {
            assert_eq!(run(filter.program(), I386, call, NO_ARGS), libc::SECCOMP_RET_KILL_PROCESS);
            assert_eq!(run(filter.program(), AUDIT_ARCH, FIRST_X32 | call, NO_ARGS), errno(Errno::ENOSYS));
        }
        assert_eq!(run(filter.program(), AUDIT_ARCH, u32::MAX, NO_ARGS), errno(Errno::ENOSYS));
        assert_eq!(answer(filter, Sysno::read, NO_ARGS), ALLOW);
    }
}

#[test]
fn the_guard_refuses_what_leads_out_of_a_quota_and_nothing_else() {
    let guard = Filter::quota_guard();
    let ioctl = |arch, call, request| run(guard.program(), arch, call, [1, request, 0, 0, 0, 0]);
    for (arch, call) in [(AUDIT_ARCH, 16), (AUDIT_ARCH, FIRST_X32 | 514), (I386, 54)] {
        for request in [0x401C_5820, 0x4008_6602, 0x4004_6602, 1 << 40 | 0x401C_5820] {
            assert_eq!(ioctl(arch, call, request), errno(Errno::EPERM), "{call} {request:#x}");
        }
        for request in [0, 0x5401, 0x5412, 0x801C_581F] {
            assert_eq!(ioctl(arch, call, request), ALLOW, "{call} {request:#x}");
        }
    }
    for (arch, mark) in [(AUDIT_ARCH, 0), (AUDIT_ARCH, FIRST_X32), (I386, 0)] {
        let refused: Vec<u32> = (0..600)
            .filter(|call| run(guard.program(), arch, mark | call, [0x401C_5820; 6]) != ALLOW)
            .collect();
        let ioctl = if arch == I386 { vec![54] } else { vec![16, 514] };
        let mut expected = [ioctl, vec![469]].concat();
        expected.sort_unstable();
        assert_eq!(refused, expected, "{arch:#x} {mark:#x}");
    }
}

#[test]
fn the_guard_holds_in_the_kernel() {
    let refused = under(&Filter::quota_guard(), || {
        let file = std::fs::File::open("/").unwrap();
        let moved = crate::kernel::quota::set_project_of(&file, 1, true);
        // Where the file system has no projects, reading fails before.
        moved.err().map(|e| e.raw_os_error()).unwrap_or_default()
    });
    assert!(
        [Some(libc::EPERM), Some(libc::ENOTTY), Some(libc::EOPNOTSUPP)].contains(&refused),
        "{refused:?}"
    );
}

#[test]
fn the_default_profile_keeps_a_task_to_itself() {
    let filter = Filter::default_profile(CapSet::EMPTY).unwrap();
    #[rustfmt::skip]
    let refused = [
        Sysno::mount, Sysno::umount2, Sysno::pivot_root, Sysno::unshare, Sysno::setns, Sysno::bpf,
        Sysno::keyctl, Sysno::add_key, Sysno::request_key, Sysno::perf_event_open, Sysno::userfaultfd,
        Sysno::io_uring_setup, Sysno::io_uring_enter, Sysno::io_uring_register, Sysno::kexec_load,
        Sysno::kexec_file_load, Sysno::init_module, Sysno::finit_module, Sysno::delete_module, Sysno::reboot,
        Sysno::swapon, Sysno::chroot, Sysno::open_by_handle_at, Sysno::iopl, Sysno::settimeofday,
        Sysno::quotactl, Sysno::file_setattr, Sysno::sethostname, Sysno::syslog, Sysno::move_mount,
        Sysno::fsopen,
    ];
    for call in refused {
        assert_eq!(answer(&filter, call, NO_ARGS), errno(Errno::EPERM), "{call}");
    }
    assert_eq!(answer(&filter, Sysno::clone3, NO_ARGS), errno(Errno::ENOSYS));
    assert_eq!(run(filter.program(), AUDIT_ARCH, number(Sysno::last()) + 1, NO_ARGS), errno(Errno::ENOSYS));
    let first = |value| [value, 0, 0, 0, 0, 0];
    for flag in [0x2_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        for high in [0, 1 << 32, u64::MAX << 32] {
            assert_eq!(
                answer(&filter, Sysno::clone, first(high | flag | 17)),
                errno(Errno::EPERM),
                "{flag:#x}"
            );
        }
    }
    assert_eq!(answer(&filter, Sysno::clone, first(0x003d_0f00)), ALLOW, "a thread");
    assert_eq!(answer(&filter, Sysno::personality, first(0xFFFF_FFFF)), ALLOW);
    assert_eq!(answer(&filter, Sysno::personality, first(0x004_0000)), errno(Errno::EPERM));
    let ioctl = |request| answer(&filter, Sysno::ioctl, [1, request, 0, 0, 0, 0]);
    assert_eq!(ioctl(0x5401), ALLOW);
    for request in [0x5412, 0x401C_5820, 1 << 40 | 0x401C_5820] {
        assert_eq!(ioctl(request), errno(Errno::EPERM));
    }
    let socket = |family, kind, protocol| answer(&filter, Sysno::socket, [family, kind, protocol, 0, 0, 0]);
    for family in [1, 2, 10, 16] {
        assert_eq!(socket(family, 0x8_0001, 0), ALLOW);
    }
    for family in [15, 30, 38, 40, 43] {
        assert_eq!(socket(family, 1, 0), errno(Errno::EPERM));
    }
    assert_eq!(socket(2, 1, 132), errno(Errno::EPROTONOSUPPORT));
    assert_eq!(socket(10, 0x8_0005, 0), errno(Errno::EPROTONOSUPPORT));
    assert_eq!(socket(1, 5, 0), ALLOW);
}

#[test]
fn a_capability_brings_its_calls() {
    let with =
        |names: &[&str]| Filter::default_profile(CapSet::parse(names.iter().copied()).unwrap()).unwrap();
    let admin = with(&["SYS_ADMIN"]);
    for call in [Sysno::mount, Sysno::unshare, Sysno::clone3, Sysno::bpf, Sysno::perf_event_open] {
        assert_eq!(answer(&admin, call, NO_ARGS), ALLOW, "{call}");
    }
    assert_eq!(answer(&admin, Sysno::clone, [0x2000_0000, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(answer(&admin, Sysno::io_uring_setup, NO_ARGS), errno(Errno::EPERM));
    assert_eq!(answer(&with(&["SYS_CHROOT"]), Sysno::chroot, NO_ARGS), ALLOW);
    assert_eq!(answer(&with(&["PERFMON"]), Sysno::perf_event_open, NO_ARGS), ALLOW);
    for (names, _) in table::BY_CAPABILITY {
        assert!(CapSet::parse(names.iter().copied()).is_ok(), "{names:?}");
    }
}

#[test]
fn the_kernel_holds_a_thread_to_the_default_profile() {
    let filter = Filter::default_profile(CapSet::EMPTY).unwrap();
    let (namespace, mounted, lines) = under(&filter, || {
        let namespace = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS);
        let flags = nix::mount::MsFlags::empty();
        let mounted = nix::mount::mount(Some("none"), "/nonexistent", Some("tmpfs"), flags, None::<&str>);
        // Threads and programs still start: through clone, since clone3 does not exist.
        let child = || std::process::Command::new("sh").args(["-c", "echo $(echo ok)"]).output().unwrap();
        let lines = std::thread::spawn(child).join().unwrap().stdout;
        (namespace, mounted, lines)
    });
    assert_eq!((namespace, mounted), (Err(Errno::EPERM), Err(Errno::EPERM)));
    assert_eq!(String::from_utf8(lines).unwrap(), "ok\n");
}

#[test]
fn the_kernel_holds_a_thread_to_a_profile() {
    let json = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["getpgid", "getpgrp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 1, "value": 4294967295, "op": "SCMP_CMP_GT"}]}
        ]
    }"#;
    let filter = Filter::parse(json, CapSet::EMPTY).unwrap();
    let answer = under(&filter, || nix::unistd::getpgid(None));
    assert_eq!(answer, Err(Errno::EOPNOTSUPP));
    assert!(nix::unistd::getpgid(None).is_ok());
}

#[test]
fn the_form_of_containers_is_understood() {
    let json = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read", "write", "read_with_magic"], "action": "SCMP_ACT_ALLOW", "args": null,
             "comment": "plain", "includes": {}, "excludes": {}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
             "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
            {"names": ["sync"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["tkill"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
            {"names": ["pause"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"name": "getpid", "action": "SCMP_ACT_LOG"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
        ]
    }"#;
    let plain = Filter::parse(json, CapSet::EMPTY).unwrap();
    let admin = Filter::parse(json, CapSet::SYS_ADMIN).unwrap();
    assert_eq!(plain.unknown(), ["read_with_magic"]);
    let first = |value| [value, 0, 0, 0, 0, 0];
    let refused = errno(Errno::EACCES);
    for (call, args, expected) in [
        (Sysno::read, NO_ARGS, ALLOW),
        (Sysno::open, NO_ARGS, refused),
        (Sysno::clone, first(17), ALLOW),
        (Sysno::clone, first(0x1000_0000), refused),
        (Sysno::clone3, NO_ARGS, errno(Errno::ENOSYS)),
        (Sysno::mount, NO_ARGS, refused),
        (Sysno::arch_prctl, NO_ARGS, ALLOW),
        (Sysno::sync, NO_ARGS, refused),
        (Sysno::ptrace, NO_ARGS, ALLOW),
        (Sysno::tkill, NO_ARGS, refused),
        (Sysno::pause, NO_ARGS, libc::SECCOMP_RET_KILL_PROCESS),
        (Sysno::getpid, NO_ARGS, libc::SECCOMP_RET_LOG),
        (Sysno::personality, first(8), ALLOW),
        (Sysno::personality, first(9), refused),
        (Sysno::futex_waitv, NO_ARGS, errno(Errno::ENOSYS)),
    ] {
        assert_eq!(answer(&plain, call, args), expected, "{call} {args:?}");
    }
    assert_eq!(answer(&admin, Sysno::mount, NO_ARGS), ALLOW);
    assert_eq!(answer(&admin, Sysno::clone, first(17)), refused);
}

#[test]
fn where_rules_differ_the_strictest_decides() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "ENODEV",
         "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_GE"}]},
        {"names": ["read"], "action": "SCMP_ACT_KILL_PROCESS",
         "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]}
    ]}"#;
    let filter = Filter::parse(json, CapSet::EMPTY).unwrap();
    let read = |fd| answer(&filter, Sysno::read, [fd, 0, 0, 0, 0, 0]);
    assert_eq!([read(2), read(3)], [ALLOW, errno(Errno::ENODEV)]);
    assert_eq!(read(9), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn a_bad_profile_is_named_with_its_place() {
    let error = |json: &str| crate::error_chain(&Filter::parse(json, CapSet::EMPTY).unwrap_err());
    let entry =
        |entry: &str| error(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{entry}]}}"#));
    assert!(error("{").contains("line 1 column 1"), "{}", error("{"));
    assert!(error("{}").contains("missing field `defaultAction`"));
    assert!(error("[]").contains("malformed"));
    assert!(
        error(r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscals": []}"#).contains("unknown field `syscals`")
    );
    let action = entry(r#"{"names": ["open"], "action": "ALLOW"}"#);
    assert!(action.contains(r#"syscalls[0] (open), action: "ALLOW" is no action"#), "{action}");
    let op = entry(
        r#"{"names": ["open"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "EQ"}]}"#,
    );
    assert!(op.contains(r#"syscalls[0] (open), args[0]: "EQ" is no comparison"#), "{op}");
    let argument = r#"{"names": ["open"], "action": "SCMP_ACT_LOG", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}"#;
    assert!(entry(argument).contains("index 6"));
    assert!(entry(r#"{"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000}"#).contains("70000"));
    assert!(entry(r#"{"names": ["open"], "action": "SCMP_ACT_ERRNO", "errno": "EOOPS"}"#).contains("EOOPS"));
    assert!(entry(r#"{"names": ["open"], "action": "SCMP_ACT_NOTIFY"}"#).contains("supervisor"));
    let cap = entry(r#"{"names": ["a"], "action": "SCMP_ACT_LOG", "includes": {"caps": ["CAP_SYS_ADMN"]}}"#);
    assert!(cap.contains("CAP_SYS_ADMIN?"), "{cap}");
    let kernel = entry(r#"{"names": ["a"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "new"}}"#);
    assert!(kernel.contains("minKernel"), "{kernel}");
    assert!(error(r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["VAX"]}"#).contains("VAX"));
    let large = Filter::parse(&" ".repeat(MAX_PROFILE_BYTES + 1), CapSet::EMPTY).unwrap_err();
    assert!(matches!(large, SeccompError::TooLarge { .. }));
    let deep = format!(r#"{{"defaultAction": {}"#, "[".repeat(100_000));
    assert!(error(&deep).contains("malformed"));
}

#[test]
fn a_profile_that_no_kernel_takes_is_refused() {
    let many: Vec<String> = (0..1000)
        .map(|value| {
            format!(
                r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                    "args": [{{"index": 1, "value": {value}, "op": "SCMP_CMP_EQ"}}]}}"#
            )
        })
        .collect();
    let json = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{}]}}"#, many.join(","));
    assert!(matches!(Filter::parse(&json, CapSet::EMPTY), Err(SeccompError::TooLong { .. })));
}

#[test]
fn a_filter_is_made_once() {
    let cache = FilterCache::default();
    let first = cache.get("", CapSet::EMPTY).unwrap();
    assert!(Arc::ptr_eq(&first, &cache.get("", CapSet::EMPTY).unwrap()));
    assert!(!Arc::ptr_eq(&first, &cache.get("", CapSet::SYS_ADMIN).unwrap()));
    for value in 0..2 * CACHED {
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": {value}}}"#);
        cache.get(&json, CapSet::EMPTY).unwrap();
        assert!(cache.made.lock().unwrap().len() <= CACHED);
    }
}

fn op() -> impl Strategy<Value = SeccompCmpOp> {
    prop_oneof![
        Just(SeccompCmpOp::Eq),
        Just(SeccompCmpOp::Ne),
        Just(SeccompCmpOp::Lt),
        Just(SeccompCmpOp::Le),
        Just(SeccompCmpOp::Gt),
        Just(SeccompCmpOp::Ge),
        (0..16_u64).prop_map(|mask| SeccompCmpOp::MaskedEq(mask << 30)),
    ]
}

/// Few values on both sides of 32 bits, so that they meet.
fn value() -> impl Strategy<Value = u64> {
    (0..4_u64, 0..4_u64).prop_map(|(high, low)| high << 32 | low << 30)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::ALLOW),
        Just(Verdict::KILL_PROCESS),
        (1..200_u16).prop_map(Verdict::errno),
        Just(Verdict(libc::SECCOMP_RET_LOG)),
        Just(Verdict(libc::SECCOMP_RET_TRAP)),
    ]
}

type PlainRule = (Vec<(u8, SeccompCmpOp, u64)>, Verdict);

fn plain_rule() -> impl Strategy<Value = PlainRule> {
    (prop::collection::vec((0..6_u8, op(), value()), 0..6), verdict())
}

fn holds((index, op, value): &(u8, SeccompCmpOp, u64), args: &[u64; 6]) -> bool {
    let arg = args[usize::from(*index)];
    match op {
        SeccompCmpOp::Eq => arg == *value,
        SeccompCmpOp::Ne => arg != *value,
        SeccompCmpOp::Lt => arg < *value,
        SeccompCmpOp::Le => arg <= *value,
        SeccompCmpOp::Gt => arg > *value,
        SeccompCmpOp::Ge => arg >= *value,
        SeccompCmpOp::MaskedEq(mask) => arg & mask == value & mask,
    }
}

proptest! {
    /// The program does what the rules say, whatever their number and order.
    #[test]
    fn the_program_is_the_policy(
        default in verdict(),
        newer in prop::option::of((400..600_u32, verdict())),
        calls in prop::collection::btree_map(0..500_u32, prop::collection::vec(plain_rule(), 1..5), 0..60),
        asked in prop::collection::vec((0..700_u32, prop::array::uniform6(value())), 200),
    ) {
        let mut policy = Policy::new(default);
        policy.newer = newer;
        for (call, rules) in &calls {
            for (conditions, verdict) in rules {
                let conditions = conditions.iter().map(|(index, op, value)| {
                    SeccompCondition::new(*index, SeccompCmpArgLen::Qword, op.clone(), *value).unwrap()
                });
                policy.add(*call, Rule { conditions: conditions.collect(), verdict: *verdict });
            }
        }
        let program = match policy.compile() {
            Ok(program) => program,
            Err(error) => {
                let too_long = matches!(error, SeccompError::TooLong { .. });
                prop_assert!(too_long);
                return Ok(());
            }
        };
        prop_assert!(program.len() <= MAX_INSTRUCTIONS);
        let last = calls.keys().next_back().map_or(0, |last| last + 1);
        for (call, args) in asked.into_iter().chain(calls.keys().map(|call| (*call, NO_ARGS))) {
            let matching = calls.get(&call).into_iter().flatten();
            let matching = matching.filter(|(conditions, _)| conditions.iter().all(|c| holds(c, &args)));
            let strictest = matching.map(|(_, verdict)| verdict.0).min_by_key(|v| (v & 0xFFFF_0000).cast_signed());
            let otherwise = match newer {
                Some((first, verdict)) if call >= first.max(last) => verdict.0,
                _ => default.0,
            };
            let answered = run(&program, AUDIT_ARCH, call, args);
            prop_assert_eq!(answered & 0xFFFF_0000, strictest.unwrap_or(otherwise) & 0xFFFF_0000);
        }
    }

    /// Nothing from outside panics, and what is taken is a program.
    #[test]
    fn any_text_is_a_filter_or_an_error(text in "\\PC{0,200}") {
        drop(Filter::parse(&text, CapSet::EMPTY));
    }
}
