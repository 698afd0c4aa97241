//! Which fences stand around a task: its profile, and what the task changes about it. Pure.
//!
//! | | `default` | `trusted` |
//! |---|---|---|
//! | namespaces | mount, pid, ipc, uts | none |
//! | files | a /tmp, /dev and /proc of its own, the rest read-only; Landlock without an image | the host's, or its image |
//! | capabilities | none, for root too | those of its user, without `CAP_SYS_RESOURCE` |
//! | system calls | the default filter | all but those that lead out of a disk quota |
//! | no_new_privs | yes | unless it is root |
//!
//! A change that makes the profile weaker is refused unless the operator allows trusted tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use bulkhead_proto::v1;

use super::{
    capability::{CapSet, UnknownCapability},
    rlimit::{Limit, LimitError},
};
use crate::kernel::spawn::Namespaces;

/// A named set of fences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// For code that nobody vouches for.
    #[default]
    Default,
    /// For the operator's own.
    Trusted,
}

impl FromStr for Profile {
    type Err = ConfineError;

    fn from_str(name: &str) -> Result<Self, ConfineError> {
        match name {
            "default" => Ok(Self::Default),
            "trusted" => Ok(Self::Trusted),
            _ => Err(ConfineError::Profile(name.to_owned())),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Trusted => "trusted",
        })
    }
}

/// The kernel features that stand behind fences, by their names in [`crate::kernel::probe`].
pub const FENCES: [&str; 4] = ["namespaces", "user_namespace", "seccomp", "landlock"];

/// Those that `allow_unenforced` can name: the default profile then goes without, where the kernel lacks them.
pub const WAIVABLE: [&str; 2] = ["seccomp", "landlock"];

/// What this node allows and can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// For tasks that name none.
    pub profile: Profile,
    /// May a task be trusted, or weaken its profile?
    pub allow_trusted: bool,
    /// Read and executed by tasks without an image, besides the system's directories.
    pub readable_paths: Vec<PathBuf>,
    /// Volumes are these directories, or lie below them.
    pub volume_dirs: Vec<PathBuf>,
    /// Which of [`FENCES`] the kernel lacks, and why.
    pub lacks: BTreeMap<&'static str, String>,
    /// Which of [`WAIVABLE`] the operator does without.
    pub waived: BTreeSet<String>,
}

/// What stands around one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fences {
    /// What it started from.
    pub profile: Profile,
    /// Made with its process.
    pub namespaces: Namespaces,
    /// Root inside, its user outside.
    pub user_namespace: bool,
    /// Of the uts namespace.
    pub hostname: Option<String>,
    /// A /tmp, /dev and /proc of its own, and everything else read-only but what is the task's.
    pub private_files: bool,
    /// Only without an image: Landlock on the host's root.
    pub landlock: bool,
    /// Host paths that may be read and executed, besides the system's.
    pub readable_paths: Vec<PathBuf>,
    /// Added to those of the profile.
    pub add_capabilities: CapSet,
    /// Taken from them.
    pub drop_capabilities: CapSet,
    /// `None` is: unless it runs as root.
    pub no_new_privs: Option<bool>,
    /// A profile in JSON, or empty for the default one; `None` filters nothing.
    pub seccomp: Option<String>,
    /// A filter of its own against what leads out of a disk quota: where `seccomp` is not the default one.
    pub quota_guard: bool,
    /// Besides the limits that it inherits.
    pub limits: Vec<Limit>,
    /// Of what it creates.
    pub umask: u32,
    /// Supplementary groups by name or number; empty are those of the user.
    pub groups: Vec<String>,
    /// May the groups be others than the user's own?
    pub any_group: bool,
    /// Physical cores that it shares with nobody.
    pub core_scheduling: bool,
}

/// A confinement that is malformed, not allowed here, or more than this kernel can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfineError {
    /// No such profile.
    #[error("there is no profile {0:?}: the profiles are default and trusted")]
    Profile(String),
    /// Weaker than the profile.
    #[error(
        "{0} weakens the confinement, which only an agent with allow_trusted_tasks permits: leave it out, or ask the node's operator"
    )]
    NotTrusted(String),
    /// The kernel cannot do it.
    #[error("this kernel has no {feature} ({why}), which the task's confinement needs{}", advice(feature))]
    Missing {
        /// Its name.
        feature: &'static str,
        /// What the probe found.
        why: String,
    },
    /// A capability that is none.
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    /// A resource limit that is none.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The one capability that no task has.
    #[error("no task has CAP_SYS_RESOURCE: its disk quota would not hold for it. Leave it out")]
    Quota,
    /// A capability that goes with sockets.
    #[error(
        "CAP_NET_RAW goes with raw or packet sockets in the grant (net.sockets), or with a network namespace of the \
         task's own: ask for either, or leave it out"
    )]
    NetRaw,
    /// A value that means nothing.
    #[error("{what} {value:?}: {why}")]
    Value {
        /// Which.
        what: &'static str,
        /// As it was given.
        value: String,
        /// What would be right.
        why: &'static str,
    },
    /// A volume from elsewhere.
    #[error("volume {0:?}: the agent's volume_dirs do not hold it")]
    VolumeNotAllowed(String),
}

