//! The master's configuration: flags, environment, a TOML file, and the defaults with their reasons.
//!
//! A flag beats the environment, the environment beats the file, the file beats the default. Every name is written
//! once, as a field of [`Options`]; a key of the file that is not one of them is an error.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::Deserialize;

use crate::core::{SILENT_INTERVALS, Settings};

mod allocation;

pub use allocation::{AllocatorConfig, AllocatorOptions, NoSuchPolicy};

/// A length of time, written like `5s`, `500ms` or `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let problem =
            |e| format!("{text:?} is no length of time ({e}); write it like 5s, 500ms or \"1h 30m\"");
        humantime::parse_duration(text).map(Span).map_err(problem)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// What may be set, from anywhere. What is left out takes its default from [`Config`].
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Address and port for agents, frameworks, operators, /metrics and /healthz; port 0 takes a free one [default: 127.0.0.1:5050]
    #[arg(long, env = "BULKHEAD_MASTER_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// File to write the address to once the master listens on it
    #[arg(long, env = "BULKHEAD_MASTER_ADDRESS_FILE", value_name = "PATH")]
    pub address_file: Option<PathBuf>,
    /// How often agents say something and frameworks hear something [default: 5s]
    #[arg(long, env = "BULKHEAD_MASTER_HEARTBEAT_INTERVAL", value_name = "TIME")]
    pub heartbeat_interval: Option<Span>,
    /// How long after its last word the tasks of an agent are declared lost [default: 75s]
    #[arg(long, env = "BULKHEAD_MASTER_AGENT_TIMEOUT", value_name = "TIME")]
    pub agent_timeout: Option<Span>,
    /// How long an offer waits for an answer [default: 60s]
    #[arg(long, env = "BULKHEAD_MASTER_OFFER_TIMEOUT", value_name = "TIME")]
    pub offer_timeout: Option<Span>,
    /// How long a decline that names no time keeps an agent from being offered again [default: 5s]
    #[arg(long, env = "BULKHEAD_MASTER_REFUSE", value_name = "TIME")]
    pub refuse: Option<Span>,
    /// How long running tasks wait for a framework that this master has never seen [default: 10m]
    #[arg(long, env = "BULKHEAD_MASTER_FAILOVER_TIMEOUT", value_name = "TIME")]
    pub failover_timeout: Option<Span>,
    /// How many ended tasks are remembered [default: 1000]
    #[arg(long, env = "BULKHEAD_MASTER_HISTORY", value_name = "COUNT")]
    pub history: Option<usize>,
    /// How many ended tasks a framework may leave unacknowledged before it gets no more [default: 10000]
    #[arg(long, env = "BULKHEAD_MASTER_UNACKNOWLEDGED", value_name = "COUNT")]
    pub unacknowledged: Option<usize>,
    /// How many unread messages a stream may pile up before it is cut [default: 16384]
    #[arg(long, env = "BULKHEAD_MASTER_SESSION_QUEUE", value_name = "COUNT")]
    pub session_queue: Option<usize>,
    /// Only in the file.
    #[arg(skip)]
    pub allocator: Option<AllocatorOptions>,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen. Loopback by default: the streams carry commands to run and are not authenticated.
    pub listen: SocketAddr,
    /// Where to write the address; nowhere by default.
    pub address_file: Option<PathBuf>,
    /// 5 s: an agent is taken for away after three of them, soon enough for its offers to be of no harm.
    pub heartbeat_interval: Duration,
    /// 75 s: what Mesos took; an agent is restarted, or a switch replugged, in less.
    pub agent_timeout: Duration,
    /// 60 s: a framework that has not answered by then is not going to.
    pub offer_timeout: Duration,
    /// 5 s: what Mesos took; the fair order, not the refusal, keeps one framework from getting everything.
    pub refuse: Duration,
    /// 10 min: a framework that is restarted together with the master is back in less.
    pub failover_timeout: Duration,
    /// 1000: enough for `ps` to explain this morning, about a megabyte.
    pub history: usize,
    /// 10000: every status of them is kept by its agent and by the master until it is acknowledged; some ten megabytes.
    pub unacknowledged: usize,
    /// 16384: the news of one lost agent with ten thousand tasks fits.
    pub session_queue: usize,
    /// Dominant resource fairness among roles of equal weight, without quotas.
    pub allocator: AllocatorConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 5050).into(),
            address_file: None,
            heartbeat_interval: Duration::from_secs(5),
            agent_timeout: Duration::from_secs(75),
            offer_timeout: Duration::from_secs(60),
            refuse: Duration::from_secs(5),
            failover_timeout: Duration::from_secs(600),
            history: 1000,
            unacknowledged: 10_000,
            session_queue: 16 << 10,
            allocator: AllocatorConfig::default(),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the source names line, column and key.
    #[error("{} is not a valid configuration", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where in it.
        source: Box<toml::de::Error>,
    },
    /// A value that makes no sense, or not together with the others.
    #[error("{key}: {problem}")]
    Value {
        /// Which setting.
        key: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Config {
    /// Flags and environment over the file over the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, line and key, or the setting, that is wrong.
    pub fn load(given: Options, file: Option<&Path>) -> Result<Self, ConfigError> {
        let written = file.map(read).transpose()?.unwrap_or_default();
        Self::from_options(given, written)
    }

    fn from_options(first: Options, second: Options) -> Result<Self, ConfigError> {
        let usual = Self::default();
        let span = |a: Option<Span>, b: Option<Span>, usual: Duration| a.or(b).map_or(usual, |s| s.0);
        let allocator = first.allocator.or(second.allocator).unwrap_or_default();
        let allocator = AllocatorConfig::from_options(allocator)
            .map_err(|problem| ConfigError::Value { key: "allocator", problem })?;
        let config = Self {
            allocator,
            listen: first.listen.or(second.listen).unwrap_or(usual.listen),
            address_file: first.address_file.or(second.address_file),
            heartbeat_interval: span(
                first.heartbeat_interval,
                second.heartbeat_interval,
                usual.heartbeat_interval,
            ),
            agent_timeout: span(first.agent_timeout, second.agent_timeout, usual.agent_timeout),
            offer_timeout: span(first.offer_timeout, second.offer_timeout, usual.offer_timeout),
            refuse: span(first.refuse, second.refuse, usual.refuse),
            failover_timeout: span(first.failover_timeout, second.failover_timeout, usual.failover_timeout),
            history: first.history.or(second.history).unwrap_or(usual.history),
            unacknowledged: first.unacknowledged.or(second.unacknowledged).unwrap_or(usual.unacknowledged),
            session_queue: first.session_queue.or(second.session_queue).unwrap_or(usual.session_queue),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, problem: String| Err(ConfigError::Value { key, problem });
        if ms(self.heartbeat_interval) == 0 {
            return value("heartbeat_interval", "must be at least 1ms".to_owned());
        }
        let silent =
            self.heartbeat_interval.saturating_mul(u32::try_from(SILENT_INTERVALS).unwrap_or(u32::MAX));
        if self.agent_timeout < silent {
            let least = humantime::format_duration(silent);
            return value(
                "agent_timeout",
                format!("must be at least {SILENT_INTERVALS} heartbeat intervals, {least}"),
            );
        }
        if ms(self.offer_timeout) == 0 {
            return value(
                "offer_timeout",
                "must be at least 1ms: an offer needs time to be answered".to_owned(),
            );
        }
        if self.unacknowledged == 0 {
            return value(
                "unacknowledged",
                "must be at least 1: an end takes a moment to acknowledge".to_owned(),
            );
        }
        if self.session_queue == 0 {
            return value("session_queue", "must be at least 1".to_owned());
        }
        Ok(())
    }

    /// What the core needs of it.
    pub fn settings(&self) -> Settings {
        Settings {
            heartbeat_interval_ms: ms(self.heartbeat_interval),
            agent_timeout_ms: ms(self.agent_timeout),
            offer_timeout_ms: ms(self.offer_timeout),
            refuse_ms: ms(self.refuse),
            failover_timeout_ms: ms(self.failover_timeout),
            history: self.history,
            unacknowledged: self.unacknowledged,
        }
    }
}

fn read(path: &Path) -> Result<Options, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|e| ConfigError::Parse { path: path.to_owned(), source: Box::new(e) })
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
