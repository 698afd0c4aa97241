//! What layers become: files with everything they had, and together what overlayfs shows.

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

use bulkhead_image::root;
use tar::EntryType;

use crate::fixture::{Layer, Place, get, gzip, image, image_of, names, zstd};

/// An overlay of some layers, gone again at the end.
struct Mounted(PathBuf);

impl Mounted {
    fn new(place: &Place, layers: &[PathBuf]) -> Self {
        let at = place.dir.path().join("merged");
        fs::create_dir_all(&at).unwrap();
        let lower: Vec<_> = layers.iter().rev().map(|l| l.display().to_string()).collect();
        let options = format!("lowerdir={}", lower.join(":"));
        let mount =
            Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&at).status();
        assert!(mount.unwrap().success(), "{options}");
        Self(at)
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.0.join(path)).ok()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

#[tokio::test]
async fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let Some(place) = Place::new("whiteouts_and_opaque_directories_hide_what_is_below") else { return };
    let lower = Layer::new()
        .dir("etc")
        .file("etc/kept", "kept")
        .file("etc/gone", "gone")
        .file("etc/changed", "before")
        .dir("data")
        .file("data/old", "old")
        .dir("whole")
        .file("whole/x", "x")
        .dir("again")
        .file("again/below", "below")
        .dir("early")
        .file("early/below", "below")
        .file("became", "a file")
        .done();
    let upper = Layer::new()
        .file("etc/.wh.gone", "")
        .file("etc/changed", "after")
        .dir("data")
        .file("data/new", "new")
        .file("data/.wh..wh..opq", "")
        .file(".wh.whole", "")
        // A whiteout hides what is below, and not what its own layer has, in whatever order they come.
        .file(".wh.again", "")
        .dir("again")
        .file("again/own", "own")
        .dir("early")
        .file("early/own", "own")
        .file(".wh.early", "")
        .file(".wh..wh.plnk/12.34", "bookkeeping")
        .dir("became")
        .file("became/x", "a directory")
        .done();
    let reference = place.layout("two", &image(&[lower, upper]));
    let store = place.store();
    let (unpacked, _lease) = get(&store, &reference).await;
    assert_eq!(unpacked.layers.len(), 2);
    let merged = Mounted::new(&place, &unpacked.layers);
    let expected = [
        ("etc/kept", Some("kept")),
        ("etc/gone", None),
        ("etc/changed", Some("after")),
        ("data/old", None),
        ("data/new", Some("new")),
        ("whole/x", None),
        ("again/below", None),
        ("again/own", Some("own")),
        ("early/below", None),
        ("early/own", Some("own")),
        ("became/x", Some("a directory")),
        ("became", None),
    ];
    for (path, content) in expected {
        assert_eq!(merged.read(path).as_deref(), content, "{path}");
        let looked_up = root::read(&unpacked.layers, Path::new(path), 100).unwrap();
        assert_eq!(looked_up.as_deref(), content.map(str::as_bytes), "{path}, looked up");
    }
    assert_eq!(names(&merged.0), ["again", "became", "data", "early", "etc"]);
}

