//! Layers are there once, whole, within the bound, and as long as somebody uses them.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use bulkhead_image::{Progress, Reference};

use crate::fixture::{Layer, Place, get, image, names, quiet, refused};

fn layer(name: &str, bytes: usize) -> Vec<u8> {
    Layer::new().file(name, &"x".repeat(bytes)).done()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_several_want_at_once_is_unpacked_once() {
    let Some(place) = Place::new("what_several_want_at_once_is_unpacked_once") else { return };
    let shared = layer("shared", 100_000);
    let one = place.layout("one", &image(&[shared.clone(), layer("one", 10)]));
    let two = place.layout("two", &image(&[shared, layer("two", 10)]));
    let store = place.store();
    let all =
        futures::future::join_all((0..16).map(|n| get(&store, if n % 2 == 0 { &one } else { &two }))).await;
    assert_eq!(all[0].0.layers[0], all[1].0.layers[0]);
    assert_eq!(names(&place.store_dir().join("layers")).len(), 3);
    assert!(store.used_bytes() < 150_000, "{}", store.used_bytes());
    assert!(place.leftovers().is_empty());
}

#[tokio::test]
async fn progress_ends_with_everything() {
    let Some(place) = Place::new("progress_ends_with_everything") else { return };
    let same = layer("a", 5_000_000);
    let reference = place.layout("i", &image(&[same.clone(), layer("b", 10), same]));
    let reference: Reference = reference.parse().unwrap();
    let store = place.store();
    for _ in 0..2 {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let report = Arc::clone(&seen);
        drop(
            store.get(&reference, Arc::new(move |p: Progress| report.lock().unwrap().push(p))).await.unwrap(),
        );
        let last = *seen.lock().unwrap().last().unwrap();
        assert_eq!((last.done_bytes, last.done_layers), (last.total_bytes, last.total_layers));
        assert_eq!(last.total_layers, 2, "the same layer twice is one");
    }
}

#[tokio::test]
async fn the_longest_unused_image_makes_room_and_a_used_one_never() {
    let Some(mut place) = Place::new("the_longest_unused_image_makes_room_and_a_used_one_never") else {
        return;
    };
    place.settings.bound_bytes = 260_000;
    let names_of = ["a", "b", "c", "d"];
    let references: Vec<_> = names_of.iter().map(|n| place.layout(n, &image(&[layer(n, 100_000)]))).collect();
    let store = place.store();
    let (a, lease) = get(&store, &references[0]).await;
    let (b, _) = get(&store, &references[1]).await;
    let (c, _) = get(&store, &references[2]).await;
    assert!(a.layers[0].exists() && !b.layers[0].exists() && c.layers[0].exists());
    assert!(store.used_bytes() <= 260_000);

    let (_, other) = get(&store, &references[2]).await;
    let error = refused(&store, &references[3]).await;
    assert!(error.contains("the store is full") && error.contains("image_store_size"), "{error}");
    assert!(a.layers[0].exists() && c.layers[0].exists() && place.leftovers().is_empty());

    drop((lease, other));
    let (d, _) = get(&store, &references[3]).await;
    assert!(d.layers[0].exists() && !a.layers[0].exists());
}

#[tokio::test]
async fn a_store_is_found_again_and_cleared_of_what_a_crash_left() {
    let Some(mut place) = Place::new("a_store_is_found_again_and_cleared_of_what_a_crash_left") else {
        return;
    };
    let keep = place.layout("keep", &image(&[layer("k", 50_000)]));
    let next = place.layout("next", &image(&[layer("n", 150_000)]));
    let store = place.store();
    let (kept, lease) = get(&store, &keep).await;
    let used = store.used_bytes();
    let id = lease.image().clone();
    drop((store, lease));

    let dir = place.store_dir();
    fs::create_dir_all(dir.join("tmp/7/half")).unwrap();
    fs::write(dir.join("tmp/8"), "half a record").unwrap();
    fs::create_dir_all(dir.join(format!("layers/sha256-{}", "0".repeat(64)))).unwrap();
    fs::create_dir_all(dir.join("layers/nonsense")).unwrap();
    fs::write(dir.join(format!("images/sha256-{}.json", "0".repeat(64))), "{").unwrap();

    place.settings.bound_bytes = 200_000;
    let store = place.store();
    assert_eq!(store.used_bytes(), used);
    assert!(place.leftovers().is_empty());
    assert_eq!((names(&dir.join("layers")).len(), names(&dir.join("images")).len()), (1, 1));
    assert_eq!(store.layers(&id).unwrap(), kept.layers);

    // A task that still runs keeps its layers, also from the next agent.
    let adopted = store.adopt(&id).unwrap();
    assert!(refused(&store, &next).await.contains("the store is full"));
    drop(adopted);
    drop(get(&store, &next).await);
    assert!(!kept.layers[0].exists() && store.adopt(&id).is_none());
}

#[tokio::test]
async fn a_record_without_its_layers_is_unpacked_again() {
    let Some(place) = Place::new("a_record_without_its_layers_is_unpacked_again") else { return };
    let reference = place.layout("i", &image(&[layer("a", 10), layer("b", 10)]));
    let (unpacked, lease) = get(&place.store(), &reference).await;
    drop(lease);
    fs::remove_dir_all(&unpacked.layers[0]).unwrap();
    let store = place.store();
    assert_eq!(store.used_bytes(), 0);
    let (again, _lease) = get(&store, &reference).await;
    assert_eq!(names(&again.layers[0]), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_leaves_nothing() {
    let Some(place) = Place::new("who_gives_up_leaves_nothing") else { return };
    let reference = place.layout("i", &image(&[layer("a", 8 << 20), layer("b", 8 << 20)]));
    let parsed: Reference = reference.parse().unwrap();
    let store = place.store();
    // Given up at the first sign of progress, somewhere within the layers.
    let (begun, mut beginning) = tokio::sync::mpsc::unbounded_channel();
    let report = Arc::new(move |_: Progress| begun.send(()).unwrap_or_default());
    tokio::select! {
        biased;
        _ = beginning.recv() => {}
        done = store.get(&parsed, report) => drop(done.unwrap()),
    }
    // The next one waits for nobody and finds everything in order.
    let (unpacked, _lease) = get(&store, &reference).await;
    assert_eq!(names(&unpacked.layers[0]), ["a"]);
    drop(store.get(&parsed, quiet()).await.unwrap());
    drop(place.store());
    assert!(place.leftovers().is_empty());
}
