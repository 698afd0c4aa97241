//! Limits of setrlimit(2) by name.

use bulkhead_proto::v1;

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_...`
    pub resource: u32,
    /// Its name in lower case.
    pub name: &'static str,
    /// Where the program is stopped; [`u64::MAX`] is nowhere.
    pub soft: u64,
    /// How far it may raise that itself.
    pub hard: u64,
}

/// No limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Not one of setrlimit(2).
    #[error("there is no limit {0:?}: write nofile, core, stack, ... (setrlimit(2))")]
    Unknown(String),
    /// Named twice.
    #[error("limit {name}: soft {soft} is above hard {hard}")]
    Order {
        /// Which.
        name: &'static str,
        /// As it was given.
        soft: u64,
        /// As it was given.
        hard: u64,
    },
}

const LIMITS: [(&str, u32); 16] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

impl Limit {
    /// Checks a limit of a task.
    ///
    /// # Errors
    /// [`LimitError`].
    pub fn check(asked: &v1::Rlimit) -> Result<Self, LimitError> {
        let found = LIMITS.iter().find(|(name, _)| *name == asked.name);
        let &(name, resource) = found.ok_or_else(|| LimitError::Unknown(asked.name.clone()))?;
        let (soft, hard) = (asked.soft, asked.hard);
        if soft > hard {
            Err(LimitError::Order { name, soft, hard })
        } else {
            Ok(Self { resource, name, soft, hard })
        }
    }

    /// Could a task with it run before others that weigh as much?
    pub fn raises_priority(name: &str) -> bool {
        matches!(name, "nice" | "rtprio")
    }
}
