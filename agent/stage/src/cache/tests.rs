use std::{io::Read as _, io::Write as _, time::Duration};

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::*;

fn digest(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

fn text(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

async fn put(cache: &Cache, content: &str) -> Result<File, Problem> {
    cache.get(&digest(content), async |mut file: &File, _: &Path| write(&mut file, content)).await
}

fn write(file: &mut &File, content: &str) -> Result<Digest, Problem> {
    file.write_all(content.as_bytes()).unwrap();
    Ok(digest(content))
}

/// Asks for what has to be there.
async fn hit(cache: &Cache, content: &str) -> bool {
    cache.get(&digest(content), async |_: &File, _: &Path| Err(Spent::Stopped.into())).await.is_ok()
}

use crate::budget::Spent;

#[tokio::test]
async fn what_was_fetched_once_is_there_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().join("cache"), 100).unwrap();
    assert_eq!(text(put(&cache, "content").await.unwrap()), "content");
    assert!(hit(&cache, "content").await);
    drop(cache);
    let cache = Cache::open(dir.path().join("cache"), 100).unwrap();
    assert!(hit(&cache, "content").await);
    assert!(!hit(&cache, "other").await);
}

#[tokio::test]
async fn what_is_something_else_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().into(), 100).unwrap();
    let wrong = cache.get(&digest("asked"), async |mut file: &File, _: &Path| write(&mut file, "got")).await;
    assert!(matches!(wrong, Err(Problem::Mismatch(_))));
    assert!(!hit(&cache, "asked").await && !hit(&cache, "got").await);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("sha256")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_crash_leaves_nothing_that_counts() {
    let dir = tempfile::tempdir().unwrap();
    drop(Cache::open(dir.path().into(), 100).unwrap());
    fs::write(dir.path().join("tmp/half"), "half").unwrap();
    fs::write(dir.path().join("sha256/no-digest"), "x").unwrap();
    let cache = Cache::open(dir.path().into(), 100).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    assert!(cache.books().kept.is_empty());
}

#[tokio::test]
async fn the_least_recently_used_goes_first_and_readers_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().into(), 20).unwrap();
    let reading = put(&cache, "one 678901").await.unwrap();
    put(&cache, "two 678901").await.unwrap();
    assert!(hit(&cache, "two 678901").await);
    assert!(hit(&cache, "one 678901").await);
    put(&cache, "three").await.unwrap();
    assert!(!hit(&cache, "two 678901").await);
    assert!(hit(&cache, "one 678901").await && hit(&cache, "three").await);
    drop(cache);
    let cache = Cache::open(dir.path().into(), 6).unwrap();
    assert!(!hit(&cache, "one 678901").await && hit(&cache, "three").await);
    assert_eq!(text(reading), "one 678901");
}

#[tokio::test]
async fn what_is_larger_than_the_cache_is_used_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().into(), 3).unwrap();
    assert_eq!(text(put(&cache, "long").await.unwrap()), "long");
    assert!(!hit(&cache, "long").await);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn one_digest_is_fetched_once_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(Cache::open(dir.path().into(), 100).unwrap());
    let (started, has_started) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let first = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move {
            let fill = async |mut file: &File, _: &Path| {
                started.send(()).unwrap();
                may_go_on.await.unwrap();
                write(&mut file, "content")
            };
            cache.get(&digest("content"), fill).await.map(text)
        }
    });
    has_started.await.unwrap();
    let others: Vec<_> = (0..10)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                let never = async |_: &File, _: &Path| panic!("fetched twice");
                cache.get(&digest("content"), never).await.map(text)
            })
        })
        .collect();
    // Another digest does not wait for this one.
    put(&cache, "meanwhile").await.unwrap();
    go_on.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "content");
    for other in others {
        assert_eq!(other.await.unwrap().unwrap(), "content");
    }
}

#[tokio::test]
async fn who_waits_takes_over_from_who_gave_up() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(Cache::open(dir.path().into(), 100).unwrap());
    let (started, has_started) = oneshot::channel();
    let first = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move {
            let for_ever = async |_: &File, _: &Path| {
                started.send(()).unwrap();
                std::future::pending().await
            };
            cache.get(&digest("content"), for_ever).await.map(text)
        }
    });
    has_started.await.unwrap();
    let second = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { put(&cache, "content").await.map(text) }
    });
    first.abort();
    assert_eq!(second.await.unwrap().unwrap(), "content");
}

proptest! {
    #[test]
    fn what_stays_fits_and_is_newer_than_what_goes(
        entries in prop::collection::vec((0u64..100, 0u64..50), 0..20),
        max_bytes in 0u64..500,
    ) {
        let kept: HashMap<Digest, Kept> = entries
            .iter()
            .enumerate()
            .map(|(i, &(bytes, used))| {
                let used = SystemTime::UNIX_EPOCH + Duration::from_secs(used);
                (digest(&i.to_string()), Kept { bytes, used })
            })
            .collect();
        let gone = to_evict(&kept, max_bytes);
        let stays = || kept.iter().filter(|(d, _)| !gone.contains(d));
        prop_assert!(stays().map(|(_, k)| k.bytes).sum::<u64>() <= max_bytes);
        let newest_gone = gone.iter().map(|d| kept[d].used).max();
        let oldest_kept = stays().map(|(_, k)| k.used).min();
        if let (Some(gone), Some(kept)) = (newest_gone, oldest_kept) {
            prop_assert!(gone <= kept);
        }
        if kept.values().map(|k| k.bytes).sum::<u64>() <= max_bytes {
            prop_assert!(gone.is_empty());
        }
    }
}
