use std::{
    fs,
    io::{Cursor, Seek as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::budget::Limits;

/// A directory to unpack into, beside one that nothing may reach.
struct Fixture {
    top: tempfile::TempDir,
    limits: Limits,
}

impl Fixture {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        for dir in ["in", "out"] {
            fs::create_dir(top.path().join(dir)).unwrap();
        }
        fs::write(top.path().join("out/secret"), "secret").unwrap();
        Self { top, limits: Limits { bytes: 1 << 20, entries: 100 } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join("in").join(name)
    }

    fn unpack(&self, archive: &[u8]) -> Result<(), UnpackError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(archive).unwrap();
        file.rewind().unwrap();
        let into = Beneath::open(&self.path("")).unwrap();
        let budget = Budget::new(self.limits);
        let (made, result) = Unpacker::new(&into, &budget, &mut |_| Ok(())).run(file);
        if result.is_err() {
            made.remove(&into);
        }
        result
    }

    /// Unpacking fails, leaves nothing behind and touches nothing outside.
    fn refuses(&self, archive: &[u8]) -> UnpackError {
        let before = self.names();
        let error = self.unpack(archive).unwrap_err();
        assert_eq!(self.names(), before, "{error}");
        self.outside_is_untouched();
        error
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(""))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn outside_is_untouched(&self) {
        let outside = self.top.path().join("out");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(self.top.path()).unwrap().count(), 2);
    }
}

/// An entry with exactly this name: the tar crate's own builder refuses hostile ones.
#[derive(Clone, Debug)]
struct Entry {
    name: Vec<u8>,
    kind: EntryType,
    target: Vec<u8>,
    mode: u32,
    content: Vec<u8>,
}

fn entry(name: &str, kind: EntryType) -> Entry {
    Entry { name: name.into(), kind, target: Vec::new(), mode: 0o644, content: Vec::new() }
}

fn file(name: &str, content: &str) -> Entry {
    Entry { content: content.into(), ..entry(name, EntryType::Regular) }
}

