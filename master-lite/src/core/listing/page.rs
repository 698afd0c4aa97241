//! Places in the list of tasks, which is answered page by page.
//!
//! Current tasks come first, by key, then history by number. A task only ever moves from the former to the latter, so
//! one that ends between two pages may be listed on both, and none is left out.

use bulkhead_proto::v1::{ListTasksResponse, Task};
use prost::Message as _;

use crate::ids::TaskKey;

/// What a page holds at most, in bytes, unless a single task has more: within what gRPC reads by default, 4 MiB.
pub const PAGE_BYTES: usize = 2 << 20;

/// The task that a page ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A current one.
    Current(TaskKey),
    /// One of history.
    History(u64),
}

/// No token of a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page_token {0:?} is none that ListTasks has given: leave it empty to begin")]
pub struct PageTokenError(String);

impl Place {
    /// `None` is the beginning.
    pub(super) fn parse(token: &str) -> Result<Option<Self>, PageTokenError> {
        if token.is_empty() {
            return Ok(None);
        }
        let place = match token.split('/').collect::<Vec<_>>().as_slice() {
            ["current", framework, task] => Some(Self::Current(TaskKey::new(&(*framework).into(), task))),
            ["history", number] => number.parse().ok().map(Self::History),
            _ => None,
        };
        place.map(Some).ok_or_else(|| PageTokenError(token.chars().take(100).collect()))
    }

    /// What [`Place::parse`] reads. No id has a slash in it.
    pub(super) fn token(&self) -> String {
        match self {
            Self::Current(key) => format!("current/{key}"),
            Self::History(number) => format!("history/{number}"),
        }
    }
}

/// Takes what has room on one page, and says where the next one begins.
pub(super) fn fill(tasks: impl Iterator<Item = (Place, Task)>) -> ListTasksResponse {
    let mut page = ListTasksResponse::default();
    let (mut bytes, mut last) = (0_usize, None);
    for (place, task) in tasks {
        bytes = bytes.saturating_add(task.encoded_len());
        if let Some(last) = &last
            && bytes > PAGE_BYTES
        {
            page.next_page_token = Place::token(last);
            break;
        }
        page.tasks.push(task);
        last = Some(place);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_place() {
        for place in [Place::Current(TaskKey::new(&"f.1".into(), "t-1")), Place::History(u64::MAX)] {
            assert_eq!(Place::parse(&place.token()), Ok(Some(place)));
        }
        assert_eq!(Place::parse(""), Ok(None));
        for bad in ["7", "history/", "history/-1", "current/f", "current/f/t/u", "\0", &"x".repeat(1 << 20)] {
            let said = Place::parse(bad).unwrap_err().to_string();
            assert!(said.contains("leave it empty") && said.len() < 300, "{said}");
        }
    }
}
