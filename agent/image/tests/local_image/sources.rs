//! Where images are read from: layouts and archives, whole and damaged, and only where it is allowed.

use std::{fs, io::Write as _};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::fixture::{
    Image, Layer, Place, architecture, get, gzip, image, image_of, names, put_blob, put_index, refused,
    sha256,
};

fn plain(name: &str) -> Vec<u8> {
    Layer::new().file(name, "x").done()
}

#[tokio::test]
async fn an_index_within_an_index_leads_to_this_machine() {
    let Some(place) = Place::new("an_index_within_an_index_leads_to_this_machine") else { return };
    let config =
        json!({"Entrypoint": ["/run"], "Cmd": ["a"], "Env": ["A=1"], "User": "u", "WorkingDir": "/w"});
    let own = image_of(&[(gzip(&plain("own")), plain("own"))], &config);
    let dir = place.images().join("multi");
    for blob in own.blobs.iter().chain([&own.config]) {
        put_blob(&dir, blob);
    }
    let mut right = put_blob(&dir, &own.manifest);
    right["platform"] = json!({"os": "linux", "architecture": architecture()});
    let wrong = json!({"digest": sha256(b"?").to_string(), "size": 1, "platform": {"os": "linux", "architecture": "vax"}});
    let inner = put_blob(&dir, json!({"manifests": [wrong, right]}).to_string().as_bytes());
    let mut outer = inner;
    outer["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    put_index(&dir, &[outer]);
    let store = place.store();
    for tag in ["", ":v1"] {
        let (unpacked, _lease) = get(&store, &format!("oci:{}{tag}", dir.display())).await;
        assert_eq!(names(&unpacked.layers[0]), ["own"]);
        assert_eq!(unpacked.config.entrypoint, ["/run"]);
        assert_eq!(unpacked.config.env, [("A".into(), "1".into())]);
        assert_eq!(unpacked.digest, sha256(&own.config));
    }
    assert!(refused(&store, &format!("oci:{}:v2", dir.display())).await.contains("there are: v1"));
}

#[tokio::test]
async fn damaged_layouts_are_told() {
    let Some(place) = Place::new("damaged_layouts_are_told") else { return };
    let good = image(&[plain("a")]);
    let blob =
        |name: &str, bytes: &[u8]| place.images().join(name).join("blobs/sha256").join(sha256(bytes).hex());
    let store = place.store();

    let reference = place.layout("no manifest", &good);
    fs::remove_file(blob("no manifest", &good.manifest)).unwrap();
    let error = refused(&store, &reference).await;
    assert!(error.contains(sha256(&good.manifest).hex()) && error.contains("No such file"), "{error}");

    let reference = place.layout("no layer", &good);
    fs::remove_file(blob("no layer", &good.blobs[0])).unwrap();
    assert!(refused(&store, &reference).await.contains(sha256(&good.blobs[0]).hex()));

    let reference = place.layout("bad config", &good);
    let mut config = good.config.clone();
    config[10] ^= 1;
    fs::write(blob("bad config", &good.config), config).unwrap();
    assert!(refused(&store, &reference).await.contains("configuration is corrupt"));

    let reference = place.layout("bad manifest", &good);
    fs::write(blob("bad manifest", &good.manifest), "{}").unwrap();
    assert!(refused(&store, &reference).await.contains("is corrupt: it has 2 bytes"));

    let reference = place.layout("link", &good);
    fs::rename(blob("link", &good.config), place.images().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(place.images().join("elsewhere"), blob("link", &good.config)).unwrap();
    assert!(refused(&store, &reference).await.contains("symbolic link"));

    let reference = place.layout("pipe", &good);
    let layer = blob("pipe", &good.blobs[0]);
    fs::remove_file(&layer).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &layer, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    assert!(refused(&store, &reference).await.contains("no ordinary file"));

    for (name, file, content, why) in [
        ("no json", "index.json", "{", "malformed"),
        ("no marker", "oci-layout", "{}", "malformed"),
        ("new marker", "oci-layout", r#"{"imageLayoutVersion": "2.0"}"#, "version"),
        ("huge", "index.json", &" ".repeat(5 << 20), "larger than"),
    ] {
        let reference = place.layout(name, &good);
        fs::write(place.images().join(name).join(file), content).unwrap();
        let error = refused(&store, &reference).await;
        assert!(error.contains(why), "{name}: {error}");
    }
    assert_eq!(store.used_bytes(), 0);
}

#[tokio::test]
async fn an_index_that_leads_in_a_circle_ends() {
    let Some(place) = Place::new("an_index_that_leads_in_a_circle_ends") else { return };
    let dir = place.images().join("circle");
    // No index can hold its own digest, but a chain can be as long as somebody likes.
    let mut next = put_blob(&dir, &image(&[plain("a")]).manifest);
    for _ in 0..20 {
        next = put_blob(&dir, json!({"manifests": [next]}).to_string().as_bytes());
    }
    put_index(&dir, &[next]);
    let store = place.store();
    assert!(refused(&store, &format!("oci:{}", dir.display())).await.contains("more than 4 times"));
    // And one that says it does is corrupt.
    let own = json!({"digest": sha256(b"own").to_string(), "size": 3});
    fs::write(dir.join("blobs/sha256").join(sha256(b"own").hex()), json!({"manifests": [own]}).to_string())
        .unwrap();
    put_index(&dir, &[own]);
    assert!(refused(&store, &format!("oci:{}", dir.display())).await.contains("corrupt"));
}

#[tokio::test]
async fn only_allowed_directories_are_read() {
    let Some(place) = Place::new("only_allowed_directories_are_read") else { return };
    let store = place.store();
    let outside = place.dir.path().join("outside");
    crate::fixture::put_layout(&outside, &image(&[plain("a")]));
    let error = refused(&store, &format!("oci:{}", outside.display())).await;
    assert!(error.contains("image_dirs"), "{error}");
    assert!(refused(&store, "docker-archive:/etc/passwd").await.contains("image_dirs"));
    let beside = format!("oci:{}-beside", place.images().display());
    assert!(refused(&store, &beside).await.contains("image_dirs"));
    // Who writes below an allowed directory does not widen it with a link.
    std::os::unix::fs::symlink(&outside, place.images().join("link")).unwrap();
    let error = refused(&store, &format!("oci:{}/link", place.images().display())).await;
    assert!(error.contains("symbolic link"), "{error}");
    assert!(refused(&store, "docker://r.example/app").await.contains("see registries"));
}

fn append(builder: &mut Builder<fs::File>, name: &str, bytes: &[u8]) {
    let mut header = Layer::header(EntryType::Regular, bytes.len() as u64);
    builder.append_data(&mut header, name, bytes).unwrap();
}

/// As Docker wrote it before 25: a directory for each layer, and links where two are the same.
fn old_archive(place: &Place, name: &str, image: &Image, layers: &[Vec<u8>]) -> String {
    let path = place.images().join(name);
    let mut builder = Builder::new(fs::File::create(&path).unwrap());
    let mut names = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let name = format!("{n}/layer.tar");
        append(&mut builder, &name, layer);
        names.push(name);
    }
    let mut header: Header = Layer::header(EntryType::Symlink, 0);
    builder.append_link(&mut header, "same/layer.tar", "../0/layer.tar").unwrap();
    names.push("same/layer.tar".into());
    let config = format!("{}.json", sha256(&image.config).hex());
    append(&mut builder, &config, &image.config);
    let manifest = json!([{"Config": config, "RepoTags": ["app:latest", "app:1"], "Layers": names}]);
    append(&mut builder, "manifest.json", manifest.to_string().as_bytes());
    builder.finish().unwrap();
    format!("docker-archive:{}", path.display())
}

#[tokio::test]
async fn archives_of_docker_are_read_in_both_forms() {
    let Some(place) = Place::new("archives_of_docker_are_read_in_both_forms") else { return };
    let layers = [plain("a"), plain("b")];
    let three: Vec<_> = [&layers[0], &layers[1], &layers[0]].map(|l| (l.clone(), l.clone())).into();
    let image = image_of(&three, &json!({"Cmd": ["run"]}));
    let old = old_archive(&place, "old.tar", &image, &layers);
    let store = place.store();
    for name in ["", ":app", ":app:1"] {
        let (unpacked, _lease) = get(&store, &format!("{old}{name}")).await;
        assert_eq!(unpacked.layers.len(), 3);
        assert_eq!(unpacked.layers[0], unpacked.layers[2]);
        assert_eq!(
            (names(&unpacked.layers[1]), unpacked.config.cmd.as_slice()),
            (vec!["b".into()], &["run".into()][..])
        );
    }
    assert!(refused(&store, &format!("{old}:other")).await.contains("app:latest, app:1"));

    // Since 25: an OCI layout, with a manifest.json that leads into it.
    let stored = gzip(&layers[1]);
    let path = place.images().join("new.tar");
    let image = image_of(&[(stored.clone(), layers[1].clone())], &Value::Null);
    let mut builder = Builder::new(fs::File::create(&path).unwrap());
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", sha256(bytes).hex());
    for bytes in [&stored, &image.config] {
        append(&mut builder, &blob(bytes), bytes);
    }
    let manifest = json!([{"Config": blob(&image.config), "RepoTags": null, "Layers": [blob(&stored)]}]);
    append(&mut builder, "manifest.json", manifest.to_string().as_bytes());
    builder.finish().unwrap();
    let (unpacked, _lease) = get(&store, &format!("docker-archive:{}", path.display())).await;
    assert_eq!(names(&unpacked.layers[0]), ["b"]);
}

#[tokio::test]
async fn damaged_archives_are_told() {
    let Some(place) = Place::new("damaged_archives_are_told") else { return };
    let layers = [plain("a"), plain("b")];
    let three: Vec<_> = [&layers[0], &layers[1], &layers[0]].map(|l| (l.clone(), l.clone())).into();
    let good = image_of(&three, &Value::Null);
    let store = place.store();
    let reference = old_archive(&place, "good.tar", &good, &layers);
    let whole = fs::read(place.images().join("good.tar")).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        fs::File::create(place.images().join(name)).unwrap().write_all(bytes).unwrap();
        format!("docker-archive:{}", place.images().join(name).display())
    };
    assert!(refused(&store, &put("cut.tar", &whole[..700])).await.contains("cut off"));
    assert!(refused(&store, &put("gz.tar", &gzip(&whole))).await.contains("decompress it first"));
    assert!(
        refused(&store, &put("text.tar", &b"text ".repeat(500))).await.contains("no archive of docker save")
    );
    assert!(refused(&store, &put("empty.tar", b"")).await.contains("no file \"manifest.json\""));
    assert!(
        refused(&store, &format!("docker-archive:{}", place.images().display())).await.contains("directory")
    );
    let other = image_of(&three[..2], &Value::Null);
    let mixed = old_archive(&place, "mixed.tar", &other, &layers);
    assert!(refused(&store, &mixed).await.contains("lists 2 layers, and the manifest 3"));
    let swapped = old_archive(&place, "swapped.tar", &good, &[plain("b"), plain("a")]);
    assert!(refused(&store, &swapped).await.contains("uncompressed, is corrupt"));
    assert_eq!(store.used_bytes(), 0);
    drop(get(&store, &reference).await);
}
