//! The node agent.
//!
//! ```text
//! kernel -> measure -> estimate -> offer -> link ======> master
//!                                                          |
//! task <- isolate <- launch <- link <==== launch with a grant
//! ```
//!
//! # Tasks and channels
//! - `keeper` owns the books (ledger, tasks) and is the only one to change them; everybody else sends it
//!   [`keeper::Message`]s.
//! - `link` holds the stream to the master: what the keeper puts into its outbox goes up, what comes down
//!   becomes messages to the keeper.
//! - one `launch` and then one `supervise` per task, which report back to the keeper.
//! - `qos`, a thread that comes before all others, is woken by the kernel while guaranteed tasks wait, and holds the revocable
//!   ones to less.
//! - `sampler` measures the node every period and tells the keeper.
//! - `locality` looks at the data sets that frameworks name, one at a time on a thread of its own, and tells the keeper
//!   what is news.
//! - `events` follows the kernel's ring buffer of refusals into the event log.
//! - `api` answers on TCP and on the unix socket; it asks the keeper and reads sandboxes.
//! - one thread outside the runtime writes the journal through io_uring.

pub mod api;
pub mod config;
pub mod estimate;
pub mod event;
pub mod fuzzing;
pub mod grant;
pub mod identity;
pub mod isolate;
pub mod journal;
pub mod keeper;
pub mod kernel;
pub mod launch;
pub mod link;
pub mod measure;
pub mod metrics;
pub mod node;
pub mod offer;
pub mod qos;
pub mod task;
pub mod user;

/// An error and everything behind it, in one line: `open /x: Permission denied`.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Milliseconds since 1970. Only for people and logs: it may jump.
pub fn unix_time_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
