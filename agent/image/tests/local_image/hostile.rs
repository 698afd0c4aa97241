//! Layers that want out, or too much. Each is refused with its reason, and nothing of it is left.

use std::fs;

use serde_json::{Value, json};
use tar::EntryType;

use crate::fixture::{
    Image, Layer, Place, architecture, gzip, image, image_of, image_with, names, refused, sha256,
};

async fn check(place: &Place, name: &str, image: &Image, why: &str) {
    let store = place.store();
    let error = refused(&store, &place.layout(name, image)).await;
    assert!(error.contains(why), "{name}: {error}");
    assert_eq!(place.leftovers(), [""; 0], "{name}");
    assert_eq!(names(&place.store_dir().join("layers")), [""; 0], "{name}");
    assert_eq!(store.used_bytes(), 0, "{name}");
}

#[tokio::test]
async fn entries_that_no_layer_may_have_are_refused() {
    let Some(place) = Place::new("entries_that_no_layer_may_have_are_refused") else { return };
    let new = Layer::new;
    let deep = |n: usize| "d/".repeat(n);
    let cases = [
        ("up", new().file("../escaped", "x"), "lead outside"),
        ("up within", new().file("a/../../escaped", "x"), "lead outside"),
        ("link up", new().hard_link("a", "../../etc/passwd"), "lead outside"),
        ("link to nothing", new().hard_link("a", "etc/passwd"), "not in the layer"),
        ("link to itself", new().file("a", "x").hard_link("a", "a"), "not in the layer"),
        ("link to a directory", new().dir("d").hard_link("a", "d"), "to a directory"),
        ("link to the root", new().hard_link("a", "/"), "no file"),
        ("link out of the layer", new().symlink("l", "/proc/self/root").file("l/escaped", "x"), "to nowhere"),
        ("through a file", new().file("a", "x").file("a/b", "x"), "through a file"),
        ("link in a circle", new().symlink("l", "l").file("l/x", "x"), "its directory"),
        ("root as file", new().file("/", "x"), "replace the root"),
        ("root as link", new().symlink("./", "/etc"), "replace the root"),
        ("whiteout of the root", new().file(".wh..wh..opq", ""), "hide the whole image"),
        ("whiteout without name", new().file("a/.wh.", ""), "without a name"),
        ("whiteout of dot", new().file(".wh..", ""), "'.' or '..'"),
        ("whiteout of dots", new().file("a/.wh...", ""), "'.' or '..'"),
        ("whiteout with a path", new().file(".wh.a/b", ""), "in a whiteout"),
        ("empty link", new().symlink("a", ""), "empty"),
        ("deep", new().file(&format!("{}x", deep(49)), "x"), ""),
    ];
    for (name, layer, why) in cases {
        if why.is_empty() {
            continue;
        }
        check(&place, name, &image(&[layer.done()]), why).await;
    }
    assert!(!place.dir.path().join("escaped").exists() && !place.images().join("escaped").exists());
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let Some(mut place) = Place::new("what_is_too_large_is_refused") else { return };
    place.settings.layer.bytes = 1 << 20;
    place.settings.layer.entries = 100;
    let zeros = vec![0; 4 << 20];
    let header = |kind, size| Layer::header(kind, size);
    let bomb = Layer::new().raw(header(EntryType::Regular, zeros.len() as u64), "zeros", "", &zeros).done();
    check(&place, "a bomb", &image(&[bomb]), "more than 1048576 bytes").await;
    let many = (0..200).fold(Layer::new(), |layer, n| layer.file(&n.to_string(), "")).done();
    check(&place, "many entries", &image(&[many]), "more than 100 entries").await;
    let mut sparse = header(EntryType::GNUSparse, 0);
    sparse.as_gnu_mut().unwrap().set_real_size(1 << 50);
    check(
        &place,
        "a sparse file",
        &image(&[Layer::new().raw(sparse, "s", "", b"").done()]),
        "sparse file of",
    )
    .await;
    let mut tail = Layer::new().file("a", "x").done();
    tail.resize(4 << 20, 0);
    check(&place, "a long tail", &image(&[tail]), "more than 1048576 bytes").await;
    // Links make the way deeper than any path that is named.
    let deep = "d/".repeat(40);
    let down = Layer::new()
        .dir(&deep)
        .symlink("l", &deep)
        .dir(&format!("l/{deep}"))
        .symlink("m", &format!("l/{deep}"));
    let deeper = down.dir(&format!("m/{deep}")).symlink("n", &format!("m/{deep}")).dir(&format!("n/{deep}"));
    place.settings.layer.entries = 10_000;
    check(&place, "deep", &image(&[deeper.done()]), "too deep").await;
    place.settings.bound_bytes = 100_000;
    let large = Layer::new().raw(header(EntryType::Regular, 200_000), "x", "", &vec![1; 200_000]).done();
    check(&place, "larger than the store", &image(&[large]), "raise image_store_size").await;
}

