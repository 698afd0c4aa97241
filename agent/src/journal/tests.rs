use proptest::prelude::*;

use super::*;

fn accepted(name: &str) -> Fact {
    let spec = v1::TaskSpec { task_id: name.into(), ..Default::default() };
    Fact::Accepted(Accepted { spec: Some(spec), unix_time_ms: 1, first_sequence: 1, role: "r".into() })
}

fn ended(sequence: u64) -> Fact {
    Fact::Ended(v1::TaskStatus { sequence, ..Default::default() })
}

fn entry(task: &str, fact: Fact) -> Entry {
    Entry { framework_id: "f".into(), task_id: task.into(), fact: Some(fact) }
}

#[tokio::test]
async fn what_was_recorded_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, empty) = Journal::open(dir.path()).unwrap();
    assert_eq!(empty, Replayed::default());
    journal.record("f", "a", accepted("a")).await.unwrap();
    journal.record("f", "a", Fact::Started(Started { pid: 7, ..Default::default() })).await.unwrap();
    let grant = v1::Grant { pids_max: 5, ..Default::default() };
    journal.record("f", "a", Fact::Resized(grant.clone())).await.unwrap();
    journal.record("f", "b", accepted("b")).await.unwrap();
    journal.record("f", "b", ended(3)).await.unwrap();
    drop(journal);

    let (_journal, replayed) = Journal::open(dir.path()).unwrap();
    let a = &replayed.tasks[&("f".into(), "a".into())];
    assert_eq!((a.started.as_ref().unwrap().pid, &a.ended), (7, &None));
    assert_eq!(a.accepted.spec.as_ref().unwrap().grant, Some(grant));
    let b = &replayed.tasks[&("f".into(), "b".into())];
    assert_eq!(b.ended.as_ref().unwrap().sequence, 3);
}

#[tokio::test]
async fn it_does_not_grow_with_tasks_that_are_over() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path()).unwrap();
    journal.compact_bytes = 4096;
    journal.record("f", "live", accepted("live")).await.unwrap();
    for n in 0..500 {
        let task = format!("t{n}");
        journal.record("f", &task, accepted(&task)).await.unwrap();
        journal.record("f", &task, ended(3)).await.unwrap();
        journal.record("f", &task, Fact::Acknowledged(3)).await.unwrap();
    }
    let size = fs::metadata(dir.path().join(FILE)).unwrap().len();
    assert!(size < 3 * 4096, "{size} bytes");
    drop(journal);
    let (_journal, replayed) = Journal::open(dir.path()).unwrap();
    assert_eq!(replayed.tasks.keys().map(|k| k.1.as_str()).collect::<Vec<_>>(), ["live"]);
}

#[test]
fn an_acknowledged_end_is_forgotten() {
    let before_last =
        replay(vec![entry("a", accepted("a")), entry("a", ended(3)), entry("a", Fact::Acknowledged(2))], 0);
    assert_eq!(before_last.tasks.len(), 1);
    let all =
        replay(vec![entry("a", accepted("a")), entry("a", ended(3)), entry("a", Fact::Acknowledged(3))], 0);
    assert_eq!(all.tasks.len(), 0);
}

#[test]
fn a_task_id_can_be_used_again() {
    let entries = vec![
        entry("a", accepted("a")),
        entry("a", ended(3)),
        entry("a", Fact::Acknowledged(3)),
        entry("a", accepted("again")),
    ];
    let replayed = replay(entries, 0);
    let task = &replayed.tasks[&("f".into(), "a".into())];
    assert_eq!((task.accepted.spec.as_ref().unwrap().task_id.as_str(), task.acknowledged), ("again", 0));
}

#[test]
fn a_torn_tail_is_cut_off_and_what_follows_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let whole = encode(&entry("a", accepted("a")));
    let torn = &encode(&entry("b", accepted("b")))[..11];
    fs::write(dir.path().join(FILE), [&whole, torn].concat()).unwrap();

    let (_journal, replayed) = Journal::open(dir.path()).unwrap();
    assert_eq!((replayed.tasks.len(), replayed.damaged_bytes), (1, 11));
    let (_journal, again) = Journal::open(dir.path()).unwrap();
    assert_eq!((again.tasks.len(), again.damaged_bytes), (1, 0));
}

proptest! {
    #[test]
    fn garbage_never_panics_and_never_hides_what_came_before(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = encode(&entry("a", accepted("a")));
        bytes.extend(&garbage);
        let (entries, _) = decode(&bytes);
        prop_assert_eq!(&entries[0], &entry("a", accepted("a")));
    }

    #[test]
    fn a_compacted_journal_says_the_same(facts in prop::collection::vec((0..3usize, 0..4usize, 1..4u64), 0..30)) {
        let entries = facts.into_iter().map(|(task, kind, n)| {
            let fact = match kind {
                0 => accepted("x"),
                1 => Fact::Started(Started { pid: 1, ..Default::default() }),
                2 => ended(n),
                _ => Fact::Acknowledged(n),
            };
            entry(["a", "b", "c"][task], fact)
        });
        let once = replay(entries.collect(), 0);
        prop_assert_eq!(&replay(once.entries(), 0), &once);
    }
}
