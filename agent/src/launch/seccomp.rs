//! Filters of system calls: the default profile, and profiles in the JSON form that containers use.
//!
//! A [`Filter`] is a finished program for `seccomp(SECCOMP_SET_MODE_FILTER)`; the launch hands it to the kernel
//! between clone and exec. Only 64-bit calls of this processor exist under any filter: a call of a 32-bit program
//! ends it with SIGSYS, one of x32 fails with ENOSYS, whatever a profile says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use libc::sock_filter;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};

use self::program::{ENOSYS, Policy, Rule, Verdict};
use super::capability::CapSet;
use crate::kernel::quota::FORBIDDEN_IOCTLS;

mod guard;
mod profile;
mod program;
mod table;

/// A larger profile is no profile; those of container engines have about 20 KiB.
pub const MAX_PROFILE_BYTES: usize = 256 * 1024;
/// Filters that a [`FilterCache`] keeps.
const CACHED: usize = 64;

/// A profile that is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// Too much text.
    #[error("the seccomp profile has {bytes} bytes: at most {MAX_PROFILE_BYTES} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No JSON, or not of the form of a profile. Names line, column and key.
    #[error("the seccomp profile is malformed")]
    Json(#[source] serde_json::Error),
    /// A value that has no meaning.
    #[error("seccomp profile, {at}: {why}")]
    Value {
        /// The key, and the system call where there is one.
        at: String,
        /// What is wrong, and what there is instead.
        why: String,
    },
    /// More than the kernel takes.
    #[error(
        "the seccomp profile makes {instructions} instructions, and the kernel takes {}: compare fewer arguments",
        program::MAX_INSTRUCTIONS
    )]
    TooLong {
        /// How many there would be.
        instructions: usize,
    },
    /// A comparison that cannot be written as instructions.
    #[error("a comparison of arguments")]
    Rule(#[source] seccompiler::BackendError),
    /// The kernel's release, which conditions of profiles ask for.
    #[error("read the kernel's release")]
    Release(#[source] std::io::Error),
}

/// A program for seccomp(2), made once and given to any number of tasks.
#[derive(Debug)]
pub struct Filter {
    program: Vec<sock_filter>,
    unknown: Vec<String>,
}

impl Filter {
    /// The default: what ordinary programs need, refused with EPERM otherwise. A capability that the task holds
    /// brings the calls that are of no use without it. `clone3` does not exist (ENOSYS) without CAP_SYS_ADMIN: its
    /// flags are in memory, where no filter sees them, and C libraries then use `clone`, whose flags are checked.
    ///
    /// # Errors
    /// None that a task could bring about.
    pub fn default_profile(caps: CapSet) -> Result<Self, SeccompError> {
        Ok(Self { program: default_policy(caps)?.compile()?, unknown: Vec::new() })
    }

    /// A profile in the form that container engines and the OCI runtime specification share, for a task that holds
    /// `caps` (entries may depend on them).
    ///
    /// Where several entries match one call, the strictest decides. Several conditions on the same argument of one
    /// entry are alternatives, as in runc. Calls with a number above all that a profile names, under a default of
    /// an errno, fail with ENOSYS, so that libraries fall back. `flags` are checked and not used: none of them
    /// makes a filter stricter.
    ///
    /// # Errors
    /// [`SeccompError`] names the line or the key, and what was expected.
    pub fn parse(json: &str, caps: CapSet) -> Result<Self, SeccompError> {
        let kernel = profile::Release::running().map_err(SeccompError::Release)?;
        let (policy, unknown) = profile::policy(json, caps, kernel)?;
        Ok(Self { program: policy.compile()?, unknown })
    }

    /// Lets everything through but the calls that give a file to another project, which its owner may do in the first
    /// user namespace: no quota would hold a task with them. For tasks under no filter, or one of their own.
    pub fn quota_guard() -> Self {
        Self { program: guard::program(), unknown: Vec::new() }
    }

    /// The instructions, for `struct sock_fprog`. Never more than the kernel takes.
    pub fn program(&self) -> &[sock_filter] {
        &self.program
    }

    /// Names in the profile that are no system calls of this processor, or newer than this agent. They are left to
    /// the profile's default, as container engines do.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }
}

/// Filters that were made before: one for each profile and set of capabilities.
#[derive(Debug)]
pub struct FilterCache {
    made: Mutex<HashMap<(String, CapSet), Arc<Filter>>>,
    quota_guard: Arc<Filter>,
}

impl Default for FilterCache {
    fn default() -> Self {
        Self { made: Mutex::default(), quota_guard: Arc::new(Filter::quota_guard()) }
    }
}

impl FilterCache {
    /// [`Filter::quota_guard`].
    pub fn quota_guard(&self) -> Arc<Filter> {
        Arc::clone(&self.quota_guard)
    }

    /// The filter of a profile in JSON, or of the default profile where it is empty.
    ///
    /// # Errors
    /// As [`Filter::parse`].
    pub fn get(&self, profile: &str, caps: CapSet) -> Result<Arc<Filter>, SeccompError> {
        if profile.len() > MAX_PROFILE_BYTES {
            return Err(SeccompError::TooLarge { bytes: profile.len() });
        }
        let key = (profile.to_owned(), caps);
        let lock = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = lock().get(&key) {
            return Ok(Arc::clone(filter));
        }
        let filter =
            if profile.is_empty() { Filter::default_profile(caps)? } else { Filter::parse(profile, caps)? };
        if !filter.unknown.is_empty() {
            let names = filter.unknown.join(" ");
            tracing::info!(count = filter.unknown.len(), names, "unknown system calls in a seccomp profile");
        }
        let filter = Arc::new(filter);
        let mut made = lock();
        // Profiles are few; where somebody sends ever new ones, they must not pile up.
        if made.len() >= CACHED {
            made.clear();
        }
        made.insert(key, Arc::clone(&filter));
        Ok(filter)
    }
}

/// The lower 32 bits of an argument. The kernel reads `int` and `unsigned int` arguments only so far: comparing
/// more of them would let a task pass a filter with bits that do not count.
fn int(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, SeccompError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).map_err(SeccompError::Rule)
}

