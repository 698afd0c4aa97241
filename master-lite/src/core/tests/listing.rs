//! Lists of tasks: page by page.

use bulkhead_proto::v1::ListTasksRequest;
use prost::Message as _;

use super::*;

/// What one task adds to a page: the largest that is taken.
const LARGE_BYTES: usize = 200 << 10;

/// The page after `token`: ids, and the token of the next one.
fn page(core: &Core, token: &str, live_only: bool) -> (Vec<String>, String) {
    let request = ListTasksRequest { page_token: token.to_owned(), live_only, ..ListTasksRequest::default() };
    let page = core.list_tasks(&request).unwrap();
    assert!(page.encoded_len() <= PAGE_BYTES + (1 << 10) || page.tasks.len() == 1, "{}", page.encoded_len());
    (page.tasks.into_iter().map(|t| t.spec.unwrap_or_default().task_id).collect(), page.next_page_token)
}

/// The ids of all tasks, over all pages.
pub(super) fn all_ids(core: &Core) -> Vec<String> {
    let (mut ids, mut token) = page(core, "", false);
    while !token.is_empty() {
        let (more, next) = page(core, &token, false);
        assert!(!more.is_empty(), "a page without tasks");
        (ids, token) = ([ids, more].concat(), next);
    }
    ids
}

fn large(id: &str) -> TaskSpec {
    TaskSpec { argv: vec!["x".repeat(LARGE_BYTES - 1000)], ..task(id, 1, 1 << 20) }
}

/// Live tasks that an agent brings, and ended ones that were refused.
fn world_with(live: &[String], ended: &[String]) -> (World, SessionId) {
    let mut world = World::new();
    let running = live.iter().map(|id| listed("f", large(id), TaskState::Running, 1)).collect();
    let agent = world.register(registration("a", resources(4_000, 4 * GB), running));
    let framework = world.framework("f");
    for id in ended {
        world.accept(framework, &[], vec![large(id)]);
    }
    (world, agent)
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n:03}")).collect()
}

#[test]
fn a_list_of_any_size_is_told_page_by_page() {
    let (live, ended) = (ids("live", 30), ids("ended", 30));
    let (world, _) = world_with(&live, &ended);
    assert_eq!(all_ids(&world.core), [live.clone(), ended].concat());
    let (first, token) = page(&world.core, "", true);
    assert!(!token.is_empty() && first == live[..first.len()], "{first:?}");
}

#[test]
fn a_task_that_ends_between_two_pages_is_never_left_out() {
    let live = ids("live", 30);
    let (mut world, agent) = world_with(&live, &[]);
    let (first, token) = page(&world.core, "", false);
    for id in [&first[0], live.last().unwrap()] {
        world.status(agent, "f", id, TaskState::Finished, 2);
        world.acknowledge(SessionId(2), id, 2);
        assert!(world.core.tasks.get(&TaskKey::new(&"f".into(), id)).is_none(), "{id} is history");
    }
    let mut told = first;
    let mut token = token;
    while !token.is_empty() {
        let (more, next) = page(&world.core, &token, false);
        (told, token) = ([told, more].concat(), next);
    }
    told.sort();
    assert_eq!(told.len(), 31, "the one that was told as live is told again");
    told.dedup();
    assert_eq!(told, live);
}

#[test]
fn a_token_that_nobody_gave_is_refused() {
    let (world, _) = world_with(&[], &[]);
    let request = ListTasksRequest { page_token: "7".into(), ..ListTasksRequest::default() };
    assert!(world.core.list_tasks(&request).unwrap_err().to_string().contains("leave it empty"));
}