#[tokio::test]
async fn files_keep_what_they_had() {
    let Some(place) = Place::new("files_keep_what_they_had") else { return };
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let mut owned = Layer::header(EntryType::Regular, 2);
    owned.set_uid(70_000);
    owned.set_gid(80_000);
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Layer::new()
        .dir("./")
        .mode("bin/su", "x", 0o4755)
        .raw(owned, "owned", "", b"hi")
        .pax(&[("path", long.as_bytes()), ("mtime", b"12.5")])
        .file("short", "long")
        .pax(&[("path", b"not\xffutf8")])
        .file("short", "bytes")
        .pax(&[
            ("SCHILY.xattr.user.mark", b"one\ntwo"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .file("marked", "m")
        .hard_link("bin/sudo", "bin/su")
        .symlink("away", "/etc/passwd")
        .raw(Layer::header(EntryType::Fifo, 0), "pipe", "", b"")
        .raw(Layer::header(EntryType::Char, 0), "dev/null", "", b"")
        .dir("late")
        .file("late/x", "")
        .done();
    let store = place.store();
    let (unpacked, _lease) = get(&store, &place.layout("i", &image(&[layer]))).await;
    let root = &unpacked.layers[0];
    let meta = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    assert_eq!(meta("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(meta("bin/su").ino(), meta("bin/sudo").ino());
    assert_eq!((meta("owned").uid(), meta("owned").gid()), (70_000, 80_000));
    assert_eq!((meta(&long).mtime(), meta(&long).mtime_nsec()), (12, 500_000_000));
    assert_eq!(meta("late").mtime(), 1_000_000, "of a directory that was written to afterwards");
    assert!(root.join(std::ffi::OsStr::from_bytes(b"not\xffutf8")).exists());
    assert_eq!(fs::read_link(root.join("away")).unwrap(), Path::new("/etc/passwd"));
    assert!(meta("pipe").file_type().is_fifo());
    // A device without numbers is a whiteout; see `other_devices_are_left_out` for the others.
    assert_eq!(meta("dev/null").rdev(), 0);

    let file = fs::File::open(root.join("marked")).unwrap();
    let xattr = |name: &str| {
        let mut value = [0; 64];
        rustix::fs::fgetxattr(&file, name, &mut value[..]).ok().map(|n| value[..n].to_vec())
    };
    assert_eq!(xattr("user.mark").unwrap(), b"one\ntwo");
    assert_eq!(xattr("security.capability").unwrap(), capability);
    assert_eq!(xattr("trusted.overlay.redirect"), None);
    assert_eq!(xattr("user.overlay.opaque"), None);
    assert_eq!(meta("").mode() & 0o777, 0o755);
    let store_mode = fs::metadata(place.store_dir().join("layers")).unwrap().mode() & 0o777;
    assert_eq!(store_mode, 0o700, "set-id files of strangers lie there");
}

#[tokio::test]
async fn other_devices_are_left_out() {
    let Some(place) = Place::new("other_devices_are_left_out") else { return };
    let mut disk = Layer::header(EntryType::Block, 0);
    disk.set_device_major(8).unwrap();
    disk.set_device_minor(0).unwrap();
    let mut memory = Layer::header(EntryType::Char, 0);
    memory.set_device_major(1).unwrap();
    memory.set_device_minor(1).unwrap();
    let layer = Layer::new().raw(disk, "sda", "", b"").raw(memory, "mem", "", b"").file("x", "x").done();
    let store = place.store();
    let (unpacked, _lease) = get(&store, &place.layout("i", &image(&[layer]))).await;
    assert_eq!(names(&unpacked.layers[0]), ["x"]);
}

#[tokio::test]
async fn holes_stay_holes() {
    let Some(place) = Place::new("holes_stay_holes") else { return };
    let mut header = Layer::header(EntryType::GNUSparse, 3);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(32 << 20);
    gnu.sparse[0].set_offset(16 << 20);
    gnu.sparse[0].set_length(3);
    let layer = Layer::new().raw(header, "holes", "", b"abc").done();
    let store = place.store();
    let (unpacked, _lease) = get(&store, &place.layout("i", &image(&[layer]))).await;
    let path = unpacked.layers[0].join("holes");
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len(), 32 << 20);
    assert_eq!(&content[16 << 20..][..4], b"abc\0");
    assert!(fs::metadata(path).unwrap().blocks() < 100);
}

#[tokio::test]
async fn every_compression_is_recognised() {
    let Some(place) = Place::new("every_compression_is_recognised") else { return };
    let plain = |name: &str| Layer::new().file(name, &"text ".repeat(10_000)).done();
    let (a, b, c, d) = (plain("a"), plain("b"), plain("c"), plain("d"));
    // Tools that compress in parallel write several gzip members.
    let members = [gzip(&c[..700]), gzip(&c[700..])].concat();
    let layers = [(a.clone(), a), (zstd(&b), b), (members, c), (gzip(&d), d)];
    let store = place.store();
    let (unpacked, _lease) =
        get(&store, &place.layout("i", &image_of(&layers, &serde_json::Value::Null))).await;
    for (layer, name) in unpacked.layers.iter().zip(["a", "b", "c", "d"]) {
        assert_eq!(names(layer), [name]);
    }
}

#[tokio::test]
async fn links_of_a_layer_lead_within_it() {
    let Some(place) = Place::new("links_of_a_layer_lead_within_it") else { return };
    let layer = Layer::new()
        .symlink("abs", "/etc")
        .dir("etc")
        .file("abs/through", "1")
        .symlink("up", "../../../../../../..")
        .file("up/top", "2")
        .dir("usr")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/x", "3")
        .hard_link("abs/other", "lib/x")
        // The name itself is replaced, and never what it points to.
        .symlink("etc/victim", "/usr/lib/x")
        .file("etc/victim", "4")
        .symlink("dir", "/usr")
        .dir("dir")
        .done();
    let store = place.store();
    let (unpacked, _lease) = get(&store, &place.layout("i", &image(&[layer]))).await;
    let read = |path: &str| fs::read_to_string(unpacked.layers[0].join(path)).unwrap();
    assert_eq!((read("etc/through"), read("top"), read("usr/lib/x")), ("1".into(), "2".into(), "3".into()));
    assert_eq!((read("etc/other"), read("etc/victim")), ("3".into(), "4".into()));
    assert!(fs::symlink_metadata(unpacked.layers[0].join("dir")).unwrap().is_dir());
}

#[tokio::test]
async fn a_file_is_looked_up_through_links_and_layers() {
    let Some(place) = Place::new("a_file_is_looked_up_through_links_and_layers") else { return };
    let lower = Layer::new()
        .dir("usr")
        .dir("usr/etc")
        .file("usr/etc/passwd", "lower")
        .symlink("etc", "/usr/etc")
        .symlink("loop", "loop")
        .symlink("host", "../../../../../../../../etc/hostname")
        .dir("d")
        .file("file", "x")
        .done();
    let upper = Layer::new().dir("usr").dir("usr/etc").file("usr/etc/group", "upper").done();
    let store = place.store();
    let (unpacked, _lease) = get(&store, &place.layout("i", &image(&[lower, upper]))).await;
    let read = |path: &str| root::read(&unpacked.layers, Path::new(path), 10);
    assert_eq!(read("/etc/passwd").unwrap().unwrap(), b"lower");
    assert_eq!(read("etc/../etc/group").unwrap().unwrap(), b"upper");
    assert_eq!(read("/host").unwrap(), None, "the host has this file, the image does not");
    assert_eq!(read("/d").unwrap(), None);
    assert_eq!(read("/file/x").unwrap(), None);
    assert!(read("/loop").is_err());
    assert!(root::read(&unpacked.layers, Path::new("/etc/passwd"), 4).is_err());
}