#[expect(clippy::cast_possible_truncation, reason = "errno numbers are small")]
fn default_policy(caps: CapSet) -> Result<Policy, SeccompError> {
    use SeccompCmpOp::{Eq, MaskedEq};
    use syscalls::Sysno;

    const EPERM: Verdict = Verdict::errno(libc::EPERM as u16);
    const NO_PROTOCOL: Verdict = Verdict::errno(libc::EPROTONOSUPPORT as u16);
    let number = |call: Sysno| call.id().cast_unsigned();
    let allow = |conditions| Rule { conditions, verdict: Verdict::ALLOW };
    let fail = |conditions, verdict| Rule { conditions, verdict };

    let mut policy = Policy::new(EPERM);
    policy.newer = Some((number(Sysno::last()) + 1, Verdict::errno(ENOSYS)));
    for call in table::ALLOWED {
        policy.add(number(*call), allow(Vec::new()));
    }
    for call in table::PROBES {
        policy.add(call, allow(Vec::new()));
    }
    for (any_of, calls) in table::BY_CAPABILITY {
        let any_of = CapSet::parse(any_of.iter().copied()).unwrap_or_default();
        if !(any_of & caps).is_empty() {
            for call in *calls {
                policy.add(number(*call), allow(Vec::new()));
            }
        }
    }
    if !caps.contains(CapSet::SYS_ADMIN) {
        policy.add(number(Sysno::clone), allow(vec![int(0, MaskedEq(table::NAMESPACES), 0)?]));
        policy.add(number(Sysno::clone3), fail(Vec::new(), Verdict::errno(ENOSYS)));
    }
    for persona in table::PERSONALITIES {
        policy.add(number(Sysno::personality), allow(vec![int(0, Eq, persona)?]));
    }
    let socket = number(Sysno::socket);
    for family in table::INET {
        let (sctp, packets) =
            (int(2, Eq, table::SCTP)?, int(1, MaskedEq(table::TYPE_MASK), table::SEQPACKET)?);
        policy.add(socket, fail(vec![int(0, Eq, family)?, sctp], NO_PROTOCOL));
        policy.add(socket, fail(vec![int(0, Eq, family)?, packets], NO_PROTOCOL));
    }
    for family in table::FAMILIES {
        policy.add(socket, allow(vec![int(0, Eq, family)?]));
    }
    for request in table::TERMINAL_IOCTLS.into_iter().chain(FORBIDDEN_IOCTLS) {
        policy.add(number(Sysno::ioctl), fail(vec![int(1, Eq, request)?], EPERM));
    }
    policy.add(number(Sysno::ioctl), allow(Vec::new()));
    Ok(policy)
}

#[cfg(test)]
mod tests;
