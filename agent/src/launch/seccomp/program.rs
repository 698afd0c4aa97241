//! A policy as the BPF program that the kernel runs at every system call. Pure.
//!
//! The crate `seccompiler` writes the comparisons of arguments. Which of them apply, and to which verdict they
//! lead, is found by a binary search over ranges of system call numbers, written here: the crate's own filters
//! walk through all calls in order and know only two verdicts. Kernels from 5.11 on evaluate the program once for
//! each number when it is installed, and afterwards do not run it for calls that are always allowed; a short
//! path makes that installation cheap too.

use std::collections::BTreeMap;

use libc::{
    BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ACTION_FULL,
    sock_filter,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompCondition, SeccompRule};

use super::SeccompError;

/// Offsets in `struct seccomp_data`.
pub(super) const OFFSET_NR: u32 = 0;
pub(super) const OFFSET_ARCH: u32 = 4;
/// `AUDIT_ARCH_X86_64` of linux/audit.h: the machine's number, 64 bits, little endian.
pub(super) const AUDIT_ARCH: u32 = 62 | 0x8000_0000 | 0x4000_0000;
/// From here on the numbers belong to the x32 calls, which have the same arch.
pub(super) const FIRST_X32: u32 = 0x4000_0000;
/// `BPF_MAXINSNS`: the kernel takes no longer program.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

/// What the kernel does with a call, as the program returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict(pub(super) u32);

impl Verdict {
    pub(super) const ALLOW: Self = Self(libc::SECCOMP_RET_ALLOW);
    pub(super) const KILL_PROCESS: Self = Self(libc::SECCOMP_RET_KILL_PROCESS);

    /// The call fails with this errno.
    pub(super) const fn errno(errno: u16) -> Self {
        Self(libc::SECCOMP_RET_ERRNO | errno as u32)
    }

    /// Does the call fail with an errno?
    pub(super) const fn is_errno(self) -> bool {
        self.0 & SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO
    }

    /// The smaller, the stricter: the order in which the kernel chooses between several filters.
    const fn leniency(self) -> i32 {
        (self.0 & SECCOMP_RET_ACTION_FULL).cast_signed()
    }
}

impl From<SeccompAction> for Verdict {
    fn from(action: SeccompAction) -> Self {
        Self(u32::from(action))
    }
}

/// What happens to a call whose arguments fulfil all conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<SeccompCondition>,
    pub(super) verdict: Verdict,
}

/// What happens to every call. Where several rules match one call, the strictest wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Where no rule matches.
    pub(super) default: Verdict,
    /// Calls that are newer than the policy: from this number on, with this verdict.
    pub(super) newer: Option<(u32, Verdict)>,
    /// By number.
    pub(super) calls: BTreeMap<u32, Vec<Rule>>,
}

impl Policy {
    /// Without any rule.
    pub(super) const fn new(default: Verdict) -> Self {
        Self { default, newer: None, calls: BTreeMap::new() }
    }

    /// Adds a rule for one call.
    pub(super) fn add(&mut self, number: u32, rule: Rule) {
        self.calls.entry(number).or_default().push(rule);
    }

    /// The program. Calls of other processors kill the process: there is no telling what they would do. Calls of
    /// x32 do not exist.
    pub(super) fn compile(mut self) -> Result<Vec<sock_filter>, SeccompError> {
        let default = vec![ret(self.default)];
        let mut ranges = Ranges::default();
        let mut next = 0;
        for (number, rules) in std::mem::take(&mut self.calls) {
            if number > next {
                ranges.push(next, default.clone());
            }
            ranges.push(number, decide(rules, self.default)?);
            next = number + 1;
        }
        ranges.push(next, default);
        if let Some((first, verdict)) = self.newer {
            ranges.push(first.max(next), vec![ret(verdict)]);
        }
        ranges.push(FIRST_X32, vec![ret(Verdict::errno(ENOSYS))]);

        let mut program = vec![
            statement(BPF_LD | BPF_W | BPF_ABS, OFFSET_ARCH),
            jump(BPF_JEQ, AUDIT_ARCH, 1, 0),
            ret(Verdict::KILL_PROCESS),
            statement(BPF_LD | BPF_W | BPF_ABS, OFFSET_NR),
        ];
        program.extend(search(&ranges.0));
        if program.len() > MAX_INSTRUCTIONS {
            return Err(SeccompError::TooLong { instructions: program.len() });
        }
        Ok(program)
    }
}

/// The errno of calls that do not exist.
#[expect(clippy::cast_possible_truncation, reason = "38")]
pub(super) const ENOSYS: u16 = libc::ENOSYS as u16;

/// Code for every number from the named one up to the next entry's, ascending and without gaps.
#[derive(Default)]
struct Ranges(Vec<(u32, Vec<sock_filter>)>);

impl Ranges {
    fn push(&mut self, first: u32, code: Vec<sock_filter>) {
        match self.0.last_mut() {
            Some((_, last)) if *last == code => {}
            // The range before was empty.
            Some((at, last)) if *at == first => *last = code,
            _ => self.0.push((first, code)),
        }
    }
}

/// The rules of one call, the strictest first.
fn decide(mut rules: Vec<Rule>, default: Verdict) -> Result<Vec<sock_filter>, SeccompError> {
    rules.sort_by_key(|rule| rule.verdict.leniency());
    let end = rules.iter().position(|rule| rule.conditions.is_empty());
    let otherwise = end.map_or(default, |end| rules[end].verdict);
    rules.truncate(end.unwrap_or(rules.len()));
    let mut code = Vec::new();
    for rule in rules {
        let compare = SeccompRule::new(rule.conditions).map_err(SeccompError::Rule)?;
        code.extend(BpfProgram::from(compare).into_iter().map(plain));
        code.push(ret(rule.verdict));
    }
    code.push(ret(otherwise));
    Ok(code)
}

/// Binary search for the range of the number, which is in the accumulator.
fn search(ranges: &[(u32, Vec<sock_filter>)]) -> Vec<sock_filter> {
    let middle = ranges.len() / 2;
    let (below, above) = ranges.split_at(middle);
    let Some((first_above, _)) = above.first().filter(|_| !below.is_empty()) else {
        return ranges.first().map(|(_, code)| code.clone()).unwrap_or_default();
    };
    let (below, above) = (search(below), search(above));
    let mut code = match u8::try_from(below.len()) {
        Ok(near) => vec![jump(BPF_JGE, *first_above, near, 0)],
        Err(_) => vec![
            jump(BPF_JGE, *first_above, 0, 1),
            statement(BPF_JMP | BPF_JA, u32::try_from(below.len()).unwrap_or(u32::MAX)),
        ],
    };
    code.extend(below);
    code.extend(above);
    code
}

pub(super) fn statement(code: u32, k: u32) -> sock_filter {
    instruction(code, k, 0, 0)
}

pub(super) fn jump(compare: u32, k: u32, when: u8, otherwise: u8) -> sock_filter {
    instruction(BPF_JMP | compare | BPF_K, k, when, otherwise)
}

pub(super) fn ret(verdict: Verdict) -> sock_filter {
    statement(BPF_RET | BPF_K, verdict.0)
}

#[expect(clippy::cast_possible_truncation, reason = "operation codes have eight bits")]
fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

fn plain(instruction: seccompiler::sock_filter) -> sock_filter {
    let seccompiler::sock_filter { code, jt, jf, k } = instruction;
    sock_filter { code, jt, jf, k }
}
