//! Capabilities by name, and sets of them.

use std::{fmt, io, ops};

/// Where the kernel says which capability is its last.
const LAST_CAP: &str = "/proc/sys/kernel/cap_last_cap";

/// In the order of their numbers in linux/capability.h.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities: bit n is the capability of number n, as in capset(2) and /proc/PID/status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CapSet(u64);

/// A name that is no capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no capability{}", suggestion(*.nearest))]
pub struct UnknownCapability {
    /// As it was asked for.
    pub name: String,
    /// What may have been meant.
    pub nearest: Option<&'static str>,
}

fn suggestion(nearest: Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |name| format!(": did you mean CAP_{name}?"))
}

impl CapSet {
    /// None at all.
    pub const EMPTY: Self = Self(0);
    /// Every capability that has a name here. What the kernel has may be fewer: see [`CapSet::of_kernel`].
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);
    /// CAP_NET_RAW, for raw and packet sockets.
    pub const NET_RAW: Self = Self(1 << 13);
    /// CAP_SYS_ADMIN, which stands for most of what root may do.
    pub const SYS_ADMIN: Self = Self(1 << 21);
    /// CAP_SYS_RESOURCE, for which ext4 ignores quotas.
    pub const SYS_RESOURCE: Self = Self(1 << 24);

    /// Every capability of the running kernel, those without a name here too.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn of_kernel() -> io::Result<Self> {
        Ok(Self::up_to(last_cap()?))
    }

    /// The capabilities 0 to `last`.
    const fn up_to(last: u32) -> Self {
        if last >= 63 { Self(u64::MAX) } else { Self((1 << (last + 1)) - 1) }
    }

    /// The set that a name stands for: one capability, with or without `CAP_`, in any case; or `ALL`.
    ///
    /// # Errors
    /// [`UnknownCapability`], with what may have been meant.
    pub fn parse_name(name: &str) -> Result<Self, UnknownCapability> {
        let upper = name.trim().to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(Self::ALL);
        }
        let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match NAMES.iter().position(|known| *known == plain) {
            Some(number) => Ok(Self(1 << number)),
            None => Err(UnknownCapability { name: name.to_owned(), nearest: nearest(plain) }),
        }
    }

    /// The set that all these names stand for.
    ///
    /// # Errors
    /// The first name that is no capability.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownCapability> {
        names.into_iter().try_fold(Self::EMPTY, |set, name| Ok(set | Self::parse_name(name)?))
    }

    /// Capability n is bit n.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Is nothing in it?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Is all of `other` in it?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The numbers of its capabilities, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |number| self.0 & (1 << number) != 0)
    }
}

impl ops::BitOr for CapSet {
    type Output = Self;

    /// What is in either.
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl ops::BitAnd for CapSet {
    type Output = Self;

    /// What is in both.
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl ops::Sub for CapSet {
    type Output = Self;

    /// What is in this one alone.
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// `CAP_CHOWN CAP_KILL`; a capability without a name shows its number; nothing is `none`.
impl fmt::Display for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (shown, number) in self.numbers().enumerate() {
            let space = if shown == 0 { "" } else { " " };
            match usize::try_from(number).ok().and_then(|n| NAMES.get(n)) {
                Some(name) => write!(f, "{space}CAP_{name}")?,
                None => write!(f, "{space}{number}")?,
            }
        }
        Ok(())
    }
}

/// The number of the kernel's last capability.
///
/// # Errors
/// Where /proc is not mounted, or holds no number there.
pub fn last_cap() -> io::Result<u32> {
    let text = std::fs::read_to_string(LAST_CAP)
        .map_err(|e| io::Error::new(e.kind(), format!("{LAST_CAP}: {e}")))?;
    text.trim().parse().map_err(|e| io::Error::other(format!("{LAST_CAP}: {text:?}: {e}")))
}

/// The known name that differs least, if it is near enough to be a slip.
fn nearest(plain: &str) -> Option<&'static str> {
    // A far longer text is no slip, and comparing costs the product of both lengths.
    if plain.len() > 40 {
        return None;
    }
    let scored = NAMES.iter().map(|known| (strsim::damerau_levenshtein(known, plain), *known));
    scored.min().filter(|(distance, name)| *distance <= 1 + name.len() / 4).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_its_number_in_every_spelling() {
        for (number, name) in NAMES.iter().enumerate() {
            let set = CapSet(1 << number);
            for spelling in
                [name.to_string(), name.to_lowercase(), format!("CAP_{name}"), format!("cap_{name}")]
            {
                assert_eq!(CapSet::parse_name(&spelling), Ok(set), "{spelling}");
            }
            assert_eq!(set.to_string(), format!("CAP_{name}"));
        }
        assert_eq!(CapSet::parse_name("all"), Ok(CapSet::ALL));
        assert_eq!(CapSet::parse_name("SYS_ADMIN"), Ok(CapSet::SYS_ADMIN));
    }

    #[test]
    fn a_slip_is_answered_with_the_name_that_was_meant() {
        let error = |name| CapSet::parse_name(name).unwrap_err().to_string();
        assert_eq!(error("CAP_NET_ADMN"), r#""CAP_NET_ADMN" is no capability: did you mean CAP_NET_ADMIN?"#);
        assert!(error("sys-ptrace").ends_with("did you mean CAP_SYS_PTRACE?"));
        assert_eq!(error("nothing of the kind"), r#""nothing of the kind" is no capability"#);
        assert_eq!(error(""), r#""" is no capability"#);
        assert!(CapSet::parse_name(&"A".repeat(1 << 20)).is_err());
    }

    #[test]
    fn sets_add_and_remove() {
        let two = CapSet::parse(["chown", "KILL"]).unwrap();
        assert_eq!(two.to_string(), "CAP_CHOWN CAP_KILL");
        assert_eq!(two.numbers().collect::<Vec<_>>(), [0, 5]);
        assert!(CapSet::ALL.contains(two) && !two.contains(CapSet::ALL));
        assert!((two - CapSet::ALL).is_empty());
        assert_eq!((CapSet::ALL - two) | two, CapSet::ALL);
        assert_eq!(CapSet::EMPTY.to_string(), "none");
        assert_eq!(CapSet(1 << 60).to_string(), "60");
        assert!(CapSet::parse(["chown", "nope"]).is_err());
    }

    #[test]
    fn the_kernels_last_capability_bounds_its_set() {
        assert_eq!(CapSet::up_to(0).bits(), 1);
        assert_eq!(CapSet::up_to(40), CapSet::ALL);
        assert_eq!(CapSet::up_to(200).bits(), u64::MAX);
        assert_eq!(CapSet::of_kernel().unwrap().numbers().max(), Some(last_cap().unwrap()));
    }
}