fn advice(feature: &str) -> String {
    if !WAIVABLE.contains(&feature) {
        return String::new();
    }
    format!(": an operator who does without it adds {feature} to allow_unenforced")
}

/// Longest name of sethostname(2).
const MAX_HOSTNAME: usize = 64;
const DEFAULT_UMASK: u32 = 0o022;
/// Seccomp's word for none.
const UNCONFINED: &str = "unconfined";

impl Fences {
    /// Checks what a task asks for against what this node allows and its kernel can do.
    ///
    /// # Errors
    /// [`ConfineError`] says what is refused and what to do.
    pub fn check(spec: &v1::TaskSpec, core_scheduling: bool, rules: &Rules) -> Result<Self, ConfineError> {
        let absent = v1::Confinement::default();
        let asked = spec.confinement.as_ref().unwrap_or(&absent);
        let profile = if asked.profile.is_empty() { rules.profile } else { asked.profile.parse()? };
        if profile == Profile::Trusted && rules.profile == Profile::Default {
            weaker(rules, "the profile trusted")?;
        }
        for what in weakening(asked, profile, rules) {
            weaker(rules, &what)?;
        }
        let add_capabilities = capabilities(&asked.add_capabilities)?;
        // ALL stands for all that a task can have.
        if add_capabilities != CapSet::ALL && add_capabilities.contains(CapSet::SYS_RESOURCE) {
            return Err(ConfineError::Quota);
        }
        let net_raw = asked.network_namespace == Some(true) || has_raw_sockets(spec);
        if add_capabilities != CapSet::ALL && add_capabilities.contains(CapSet::NET_RAW) && !net_raw {
            return Err(ConfineError::NetRaw);
        }
        let withheld = if net_raw { CapSet::EMPTY } else { CapSet::NET_RAW };
        let image = spec.image.is_some();
        let confined = profile == Profile::Default;
        let seccomp = match asked.seccomp.as_str() {
            "" => confined.then(String::new),
            UNCONFINED => None,
            json => Some(json.to_owned()),
        };
        let mut fences = Self {
            profile,
            namespaces: namespaces(asked, confined, image || !spec.volumes.is_empty()),
            user_namespace: asked.user_namespace == Some(true),
            hostname: hostname(&asked.hostname)?,
            private_files: confined || image,
            landlock: confined && !image,
            readable_paths: readable(asked, image, rules)?,
            add_capabilities,
            drop_capabilities: capabilities(&asked.drop_capabilities)? | withheld,
            no_new_privs: asked.no_new_privs.or_else(|| confined.then_some(true)),
            quota_guard: seccomp.as_deref() != Some(""),
            seccomp,
            limits: asked.rlimits.iter().map(Limit::check).collect::<Result<_, _>>()?,
            umask: umask(asked.umask)?,
            groups: asked.groups.clone(),
            any_group: rules.allow_trusted,
            core_scheduling,
        };
        fences.need(rules)?;
        Ok(fences)
    }

    /// The capabilities that the program keeps. Never `CAP_SYS_RESOURCE`: ext4 ignores quotas for it. `CAP_NET_RAW` only
    /// where the grant has sockets that need it, or in a network namespace of its own.
    pub fn capabilities(&self, as_root: bool) -> CapSet {
        let base = if self.profile == Profile::Trusted && as_root { CapSet::ALL } else { CapSet::EMPTY };
        (base | self.add_capabilities) - self.drop_capabilities - CapSet::SYS_RESOURCE
    }

    /// The capabilities that no program it executes can gain more than.
    pub fn bounding_set(&self, as_root: bool) -> CapSet {
        match self.profile {
            Profile::Default => self.capabilities(as_root),
            Profile::Trusted => CapSet::ALL - self.drop_capabilities - CapSet::SYS_RESOURCE,
        }
    }

    /// Fails for a fence that the kernel lacks. One that only the profile asks for, and that the operator does
    /// without, is taken away.
    fn need(&mut self, rules: &Rules) -> Result<(), ConfineError> {
        let own_seccomp = self.seccomp.as_ref().is_some_and(|json| !json.is_empty());
        let needed = [
            ("namespaces", self.namespaces != Namespaces::default()),
            ("user_namespace", self.user_namespace),
            ("seccomp", self.seccomp.is_some() || self.quota_guard),
            ("landlock", self.landlock),
        ];
        for (feature, _) in needed.into_iter().filter(|(_, needed)| *needed) {
            let Some(why) = rules.lacks.get(feature) else { continue };
            match feature {
                "landlock" if rules.waived.contains(feature) => self.landlock = false,
                "seccomp" if rules.waived.contains(feature) && !own_seccomp => {
                    (self.seccomp, self.quota_guard) = (None, false);
                }
                _ => return Err(ConfineError::Missing { feature, why: why.clone() }),
            }
        }
        Ok(())
    }
}

