//! The JSON form of profiles: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>,
//! with the conditions (`includes`, `excludes`, `archMap`) that container engines added to it. Pure.

use std::{io, str::FromStr as _};

use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};
use serde::Deserialize;
use syscalls::Sysno;

use super::{
    MAX_PROFILE_BYTES, SeccompError,
    program::{ENOSYS, Policy, Rule, Verdict},
};
use crate::launch::capability::CapSet;

/// As many arguments as a system call has.
const ARGUMENTS: u8 = 6;
/// `MAX_ERRNO` of the kernel: larger ones would not be seen as errors.
const MAX_ERRNO: u32 = 4095;
/// As engines write them: `SCMP_ARCH_` of libseccomp.
const ARCHITECTURES: [&str; 20] = [
    "X86",
    "X86_64",
    "X32",
    "ARM",
    "AARCH64",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PPC",
    "PPC64",
    "PPC64LE",
    "S390",
    "S390X",
    "PARISC",
    "PARISC64",
    "RISCV64",
    "LOONGARCH64",
];
/// This processor in `includes` and `excludes`, which use the names of Go.
const GO_ARCH: &str = "amd64";
const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    /// podman's form of the above, by name.
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<String>,
    listener_path: Option<String>,
    #[serde(rename = "listenerMetadata")]
    _listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    /// The older form of `names`.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    errno: Option<String>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Conditions,
    #[serde(default)]
    excludes: Conditions,
    #[serde(rename = "comment")]
    _comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Conditions {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Major and minor number of a kernel. Profiles ask for it by number, so it is compared here and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release(u32, u32);

impl Release {
    /// Of the running kernel.
    pub(super) fn running() -> io::Result<Self> {
        const PATH: &str = "/proc/sys/kernel/osrelease";
        let text = std::fs::read_to_string(PATH)?;
        Self::parse(&text).ok_or_else(|| io::Error::other(format!("{PATH}: {text:?} is no release")))
    }

    /// `6.12.48-amd64` or `4.8`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?;
        let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
        Some(Self(major, minor[..digits].parse().ok()?))
    }
}

/// The policy that a profile states, and the names in it that are no system calls here.
pub(super) fn policy(
    json: &str,
    caps: CapSet,
    kernel: Release,
) -> Result<(Policy, Vec<String>), SeccompError> {
    if json.len() > MAX_PROFILE_BYTES {
        return Err(SeccompError::TooLarge { bytes: json.len() });
    }
    let profile: Profile = serde_json::from_str(json).map_err(SeccompError::Json)?;
    check_frame(&profile)?;
    let errno = errno(profile.default_errno_ret, profile.default_errno.as_deref(), "defaultErrno")?;
    let default = verdict(&profile.default_action, errno, "defaultAction")?;
    let (mut policy, mut unknown, mut newest) = (Policy::new(default), Vec::new(), 0);
    for (index, entry) in profile.syscalls.iter().enumerate() {
        let names = || entry.names.iter().chain(&entry.name);
        let first = names().next().map_or("no name", String::as_str);
        let at = format!("syscalls[{index}] ({first})");
        let calls = names().filter_map(|name| match Sysno::from_str(name) {
            Ok(call) => Some(call.id().cast_unsigned()),
            Err(()) => {
                unknown.push(name.clone());
                None
            }
        });
        let calls: Vec<u32> = calls.collect();
        newest = calls.iter().copied().fold(newest, u32::max);
        let rules = rules(entry, &at)?;
        if !applies(entry, caps, kernel, &at)? {
            continue;
        }
        // What says the same as the default takes no part, as in runc: it would win over what allows.
        for rule in rules.into_iter().filter(|rule| rule.verdict != default) {
            calls.iter().for_each(|call| policy.add(*call, rule.clone()));
        }
    }
    if default.is_errno() {
        policy.newer = Some((newest + 1, Verdict::errno(ENOSYS)));
    }
    unknown.sort();
    unknown.dedup();
    Ok((policy, unknown))
}

fn bad<T>(at: impl Into<String>, why: impl Into<String>) -> Result<T, SeccompError> {
    Err(SeccompError::Value { at: at.into(), why: why.into() })
}

/// What is around the rules.
fn check_frame(profile: &Profile) -> Result<(), SeccompError> {
    let mapped = profile
        .arch_map
        .iter()
        .flat_map(|map| std::iter::once(&map.architecture).chain(map.sub_architectures.iter().flatten()));
    for name in profile.architectures.iter().chain(mapped) {
        let plain = name.strip_prefix("SCMP_ARCH_").unwrap_or(name);
        if !ARCHITECTURES.contains(&plain) {
            return bad(
                "architectures",
                format!("{name:?} is no architecture; this one is SCMP_ARCH_X86_64"),
            );
        }
    }
    if let Some(flag) = profile.flags.iter().find(|flag| !FLAGS.contains(&flag.as_str())) {
        return bad("flags", format!("{flag:?} is no flag: there are {}", FLAGS.join(", ")));
    }
    if profile.listener_path.is_some() {
        return bad("listenerPath", "there is no supervisor that calls could be sent to");
    }
    Ok(())
}