#[tokio::test]
async fn a_layer_must_be_what_its_digests_say() {
    let Some(place) = Place::new("a_layer_must_be_what_its_digests_say") else { return };
    let plain = Layer::new().file("a", &"abc ".repeat(5000)).done();
    let other = Layer::new().file("b", "other").done();
    let stored = gzip(&plain);

    // The configuration names another layer.
    let wrong = image_of(&[(stored.clone(), other.clone())], &Value::Null);
    check(&place, "wrong diff id", &wrong, "uncompressed, is corrupt").await;

    // The stream ends early although its digest is right: the publisher broke it.
    let cut = stored[..stored.len() / 2].to_vec();
    check(&place, "truncated gzip", &image_of(&[(cut, plain.clone())], &Value::Null), "cut off or damaged")
        .await;
    let not_tar = b"this is no archive at all".repeat(100);
    check(&place, "no tar", &image(&[not_tar]), "malformed").await;
    let cut = plain[..plain.len() - 8000].to_vec();
    check(&place, "truncated tar", &image(&[cut]), "cut off or damaged").await;

    // On the disk the blob was changed, cut or replaced afterwards.
    let good = image_of(&[(stored.clone(), plain.clone())], &Value::Null);
    let change = |name: &str, bytes: &[u8]| {
        let reference = place.layout(name, &good);
        let blob = place.images().join(name).join("blobs/sha256").join(sha256(&stored).hex());
        fs::write(blob, bytes).unwrap();
        reference
    };
    let mut flipped = stored.clone();
    flipped[stored.len() / 2] ^= 1;
    let cases = [
        ("flipped", flipped, "is corrupt: the content has the digest"),
        ("cut", stored[..100].to_vec(), "is corrupt: it has 100 bytes"),
        ("longer", [stored.clone(), b"x".to_vec()].concat(), "is corrupt: it has"),
        ("replaced", gzip(&other), "is corrupt: it has"),
    ];
    let store = place.store();
    for (name, bytes, why) in cases {
        let error = refused(&store, &change(name, &bytes)).await;
        assert!(error.contains(why), "{name}: {error}");
        assert_eq!((place.leftovers().len(), store.used_bytes()), (0, 0), "{name}");
    }
}

#[tokio::test]
async fn documents_must_fit_together() {
    let Some(place) = Place::new("documents_must_fit_together") else { return };
    let plain = Layer::new().file("a", "x").done();
    let config = |arch: &str, ids: &[String]| json!({"os": "linux", "architecture": arch, "rootfs": {"type": "layers", "diff_ids": ids}});
    let id = sha256(&plain).to_string();
    let with = |config: &Value| image_with(vec![plain.clone()], config);
    check(&place, "other machine", &with(&config("vax", std::slice::from_ref(&id))), "linux/vax").await;
    let twice = config(architecture(), &[id.clone(), id]);
    check(&place, "more layers", &with(&twice), "lists 2 layers, and the manifest 1").await;
    check(&place, "no layers", &with(&config(architecture(), &[])), "0 layers").await;
}