fn link(name: &str, kind: EntryType, target: &str) -> Entry {
    Entry { target: target.into(), ..entry(name, kind) }
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..entry.name.len()].copy_from_slice(&entry.name);
        old.linkname[..entry.target.len()].copy_from_slice(&entry.target);
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_mtime(1_000_000);
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        builder.append(&header, &entry.content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn zip(entries: &[(&str, u32, &str)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, mode, content) in entries {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(*mode);
        if name.ends_with('/') {
            writer.add_directory(*name, options).unwrap();
        } else {
            writer.start_file(*name, options).unwrap();
            writer.write_all(content.as_bytes()).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn every_format_gives_the_same_files() {
    let dir = Entry { mode: 0o700, ..entry("bin/", EntryType::Directory) };
    let run = Entry { mode: 0o755, ..file("bin/run", "#!/bin/sh\n") };
    let plain = tar(&[entry("./", EntryType::Directory), dir, run, file("deep/er/file", "x")]);
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    let zipped = zip(&[("bin/", 0o700, ""), ("bin/run", 0o755, "#!/bin/sh\n"), ("deep/er/file", 0o644, "x")]);
    for archive in [plain.clone(), gz(&plain), zstd, zipped] {
        let f = Fixture::new();
        f.unpack(&archive).unwrap();
        assert_eq!(f.names(), ["bin", "deep"]);
        assert_eq!(fs::read(f.path("deep/er/file")).unwrap(), b"x");
        let mode = |name: &str| fs::metadata(f.path(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("bin"), mode("bin/run"), mode("deep/er/file")), (0o700, 0o755, 0o644));
    }
}

#[test]
fn links_inside_are_kept() {
    let f = Fixture::new();
    f.unpack(&tar(&[
        file("lib/x.so.1", "so"),
        link("lib/x.so", EntryType::Symlink, "x.so.1"),
        link("bin/x", EntryType::Symlink, "../lib/x.so"),
        link("hard", EntryType::Link, "lib/x.so.1"),
    ]))
    .unwrap();
    assert_eq!(fs::read(f.path("bin/x")).unwrap(), b"so");
    assert_eq!(
        fs::metadata(f.path("hard")).unwrap().ino(),
        fs::metadata(f.path("lib/x.so.1")).unwrap().ino()
    );
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../evil", "/evil", "a/../../evil", "..", "a/../b"] {
        let f = Fixture::new();
        let good = file("good", "x");
        let error = f.refuses(&tar(&[good.clone(), file(name, "evil")]));
        assert!(matches!(&error, UnpackError::Name { name: n, .. } if n == name), "{error}");
        assert!(matches!(f.refuses(&tar(&[entry(name, EntryType::Directory)])), UnpackError::Name { .. }));
        let f = Fixture::new();
        assert!(matches!(
            f.refuses(&zip(&[("good", 0o644, "x"), (name, 0o644, "x")])),
            UnpackError::Name { .. }
        ));
    }
}

#[test]
fn links_that_lead_out_are_refused() {
    for target in ["../out/secret", "/etc/passwd", "a/../../x", "", ".."] {
        let f = Fixture::new();
        let error = f.refuses(&tar(&[file("good", "x"), link("evil", EntryType::Symlink, target)]));
        assert!(matches!(error, UnpackError::Link { .. }), "{target:?}: {error}");
    }
    for target in ["../out/secret", "/etc/passwd", "not-here", "sub"] {
        let f = Fixture::new();
        let error = f.refuses(&tar(&[file("sub/x", "x"), link("evil", EntryType::Link, target)]));
        assert!(matches!(error, UnpackError::Link { .. }), "{target:?}: {error}");
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let f = Fixture::new();
    let through = [link("a", EntryType::Symlink, "b"), file("b/x", "x"), file("a/y", "evil")];
    assert!(matches!(f.refuses(&tar(&through)), UnpackError::Place(e) if e.leaves()));
    // One that was there before, by a hostile process.
    symlink("../out", f.path("up")).unwrap();
    symlink("../out/secret", f.path("file")).unwrap();
    assert!(matches!(f.refuses(&tar(&[file("up/x", "evil")])), UnpackError::Place(e) if e.leaves()));
    assert!(matches!(f.refuses(&tar(&[file("file", "evil")])), UnpackError::Exists(_)));
    assert!(f.refuses(&tar(&[entry("up", EntryType::Directory)])).to_string().contains("link"));
    assert!(matches!(f.refuses(&tar(&[link("x", EntryType::Link, "file")])), UnpackError::Link { .. }));
}

#[test]
fn only_files_directories_and_links_are_unpacked() {
    for (kind, word) in
        [(EntryType::Char, "character"), (EntryType::Block, "block"), (EntryType::Fifo, "pipe")]
    {
        let error = Fixture::new().refuses(&tar(&[file("good", "x"), entry("dev", kind)]));
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn no_file_gets_rights_of_its_own() {
    let f = Fixture::new();
    let suid = Entry { mode: 0o6755, ..file("suid", "x") };
    let sticky = Entry { mode: 0o3777, ..entry("dir", EntryType::Directory) };
    f.unpack(&tar(&[suid, sticky])).unwrap();
    let mode = |name: &str| fs::metadata(f.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("suid"), mode("dir")), (0o755, 0o777));
}

#[test]
fn a_second_entry_of_a_name_replaces_the_first() {
    let f = Fixture::new();
    let entries = [
        file("a", "one"),
        file("a", "two"),
        link("b", EntryType::Symlink, "a"),
        file("b", "three"),
        entry("d", EntryType::Directory),
        entry("d", EntryType::Directory),
    ];
    f.unpack(&tar(&entries)).unwrap();
    assert_eq!(fs::read(f.path("a")).unwrap(), b"two");
    assert_eq!(fs::read(f.path("b")).unwrap(), b"three");
    assert!(matches!(
        Fixture::new().refuses(&tar(&[file("d/x", ""), file("d", "")])),
        UnpackError::Exists(_)
    ));
}

#[test]
fn what_was_there_before_stays() {
    let f = Fixture::new();
    fs::create_dir(f.path("d")).unwrap();
    fs::write(f.path("d/mine"), "mine").unwrap();
    f.refuses(&tar(&[file("d/new", "x"), file("d/mine", "evil")]));
    assert_eq!(fs::read(f.path("d/mine")).unwrap(), b"mine");
    assert!(!f.path("d/new").exists());
}

#[test]
fn bombs_end_at_the_budget() {
    let zeros = "\0".repeat(4 << 20);
    let big = tar(&[file("zeros", &zeros)]);
    assert!(gz(&big).len() < 64 << 10);
    for archive in [gz(&big), zstd::encode_all(&big[..], 1).unwrap(), zip(&[("zeros", 0o644, &zeros)])] {
        assert!(matches!(Fixture::new().refuses(&archive), UnpackError::Spent(Spent::Bytes(_))));
    }
    let many: Vec<Entry> = (0..200).map(|i| file(&format!("f{i}"), "")).collect();
    assert!(matches!(Fixture::new().refuses(&tar(&many)), UnpackError::Spent(Spent::Entries(100))));
    let deep = format!("{}x", "d/".repeat(45));
    let deep: Vec<Entry> = (0..3).map(|i| file(&format!("{i}{deep}"), "")).collect();
    assert!(matches!(Fixture::new().refuses(&tar(&deep)), UnpackError::Spent(Spent::Entries(100))));
}

#[test]
fn a_sparse_file_counts_with_its_holes() {
    let mut header = Header::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    let octal = |field: &mut [u8], value: u64| {
        let text = format!("{value:0width$o}", width = field.len() - 1);
        field[..text.len()].copy_from_slice(text.as_bytes());
    };
    // One piece of nothing at the end of eight gigabytes.
    octal(&mut gnu.sparse[0].offset, (8 << 30) - 1);
    octal(&mut gnu.sparse[0].numbytes, 0);
    octal(&mut gnu.realsize, (8 << 30) - 1);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, &[][..]).unwrap();
    let error = Fixture::new().refuses(&builder.into_inner().unwrap());
    assert!(matches!(error, UnpackError::Spent(Spent::Bytes(_))), "{error}");
}

#[test]
fn a_name_of_many_megabytes_is_not_read_into_memory() {
    let mut long = entry("././@LongLink", EntryType::GNULongName);
    long.content = vec![b'a'; 8 << 20];
    let error = Fixture::new().refuses(&gz(&tar(&[long, file("x", "x")])));
    assert!(error.to_string().contains("headers"), "{error}");
}

#[test]
fn names_need_not_be_text() {
    let f = Fixture::new();
    let name = b"caf\xe9\xff".to_vec();
    f.unpack(&tar(&[Entry { name: name.clone(), ..file("", "x") }])).unwrap();
    assert_eq!(fs::read(f.path("").join(OsStr::from_bytes(&name))).unwrap(), b"x");
}

#[test]
fn what_is_no_archive_says_so() {
    let whole = gz(&tar(&[file("a", "content"), file("b", &"x".repeat(9000))]));
    for bytes in [
        &b"#!/bin/sh\necho this is a script and no archive at all"[..],
        &whole[..whole.len() / 2],
        b"PK\x03\x04nothing",
        b"\x1f\x8bnothing",
    ] {
        let bytes = [bytes, &[b' '; 600]].concat();
        let error = Fixture::new().refuses(&bytes);
        assert!(matches!(error, UnpackError::Format(_)), "{error}");
    }
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".", "", "up"]);
    let path = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/").into_bytes());
    let kind = prop::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Char,
    ]);
    let target = prop::sample::select(vec!["a", "../out/secret", "..", "/", "a/b", "../../out", "up/secret"]);
    (path, kind, target, any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(name, kind, target, mode, content)| Entry {
            name,
            kind,
            target: target.into(),
            mode: mode & 0o7777,
            content,
        },
    )
}

proptest! {
    #[test]
    fn no_archive_reaches_outside(entries in prop::collection::vec(any_entry(), 1..20)) {
        let f = Fixture::new();
        symlink("../out", f.path("up")).unwrap();
        let failed = f.unpack(&tar(&entries)).is_err();
        f.outside_is_untouched();
        if failed {
            prop_assert_eq!(f.names(), ["up"]);
        }
    }

    #[test]
    fn damaged_archives_do_not_panic(at in 0usize..4096, to: u8, format in 0..4) {
        let plain = tar(&[file("a/b", "content"), link("l", EntryType::Symlink, "a/b"), file("c", "more")]);
        let mut bytes = match format {
            0 => plain,
            1 => gz(&plain),
            2 => zstd::encode_all(&plain[..], 1).unwrap(),
            _ => zip(&[("a/b", 0o644, "content"), ("c", 0o600, "more")]),
        };
        let at = at % bytes.len();
        bytes[at] = to;
        let f = Fixture::new();
        drop(f.unpack(&bytes));
        f.outside_is_untouched();
    }
}