/// By number, or by name as podman writes it.
fn errno(number: Option<u32>, name: Option<&str>, at: &str) -> Result<u32, SeccompError> {
    // An empty name goes with a number.
    let named = match name.filter(|name| !name.is_empty()) {
        Some(name) => match errno_of(name) {
            Some(number) => Some(number),
            None => return bad(at, format!("{name:?} is no name of an errno")),
        },
        None => None,
    };
    let errno = number.or(named).unwrap_or(libc::EPERM as u32);
    if errno > MAX_ERRNO { bad(at, format!("{errno} is no errno: give 0 to {MAX_ERRNO}")) } else { Ok(errno) }
}

/// nix knows the names; the numbers end long before 256.
fn errno_of(name: &str) -> Option<u32> {
    let found = (1..256).find(|number| format!("{:?}", nix::errno::Errno::from_raw(*number)) == name)?;
    u32::try_from(found).ok()
}

fn verdict(action: &str, errno: u32, at: &str) -> Result<Verdict, SeccompError> {
    let action = match action {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno),
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno),
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_NOTIFY" => {
            return bad(at, "SCMP_ACT_NOTIFY needs a supervisor, and there is none: choose another action");
        }
        _ => {
            return bad(
                at,
                format!(
                    "{action:?} is no action: there are SCMP_ACT_ALLOW, _ERRNO, _KILL_PROCESS, _KILL_THREAD, \
                     _KILL, _TRAP, _TRACE and _LOG"
                ),
            );
        }
    };
    Ok(action.into())
}

fn rules(entry: &Entry, at: &str) -> Result<Vec<Rule>, SeccompError> {
    let errno = errno(entry.errno_ret, entry.errno.as_deref(), &format!("{at}, errno"))?;
    let verdict = verdict(&entry.action, errno, &format!("{at}, action"))?;
    let arguments = entry.args.as_deref().unwrap_or_default();
    let mut conditions = Vec::with_capacity(arguments.len().min(usize::from(ARGUMENTS)));
    for (index, argument) in arguments.iter().enumerate() {
        conditions.push(condition(argument, &format!("{at}, args[{index}]"))?);
    }
    let mut seen = [false; ARGUMENTS as usize];
    let twice = arguments.iter().any(|a| std::mem::replace(&mut seen[usize::from(a.index)], true));
    let all_of = if twice { conditions.into_iter().map(|c| vec![c]).collect() } else { vec![conditions] };
    Ok(all_of.into_iter().map(|conditions| Rule { conditions, verdict }).collect())
}

fn condition(argument: &Argument, at: &str) -> Result<SeccompCondition, SeccompError> {
    if argument.index >= ARGUMENTS {
        return bad(at, format!("index {}: system calls have arguments 0 to 5", argument.index));
    }
    let (op, value) = match argument.op.as_str() {
        "SCMP_CMP_NE" => (SeccompCmpOp::Ne, argument.value),
        "SCMP_CMP_LT" => (SeccompCmpOp::Lt, argument.value),
        "SCMP_CMP_LE" => (SeccompCmpOp::Le, argument.value),
        "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, argument.value),
        "SCMP_CMP_GE" => (SeccompCmpOp::Ge, argument.value),
        "SCMP_CMP_GT" => (SeccompCmpOp::Gt, argument.value),
        "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(argument.value), argument.value_two),
        op => {
            return bad(
                at,
                format!(
                    "{op:?} is no comparison: there are SCMP_CMP_NE, _LT, _LE, _EQ, _GE, _GT and _MASKED_EQ"
                ),
            );
        }
    };
    SeccompCondition::new(argument.index, SeccompCmpArgLen::Qword, op, value).map_err(SeccompError::Rule)
}

/// Do the conditions of an entry hold for this task on this kernel?
fn applies(entry: &Entry, caps: CapSet, kernel: Release, at: &str) -> Result<bool, SeccompError> {
    let (includes, excludes) = (&entry.includes, &entry.excludes);
    let wanted = held(&includes.caps, caps, at)?;
    let unwanted = held(&excludes.caps, caps, at)?;
    let here = |arches: &[String]| arches.iter().any(|arch| arch == GO_ARCH);
    let reached = |min: &Option<String>| match min.as_deref().map(|min| (min, Release::parse(min))) {
        None => Ok(None),
        Some((_, Some(min))) => Ok(Some(kernel >= min)),
        Some((min, None)) => bad(format!("{at}, minKernel"), format!("{min:?} is no release like 4.8")),
    };
    let included = wanted.iter().all(|held| *held)
        && (includes.arches.is_empty() || here(&includes.arches))
        && reached(&includes.min_kernel)?.unwrap_or(true);
    let excluded = unwanted.iter().any(|held| *held)
        || here(&excludes.arches)
        || reached(&excludes.min_kernel)?.unwrap_or(false);
    Ok(included && !excluded)
}

/// For each capability: does the task hold it?
fn held(names: &[String], caps: CapSet, at: &str) -> Result<Vec<bool>, SeccompError> {
    let held = |name: &String| match CapSet::parse_name(name) {
        Ok(cap) => Ok(caps.contains(cap)),
        Err(error) => bad(format!("{at}, caps"), error.to_string()),
    };
    names.iter().map(held).collect()
}