/// Does the grant name sockets that see what others receive?
fn has_raw_sockets(spec: &v1::TaskSpec) -> bool {
    let raw = [v1::SocketKind::Raw, v1::SocketKind::Packet].map(i32::from);
    let options = spec.grant.as_ref().and_then(|grant| grant.net.as_ref());
    options.is_some_and(|net| net.sockets.iter().any(|kind| raw.contains(kind)))
}

fn capabilities(names: &[String]) -> Result<CapSet, UnknownCapability> {
    CapSet::parse(names.iter().map(String::as_str))
}

fn weaker(rules: &Rules, what: &str) -> Result<(), ConfineError> {
    if rules.allow_trusted { Ok(()) } else { Err(ConfineError::NotTrusted(what.to_owned())) }
}

/// What of the request leaves the task with less around it than its profile.
fn weakening(asked: &v1::Confinement, profile: Profile, rules: &Rules) -> Vec<String> {
    let mut weaker = Vec::new();
    if profile == Profile::Default {
        let off = |value: Option<bool>| value == Some(false);
        let switches = [
            (off(asked.pid_namespace), "pid_namespace = false"),
            (off(asked.ipc_namespace), "ipc_namespace = false"),
            (!asked.seccomp.is_empty(), "a seccomp profile of its own"),
        ];
        weaker.extend(switches.iter().filter(|(asked, _)| *asked).map(|(_, what)| (*what).to_owned()));
    }
    if asked.no_new_privs == Some(false) {
        weaker.push("no_new_privs = false".to_owned());
    }
    if !asked.add_capabilities.is_empty() {
        weaker.push(format!("the capability {}", asked.add_capabilities.join(", ")));
    }
    let foreign = |path: &&String| !rules.readable_paths.iter().any(|p| Path::new(path).starts_with(p));
    weaker.extend(asked.readable_paths.iter().find(foreign).map(|path| format!("the readable path {path}")));
    let limit = asked.rlimits.iter().find(|limit| Limit::raises_priority(&limit.name));
    weaker.extend(limit.map(|limit| format!("the limit {}", limit.name)));
    weaker
}

fn namespaces(asked: &v1::Confinement, confined: bool, own_mounts: bool) -> Namespaces {
    let pid = asked.pid_namespace.unwrap_or(confined);
    Namespaces {
        // A pid namespace needs a /proc of its own.
        mount: confined || own_mounts || pid,
        pid,
        ipc: asked.ipc_namespace.unwrap_or(confined),
        uts: confined || !asked.hostname.is_empty(),
        network: asked.network_namespace == Some(true),
    }
}

fn hostname(name: &str) -> Result<Option<String>, ConfineError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if name.len() > MAX_HOSTNAME || !name.chars().all(plain) {
        let why = "write at most 64 letters, digits, dashes and dots";
        return Err(ConfineError::Value { what: "hostname", value: name.to_owned(), why });
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

fn readable(asked: &v1::Confinement, image: bool, rules: &Rules) -> Result<Vec<PathBuf>, ConfineError> {
    if image {
        let Some(path) = asked.readable_paths.first() else { return Ok(Vec::new()) };
        let why = "a task with an image sees nothing of the host: give it as a volume";
        return Err(ConfineError::Value { what: "readable path", value: path.clone(), why });
    }
    let own = asked.readable_paths.iter().map(|path| {
        plain_absolute(Path::new(path)).ok_or_else(|| ConfineError::Value {
            what: "readable path",
            value: path.clone(),
            why: "write an absolute path without ..",
        })
    });
    rules.readable_paths.iter().cloned().map(Ok).chain(own).collect()
}

fn umask(asked: Option<u32>) -> Result<u32, ConfineError> {
    match asked {
        None => Ok(DEFAULT_UMASK),
        Some(mask @ 0..=0o777) => Ok(mask),
        Some(mask) => {
            let why = "write 0 to 0777";
            Err(ConfineError::Value { what: "umask", value: format!("{mask:#o}"), why })
        }
    }
}

/// A path from the root that does not go back up, and has no NUL byte.
pub(crate) fn plain_absolute(path: &Path) -> Option<PathBuf> {
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    let text = path.as_os_str().as_encoded_bytes();
    (path.is_absolute() && plain && !text.contains(&0)).then(|| path.to_owned())
}

#[cfg(test)]
mod tests;
